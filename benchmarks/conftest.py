"""Fixtures of the benchmarks: every case runs our layer and its peer in turn and records the result.

    python -m pytest benchmarks                                  # all, with one table per file
    python -m pytest benchmarks/bench_cells.py --threads 1       # one file
    python -m pytest benchmarks --results benchmarks/results     # with result files, as `make bench` does

pytest-benchmark times our layer, one block of calls per round (extra_info["calls"]). The peer's block runs in the setup
of the same round. extra_info holds the ratio, GFLOP/s and the share of the roofline.
"""

from pathlib import Path

import pytest
import torch

from lstmkern.bench import goals, measure, report, roofline
from lstmkern.bench.cases import Case, Contest

RECORDS = pytest.StashKey[dict]()


def pytest_addoption(parser):
    group = parser.getgroup("lstmkern")
    group.addoption("--threads", type=int, default=roofline.cores(), help="CPU threads (default: every core)")
    group.addoption("--case-seconds", type=float, default=0.5, help="time for the rounds of a case (default: 0.5)")
    group.addoption("--results", type=Path, help="write a JSON file for each benchmark file into this directory")


def pytest_configure(config):
    config.stash[RECORDS] = {}


@pytest.fixture(scope="session")
def rooflines():
    """rooflines(threads): the machine's rates with that number of threads, measured once."""
    known = {}

    def measured(threads):
        if threads not in known:
            with measure.quiet(threads):
                known[threads] = roofline.Roofline.measure(threads)
        return known[threads]

    return measured


@pytest.fixture
def threads(request):
    return request.config.getoption("--threads")


@pytest.fixture
def record(request):
    """record(**fields) adds a line to the results of this file and returns it, so that a test can add fields."""

    def add(**fields):
        module = Path(request.node.fspath).stem
        line = {"case": request.node.name, **fields}
        request.config.stash[RECORDS].setdefault(module, []).append(line)
        return line

    return add


@pytest.fixture
def contest(benchmark, rooflines, threads, record, request):
    """contest(case, ours, theirs, **fields) runs both in turn and returns the recorded result.

    Without ours and theirs, our layer and torch.nn's are built for ``case``. case says how much work a call is.
    """

    def run(case: Case, ours=None, theirs=None, *, threads=threads, warm_up=None, **fields):
        torch.manual_seed(0)
        if ours is None:
            both = Contest(case)
            ours, theirs, warm_up = both.ours, both.theirs, both.warm_up
        limits = rooflines(threads)
        with measure.quiet(threads):
            pairs = measure.Pairs(ours, theirs, warm_up=warm_up, probe=limits.probe(case))
            benchmark.pedantic(
                pairs.our_block,
                setup=pairs.peer_block,
                rounds=pairs.rounds_within(request.config.getoption("--case-seconds")),
            )
        result = {**goals.summarize_case(case, limits, pairs), **fields}
        benchmark.extra_info.update(result, calls=pairs.calls[0])
        return record(**result)

    return run


def pytest_terminal_summary(terminalreporter, config):
    for module, records in config.stash[RECORDS].items():
        terminalreporter.section(module)
        # The cases of one file may have different columns: one table per set of columns.
        for columns in dict.fromkeys(tuple(record) for record in records):
            rows = [[_text(record[c]) for c in columns] for record in records if tuple(record) == columns]
            shown = [k for k, c in enumerate(columns) if c not in ("cell", "shape", "dtype", "train")]
            head = [columns[k] for k in shown]
            terminalreporter.write_line(report.markdown(head, [[row[k] for k in shown] for row in rows]))


def _text(value) -> str:
    if value is None:
        return ""
    return report.number(value) if isinstance(value, float) else str(value)


def pytest_sessionfinish(session):
    folder = session.config.getoption("--results")
    if folder is None:
        return
    skipped = {}
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    for skip in reporter.stats.get("skipped", []):
        module = Path(skip.nodeid.split("::")[0]).stem
        skipped.setdefault(module, []).append({"case": skip.nodeid.split("::")[-1], "reason": skip.longrepr[2]})
    about = report.context(session.config.getoption("--threads"))
    for module, records in session.config.stash[RECORDS].items():
        report.write_json(folder / f"{module}.json", about, skipped=skipped.get(module, []), cases=records)
