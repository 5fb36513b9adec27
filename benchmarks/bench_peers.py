"""Implementations other than torch.nn. A missing one is skipped with a reason (see requirements-bench.txt).

ratio: the peer's time divided by ours.
"""

import pytest
import torch

from benchmarks.peers import PEERS, Unavailable
from lstmkern.bench.cases import Case, modules_for, step_of

SHAPES = [(1, 1, 256, 256, 1), (16, 64, 64, 64, 2), (128, 32, 256, 256, 1)]
# Compiling a step takes seconds per case.
PAIRS = [(peer, shape) for peer in PEERS for shape in SHAPES if peer != "compiled cell" or shape[0] <= 16]


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize(("peer", "shape"), PAIRS, ids=[f"{peer}-{','.join(map(str, s))}" for peer, s in PAIRS])
def test_peer(contest, peer, shape, cell, train):
    threads, case = 1, Case(cell, *shape, train=train)  # not every peer can choose the number of threads
    torch.manual_seed(0)
    ours, theirs = modules_for(case)
    x = torch.randn(case.T, case.N, case.I)
    try:
        run, values = PEERS[peer](case, theirs, x, threads)
    except Unavailable as reason:
        pytest.skip(f"{peer}: {reason}")
    with torch.no_grad():
        torch.testing.assert_close(values(), ours(x)[0], atol=1e-5, rtol=1e-4)  # fp32, sums of up to 1024 products
    contest(case, step_of(ours, x, train), run, threads=threads, peer=peer, goal=None)
