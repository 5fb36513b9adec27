"""Variable-length batches, lengths uniform in 10..T: ours, packed and with lengths=, compared with torch.nn's packed.

token_cost: our seconds per non-padding token, divided by our seconds per token of a dense batch. torch_token_cost: the
same for torch.nn, also divided by our dense batch.
"""

import statistics

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from lstmkern.bench import measure
from lstmkern.bench.cases import Case, modules_for, step_of

SHAPES = [(100, 64, 128), (100, 32, 256), (70, 20, 400)]  # T, N, H


def packed_step(module, packed, train):
    if not train:

        def infer():
            with torch.no_grad():
                return module(packed)

        return infer
    packed = packed._replace(data=packed.data.clone().requires_grad_())
    wanted = [packed.data, *module.parameters()]
    grad = torch.randn(packed.data.size(0), module.hidden_size)

    def learn():
        return torch.autograd.grad(module(packed)[0].data, wanted, grad)

    return learn


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
@pytest.mark.parametrize("layout", ["packed", "lengths="])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: ",".join(map(str, s)))
def test_ragged(contest, threads, shape, layout, cell, train):
    T, N, H = shape
    torch.manual_seed(0)
    lengths = torch.randint(10, T + 1, (N,))
    lengths[0] = T
    case = Case(cell, T, N, H, H, train=train, rows=int(lengths.sum()))
    ours, theirs = modules_for(case)
    x = torch.randn(T, N, H)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    ragged = packed_step(ours, packed, train) if layout == "packed" else step_of(ours, x, train, lengths=lengths)
    with measure.quiet(threads):
        against_dense = measure.Pairs(ragged, step_of(ours, x, train)).run(0.4)
    dense = 1 / statistics.median(against_dense.ratios)  # seconds of the ragged batch over those of the dense one
    cost = dense * T * N / case.rows
    result = contest(case, ragged, packed_step(theirs, packed, train), layout=layout, token_cost=cost)
    result["torch_token_cost"] = cost * result["ratio"]
