"""A layer's ``__call__`` calls forward directly where nn.Module's would do nothing else (csrc/module_call.h)."""

import sys

import pytest
import torch
from torch.utils._pytree import tree_leaves

import lstmkern

HOOKS = {
    "forward hook": lambda module: module.register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda module: module.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda module: module.register_full_backward_pre_hook(lambda *_: None),
    "global forward hook": lambda module: torch.nn.modules.module.register_module_forward_hook(lambda *_: None),
    "global forward pre-hook": lambda module: torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: None),
    "global backward hook": lambda module: torch.nn.modules.module.register_module_full_backward_hook(lambda *_: None),
}


def wrapped(function):
    return lambda *args, **kwargs: function(*args, **kwargs)


REPLACED = {
    "Module.__call__": lambda module: (torch.nn.Module, "__call__", wrapped(torch.nn.Module.__call__)),
    "Module._call_impl": lambda module: (torch.nn.Module, "_call_impl", wrapped(torch.nn.Module._call_impl)),
    "_call_impl of the class": lambda module: (type(module), "_call_impl", wrapped(torch.nn.Module._call_impl)),
    "_call_impl of the module": lambda module: (module, "_call_impl", wrapped(module._call_impl)),
    "compile()": lambda module: (module, "_compiled_call_impl", wrapped(module._call_impl)),
}


def test_torch_asks_for_nothing_else():
    """nn.Module's __call__ of this torch has no private names that csrc/module_call.h was written without knowing."""
    functions = (torch.nn.Module._wrapped_call_impl, torch.nn.Module._call_impl)
    asked = {name for function in functions for name in function.__code__.co_names if name.startswith("_")}
    hooks = {f"{kind}_{when}hooks" for kind in ("_backward", "_forward") for when in ("", "pre_")}
    known = hooks | {f"_global{name}" for name in hooks} | {"_compiled_call_impl", "_call_impl"}
    known |= {"_C", "_get_tracing_state", "_slow_forward"}
    # Only asked where there are hooks.
    known |= {"_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_global_forward_hooks_always_called"}
    assert asked <= known


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_call_is_that_of_torch_where_it_does_more(monkeypatch, kind):
    """__call__ goes to nn.Module's for each kind of hook, and if a tool has replaced one of nn.Module's functions."""
    module = getattr(lstmkern, kind)(8, 16)
    x = torch.randn(3, 8) if kind.endswith("Cell") else torch.randn(5, 3, 8)
    expected = tree_leaves(module(x))
    called = []
    forward = module.forward

    def watch(*args, **kwargs):
        frame = sys._getframe(1)
        called.append(frame.f_code.co_filename != torch.nn.modules.module.__file__)
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", watch)

    def directly():
        for a, b in zip(tree_leaves(module(x)), expected, strict=True):
            assert torch.equal(a, b)
        return called.pop()

    assert directly()
    for name, register in HOOKS.items():
        handle = register(module)
        assert not directly(), name
        handle.remove()
        assert directly(), name
    for name, replaced in REPLACED.items():
        with monkeypatch.context() as patch:
            patch.setattr(*replaced(module), raising=False)
            assert not directly(), name
        assert directly(), name
    with torch.profiler.profile():
        assert not directly()
    assert directly()
