"""Few steps: weights are packed as they are used, and products with a state of zeros are left out. Same bits."""

import pytest
import torch

import lstmkern

INF, NAN = float("inf"), float("nan")
# N, I, H: weights that exceed the L2 cache. The last has two chunks in backward.
SHAPES = [(40, 300, 860), (70, 300, 520), (400, 390, 384)]
CELLS = ["LSTM", "GRU", "RNN"]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["fp32", "fp64", "bf16"])


def results(module, x, state, grad, threads=1):
    """The output, its gradients with respect to x and the parameters, and those of a state that needs them."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        output, _ = module(x, state)
        states = [] if state is None else [s for s in (state if type(state) is tuple else [state]) if s.requires_grad]
        return output, *torch.autograd.grad(output, [x, *module.parameters(), *states], grad)
    finally:
        torch.set_num_threads(before)


def same(got, expected):
    return len(got) == len(expected) and all(
        torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0, INF), b.nan_to_num(0, INF))
        for a, b in zip(got, expected, strict=True)
    )


def zeros(module, N):
    h = torch.zeros(2 if module.bidirectional else 1, N, module.hidden_size, dtype=module.weight_hh_l0.dtype)
    return (h, h) if module.mode == "LSTM" else h


@DTYPES
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: ",".join(map(str, s)))
def test_two_steps_are_the_first_of_three(shape, cell, dtype):
    """Two steps use panels of W_hh once or twice, three use them more often."""
    N, features, H = shape
    module = getattr(lstmkern, cell)(features, H, dtype=dtype)
    x, h0 = torch.randn(3, N, features, dtype=dtype), torch.randn(1, N, H, dtype=dtype, requires_grad=True)
    grad = torch.randn(3, N, H, dtype=dtype)
    grad[2] = 0  # so that the third step adds nothing to the gradients
    x2, x3 = x[:2].clone().requires_grad_(), x.clone().requires_grad_()
    state = (h0, h0.detach()) if cell == "LSTM" else h0
    two, three = results(module, x2, state, grad[:2]), results(module, x3, state, grad)
    assert torch.equal(two[0], three[0][:2])
    assert torch.equal(two[1], three[1][:2])
    assert torch.equal(two[-1], three[-1])
    for got, ahead in zip(two[2:-1], three[2:-1], strict=True):  # sums over the rows of two or three steps
        bound = 64 * torch.finfo(dtype).eps * ahead.abs().max().double()
        assert (got.double() - ahead.double()).abs().max() <= bound
    for threads in (2, 3):
        assert same(results(module, x2, state, grad[:2], threads), two)


@DTYPES
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("T", [1, 2, 3, 5])
@pytest.mark.parametrize(("N", "features", "H", "directions"), [(9, 20, 33, 2), (33, 24, 40, 1), (40, 380, 390, 1)])
def test_no_state_is_a_state_of_zeros(T, N, features, H, directions, cell, dtype):
    module = getattr(lstmkern, cell)(features, H, bidirectional=directions == 2, dtype=dtype)
    x = torch.randn(T, N, features, dtype=dtype, requires_grad=True)
    grad = torch.randn(T, N, directions * H, dtype=dtype)
    for threads in (1, 2):
        assert same(results(module, x, None, grad, threads), results(module, x, zeros(module, N), grad, threads))


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("T", "N", "features", "H"), [(1, 9, 20, 33), (2, 40, 24, 41), (2, 40, 380, 390)])
def test_zeros_times_infinity(T, N, features, H, cell, bad):
    """A value of W_hh or of a gradient that is not finite spreads as with a state of zeros, which makes it NaN."""
    module = getattr(lstmkern, cell)(features, H)
    x = torch.randn(T, N, features, requires_grad=True)
    grad = torch.randn(T, N, H)
    grad[0, 1, H - 2] = bad
    unit = "weight_hh_l0"
    spread = results(module, x, None, grad)
    assert same(spread, results(module, x, zeros(module, N), grad))
    of_w_hh = spread[2 + [name for name, _ in module.named_parameters()].index(unit)]
    assert of_w_hh.view(-1, H, H)[:, H - 2].isnan().any()
    with torch.no_grad():
        getattr(module, unit)[H // 2, 3] = bad
        output, _ = module(x)
        expected, _ = module(x, zeros(module, N))
    assert output[0, :, H // 2].isnan().all()
    assert same([output], [expected])
