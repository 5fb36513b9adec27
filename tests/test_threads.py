"""The same bits on every run and for any number of threads: every sum is one chain in one order."""

import pytest
import torch

import lstmkern


def results(cell, N, threads, dtype, **options):
    torch.manual_seed(0)
    module = getattr(lstmkern, cell)(40, 50, dtype=dtype, **options)
    x = torch.randn(30, N, 40, dtype=dtype, requires_grad=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        output, state = module(x)
        (output.sin().sum() + sum(s.cos().sum() for s in torch.utils._pytree.tree_leaves(state))).backward()
    finally:
        torch.set_num_threads(before)
    return [output, *torch.utils._pytree.tree_leaves(state), x.grad, *(p.grad for p in module.parameters())]


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 20}], ids=str)
@pytest.mark.parametrize("N", [1, 5, 70])  # hidden units shared with a barrier per step, and rows shared
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_same_bits(cell, dtype, N, options):
    if "proj_size" in options and cell != "LSTM":
        options = {"bias": False}
    expected = results(cell, N, 1, dtype, **options)
    for threads in (1, 2, 2, 3, 5):
        for a, b in zip(results(cell, N, threads, dtype, **options), expected, strict=True):
            assert torch.equal(a, b)
