"""How torch.fx, torch.jit and torch.ao.quantization, which inspect modules, treat lstmkern's modules."""

import warnings
from typing import Any, NoReturn

import torch
from torch.compiler import is_dynamo_compiling

from ._extension import only_calls_forward


def refuse_torchscript(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise NotImplementedError; called in place of a module or an op that TorchScript traces or compiles."""
    raise NotImplementedError(
        "lstmkern does not support TorchScript (torch.onnx.export(dynamo=False), torch.jit.trace, torch.jit.script): "
        "use torch.onnx.export(dynamo=True) or torch.export, or call lstmkern.restore_modules(model, every=True) first "
        "to export torch.nn's modules"
    )


class ModuleName(str):
    """A class's ``__module__`` that starts with "torch.nn" on instances, so that torch.fx treats them as leaves.

    torch.fx.Tracer.is_leaf_module and the tracer of prepare_fx make a module one node of the graph if its
    ``m.__module__`` starts with "torch.nn", and trace into all others. The class keeps the name of its module, which
    pickle needs.
    """

    def __get__(self, instance: object, owner: type | None = None) -> str:
        return self if instance is None else f"torch.nn/{self}"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # a pickle names a class by a plain string


class KernelModule(torch.nn.Module):
    """The base class of all layers and cells of lstmkern."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call forward, directly where torch.nn.Module's __call__ would do nothing else."""
        if not is_dynamo_compiling() and only_calls_forward(self):
            return self.forward(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    _slow_forward = __prepare_scriptable__ = refuse_torchscript  # what torch.jit calls to trace and to compile

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.split(".")[0] == __package__:  # a user's subclass is traced, like one of torch.nn.LSTM
            cls.__module__ = ModuleName(cls.__module__)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig":
            # torch.ao.quantization sets it on each module, and then quantizes only torch.nn's classes.
            warnings.warn(
                f"torch.ao.quantization does not quantize lstmkern's {type(self).__name__}: if it is to be quantized, "
                "call lstmkern.restore_modules(model, every=True) first",
                stacklevel=2,
            )
        super().__setattr__(name, value)
