"""Outputs and gradients agree with torch.nn; the reference is torch.nn in fp64."""

import copy

import pytest
import torch
from pairs import as_tuple, random_state

import lstmkern
from lstmkern import reference

SIZES = {  # T, N, I, H, layers
    "ones": (1, 1, 1, 3, 1),
    "odd": (7, 3, 5, 17, 2),
    "one-row": (5, 1, 3, 6, 1),
    "one-step": (1, 4, 9, 33, 3),
}


def run(module, x, hx):
    """All results and gradients of one training step."""
    x = x.detach().requires_grad_()
    hx = tuple(h.detach().requires_grad_() for h in hx)
    output, state = module(x, hx if len(hx) == 2 else hx[0])
    torch.manual_seed(1)
    results = [output, *as_tuple(state)]
    loss = sum((r * torch.randn(r.shape, dtype=torch.float64).to(r.dtype)).sum() for r in results)
    grads = torch.autograd.grad(loss, [x, *hx, *module.parameters()])
    return [*results, *grads]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_fp32_training_step(kind, bidirectional, bias, batch_first, size, pair, as_good_as_torch):
    T, N, features, H, layers = SIZES[size]
    theirs, ours = pair(kind, features, H, layers, bias=bias, batch_first=batch_first, bidirectional=bidirectional)
    x = torch.randn(*((N, T) if batch_first else (T, N)), features)
    hx = as_tuple(random_state(theirs, N, torch.float32))
    exact = copy.deepcopy(theirs).double()
    as_good_as_torch(run(ours, x, hx), run(theirs, x, hx), run(exact, x.double(), [h.double() for h in hx]))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_fp64_training_step(kind, bidirectional, pair):
    theirs, ours = pair(kind, 5, 17, 2, bidirectional=bidirectional, dtype=torch.float64)
    x, hx = torch.randn(6, 3, 5, dtype=torch.float64), as_tuple(random_state(theirs, 3, torch.float64))
    single = copy.deepcopy(theirs).float()
    exact, rounded = run(theirs, x, hx), run(single, x.float(), [h.float() for h in hx])
    for mine, e, r in zip(run(ours, x, hx), exact, rounded, strict=True):
        # The rounding error of this problem, measured in fp32 and in units of eps, is the same in fp64.
        scale = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
        bound = 4 * scale * (r.double() - e).abs().max() + 8 * torch.finfo(torch.float64).eps * e.abs().max()
        assert (mine - e).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_16_bit_training_step(kind, bidirectional, dtype, pair, as_good_as_torch):
    theirs, ours = pair(kind, 5, 17, 2, bidirectional=bidirectional, dtype=dtype)
    x, hx = torch.randn(6, 3, 5).to(dtype), [h.to(dtype) for h in as_tuple(random_state(theirs, 3, torch.float32))]
    if kind == "rnn-relu":  # away from zero, where rounding would decide which derivative of ReLU is taken
        x, hx = x.abs(), [h.abs() for h in hx]
        for p in [*theirs.parameters(), *ours.parameters()]:
            p.data.abs_()
    exact = run(copy.deepcopy(theirs).double(), x.double(), [h.double() for h in hx])
    with torch.backends.mkldnn.flags(enabled=False):  # oneDNN trains no fp16
        peer = run(theirs, x, hx)
    as_good_as_torch(run(ours, x, hx), peer, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", [(40, 37, 45, 83), (9, 130, 96, 64), (60, 17, 33, 20), (30, 1, 45, 83)], ids=str)
def test_many_tiles_and_chunks(kind, size, dtype, pair, as_good_as_torch):
    T, N, features, H = size
    theirs, ours = pair(kind, features, H, bidirectional=True, dtype=dtype)
    x, hx = (
        torch.randn(T, N, features).to(dtype),
        [h.to(dtype) for h in as_tuple(random_state(theirs, N, torch.float32))],
    )
    if kind == "rnn-relu":  # as above, and small, so that many steps do not overflow
        x, hx = x.abs(), [h.abs() for h in hx]
        for p in [*theirs.parameters(), *ours.parameters()]:
            p.data.abs_().mul_(0.1)
    exact = run(copy.deepcopy(theirs).double(), x.double(), [h.double() for h in hx])
    with torch.backends.mkldnn.flags(enabled=False):
        peer = run(theirs, x, hx)
    as_good_as_torch(run(ours, x, hx), peer, exact)


@pytest.mark.parametrize("batch_first", [False, True])
def test_without_initial_state(kind, batch_first, pair, as_good_as_torch):
    theirs, ours = pair(kind, 4, 6, 2, batch_first=batch_first, bidirectional=True)
    x = torch.randn(3, 5, 4)
    with torch.no_grad():
        as_good_as_torch(ours(x), theirs(x), copy.deepcopy(theirs).double()(x.double()))


STRIDES = {
    "every-second-step": lambda x: x[::2],
    "every-second-row": lambda x: x[:, ::2],
    "every-second-feature": lambda x: x[..., ::2],
    "features-first": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "one-row-expanded": lambda x: x[:, :1].expand_as(x),
    "one-step-expanded": lambda x: x[:1].expand_as(x),
    "one-number-expanded": lambda x: x[:1, :1, :1].expand_as(x),
    "offset": lambda x: x[1:, 1:, 1:],
    "transposed": lambda x: x.transpose(0, 1),
}


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("batch_first", [False, True])
def test_strided_input_state_and_gradients(kind, batch_first, strides, pair):
    view = STRIDES[strides]
    x = view(torch.randn(6, 4, 8, dtype=torch.float64))
    _, ours = pair(kind, x.size(2), 5, batch_first=batch_first, bidirectional=True, dtype=torch.float64)
    state = as_tuple(random_state(ours, x.size(0 if batch_first else 1), x.dtype))
    hx = [h.transpose(0, 2).contiguous().transpose(0, 2) for h in state]

    def results(x, hx):
        x = x.detach().requires_grad_()
        output, state = ours(x, tuple(hx) if len(hx) == 2 else hx[0])
        # the gradient of sum() has stride 0; the transposed one is not contiguous
        transposed = output.transpose(0, 2)
        loss = output.sum() + (transposed * torch.arange(output.numel()).view(transposed.shape)).sum()
        return [output, *(state if len(hx) == 2 else [state]), *torch.autograd.grad(loss, [x, *ours.parameters()])]

    for strided, plain in zip(results(x, hx), results(x.contiguous(), [h.contiguous() for h in hx]), strict=True):
        torch.testing.assert_close(strided, plain)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_reference_is_torch(kind, bidirectional, pair):
    """Other tests and second derivatives rely on the reference, so it is compared with torch.nn too."""
    theirs, _ = pair(kind, 4, 5, bidirectional=bidirectional, dtype=torch.float64)
    x, state = torch.randn(6, 3, 4, dtype=torch.float64), as_tuple(random_state(theirs, 3, torch.float64))
    c0 = state[1] if len(state) == 2 else None
    weights = list(theirs.parameters())
    output, h_n, c_n, _ = reference.layer(x, state[0], c0, weights, None, None, None, theirs.mode, False)
    expected, hidden = theirs(x, state if c0 is not None else state[0])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close((h_n, c_n) if c0 is not None else h_n, hidden)


def test_forward_without_gradients_is_the_same_forward(kind, pair):
    """Saving values for backward does not change the results."""
    _, ours = pair(kind, 5, 17, 2, bidirectional=True)
    x = torch.randn(7, 3, 5)
    with_grad = ours(x)[0]
    with torch.no_grad():
        assert torch.equal(ours(x)[0], with_grad)
    with torch.inference_mode():
        assert torch.equal(ours(x)[0], with_grad)


def test_same_bits_on_every_run(kind, pair):
    _, ours = pair(kind, 33, 40, 2, bidirectional=True)
    x = torch.randn(20, 16, 33)
    first, second = (run(ours, x, state) for state in [as_tuple(random_state(ours, 16, torch.float32))] * 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_functional_forms():
    """lstm(), gru() and rnn() give the results of the modules with the same weights."""
    x = torch.randn(4, 3, 5)
    for module, function in (
        (lstmkern.LSTM(5, 6, 2, bidirectional=True), lstmkern.functional.lstm),
        (lstmkern.GRU(5, 6, 2, bidirectional=True), lstmkern.functional.gru),
        (lstmkern.RNN(5, 6, 2, bidirectional=True), lstmkern.functional.rnn),
    ):
        weights = [module.all_weights[k] + module.all_weights[k + 1] for k in (0, 2)]
        h = torch.randn(4, 3, 6)
        hx = (h, -h) if module.mode == "LSTM" else h
        for state in (hx, None):
            expected, actual = module(x, state), function(x, state, weights, bidirectional=True)
            assert torch.equal(actual[0], expected[0])
            torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=0)
