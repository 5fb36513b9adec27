"""First, second and third derivatives for every input and any subset of the results."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import pack_padded_sequence

import lstmkern
from lstmkern import reference

T, N, I, H = 4, 3, 2, 3  # noqa: E741


def problem(kind, pair, **options):
    """A module in fp64, leaf tensors for all its differentiable inputs, and a function from leaves to results."""
    _, module = pair(kind, I, H, dtype=torch.float64, **options)
    shape = (N, T, I) if module.batch_first else (T, N, I)
    D = 2 if module.bidirectional else 1
    state = [torch.randn(D, N, module.proj_size or H), torch.randn(D, N, H)][: 2 if module.mode == "LSTM" else 1]
    parameters = dict(module.named_parameters())
    leaves = [torch.randn(shape), *state, *(p.detach() for p in parameters.values())]
    leaves = tuple(t.double().requires_grad_() for t in leaves)

    def function(x, *rest, pack=False, **keywords):
        hx = rest[: len(state)] if len(state) == 2 else rest[0]
        if pack:
            x = pack_padded_sequence(x, [2, 4, 1], batch_first=module.batch_first, enforce_sorted=False)
        weights = dict(zip(parameters, rest[len(state) :], strict=True))
        output, hidden, *cells = torch.func.functional_call(module, weights, (x, hx), keywords)
        output, *cells = [part.data if pack else part for part in (output, *cells)]
        return (output, *(hidden if len(state) == 2 else [hidden]), *cells)

    return module, leaves, function


LENGTHS = torch.tensor([2, 4, 1])
RESETS = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 1]]).bool()
VARIANTS = {
    "dense": {},
    "lengths": {"lengths": LENGTHS},
    "a row without steps": {"lengths": torch.tensor([2, 0, 4]), "resets": RESETS},
    "resets": {"resets": RESETS},
    "lengths-resets": {"lengths": LENGTHS, "resets": RESETS},
    "packed": {"pack": True},
    "packed-resets": {"pack": True, "resets": torch.tensor([0, 1, 0, 1, 0, 0, 1]).bool()},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_first_derivatives(kind, bidirectional, variant, pair):
    keywords = dict(VARIANTS[variant], **({"return_cells": True} if kind.startswith("lstm") else {}))
    _, leaves, function = problem(kind, pair, bidirectional=bidirectional)
    assert gradcheck(lambda *args: function(*args, **keywords), leaves)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_second_derivatives(kind, bidirectional, variant, pair):
    """For every input and for the incoming gradients; the fast mode projects on random directions."""
    keywords = dict(VARIANTS[variant], **({"return_cells": True} if kind.startswith("lstm") else {}))
    _, leaves, function = problem(kind, pair, bidirectional=bidirectional)
    assert gradgradcheck(lambda *args: function(*args, **keywords), leaves, fast_mode=True)


def test_second_derivatives_entry_by_entry(kind, pair):
    _, leaves, function = problem(kind, pair)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("options", [{"batch_first": True}, {"bias": False}, {"bias": False, "bidirectional": True}])
def test_other_layouts(kind, options, pair):
    _, leaves, function = problem(kind, pair, **options)
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves, fast_mode=True)


def test_third_derivative_is_the_references(pair):
    _, leaves, function = problem("lstm", pair)

    def thrice(f):
        first = torch.autograd.grad(f(*leaves)[0].sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.sin().sum() for g in second), leaves)

    def through_reference(x, h0, c0, *weights):
        return reference.layer(x, h0, c0, weights, None, None, None, "LSTM", False)

    for ours, expected in zip(thrice(function), thrice(through_reference), strict=True):
        torch.testing.assert_close(ours, expected)


def test_any_part_of_the_results(kind, pair):
    """Gradients through a single result equal the reference's; unused results count as zero."""
    module, leaves, function = problem(kind, pair, bidirectional=True)
    lstm = module.mode == "LSTM"
    keywords = {"return_cells": True} if lstm else {}
    x, h0, *rest = leaves
    c0, weights = (rest[0], rest[1:]) if lstm else (None, rest)
    expected = reference.layer(x, h0, c0, weights, None, None, None, module.mode, False)
    actual = function(*leaves, **keywords)
    for result, wanted in zip(actual, expected, strict=False):  # only an LSTM has the last two
        torch.testing.assert_close(result, wanted)
        ours = torch.autograd.grad(result.sin().sum(), leaves, retain_graph=True)
        theirs = torch.autograd.grad(wanted.sin().sum(), leaves, retain_graph=True, materialize_grads=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_any_subset_of_the_inputs(kind, pair):
    """If only one input requires a gradient, that gradient is the same as if all inputs do."""
    _, leaves, function = problem(kind, pair)
    together = torch.autograd.grad(function(*leaves)[0].sin().sum(), leaves)
    for k, expected in enumerate(together):
        leaf_copies = [leaf.detach().requires_grad_(i == k) for i, leaf in enumerate(leaves)]
        (grad,) = torch.autograd.grad(function(*leaf_copies)[0].sin().sum(), leaf_copies[k])
        torch.testing.assert_close(grad, expected)
        result = function(*leaf_copies)[0]
        (first,) = torch.autograd.grad(result.sin().sum(), leaf_copies[k], create_graph=True)
        (second,) = torch.autograd.grad(first.sin().sum(), leaf_copies[k])
        assert second.abs().max() > 0


def test_frozen_weights_get_no_gradient(kind, pair):
    module, _, _ = problem(kind, pair)
    frozen = [p for name, p in module.named_parameters() if "_ih" in name]
    for p in frozen:
        p.requires_grad_(False)
    module(torch.randn(T, N, I).double())[0].sum().backward()
    assert all((p.grad is None) == (not p.requires_grad) for p in module.parameters())


def test_backward_in_eval_mode(kind, pair):
    theirs, ours = pair(kind, I, H, 2, dropout=0.5)
    x = torch.randn(T, N, I)
    for module in (theirs, ours):
        module.eval()(x)[0].sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_backward_twice_needs_retain_graph(pair):
    _, leaves, function = problem("lstm", pair)
    loss = function(*leaves)[0].sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    second = torch.autograd.grad(loss, leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_weights_changed_before_backward_are_detected(kind, pair):
    module, _, _ = problem(kind, pair)
    loss = module(torch.randn(T, N, I).double())[0].sum()
    with torch.no_grad():
        module.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def biased(kind, pair, recompute=False):
    """The parameters of a module, whose biases are results of earlier operations, and its output."""
    torch.manual_seed(1)
    module, _, _ = problem(kind, pair, bidirectional=True)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in module.named_parameters()}
    used = {name: leaf * 2 if "bias" in name else leaf for name, leaf in leaves.items()}
    with lstmkern.recompute(recompute):
        output, _ = torch.func.functional_call(module, used, (torch.randn(T, N, I, dtype=torch.float64),))
    return [*leaves.values()], used, output


def write_into(tensors):
    with torch.no_grad():
        for name, t in tensors.items():
            if "bias" in name:
                t.mul_(3)


def test_biases_may_change_before_backward(kind, pair):
    """No first derivative depends on a bias. torch.nn on the CPU allows this change too."""
    theirs, ours = pair(kind, I, H)
    x = torch.randn(T, N, I)
    for module in (theirs, ours):
        loss = module(x)[0].square().sum()
        if module is ours or module.mode != "LSTM":  # oneDNN's LSTM refuses
            write_into(dict(module.named_parameters()))
        loss.backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_biases_that_are_results_may_change_before_backward(kind, pair):
    grads = []
    for change in (False, True):
        leaves, used, output = biased(kind, pair)
        if change:
            write_into(used)
        grads.append(torch.autograd.grad(output.sin().sum(), leaves))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def test_changed_biases_are_detected_where_they_are_read(kind, pair):
    """Second derivatives and recomputation read the biases in backward."""
    refused = "modified by an inplace operation"
    leaves, used, output = biased(kind, pair)
    write_into(used)
    with pytest.raises(RuntimeError, match=refused):
        torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
    leaves, used, output = biased(kind, pair)
    first = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
    write_into(used)
    with pytest.raises(RuntimeError, match=refused):
        torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)
    leaves, used, output = biased(kind, pair, recompute=True)
    write_into(used)
    if "rnn" in kind:  # never keeps gates
        torch.autograd.grad(output.sin().sum(), leaves)
    else:
        with pytest.raises(RuntimeError, match=refused):
            torch.autograd.grad(output.sin().sum(), leaves)


