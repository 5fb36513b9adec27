"""LSTMCell, GRUCell and RNNCell: one time step as a module, computed by lstmkern's kernels."""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import disable
from ._extension import run_cell as run_plain_cell
from .autograd import record
from .functional import both_states, run_cell
from .leaf import KernelModule

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

_WITHOUT_BIAS = ("weight_ih", "weight_hh")
_WITH_BIAS = (*_WITHOUT_BIAS, "bias_ih", "bias_hh")


class _Cell(KernelModule, torch.nn.RNNCellBase):
    """The base class of the cells. A cell is a layer with one step."""

    def _step(self, mode: str, input: Tensor, h: Tensor | None, c: Tensor | None) -> tuple[Tensor, Any]:
        """The next (h, c), both [N, H], or [H] if input is [I]; c is None except for an LSTM."""
        batched = input.dim() == 2
        if not batched:
            input, h, c = input.unsqueeze(0), h if h is None else h.unsqueeze(0), c if c is None else c.unsqueeze(0)
        shape = input.shape
        parameters: dict[str, Any] = self._parameters
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
        """Raise what torch.nn raises: its checks in its order, with its messages."""
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


class LSTMCell(_Cell, torch.nn.LSTMCell):
    r"""One step of an LSTM: :class:`torch.nn.LSTMCell` with the same arguments, parameters and results.

    .. math::

        \begin{aligned}
        i &= \sigma(W_{ii} x + b_{ii} + W_{hi} h + b_{hi}) \\
        f &= \sigma(W_{if} x + b_{if} + W_{hf} h + b_{hf}) \\
        g &= \tanh(W_{ig} x + b_{ig} + W_{hg} h + b_{hg}) \\
        o &= \sigma(W_{io} x + b_{io} + W_{ho} h + b_{ho}) \\
        c' &= f \odot c + i \odot g \\
        h' &= o \odot \tanh(c')
        \end{aligned}

    Sources: see :class:`lstmkern.LSTM`. Parameters, with the gates stacked in the order i, f, g, o: ``weight_ih [4*H,
    I]``, ``weight_hh [4*H, H]``, ``bias_ih`` and ``bias_hh [4*H]``.

    Args:
        input_size: features :math:`I` of each input.
        hidden_size: hidden units :math:`H`.
        bias: whether the cell has ``bias_ih`` and ``bias_hh``.
        device: where the parameters are created.
        dtype: type of the parameters: fp32, fp64, bf16 or fp16.

    Example:
        >>> import torch, lstmkern
        >>> cell = lstmkern.LSTMCell(10, 20)
        >>> state = None
        >>> for x in torch.randn(5, 3, 10):
        ...     state = cell(x, state)
        >>> state[0].shape, state[1].shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Compute the next state.

        Args:
            input: ``[N, I]`` for :math:`N` sequences, or ``[I]`` for one.
            hx: the states ``(h, c)``, each ``[N, H]`` or ``[H]``; None for zeros.

        Returns:
            The next ``(h, c)``, of the same shapes.

        Raises:
            ValueError: wrong rank of ``input`` or of a state.
            TypeError: ``hx`` is no tuple.
            RuntimeError: sizes or dtypes that do not fit, with torch.nn's wording.
        """
        if disable.DISABLED:
            return super().forward(input, hx)
        if not is_dynamo_compiling():
            state: tuple[Tensor, Tensor] | None = run_plain_cell(self, "LSTM", input, hx, record)
            if state is not None:
                return state
        _check_rank("LSTMCell", input)
        states = both_states("lstm_cell", hx)
        for i, given in enumerate(states):
            if given is not None and given.dim() not in (1, 2):
                raise ValueError(f"LSTMCell: Expected hx[{i}] to be 1D or 2D, got {given.dim()}D instead")
        return self._step("LSTM", input, *states)


class _SingleStateCell(_Cell):
    """What GRUCell and RNNCell share: one state, h."""

    def _next(self, name: str, mode: str, input: Tensor, hx: Tensor | None) -> Tensor:
        if not is_dynamo_compiling():
            state: Tensor | None = run_plain_cell(self, mode, input, hx, record)
            if state is not None:
                return state
        _check_rank(name, input)
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        return self._step(mode, input, hx, None)[0]


class GRUCell(_SingleStateCell, torch.nn.GRUCell):
    r"""One step of a GRU: :class:`torch.nn.GRUCell` with the same arguments, parameters and results.

    .. math::

        \begin{aligned}
        r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \\
        z &= \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n &= \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \\
        h' &= (1 - z) \odot n + z \odot h
        \end{aligned}

    Source: see :class:`lstmkern.GRU`. Parameters, with the gates stacked in the order r, z, n: ``weight_ih [3*H, I]``,
    ``weight_hh [3*H, H]``, ``bias_ih`` and ``bias_hh [3*H]``.

    Args:
        input_size: features :math:`I` of each input.
        hidden_size: hidden units :math:`H`.
        bias: whether the cell has ``bias_ih`` and ``bias_hh``.
        device: where the parameters are created.
        dtype: type of the parameters: fp32, fp64, bf16 or fp16.

    Example:
        >>> import torch, lstmkern
        >>> cell = lstmkern.GRUCell(10, 20)
        >>> h = cell(torch.randn(3, 10))
        >>> cell(torch.randn(3, 10), h).shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Compute the next state.

        Args:
            input: ``[N, I]`` for :math:`N` sequences, or ``[I]`` for one.
            hx: the state h, ``[N, H]`` or ``[H]``; None for zeros.

        Returns:
            The next h, of the same shape.

        Raises:
            ValueError: wrong rank of ``input`` or ``hx``.
            RuntimeError: sizes or dtypes that do not fit, with torch.nn's wording.
        """
        if disable.DISABLED:
            return super().forward(input, hx)
        return self._next("GRUCell", "GRU", input, hx)


class RNNCell(_SingleStateCell, torch.nn.RNNCell):
    r"""One step of an Elman RNN: :class:`torch.nn.RNNCell` with the same arguments, parameters and results.

    .. math::

        h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    or, with ``nonlinearity="relu"``, :math:`\max(0, \cdot)` in place of :math:`\tanh`.

    Source: see :class:`lstmkern.RNN`. Parameters: ``weight_ih [H, I]``, ``weight_hh [H, H]``, ``bias_ih`` and
    ``bias_hh [H]``.

    Args:
        input_size: features :math:`I` of each input.
        hidden_size: hidden units :math:`H`.
        bias: whether the cell has ``bias_ih`` and ``bias_hh``.
        nonlinearity: ``"tanh"`` or ``"relu"``; another name is refused by :meth:`forward`, as in torch.nn.
        device: where the parameters are created.
        dtype: type of the parameters: fp32, fp64, bf16 or fp16.

    Example:
        >>> import torch, lstmkern
        >>> cell = lstmkern.RNNCell(10, 20)
        >>> cell(torch.randn(10)).shape
        torch.Size([20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, nonlinearity, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Compute the next state.

        Args:
            input: ``[N, I]`` for :math:`N` sequences, or ``[I]`` for one.
            hx: the state h, ``[N, H]`` or ``[H]``; None for zeros.

        Returns:
            The next h, of the same shape.

        Raises:
            ValueError: wrong rank of ``input`` or ``hx``.
            RuntimeError: sizes or dtypes that do not fit, with torch.nn's wording; or an unknown
                ``nonlinearity``.
        """
        if disable.DISABLED:
            return super().forward(input, hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._next("RNNCell", "RNN_TANH" if self.nonlinearity == "tanh" else "RNN_RELU", input, hx)
