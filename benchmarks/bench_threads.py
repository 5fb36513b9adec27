"""From one thread to every core, and beside busy neighbours: one process per core that never sleeps."""

import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from lstmkern.bench import goals, measure, roofline
from lstmkern.bench.cases import Case, Contest

CORES = roofline.cores()
COUNTS = sorted({*(2**k for k in range(CORES.bit_length()) if 2**k <= CORES), CORES})
SHAPES = [(70, 20, 200, 200, 2), (128, 32, 256, 256, 1), (64, 1, 512, 512, 1)]


BLOCK = 0.1  # seconds of calls at a time beside neighbours
ROUNDS = 11


@pytest.fixture
def neighbours():
    """``with neighbours():`` keeps every core busy with a process of its own."""

    @contextmanager
    def busy():
        started = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(CORES)]
        time.sleep(0.1)
        try:
            yield
        finally:
            for process in started:
                process.kill()
                process.wait()

    return busy


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: ",".join(map(str, s)))
@pytest.mark.parametrize("count", COUNTS)
def test_threads(contest, count, shape, cell, train):
    contest(Case(cell, *shape, train=train), threads=count)


@pytest.mark.parametrize(
    ("cell", "shape", "dtype", "train"),
    [
        ("LSTM", (16, 20, 200, 200), "fp32", False),
        ("LSTM", (16, 20, 200, 200), "fp32", True),
        ("LSTM", (16, 20, 200, 200), "bf16", True),
        ("GRU", (16, 20, 200, 200), "fp32", True),
        ("LSTM", (64, 1, 512, 512), "fp32", False),  # units shared, a barrier per step
    ],
)
def test_oversubscribed(rooflines, record, neighbours, cell, shape, dtype, train):
    """ours_slowdown and torch_slowdown: milliseconds beside the neighbours over those without (2 would be fair).

    The system deals out the cores in slices of milliseconds and may leave the threads for a second where they are, so a
    block is a tenth of a second, of which the mean counts, and in every round the neighbours are new.
    """
    case = Case(cell, *shape, dtype=dtype, train=train)  # short: a call may take a hundred times as long
    both, limits = Contest(case), rooflines(CORES)
    with measure.quiet(CORES):
        alone = measure.Pairs(both.ours, both.theirs, warm_up=both.warm_up).run(0.2)
        beside = measure.Pairs(both.ours, both.theirs, warm_up=both.warm_up, probe=limits.probe(case), block=BLOCK)
        for _ in range(ROUNDS):
            with neighbours():
                beside.run(0, least=1)
    result = record(**goals.summarize_case(case, limits, beside), neighbours=CORES)
    result["ours_slowdown"] = result["ours_ms"] / statistics.median(alone.ours) / 1e3
    result["torch_slowdown"] = result["peer_ms"] / statistics.median(alone.theirs) / 1e3
