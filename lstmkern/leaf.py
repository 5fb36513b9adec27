"""What lstmkern's modules tell the parts of torch that look at modules: torch.fx, torch.jit, torch.ao.quantization."""

import warnings

import torch

from .onnx import refuse_torchscript


class ModuleName(str):
    """A class's ``__module__`` that reads as torch.nn's on instances, because torch.fx decides by that what is a leaf.

    torch.fx.Tracer.is_leaf_module, and prepare_fx's, take a module whose ``m.__module__`` starts with "torch.nn" as
    one node of the graph and trace into every other. The class itself keeps its own module's name, by which pickle
    finds it.
    """

    def __get__(self, instance, owner=None) -> str:
        return self if instance is None else f"torch.nn/{self}"

    def __reduce__(self):
        return str, (str(self),)  # a pickle names a class by a plain string


class KernelModule(torch.nn.Module):
    """What every layer and cell of lstmkern has in common as a module."""

    _slow_forward = __prepare_scriptable__ = refuse_torchscript  # what torch.jit calls to trace and to compile

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.split(".")[0] == __package__:  # a user's subclass is traced, as one of torch.nn.LSTM is
            cls.__module__ = ModuleName(cls.__module__)

    def __setattr__(self, name, value) -> None:
        if name == "qconfig":
            # torch.ao.quantization sets it on each module that it visits, and then looks for torch.nn's own classes.
            warnings.warn(
                f"torch.ao.quantization does not quantize lstmkern's {type(self).__name__}: if it is to be quantized, "
                "call lstmkern.restore_modules(model, every=True) first",
                stacklevel=2,
            )
        super().__setattr__(name, value)
