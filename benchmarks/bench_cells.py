"""LSTMCell, GRUCell and RNNCell compared with torch.nn's: one step called from Python, as decoders and agents do."""

import pytest
import torch

from lstmkern import cells
from lstmkern.bench.cases import Case

SIZES = [(1, 64, 64), (1, 256, 256), (16, 128, 128), (64, 256, 256), (128, 512, 512)]  # N, I, H


def step_of(module, x, state, train):
    if not train:

        def infer():
            with torch.no_grad():
                return module(x, state)

        return infer
    x = x.clone().requires_grad_()
    wanted, grad = [x, *module.parameters()], torch.randn(x.size(0), module.hidden_size)

    def learn():
        h = module(x, state)
        return torch.autograd.grad(h[0] if isinstance(h, tuple) else h, wanted, grad)

    return learn


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: ",".join(map(str, s)))
def test_cell(contest, size, cell, train):
    N, features, H = size
    theirs = getattr(torch.nn, f"{cell}Cell")(features, H)
    ours = getattr(cells, f"{cell}Cell")(features, H)
    ours.load_state_dict(theirs.state_dict())
    x, h = torch.randn(N, features), torch.randn(N, H)
    state = (h, torch.randn(N, H)) if cell == "LSTM" else h
    contest(
        Case(cell, 1, N, features, H, train=train),
        step_of(ours, x, state, train),
        step_of(theirs, x, state, train),
        module=f"{cell}Cell",
    )
