"""torch.compile for modules that are instances of torch.nn.LSTM, GRU and RNN.

Dynamo refuses every such instance ("Attempted to wrap RNN, GRU, or LSTM") unless torch._dynamo.config.allow_rnn is set,
which would change how torch.nn's modules compile. lstmkern's modules compile without a graph break. So the setting
is made only while Dynamo wraps one of them: VariableBuilder.wrap_module is replaced by a function that does this and
then calls the original. Importing lstmkern changes nothing else in torch. torch.nn's modules are refused as before,
also if a program has assigned lstmkern.LSTM to torch.nn.LSTM. torch.export allows all of them.
"""

import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

BUILDER = "torch._dynamo.variables.builder"
_THEIRS = (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)


def _named_in_torch_nn() -> tuple[type, ...]:
    """The classes that Dynamo looks for: torch.nn's, or what a program has assigned to these names."""
    return torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN


def let_through(ours: type) -> None:
    """Let Dynamo trace instances of ``ours``, once Dynamo is imported (by the first torch.compile)."""
    if BUILDER in sys.modules:
        _wrap_builder(sys.modules[BUILDER], ours)
    else:
        sys.meta_path.insert(0, _WhenImported(ours))


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds BUILDER with the other finders, wraps it when it is loaded, and then removes itself from sys.meta_path."""

    def __init__(self, ours: type) -> None:
        self.ours = ours
        self.searching = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != BUILDER or self.searching:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _wrap_builder(module, self.ours)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)

            loader.exec_module = exec_module
        return spec


def _wrap_builder(builder: Any, ours: type) -> None:
    original = getattr(getattr(builder, "VariableBuilder", None), "wrap_module", None)
    if original is None or not hasattr(builder.config, "allow_rnn"):
        return  # an unknown version of Dynamo, whose errors are not replaced

    @functools.wraps(original)
    def wrap_module(self: Any, value: Any) -> Any:
        if isinstance(value, ours):
            with builder.config.patch(allow_rnn=True):
                return original(self, value)
        if isinstance(value, _THEIRS) and not isinstance(value, _named_in_torch_nn()) and not builder.config.allow_rnn:
            builder.unimplemented(  # torch's error, which torch does not raise if torch.nn.LSTM is another class
                gb_type="Attempted to wrap RNN, GRU, or LSTM",
                context=str(value),
                explanation="Dynamo does not support RNN, GRU, or LSTM.",
                hints=["Set torch._dynamo.config.allow_rnn=True, or replace it: lstmkern.replace_modules(model)."],
            )
        return original(self, value)

    builder.VariableBuilder.wrap_module = wrap_module
