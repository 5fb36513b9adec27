"""One C++ function computes a whole call (csrc/calls.h): when it does, when not, and what Python does around it.

In training each layer is recorded by LayerFunction, whose two halves are one C++ function each (csrc/training.h).
"""

import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lstmkern
from lstmkern import _extension, autograd, cells, functional, modules

LAYERS = ["LSTM", "GRU", "RNN"]
SETTINGS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"batch_first": True},
    {"bias": False},
    {"dtype": torch.float64},
    {"dtype": torch.bfloat16},
]
KINDS = [*LAYERS, *(f"{name}Cell" for name in LAYERS)]


def build(kind, **settings):
    torch.manual_seed(0)
    module = getattr(lstmkern, kind)(8, 16, **settings).eval()
    x = torch.randn(3, 8) if kind.endswith("Cell") else torch.randn(5, 3, 8)
    return module, x


@pytest.fixture
def whole(monkeypatch):
    """A list with True for each call that C++ computed as a whole, and False for each that it left to Python."""
    seen = []

    def watch(module, name, function):
        def watching(*args):
            result = function(*args)
            seen.append(result is not None)
            return result

        monkeypatch.setattr(module, name, watching)

    watch(modules, "run_module", _extension.run_module)
    watch(cells, "run_plain_cell", _extension.run_cell)
    watch(functional._extension, "run_stack", _extension.run_stack)
    return seen


def flat(results):
    if isinstance(results, torch.Tensor):
        return [results]
    return [t for r in results if r is not None for t in flat(r)]


