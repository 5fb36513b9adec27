"""One thread to every core, and layers on a busy machine: with one other process per core that never sleeps."""

import statistics

import pytest

from benchmarks.busy import busy_cores
from lstmkern.bench import goals, measure, roofline
from lstmkern.bench.cases import Case, Contest

CORES = roofline.cores()
COUNTS = sorted({*(2**k for k in range(CORES.bit_length()) if 2**k <= CORES), CORES})
SHAPES = [(70, 20, 200, 200, 2), (128, 32, 256, 256, 1), (64, 1, 512, 512, 1)]

BLOCK = 0.1  # seconds of calls per block on the busy machine
ROUNDS = 11


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
        ("LSTM", (64, 1, 512, 512), "fp32", False),  # threads divide hidden units, with a barrier per step
    ],
)
def test_oversubscribed(rooflines, record, cell, shape, dtype, train):
    """ours_slowdown, torch_slowdown: time on the busy machine divided by time on the idle one (2 would be fair).

    The scheduler hands out cores in slices of milliseconds and may leave threads on their core for a second. So a block
    lasts a tenth of a second, its mean counts, and the other processes are started again in every round.
    """
    case = Case(cell, *shape, dtype=dtype, train=train)  # short, as a call may take a hundred times as long
    both, limits = Contest(case), rooflines(CORES)
    with measure.quiet(CORES):
        idle = measure.Pairs(both.ours, both.theirs, warm_up=both.warm_up).run(0.2)
        busy = measure.Pairs(both.ours, both.theirs, warm_up=both.warm_up, probe=limits.probe(case), block=BLOCK)
        for _ in range(ROUNDS):
            with busy_cores():
                busy.run(0, least=1)
    result = record(**goals.summarize_case(case, limits, busy), neighbours=CORES)
    result["ours_slowdown"] = result["ours_ms"] / statistics.median(idle.ours) / 1e3
    result["torch_slowdown"] = result["peer_ms"] / statistics.median(idle.theirs) / 1e3
