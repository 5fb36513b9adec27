"""lstmkern.recompute(): the same gradients from less memory."""

import pytest
import torch

import lstmkern
from lstmkern import autograd, functional


def step(module, x, hx, **masks):
    x = x.detach().requires_grad_()
    hx = [h.detach().requires_grad_() for h in hx]
    output, state = module(x, tuple(hx) if len(hx) == 2 else hx[0], **masks)
    state = state if isinstance(state, tuple) else (state,)
    loss = output.sin().sum() + sum((k + 2) * s.cos().sum() for k, s in enumerate(state))
    return [output, *state, *torch.autograd.grad(loss, [x, *hx, *module.parameters()])]


RAGGED = {
    "dense": {},
    "resets": {"resets": torch.rand(21, 3, generator=torch.Generator().manual_seed(1)) < 0.2},
    "lengths": {"lengths": torch.tensor([21, 4, 13])},
    "a row without steps": {"lengths": torch.tensor([0, 21, 13])},
}


@pytest.mark.parametrize("masks", RAGGED)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}, {"bias": False}], ids=str)
def test_same_results(kind, options, masks, pair):
    _, module = pair(kind, 5, 7, 2, dtype=torch.float64, **options)
    x, masks, D = torch.randn(21, 3, 5, dtype=torch.float64), RAGGED[masks], 2 if module.bidirectional else 1
    if module.batch_first:
        x, masks = x.transpose(0, 1), {k: v if v.dim() == 1 else v.transpose(0, 1) for k, v in masks.items()}
    hx = [torch.randn(2 * D, 3, module.proj_size or 7, dtype=torch.float64)]
    if module.mode == "LSTM":
        hx.append(torch.randn(2 * D, 3, 7, dtype=torch.float64))
    expected = step(module, x, hx, **masks)
    with lstmkern.recompute():
        results = step(module, x, hx, **masks)
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_saves_less_memory(cell):
    """What autograd saves in addition to input and weights: without gates 2/6 (LSTM) or 1/5 (GRU)."""

    def held(enabled):
        module, x = getattr(lstmkern, cell)(16, 64), torch.randn(50, 8, 16, requires_grad=True)
        sizes = {}

        def pack(t):
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with lstmkern.recompute(enabled), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output, _ = module(x)
        given = {t.untyped_storage().data_ptr() for t in [x, *module.parameters()]}
        return sum(n for p, n in sizes.items() if p not in given), output

    (kept, _a), (kept_less, _b) = held(False), held(True)
    state = 8 * 64 * 4 * 2  # h0 and c0
    assert kept_less - state <= (kept - state) * (2 if cell == "LSTM" else 1) / (6 if cell == "LSTM" else 5)


def test_gates_are_not_computed_into_memory_in_chunks(monkeypatch):
    """A dense layer with one direction never stores the gates of all steps, not even in backward."""
    shapes = []
    backward = autograd.eager_backward

    def watching(*args):
        shapes.append(args[13].shape)  # gates
        return backward(*args)

    monkeypatch.setattr(autograd, "eager_backward", watching)
    module, x = lstmkern.LSTM(4, 16), torch.randn(80, 2, 4)
    with lstmkern.recompute():
        module(x)[0].sum().backward()
    assert len(shapes) == 8 and all(s[1] == 80 // 8 * 2 for s in shapes)


def test_second_derivative():
    module, x = lstmkern.GRU(3, 4, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    with lstmkern.recompute():
        assert torch.autograd.gradgradcheck(lambda x: module(x)[0], x, fast_mode=True)


def test_no_effect_outside_the_context():
    with lstmkern.recompute():
        with lstmkern.recompute(False):
            assert not lstmkern.recomputing.is_active()
        assert lstmkern.recomputing.is_active()
    assert not lstmkern.recomputing.is_active()


def test_no_steps():
    """torch.nn's modules refuse them; the functions do not."""
    module, x = lstmkern.GRU(5, 7), torch.randn(0, 3, 5, requires_grad=True)
    with lstmkern.recompute():
        output, _ = functional.gru(x, None, module.all_weights)
    output.sum().backward()
    assert x.grad.shape == x.shape and not any(p.grad.any() for p in module.parameters())
