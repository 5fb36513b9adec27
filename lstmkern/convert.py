"""replace_modules() and restore_modules(): turn torch.nn's recurrent modules in a model into lstmkern's, and back."""

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
_MARK = "_replaced_by_lstmkern"  # in the __dict__ of each module that restore_modules() must change back

__all__ = ["Report", "replace_modules", "restore_modules"]


@dataclass
class Report:
    """What :func:`lstmkern.replace_modules` or :func:`lstmkern.restore_modules` did.

    ``len(report)`` is the number of changed modules; ``str(report)`` has one line per module.

    Attributes:
        swapped: ``(name, old class, new class)`` of each changed module.
        skipped: ``(name, class, reason)`` of each module that stays as it is.
    """

    swapped: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.swapped)

    def __str__(self) -> str:
        lines = [f"{name}: {old} -> {new}" for name, old, new in self.swapped]
        lines += [f"{name}: {old} left as it is, {reason}" for name, old, reason in self.skipped]
        return "\n".join(lines) or "no recurrent module found"


def replace_modules(model: nn.Module) -> Report:
    """Turn every recurrent module of torch.nn in a model into lstmkern's, in place.

    Only the class of a module changes. It stays the same object with the same parameters, buffers, hooks,
    parametrizations and training flag, so optimizers and other references to it stay valid. Subclasses, and modules
    whose ``forward`` was replaced, may compute something else and are skipped.

    Args:
        model: the model; it may be a recurrent module itself.

    Returns:
        A :class:`~lstmkern.convert.Report` of the changed and the skipped modules.

    Raises:
        TypeError: ``model`` is not a :class:`torch.nn.Module`.

    Example:
        >>> import torch, lstmkern
        >>> model = torch.nn.Sequential(torch.nn.LSTM(10, 20))
        >>> print(lstmkern.replace_modules(model))
        0: torch.nn.LSTM -> lstmkern.LSTM
        >>> model
        Sequential(
          (0): LSTM(10, 20)
        )
    """
    report = Report()
    for name, module in _modules(model):
        base = next((b for b in CLASSES if isinstance(module, b)), None)
        if base is None or isinstance(module, KernelModule):
            continue
        parametrized = _is_plainly_parametrized(module, base)
        if type(module) is not base and not parametrized:
            report.skipped.append((name, _label(type(module)), f"a subclass of {_label(base)} may compute more"))
        elif "forward" in module.__dict__:
            report.skipped.append((name, _label(base), "its forward was replaced"))
        else:
            _change_class(module, CLASSES[base], parametrized)
            module.__dict__[_MARK] = True
            report.swapped.append((name, _label(base), _label(CLASSES[base])))
    return report


def restore_modules(model: nn.Module, *, every: bool = False) -> Report:
    """Undo :func:`lstmkern.replace_modules`: the modules that it changed become torch.nn's again, in place.

    Args:
        model: the model; it may be a recurrent module itself.
        every: also change the modules that were created as lstmkern's, for tools that know only torch.nn's classes,
            such as torch.ao.quantization. Subclasses of lstmkern's modules are skipped.

    Returns:
        A :class:`~lstmkern.convert.Report` of the changed and the skipped modules.

    Raises:
        TypeError: ``model`` is not a :class:`torch.nn.Module`.

    Example:
        >>> import torch, lstmkern
        >>> model = torch.nn.Sequential(lstmkern.GRU(10, 20))
        >>> print(lstmkern.restore_modules(model, every=True))
        0: lstmkern.GRU -> torch.nn.GRU
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
            report.skipped.append((name, _label(type(module)), f"a subclass of {_label(ours)} may compute more"))
    return report


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model should be a torch.nn.Module, got {type(model).__name__}")
    return [(name or "(model)", module) for name, module in model.named_modules()]


def _is_plainly_parametrized(module: nn.Module, base: type) -> bool:
    """Whether module's class is one that torch.nn.utils.parametrize made, with properties that compute parameters."""
    return parametrize.is_parametrized(module) and type(module).__bases__ == (base,)


def _change_class(module: nn.Module, to: type, parametrized: bool) -> None:
    state = module.__dict__
    if parametrized:
        properties = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__", "__doc__")}
        to = type(f"Parametrized{to.__name__}", (to,), properties)
    if isinstance(module, torch.nn.RNNBase):
        # torch.nn keeps a list of its parameters, which lstmkern derives. torch.nn needs it again.
        state.pop("_flat_weights", None)
        state["_flat_weight_refs"] = []
    module.__class__ = to
    if isinstance(module, torch.nn.RNNBase):
        module._init_flat_weights()


def _label(cls: type) -> str:
    package = cls.__module__.split(".")[0]
    return f"{'torch.nn' if package == 'torch' else package}.{cls.__name__}"
