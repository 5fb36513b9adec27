"""LSTMCell, GRUCell and RNNCell: one time step as a module, torch.nn's arguments, parameters and results."""

import torch
from torch import Tensor

from .functional import both_states, run_cell
from .onnx import refuse_torchscript

_WITHOUT_BIAS = ("weight_ih", "weight_hh")
_WITH_BIAS = (*_WITHOUT_BIAS, "bias_ih", "bias_hh")


class _Cell(torch.nn.RNNCellBase):
    """A cell is a layer with one step."""

    _slow_forward = __prepare_scriptable__ = refuse_torchscript  # what torch.jit calls to trace and to compile

    def _step(self, mode: str, input: Tensor, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, Tensor]:
        """The next (h, c), both [N, H], or [H] if input is [I]."""
        batched = input.dim() == 2
        if not batched:
            input, h, c = input.unsqueeze(0), h if h is None else h.unsqueeze(0), c if c is None else c.unsqueeze(0)
        shape, parameters = input.shape, self._parameters
        expected = (shape[0], self.hidden_size)
        if (
            shape[1] != self.input_size
            or (h is not None and h.shape != expected)
            or (c is not None and c.shape != expected)
        ):
            self._refuse(shape, h, c)
        names = _WITH_BIAS if self.bias else _WITHOUT_BIAS
        weights = [parameters[n] if n in parameters else getattr(self, n) for n in names]
        h, c = run_cell(mode, input, h, c, weights)
        return (h, c) if batched else (h.squeeze(0), c if c is None else c.squeeze(0))

    def _refuse(self, shape: torch.Size, *states: Tensor | None) -> None:
        """torch.nn's checks in torch.nn's order, for their messages."""
        if shape[1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {shape[1]} expected {self.input_size}")
        for i, state in enumerate(states):
            if state is None:
                continue
            if state.size(0) != shape[0]:
                raise RuntimeError(f"Input batch size {shape[0]} doesn't match hidden{i} batch size {state.size(0)}")
            if state.size(1) != self.hidden_size:
                raise RuntimeError(
                    f"hidden{i} has inconsistent hidden_size: got {state.size(1)}, expected {self.hidden_size}"
                )


def _check_rank(name: str, input: Tensor) -> None:
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")


class LSTMCell(_Cell):
    """torch.nn.LSTMCell(input_size, hidden_size, bias=True, device=None, dtype=None); formulas at lstmkern.LSTM."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """input [N, I] or [I], hx (h, c) each [N, H] or [H], zeros if None; returns the next (h, c)."""
        _check_rank("LSTMCell", input)
        states = both_states("lstm_cell", hx)
        for i, state in enumerate(states):
            if state is not None and state.dim() not in (1, 2):
                raise ValueError(f"LSTMCell: Expected hx[{i}] to be 1D or 2D, got {state.dim()}D instead")
        return self._step("LSTM", input, *states)


class _SingleStateCell(_Cell):
    """What GRUCell and RNNCell share: one state, h."""

    def _next(self, name: str, mode: str, input: Tensor, hx: Tensor | None) -> Tensor:
        _check_rank(name, input)
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        return self._step(mode, input, hx, None)[0]


class GRUCell(_SingleStateCell):
    """torch.nn.GRUCell(input_size, hidden_size, bias=True, device=None, dtype=None); formulas at lstmkern.GRU."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """input [N, I] or [I], hx [N, H] or [H], zeros if None; returns the next h."""
        return self._next("GRUCell", "GRU", input, hx)


class RNNCell(_SingleStateCell):
    """torch.nn.RNNCell(input_size, hidden_size, bias=True, nonlinearity="tanh", device=None, dtype=None)."""

    __constants__ = [*torch.nn.RNNCellBase.__constants__, "nonlinearity"]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """input [N, I] or [I], hx [N, H] or [H], zeros if None; returns the next h."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._next("RNNCell", "RNN_TANH" if self.nonlinearity == "tanh" else "RNN_RELU", input, hx)