@pytest.mark.parametrize("kind", KINDS)
def test_calls_in_python(kind):
    """A call without gradient runs only __call__, forward, and the question whether Dynamo traces."""
    module, x = build(kind)
    called = []
    with torch.no_grad():
        module(x)
        sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_name) if event == "call" else None)
        try:
            module(x)
        finally:
            sys.setprofile(None)
    inside = "_next" if kind in ("GRUCell", "RNNCell") else None
    expected = ["__call__", "is_dynamo_compiling", "forward", inside, "is_dynamo_compiling"]
    assert called == [name for name in expected if name]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "settings",
    [*SETTINGS, {"num_layers": 2, "dropout": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("kind", LAYERS)
def test_same_results_as_python(whole, monkeypatch, kind, settings, mode):
    module, x = build(kind, **settings)
    x = x.to(settings.get("dtype", torch.float32))
    states, N = 4 if settings.get("bidirectional") else settings.get("num_layers", 1), x.size(1)
    if settings.get("batch_first"):
        x = x.transpose(0, 1)
    h = torch.randn(states, N, 16).to(x.dtype)
    hx = (h, 2 * h) if kind == "LSTM" else h
    one = (h[:, 0], h[:, 1]) if kind == "LSTM" else h[:, 0]
    calls = [
        (x, None, {}),
        (x, hx, {"lengths": torch.tensor([5, 0, 2]), "resets": torch.rand(x.shape[:2]) < 0.3}),
        (x[:, 0] if not settings.get("batch_first") else x[0], one, {}),
    ]
    with mode():
        results = [module(x, hx, **kwargs) for x, hx, kwargs in calls]
        assert whole == [True] * 3
        monkeypatch.setattr(modules, "run_module", lambda *_: None)
        monkeypatch.setattr(functional._extension, "run_stack", lambda *_: None)
        for (x, hx, kwargs), ours in zip(calls, results, strict=True):
            expected = module(x, hx, **kwargs)
            for a, b in zip(flat(ours), flat(expected), strict=True):
                assert torch.equal(a, b) and a.stride() == b.stride()
                assert a.is_inference() == b.is_inference() and not a.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_need_no_gradient(whole, kind):
    module, x = build(kind)
    module.requires_grad_(False)
    assert not any(t.requires_grad for t in flat(module(x)))
    results = flat(module(x.requires_grad_()))
    assert whole == [True, True] and all(t.requires_grad for t in results)
    sum(t.sum() for t in results).backward()
    assert x.grad is not None and all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_training_in_python(kind):
    """What of lstmkern's Python runs in a training step."""
    module, x = build(kind)
    flat(module(x))[0].sum().backward()
    called, folder = [], str(Path(lstmkern.__file__).parent)

    def watch(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(folder):
            called.append(frame.f_code.co_name)

    sys.setprofile(watch)
    try:
        flat(module(x))[0].sum().backward()
    finally:
        sys.setprofile(None)
    inside = "_next" if kind in ("GRUCell", "RNNCell") else None
    expected = ["__call__", "forward", inside, "forward", "is_active", "call_below_autograd", "backward"]
    assert called == [name for name in expected if name]


@pytest.fixture
def long_way(monkeypatch):
    """A function that leaves calls and their backward to Python from then on."""

    def switch():
        for module, name in (
            (modules, "run_module"),
            (cells, "run_plain_cell"),
            (functional._extension, "run_stack"),
            (autograd._extension, "recorded_backward"),
        ):
            monkeypatch.setattr(module, name, lambda *_: None)

    return switch


def gradients(module, call, inputs):
    """The results of call(*inputs) and every gradient, with a different weight for each result."""
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    results = flat(call(module, *inputs))
    generator = torch.Generator().manual_seed(1)
    received = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in results]
    return results + list(torch.autograd.grad(results, [*inputs, *module.parameters()], received))


@pytest.mark.parametrize(
    "settings",
    SETTINGS,
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", LAYERS)
def test_same_training_as_python(whole, long_way, kind, settings, steps):
    module, x = build(kind, **settings)
    x = x[:steps].to(settings.get("dtype", torch.float32))
    states, N = 4 if settings.get("bidirectional") else settings.get("num_layers", 1), x.size(1)
    h = torch.randn(states, N, 16).to(x.dtype)
    if settings.get("batch_first"):
        x = x.transpose(0, 1)
    limits = {"lengths": torch.tensor([steps, 0, 1]), "resets": torch.rand(x.shape[:2]) < 0.3}
    lstm = kind == "LSTM"
    calls = [
        (lambda m, x: m(x), [x]),
        (lambda m, x, h: m(x, (h, 2 * h) if lstm else h, **limits), [x, h]),
        (
            lambda m, x, h: m(x, (h, 2 * h) if lstm else h),
            [x.select(0 if settings.get("batch_first") else 1, 0), h[:, 0]],
        ),
    ]
    found = [gradients(module, *call) for call in calls]
    assert whole == [True] * 3
    long_way()
    for call, ours in zip(calls, found, strict=True):
        expected = gradients(module, *call)
        for a, b in zip(ours, expected, strict=True):
            assert torch.equal(a, b) and a.stride() == b.stride() and a.requires_grad == b.requires_grad


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("kind", [k for k in KINDS if k.endswith("Cell")])
def test_same_training_of_cells_as_python(whole, long_way, kind, batched):
    module, x = build(kind)
    h = torch.randn(3, 16)
    call = (lambda m, x, h: m(x, (h, 2 * h) if kind == "LSTMCell" else h)), [t if batched else t[0] for t in (x, h)]
    ours = gradients(module, *call)
    assert whole == [True]
    long_way()
    assert all(torch.equal(a, b) for a, b in zip(ours, gradients(module, *call), strict=True))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_output_of_one_step_may_change_before_backward(kind):
    """Backward of LSTM and GRU does not read it. It does read those of several steps, and says so."""
    module, x = build(kind, bidirectional=True)
    output, _ = module(x[:1])
    expected = torch.autograd.grad(2 * output.sum(), module.weight_hh_l0, retain_graph=True)
    (changed,) = torch.autograd.grad(output.mul_(2).sum(), module.weight_hh_l0)
    assert torch.equal(changed, expected[0])
    output, _ = module(x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.mul_(2).sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_see_what_is_saved(kind):
    """Saved tensors, with the gates, pass through the hooks that move them to other memory."""
    module, x = build(kind)
    expected = torch.autograd.grad(flat(module(x))[0].sum(), module.parameters(), allow_unused=True)
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t.shape) or t.clone(), lambda t: t):
        result = flat(module(x))[0].sum()
    found = torch.autograd.grad(result, module.parameters(), allow_unused=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    rows = x.shape[:-1].numel()
    assert ((1, rows, 4 * 16) in seen) == (not kind.startswith("RNN"))


def parametrized(module, x):
    name = "weight_hh" if hasattr(module, "weight_hh") else "weight_hh_l0"

    class Double(torch.nn.Module):
        def forward(self, w):
            return 2 * w

    parametrize.register_parametrization(module, name, Double())
    return module(x)


def assigned(module, x):
    if not hasattr(module, "_flat_weights"):
        return None
    module._flat_weights = [2 * w for w in module._flat_weights]
    return module(x)


class Passing(torch.Tensor):
    pass


def subclass(module, x):
    return module(x.as_subclass(Passing))


def function_mode(module, x):
    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Mode():
        return module(x)


def dispatch_mode(module, x):
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Mode():
        result = module(x)
    assert autograd.forward_op in seen
    return result


def autocast(module, x):
    with torch.autocast("cpu", torch.bfloat16):
        return module(x)


def vmapped(module, x):
    return torch.func.vmap(module)(x.unsqueeze(0).expand(2, *x.shape))


def dual(module, x):
    with torch.autograd.forward_ad.dual_level():
        result = module(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        tangent = torch.autograd.forward_ad.unpack_dual(flat(result)[0]).tangent
        assert tangent is not None and tangent.any()
        return result


def meta(module, x):
    return module.to("meta")(x.to("meta"))


def profiled(module, x):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        result = module(x)
    assert "lstmkern::layer_forward" in {event.key for event in found.key_averages()}
    return result


def negative_view(module, x):
    return module(torch._neg_view(x))


@pytest.mark.parametrize(
    "how",
    [
        parametrized, assigned, subclass, function_mode, dispatch_mode, autocast, vmapped, dual, meta, profiled,
        negative_view,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_left_to_python(whole, monkeypatch, kind, how):
    """Whatever must see a call, or compute its weights, still does, with the results of the way through Python."""
    module, x = build(kind)
    with torch.no_grad():
        result = how(module, x)
    if result is None:
        pytest.skip("a cell has no _flat_weights")
    # A parametrized or assigned weight is computed by Python; the layers below may still be one call.
    assert whole and not whole[0]
    if how not in (parametrized, assigned):
        assert not any(whole)
    fresh, x = build(kind)
    monkeypatch.setattr(modules, "run_module", lambda *_: None)
    monkeypatch.setattr(cells, "run_plain_cell", lambda *_: None)
    monkeypatch.setattr(functional._extension, "run_stack", lambda *_: None)
    with torch.no_grad():
        expected = how(fresh, x)
    for a, b in zip(flat(result), flat(expected), strict=True):
        assert type(a) is type(b) and (a.is_meta or torch.equal(a, b))


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_parameters_are_read(whole, kind):
    module, x = build(kind)
    doubled = {name: 2 * p for name, p in module.named_parameters()}
    with torch.no_grad():
        called = torch.func.functional_call(module, doubled, (x,))
        assert whole == [True]
        for name, value in doubled.items():
            module._parameters[name] = torch.nn.Parameter(value)
        again = module(x)
    assert all(torch.equal(a, b) for a, b in zip(flat(called), flat(again), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_are_multiplied(kind):
    """Without initial states h is zero, and 0 * inf is NaN in torch.nn too."""
    module, x = build(kind)
    weight = module.weight_hh if kind.endswith("Cell") else module.weight_hh_l0
    with torch.no_grad():
        weight[0, 0] = torch.inf
        assert flat(module(x))[0].isnan().any()


def test_threads_share_no_state():
    """Calls in several Python threads at once return what they return alone."""
    module, x = build("LSTM")
    inputs = [x + k for k in range(4)]
    with torch.no_grad():
        expected = [module(x)[0] for x in inputs]
    wrong = []

    def work(k):
        with torch.no_grad():
            for _ in range(50):
                if not torch.equal(module(inputs[k])[0], expected[k]):
                    wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arguments_are_counted():
    with pytest.raises(TypeError, match="expected 5 arguments, got 1"):
        _extension.run_cell(None)