def test_truncated_backpropagation_carries_the_state(kind, pair):
    """Two calls joined by the state have the gradient of a single call."""
    module, (x, *rest), function = problem(kind, pair)
    states = 2 if module.mode == "LSTM" else 1
    whole = torch.autograd.grad(function(x, *rest)[0].sin().sum(), (x, *rest))
    first, *state = function(x[:2], *rest)
    second, *_ = function(x[2:], *state, *rest[states:])
    halves = torch.autograd.grad(first.sin().sum() + second.sin().sum(), (x, *rest))
    for a, b in zip(halves, whole, strict=True):
        torch.testing.assert_close(a, b)


def test_gradient_penalty_trains():
    """Training with a gradient penalty gives the same losses as torch operations."""
    histories = []
    for through_reference in (False, True):
        torch.manual_seed(0)
        module = lstmkern.LSTM(I, H, dtype=torch.float64)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        data = torch.randn(5, T, N, I, dtype=torch.float64)
        history = []
        for x in data:
            x = x.requires_grad_()
            if through_reference:
                zeros = x.new_zeros(1, N, H)
                output = reference.layer(x, zeros, zeros, [*module.parameters()], None, None, None, "LSTM", False)[0]
            else:
                output = module(x)[0]
            (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
            loss = (grad.norm() - 1).square()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        histories.append(history)
    assert histories[0] == pytest.approx(histories[1], rel=1e-9)
    assert histories[0][0] != histories[0][-1]


def test_ops_called_directly_keep_their_gradients(pair):
    """torch.ops.lstmkern.* with inputs that require gradients, for each value of `save`."""
    _, leaves, function = problem("lstm", pair)
    x, h0, c0, *weights = leaves
    expected = torch.autograd.grad(function(*leaves)[0].sin().sum(), leaves)
    for save in (False, True):
        output = torch.ops.lstmkern.layer_forward(x, h0, c0, weights, None, None, None, "LSTM", False, save, False)[0]
        for a, b in zip(torch.autograd.grad(output.sin().sum(), leaves), expected, strict=True):
            torch.testing.assert_close(a, b)


def test_checkpoint_recomputes_the_same(kind, pair):
    _, leaves, function = problem(kind, pair)
    plain = torch.autograd.grad(function(*leaves)[0].sin().sum(), leaves)
    checkpointed = torch.utils.checkpoint.checkpoint(function, *leaves, use_reentrant=False)[0]
    for a, b in zip(torch.autograd.grad(checkpointed.sin().sum(), leaves), plain, strict=True):
        assert torch.equal(a, b)


def test_saved_tensors_may_come_back_with_other_strides(kind, pair):
    """Saved-tensor hooks may return copies with another memory layout."""

    def columns(t):
        return t if t.dim() < 2 else t.transpose(-1, -2).contiguous().transpose(-1, -2)

    _, module = pair(kind, I, H, dtype=torch.float64)
    x, grads = torch.randn(T, N, I, dtype=torch.float64, requires_grad=True), []
    for unpack in (lambda t: t, columns):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            output, _ = module(x)
        grads.append(torch.autograd.grad(output.sin().sum(), [x, *module.parameters()]))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_second_derivative_refuses_freed_weights(kind):
    """fully_shard frees the gathered weights after the first backward; reading them would crash the process."""
    module, x = getattr(lstmkern, kind)(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    for p in module.parameters():
        p.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="was freed since forward"):
        grad.square().sum().backward()
