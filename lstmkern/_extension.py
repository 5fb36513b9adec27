"""Loads the compiled part; importing it registers torch.ops.lstmkern.*."""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch  # noqa: F401 (its libraries must be loaded before ours)


def load() -> ModuleType:
    found = None
    if find_spec("lstmkern._C") is None:
        from . import _clone

        found = _clone.find()
    try:
        return _clone.load(found) if found else import_module("lstmkern._C")
    except ImportError as error:
        raise ImportError(
            f"lstmkern's compiled part does not load ({error}): build it for this Python and torch with "
            "`pip install --no-build-isolation .` in lstmkern's source folder."
        ) from error


_C = load()
build_info = _C.build_info
cells = _C.cells  # {mode: (gates in the weights, values that forward saves per unit and step)}
padding = _C.padding  # units of saved values are padded to a multiple of it
cpu_capability = _C.cpu_capability
cpu_peak = _C.cpu_peak
layer_forward = _C.layer_forward
layer_backward = _C.layer_backward
cpu_product = _C.cpu_product
