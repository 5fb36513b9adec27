"""Batched gradients by the older vmap: is_grads_batched=True, vectorized jacobians, check_batched_grad=True."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hessian, jacobian
from torch.nn.utils.rnn import PackedSequence

import lstmkern

T, N, I, H = 3, 2, 2, 3  # noqa: E741
FORMS = ("dense", "lengths", "packed", "resets", "cell")


def problem(kind, pair, form="dense", **options):
    """Leaf tensors in fp64, and a function that computes all results of a module from them."""
    if form == "cell":
        options = {"nonlinearity": kind[4:]} if kind.startswith("rnn") else {}
        name = f"{kind.split('-')[0].upper()}Cell"
        module = getattr(lstmkern, name)(I, H, dtype=torch.float64, **options)
        x, state = torch.randn(N, I), [torch.randn(N, H), torch.randn(N, H)]
    else:
        _, module = pair(kind, I, H, dtype=torch.float64, **options)
        D = module.num_layers * (1 + module.bidirectional)
        x = torch.randn(4, I) if form == "packed" else torch.randn(T, N, I)
        state = [torch.randn(D, N, module.proj_size or H), torch.randn(D, N, H)]
    lstm = kind.startswith("lstm")
    names = [name for name, _ in module.named_parameters()]
    leaves = [x, *(state if lstm else state[:1]), *module.parameters()]
    leaves = tuple(t.detach().double().requires_grad_() for t in leaves)
    keywords = {
        "lengths": {"lengths": torch.tensor([2, 3])},
        "resets": {"resets": torch.tensor([[0, 1], [1, 0], [0, 0]]).bool()},
    }.get(form, {})

    def function(x, *rest):
        hx, weights = (rest[:2], rest[2:]) if lstm else (rest[0], rest[1:])
        if form == "packed":
            x = PackedSequence(x, torch.tensor([2, 1, 1]))
        results = torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x, hx), keywords)
        if form == "cell":
            return results if lstm else (results,)
        output, hidden = results
        return (output.data if form == "packed" else output, *(hidden if lstm else [hidden]))

    return leaves, function


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_batched_grads_are_each_grad(kind, form, recompute, pair):
    leaves, function = problem(kind, pair, form)
    with lstmkern.recompute(recompute):
        results = function(*leaves)
    each = [torch.randn(4, *r.shape, dtype=r.dtype) for r in results]
    together = torch.autograd.grad(results, leaves, each, is_grads_batched=True, retain_graph=True)
    for b in range(4):
        expected = torch.autograd.grad(results, leaves, [grads[b] for grads in each], retain_graph=True)
        torch.testing.assert_close([t[b] for t in together], list(expected))


def test_only_some_inputs_and_results(kind, pair):
    (x, *rest), function = problem(kind, pair)
    rest = [t.detach() for t in rest]
    results = function(x, *rest)
    each = torch.randn(4, *results[1].shape, dtype=x.dtype)
    (together,) = torch.autograd.grad(results[1], x, each, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(results[1], x, grad, retain_graph=True)[0] for grad in each]
    torch.testing.assert_close(together, torch.stack(expected))


def test_vmap_over_nothing(pair):
    (x, *rest), function = problem("gru", pair)
    with torch.no_grad(), pytest.raises(RuntimeError, match="vmap over no elements"):
        torch._vmap_internals._vmap(lambda x: function(x, *rest)[0])(x.new_zeros(0, *x.shape))


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_vectorized_jacobian(kind, options, pair):
    leaves, function = problem(kind, pair, **options)
    loop = jacobian(function, leaves)
    torch.testing.assert_close(jacobian(function, leaves, vectorize=True), loop)
    torch.testing.assert_close(jacobian(function, leaves, vectorize=True, strategy="forward-mode"), loop)


@pytest.mark.parametrize("form", FORMS)
def test_vectorized_hessian(kind, form, pair):
    (x, *rest), function = problem(kind, pair, form)

    def loss(x, w):
        return function(x, *rest[:-1], w)[0].sin().sum()

    loop = hessian(loss, (x, rest[-1]))
    torch.testing.assert_close(hessian(loss, (x, rest[-1]), vectorize=True), loop)


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck_with_batched_grads(kind, form, pair):
    leaves, function = problem(kind, pair, form)
    assert gradcheck(
        function,
        leaves,
        fast_mode=True,
        check_batched_grad=True,
        check_forward_ad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(function, leaves, fast_mode=True, check_batched_grad=True)


def test_vmap_of_vmap(kind, pair):
    """Nested vmaps: each one removes its own dimension."""
    vmap = torch._vmap_internals._vmap
    (x, *rest), function = problem(kind, pair)

    def outputs(x, scale):
        with torch.no_grad():
            return function(x * scale, *rest)[0]

    xs, scales = torch.stack([x.detach(), x.detach() + 1]), torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)
    both = vmap(lambda x: vmap(lambda scale: outputs(x, scale))(scales))(xs)
    outer = vmap(lambda x: vmap(lambda scale: outputs(x, 1) * scale)(scales))(xs)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(both[i, j], outputs(xs[i], scales[j]))
            torch.testing.assert_close(outer[i, j], outputs(xs[i], 1) * scales[j])


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_batched_gradients_are_differentiable(kind):
    """Batched first and second gradients are differentiable; their derivatives equal those of a loop."""
    module = getattr(lstmkern, kind)(I, H, bidirectional=True, dtype=torch.float64)
    leaves = [torch.randn(T, N, I, dtype=torch.float64, requires_grad=True), *module.parameters()]
    output, _ = module(leaves[0])
    v, u = torch.randn(3, *output.shape).double(), torch.randn(2, 3, T, N, I).double()

    def loop(result, cotangents):
        return torch.stack([torch.autograd.grad(result, leaves[0], c, create_graph=True)[0] for c in cotangents])

    def batched(result, cotangents):
        return torch.autograd.grad(result, leaves[0], cotangents, is_grads_batched=True, create_graph=True)[0]

    derived = []
    for gradient in (loop, batched):
        first = gradient(output, v)
        second = gradient(first, u)
        for result in (first, second):
            derived.append(torch.autograd.grad(result.sin().sum(), leaves, retain_graph=True))
    for by_loop, by_batch in zip(derived[:2], derived[2:], strict=True):
        for expected, got in zip(by_loop, by_batch, strict=True):
            torch.testing.assert_close(got, expected)
