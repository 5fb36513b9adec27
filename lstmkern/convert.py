"""replace_modules() and restore_modules(): torch.nn's recurrent modules in a model for lstmkern's, and back."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import cells, modules
from .leaf import KernelModule

CLASSES = {
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNN: modules.RNN,
    nn.LSTMCell: cells.LSTMCell,
    nn.GRUCell: cells.GRUCell,
    nn.RNNCell: cells.RNNCell,
}
_MARK = "_replaced_by_lstmkern"  # in the __dict__ of a module that restore_modules() should turn back


@dataclass
class Report:
    """What replace_modules() or restore_modules() did: (name, old class, new class) and (name, class, why not)."""

    swapped: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.swapped)

    def __str__(self) -> str:
        lines = [f"{name}: {old} -> {new}" for name, old, new in self.swapped]
        lines += [f"{name}: {old} left as it is, {reason}" for name, old, reason in self.skipped]
        return "\n".join(lines) or "no recurrent module found"


def replace_modules(model: nn.Module) -> Report:
    """Turns every torch.nn recurrent module in model, model itself included, into lstmkern's, in place.

    A module changes its class and nothing else: it stays the same object with the same parameters, buffers, hooks,
    parametrizations and training flag, so optimizers, other references to it and modules used twice are undisturbed.
    Subclasses and modules whose forward was replaced compute something of their own and are left alone; the report,
    which prints as one line per module, says so.
    """
    report = Report()
    for name, module in _modules(model):
        base = next((b for b in CLASSES if isinstance(module, b)), None)
        if base is None or isinstance(module, KernelModule):
            continue
        parametrized = _is_plainly_parametrized(module, base)
        if type(module) is not base and not parametrized:
            report.skipped.append((name, _label(type(module)), f"a subclass of {_label(base)} may compute its own"))
        elif "forward" in module.__dict__:
            report.skipped.append((name, _label(base), "its forward was replaced"))
        else:
            _change_class(module, CLASSES[base], parametrized)
            module.__dict__[_MARK] = True
            report.swapped.append((name, _label(base), _label(CLASSES[base])))
    return report


def restore_modules(model: nn.Module, *, every: bool = False) -> Report:
    """Undoes replace_modules(model): what it turned into lstmkern's modules becomes torch.nn's again, in place.

    With every=True so do the modules that were made as lstmkern's, which tools that know torch.nn's classes alone
    (torch.ao.quantization) then find; subclasses of lstmkern's are left alone and reported.
    """
    report = Report()
    for name, module in _modules(model):
        marked = module.__dict__.pop(_MARK, False)
        if not (marked or (every and isinstance(module, KernelModule))):
            continue
        base, ours = next((b, o) for b, o in CLASSES.items() if isinstance(module, o))
        parametrized = _is_plainly_parametrized(module, ours)
        if type(module) is ours or parametrized:
            _change_class(module, base, parametrized)
            report.swapped.append((name, _label(ours), _label(base)))
        else:
            report.skipped.append((name, _label(type(module)), f"a subclass of {_label(ours)} may compute its own"))
    return report


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got {type(model).__name__}")
    return [(name or "(model)", module) for name, module in model.named_modules()]


def _is_plainly_parametrized(module: nn.Module, base: type) -> bool:
    """torch.nn.utils.parametrize gives a module a class of its own, whose properties compute the parameters."""
    return parametrize.is_parametrized(module) and type(module).__bases__ == (base,)


def _change_class(module: nn.Module, to: type, parametrized: bool) -> None:
    state = module.__dict__
    if parametrized:
        own = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__", "__doc__")}
        to = type(f"Parametrized{to.__name__}", (to,), own)
    if isinstance(module, torch.nn.RNNBase):
        # The list that torch.nn keeps beside its parameters: lstmkern derives it, torch.nn wants it back.
        state.pop("_flat_weights", None)
        state["_flat_weight_refs"] = []
    module.__class__ = to
    if isinstance(module, torch.nn.RNNBase):
        module._init_flat_weights()


def _label(cls: type) -> str:
    package = cls.__module__.split(".")[0]
    return f"{'torch.nn' if package == 'torch' else package}.{cls.__name__}"
