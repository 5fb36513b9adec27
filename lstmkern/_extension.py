"""Loads the compiled part; importing it registers torch.ops.lstmkern.*."""

import torch  # noqa: F401 (its libraries must be loaded before ours)

try:
    from lstmkern import _C
except ImportError as error:
    raise ImportError(
        f"lstmkern's compiled part does not load ({error}): build it for this Python and torch with "
        "`pip install --no-build-isolation .` in lstmkern's source folder."
    ) from error

build_info = _C.build_info
cpu_capability = _C.cpu_capability
cpu_peak = _C.cpu_peak
layer_forward = _C.layer_forward
layer_backward = _C.layer_backward
cpu_product = _C.cpu_product
