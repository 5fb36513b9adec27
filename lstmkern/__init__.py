"""lstmkern: torch.nn's LSTM, GRU and RNN, computed by fused C++ and CUDA kernels.

:class:`LSTM`, :class:`GRU`, :class:`RNN` and the cells :class:`LSTMCell`, :class:`GRUCell`, :class:`RNNCell` replace
torch.nn's modules of the same names. :func:`replace_modules` does so in an existing model.

Example:
    >>> import torch, lstmkern
    >>> lstm = lstmkern.LSTM(10, 20)
    >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
    >>> output.shape
    torch.Size([5, 3, 20])
"""

from . import _extension, flops, functional, onnx, ops, per_sample, reference  # noqa: F401 (flops, ops and per_sample register)
from .cells import GRUCell, LSTMCell, RNNCell
from .convert import replace_modules, restore_modules
from .modules import GRU, LSTM, RNN
from .recomputing import recompute

__version__: str = _extension.build_info()["version"]
__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "functional",
    "onnx",
    "recompute",
    "reference",
    "replace_modules",
    "restore_modules",
]
