"""torch.compile for modules that are instances of torch.nn.LSTM, GRU and RNN.

Dynamo refuses every such instance ("Attempted to wrap RNN, GRU, or LSTM") unless torch._dynamo.config.allow_rnn is set,
which would change how torch.nn's own modules compile. lstmkern's modules compile whole. So the setting is made while
Dynamo wraps one of ours and at no other time: VariableBuilder.wrap_module is replaced by a function that does this and
then calls the original. That is the one thing that importing lstmkern changes in torch; torch.nn's modules are refused
as before, also where a program has put lstmkern.LSTM in the place of torch.nn.LSTM. torch.export allows all of them.
"""

import functools
import importlib.abc
import importlib.util
import sys

import torch

BUILDER = "torch._dynamo.variables.builder"
_THEIRS = (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)


def _named_in_torch_nn() -> tuple[type, ...]:
    """What Dynamo looks for: torch.nn's classes, or what a program has put in their place."""
    return torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN


def let_through(ours: type) -> None:
    """Lets Dynamo trace instances of ``ours``, as soon as it is imported (which the first torch.compile does)."""
    if BUILDER in sys.modules:
        _wrap_builder(sys.modules[BUILDER], ours)
    else:
        sys.meta_path.insert(0, _WhenImported(ours))


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds BUILDER as the other finders do, has it wrapped when it is loaded, and then leaves sys.meta_path."""

    def __init__(self, ours: type) -> None:
        self.ours = ours
        self.asking_others = False

    def find_spec(self, name, path, target=None):
        if name != BUILDER or self.asking_others:
            return None
        self.asking_others = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.asking_others = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module) -> None:
                execute(module)
                _wrap_builder(module, self.ours)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            spec.loader.exec_module = exec_module
        return spec


def _wrap_builder(builder, ours: type) -> None:
    original = getattr(getattr(builder, "VariableBuilder", None), "wrap_module", None)
    if original is None or not hasattr(builder.config, "allow_rnn"):
        return  # a Dynamo that we do not know: it says itself what it refuses

    @functools.wraps(original)
    def wrap_module(self, value):
        if isinstance(value, ours):
            with builder.config.patch(allow_rnn=True):
                return original(self, value)
        if isinstance(value, _THEIRS) and not isinstance(value, _named_in_torch_nn()) and not builder.config.allow_rnn:
            builder.unimplemented(  # which torch would have said, had torch.nn.LSTM not been replaced
                gb_type="Attempted to wrap RNN, GRU, or LSTM",
                context=str(value),
                explanation="Dynamo does not support RNN, GRU, or LSTM.",
                hints=["Set torch._dynamo.config.allow_rnn=True, or replace it: lstmkern.replace_modules(model)."],
            )
        return original(self, value)

    builder.VariableBuilder.wrap_module = wrap_module
