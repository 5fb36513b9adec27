"""What lstmkern's modules tell the parts of torch that inspect modules: torch.fx, torch.jit, torch.ao.quantization."""

import warnings
from typing import Any, NoReturn

import torch


def refuse_torchscript(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise NotImplementedError; called in place of a module or an op that TorchScript traces or compiles."""
    raise NotImplementedError(
        "lstmkern does not support TorchScript (torch.onnx.export(dynamo=False), torch.jit.trace, torch.jit.script): "
        "use torch.onnx.export(dynamo=True) or torch.export, or call lstmkern.restore_modules(model, every=True) first "
        "to export torch.nn's modules"
    )


class ModuleName(str):
    """A class's ``__module__`` that on instances starts with "torch.nn", so that torch.fx takes them for leaves.

    torch.fx.Tracer.is_leaf_module, and the tracer of prepare_fx, make one node of the graph of a module whose
    ``m.__module__`` starts with "torch.nn", and trace into every other. The class itself keeps its module's name, by
    which pickle finds it.
    """

    def __get__(self, instance: object, owner: type | None = None) -> str:
        return self if instance is None else f"torch.nn/{self}"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # a pickle names a class by a plain string


class KernelModule(torch.nn.Module):
    """What every layer and cell of lstmkern has in common as a module."""

    _slow_forward = __prepare_scriptable__ = refuse_torchscript  # what torch.jit calls to trace and to compile

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.split(".")[0] == __package__:  # a user's subclass is traced, like one of torch.nn.LSTM
            cls.__module__ = ModuleName(cls.__module__)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig":
            # torch.ao.quantization sets it on each module that it visits, and then looks for torch.nn's own classes.
            warnings.warn(
                f"torch.ao.quantization does not quantize lstmkern's {type(self).__name__}: if it is to be quantized, "
                "call lstmkern.restore_modules(model, every=True) first",
                stacklevel=2,
            )
        super().__setattr__(name, value)
