"""lstmkern: torch.nn's LSTM, GRU and RNN on kernels of their own."""

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
