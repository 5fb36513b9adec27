"""Which dtypes a layer takes and gives under autocast."""

import torch
from torch import Tensor

AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)


def cast(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Autocast's own rule: floating tensors except fp64."""
    return tensor.to(dtype) if tensor is not None and tensor.dtype in AUTOCAST else tensor


def result_dtypes(
    mode: str, input: Tensor, h0: Tensor | None, c0: Tensor | None, fused: bool, projected: bool
) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes (output and h_n, c_n) that torch.nn gives under autocast for arguments that are not yet cast.

    On CUDA that is autocast's. On the CPU torch.nn computes a GRU's last sum, and an LSTM's where oneDNN does not fuse
    it (packed, projected, LSTMCell), in the dtype of the state, which may be wider.
    """
    dtype = torch.get_autocast_dtype(input.device.type)
    if input.device.type != "cpu" or mode in ("RNN_TANH", "RNN_RELU") or (mode == "LSTM" and fused):
        return dtype, dtype
    state = c0 if mode == "LSTM" else h0
    wide = torch.promote_types(input.dtype if state is None else state.dtype, dtype)
    return dtype if projected else wide, wide


def as_dtypes(results, dtypes: tuple[torch.dtype, torch.dtype]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if results[0].dtype == torch.float64:
        return results[:4]
    each = zip(results, (dtypes[0], dtypes[0], dtypes[1], dtypes[1]), strict=False)
    return tuple(r if r is None else r.to(dtype) for r, dtype in each)
