"""Loads the compiled part; importing it registers torch.ops.lstmkern.*."""

import importlib

import torch  # noqa: F401 (its libraries must be loaded before ours)


def load():
    try:
        return importlib.import_module("lstmkern._C")
    except ModuleNotFoundError as error:
        if error.name != "lstmkern._C":
            raise
    except ImportError as error:
        raise ImportError(
            f"lstmkern's compiled part does not load ({error}): build it for this Python and torch with "
            "`pip install --no-build-isolation .` in lstmkern's source folder."
        ) from error
    from . import _clone

    return _clone.load()


_C = load()
build_info = _C.build_info
cpu_capability = _C.cpu_capability
cpu_peak = _C.cpu_peak
layer_forward = _C.layer_forward
layer_backward = _C.layer_backward
cpu_product = _C.cpu_product
