"""From one thread to every core, and beside busy neighbours: one process per core that never sleeps."""

import statistics
import subprocess
import sys

import pytest

from lstmkern.bench import measure, roofline
from lstmkern.bench.cases import Case, Contest

CORES = roofline.cores()
COUNTS = sorted({*(2**k for k in range(CORES.bit_length()) if 2**k <= CORES), CORES})
SHAPES = [(70, 20, 200, 200, 2), (128, 32, 256, 256, 1), (64, 1, 512, 512, 1)]


@pytest.fixture
def neighbours():
    """neighbours() starts one busy process for each core; they end with the test."""
    started = []

    def start():
        started.extend(subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(CORES))

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: ",".join(map(str, s)))
@pytest.mark.parametrize("count", COUNTS)
def test_threads(contest, count, shape, cell, train):
    contest(Case(cell, *shape, train=train), threads=count)


@pytest.mark.parametrize(
    ("cell", "dtype", "train"),
    [("LSTM", "fp32", False), ("LSTM", "fp32", True), ("LSTM", "bf16", True), ("GRU", "fp32", True)],
)
def test_oversubscribed(contest, neighbours, cell, dtype, train):
    """ours_slowdown and torch_slowdown: milliseconds beside the neighbours over those without (2 would be fair)."""
    case = Case(cell, 16, 20, 200, 200, dtype=dtype, train=train)  # short: a call may take a hundred times as long
    both = Contest(case)
    with measure.quiet(CORES):
        alone = measure.Pairs(both.ours, both.theirs, warm_up=both.warm_up).run(0.2)
    neighbours()
    result = contest(case, both.ours, both.theirs, threads=CORES, warm_up=both.warm_up, neighbours=CORES)
    result["ours_slowdown"] = result["ours_ms"] / statistics.median(alone.ours) / 1e3
    result["torch_slowdown"] = result["peer_ms"] / statistics.median(alone.theirs) / 1e3
