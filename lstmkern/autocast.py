"""The dtypes of a layer's arguments and results under autocast."""

from typing import Any, overload

import torch
from torch import Tensor

AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)


@overload
def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor: ...
@overload
def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None: ...
def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Cast as autocast itself does: floating-point tensors except fp64."""
    return tensor.to(dtype) if tensor is not None and tensor.dtype in AUTOCAST else tensor


def result_dtypes(
    mode: str, input: Tensor, h0: Tensor | None, c0: Tensor | None, fused: bool, projected: bool
) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes (output and h_n, c_n) that torch.nn returns under autocast for arguments that are not yet cast.

    On CUDA this is autocast's dtype. On the CPU torch.nn computes the last sum of a GRU in the dtype of the state,
    which may be wider. So it does for an LSTM that oneDNN does not compute: packed input, a projection, LSTMCell.
    """
    dtype = torch.get_autocast_dtype(input.device.type)
    if input.device.type != "cpu" or mode in ("RNN_TANH", "RNN_RELU") or (mode == "LSTM" and fused):
        return dtype, dtype
    state = c0 if mode == "LSTM" else h0
    wide = torch.promote_types(input.dtype if state is None else state.dtype, dtype)
    return dtype if projected else wide, wide


def as_dtypes(
    results: tuple[Tensor, Any, Any, Any, Any] | tuple[Tensor, Any, Any, Any], dtypes: tuple[torch.dtype, torch.dtype]
) -> tuple[Tensor, Any, Any, Any]:
    """Output and h_n in the first of two dtypes, c_n and cells in the second; fp64 results as they are."""
    output, h_n, c_n, cells = results[:4]
    if output.dtype == torch.float64:
        return output, h_n, c_n, cells

    def to(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    return output.to(dtypes[0]), to(h_n, dtypes[0]), to(c_n, dtypes[1]), to(cells, dtypes[1])
