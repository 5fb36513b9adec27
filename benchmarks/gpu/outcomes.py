"""A pytest plugin (-p benchmarks.gpu.outcomes) that appends each test's outcome to the records as soon as it is known
and skips tests that have not begun when the part's time is up.
"""

from __future__ import annotations

import os

import pytest

from . import device, records, session

TIME_IS_UP = "the part's time was up"
KEPT = pytest.StashKey[records.Records]()


class Outcomes:
    """Receives the reports: in pytest's main process, also with pytest-xdist."""

    def __init__(self, kept: records.Records):
        self.kept = kept

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        # ???: the process crashed, or pytest-timeout ended it
        when = {"???": "its process, which ended"}.get(report.when, report.when)
        outcome = report.outcome if report.when == "call" or report.skipped else f"failed in {when}"
        said = {}
        if report.skipped and isinstance(report.longrepr, tuple):
            said = {"reason": report.longrepr[2].removeprefix("Skipped: ")}
            outcome = "not run" if TIME_IS_UP in said["reason"] else outcome
        elif not report.passed:
            said = {"error": failure(report)}
        test = report.nodeid.partition("::")[2]
        self.kept.write("test", test=test, outcome=outcome, seconds=report.duration, **said)


def failure(report) -> str:
    """The line that says what was wrong."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash else str(report.longrepr)
    return next((line for line in text.splitlines() if line.strip()), "")[:300]


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        return
    where = device.named(os.environ.get("LSTMKERN_TEST_DEVICE", "cuda"))
    kept = records.Records.of_this_process("tests", where.name)
    kept.write("header", **session.about(where))
    config.stash[KEPT] = kept
    config.pluginmanager.register(Outcomes(kept), "lstmkern-outcomes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if records.seconds_left() < 0:
        pytest.skip(TIME_IS_UP)


def pytest_sessionfinish(session, exitstatus):
    """Makes a run with tests that were not run fail."""
    kept = session.config.stash.get(KEPT, None)
    if kept is not None and exitstatus == 0:
        mine = [r for r in records.read(kept.path, kept.run) if r["kind"] == "test" and r["part"] == kept.part]
        if any(r["outcome"] == "not run" for r in mine):
            session.exitstatus = 1
