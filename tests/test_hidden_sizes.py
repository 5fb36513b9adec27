"""Every hidden size: the last panel of units may have less than a register of them, and half a register of columns."""

import copy

import pytest
import torch
from pairs import as_tuple, random_state

import lstmkern
from lstmkern import reference

# 262: large weight gradients of few rows, which are written row by row.
SIZES = [*range(1, 41), 47, 49, 56, 63, 65, 66, 72, 79, 81, 100, 113, 129, 130, 262]
# T and N: several tiles of rows; steps whose products of x and h are separate; weights read in place.
BATCHES = [(5, 14), (6, 3), (2, 2)]


def make(mode, H, dtype=torch.float32):
    """A layer in both directions, with an input size that ends elsewhere in a register; and its options."""
    cell, projected = mode.split("-")[0], mode.endswith("proj")
    options = {"proj_size": (H + 1) // 2} if projected else {}
    return getattr(lstmkern, cell)(H * 7 % 37 + 1, H, bidirectional=True, dtype=dtype, **options)


def gradients(results, inputs):
    torch.manual_seed(1)
    loss = sum((r * torch.randn(r.shape, dtype=torch.float64).to(r.dtype)).sum() for r in results)
    return torch.autograd.grad(loss, inputs)


def ours(module, x, state, **options):
    """All results and gradients of one training step."""
    x, state = x.detach().requires_grad_(), [s.detach().requires_grad_() for s in state]
    output, final = module(x, tuple(state) if len(state) == 2 else state[0], **options)
    results = [output, *as_tuple(final)]
    return [*results, *gradients(results, [x, *state, *module.parameters()])]


def expected(module, x, state, lengths=None, resets=None):
    """The same from the reference."""
    x, state = x.detach().requires_grad_(), [s.detach().requires_grad_() for s in state]
    c0, weights = state[1] if len(state) == 2 else None, list(module.parameters())
    output, h_n, c_n, _ = reference.layer(x, state[0], c0, weights, None, lengths, resets, module.mode, False)
    results = [output, h_n] if c0 is None else [output, h_n, c_n]
    return [*results, *gradients(results, [x, *state, *weights])]


def doubled(tensors):
    return [t.double() for t in tensors]


@pytest.mark.parametrize("H", SIZES)
@pytest.mark.parametrize("mode", ["LSTM", "LSTM-proj", "GRU", "RNN"])
def test_every_hidden_size(mode, H, as_good_as_torch):
    if mode.endswith("proj") and H == 1:
        pytest.skip("a projection is smaller than the hidden size")
    module = make(mode, H)
    exact = copy.deepcopy(module).double()
    for T, N in BATCHES:
        x, state = torch.randn(T, N, module.input_size), as_tuple(random_state(module, N))
        for options in (
            {},
            {"lengths": torch.randint(0, T + 1, (N,))},
            {"resets": torch.rand(T, N) < 0.3},
        ):
            single = expected(module, x, state, **options)
            double = expected(exact, x.double(), doubled(state), **options)
            as_good_as_torch(ours(module, x, state, **options), single, double)
            # The rounding error of this problem, measured in fp32 and in units of eps, is the same in fp64.
            eps = torch.finfo(torch.float64).eps
            for mine, s, d in zip(ours(exact, x.double(), doubled(state), **options), single, double, strict=True):
                if mine.numel():
                    rounding = (s.double() - d).abs().max() / torch.finfo(torch.float32).eps
                    assert (mine - d).abs().max() <= eps * (4 * rounding + 8 * d.abs().max())


@pytest.mark.parametrize("H", [1, 3, 4, 8, 11, 17, 20, 24, 33, 40])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_every_hidden_size_in_bf16(cell, H, as_good_as_torch):
    module = make(cell, H, torch.bfloat16)
    peer = getattr(torch.nn, cell)(module.input_size, H, bidirectional=True, dtype=torch.bfloat16)
    peer.load_state_dict(module.state_dict())
    x, state = torch.randn(5, 14, module.input_size).bfloat16(), as_tuple(random_state(module, 14, torch.bfloat16))
    exact = ours(copy.deepcopy(peer).double(), x.double(), doubled(state))
    as_good_as_torch(ours(module, x, state), ours(peer, x, state), exact)


# With each of these sizes, panels, tiles of weight gradients or both divide unequally between threads.
@pytest.mark.parametrize("H", [9, 17, 20, 33, 40, 65, 100])
@pytest.mark.parametrize("mode", ["LSTM", "LSTM-proj", "GRU", "RNN"])
def test_same_bits_with_any_number_of_threads(mode, H):
    module, before = make(mode, H), torch.get_num_threads()
    T, N = 12, 6400 // H
    x, state = torch.randn(T, N, module.input_size), as_tuple(random_state(module, N))
    few, few_states = torch.randn(40, 5, module.input_size), as_tuple(random_state(module, 5))
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([*ours(module, x, state), *ours(module, few, few_states)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
