"""Part: tests/test_cuda.py, on several cores if pytest-xdist is installed. Does not need torch itself.

    python -m benchmarks.gpu.tests --marked "cuda and not long"

A test that takes longer than 30 seconds ends its process with a traceback (pytest-timeout). outcomes.py records every
outcome at once and skips the tests that have not begun when the time is up, so that pytest still prints its summary.
Other installed plugins are not loaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys

from . import records


def command(device: str, marked: str) -> list[str]:
    words = [sys.executable, "-m", "pytest", "-vv", "-rfE", "--tb=short", "-p", "no:cacheprovider"]
    words += ["-p", "benchmarks.gpu.outcomes", "-m", marked]
    if importlib.util.find_spec("xdist"):
        words += ["-p", "xdist.plugin", "-n", "6" if device == "cuda" else "2"]
    if importlib.util.find_spec("pytest_timeout"):
        seconds = 30 if device == "cuda" else 300
        words += ["-p", "pytest_timeout", "--timeout", str(seconds), "--timeout-method", "thread"]
        words += ["-o", f"faulthandler_timeout={seconds - 5}"]  # a traceback before pytest-timeout ends the process
    return [*words, "tests/test_cuda.py"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--marked", default="cuda")
    options = parser.parse_args(arguments)
    words = command(options.device, options.marked)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.update(LSTMKERN_TEST_DEVICE=options.device, OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "2"))
    os.chdir(records.ROOT)
    sys.stdout.flush()
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
