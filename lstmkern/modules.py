"""LSTM, GRU and RNN: torch.nn's modules, computed by lstmkern's kernels."""

from typing import Any, Literal, cast, overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.utils.rnn import PackedSequence

from . import disable
from ._extension import run_module
from .autograd import record
from .functional import both_states
from .recurrent import RecurrentModule

__all__ = ["GRU", "LSTM", "RNN"]


class LSTM(RecurrentModule, torch.nn.LSTM):
    r"""Long short-term memory layers: :class:`torch.nn.LSTM` with the same arguments, parameters and results.

    Beyond torch.nn, a call takes ``lengths``, ``resets`` and ``return_cells``; see :meth:`forward`.

    Each direction of a layer computes, for :math:`t = 1, \dots, T` (the reverse direction from :math:`T` to 1):

    .. math::

        \begin{aligned}
        i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
        f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
        g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
        o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
        c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
        h_t &= o_t \odot \tanh(c_t)
        \end{aligned}

    With ``proj_size`` :math:`P > 0` the output is projected: :math:`h_t = W_{hr} (o_t \odot \tanh(c_t))`.

    Sources: Hochreiter and Schmidhuber, Long short-term memory, 1997; the forget gate :math:`f_t`: Gers, Schmidhuber
    and Cummins, Learning to forget, 2000; the projection: Sak, Senior and Beaufays, 2014 (arXiv:1402.1128).

    The parameters are those of torch.nn, with the gates stacked in the order i, f, g, o: ``weight_ih_l[k] [4*H, I]``
    (``[4*H, D*P]`` above the first layer), ``weight_hh_l[k] [4*H, P]``, ``bias_ih_l[k]`` and ``bias_hh_l[k] [4*H]``,
    and ``weight_hr_l[k] [P, H]`` with a projection; ``_reverse`` is appended for the reverse direction. :math:`D` is
    the number of directions, and :math:`P = H` without a projection.

    Args:
        input_size: features :math:`I` of each input.
        hidden_size: hidden units :math:`H`.
        num_layers: layers :math:`L`, each reading the output of the one before.
        bias: whether the layers have ``b_ih`` and ``b_hh``.
        batch_first: whether dense input and output are ``[N, T, ...]`` instead of ``[T, N, ...]``.
        dropout: probability of dropout on the output of each layer but the last, in training.
        bidirectional: whether each layer has a reverse direction too; outputs are concatenated, forward first.
        proj_size: size :math:`P` of the projected output, smaller than ``hidden_size``; 0 for no projection.
        device: where the parameters are created.
        dtype: type of the parameters: fp32, fp64, bf16 or fp16.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is not positive, ``dropout`` is not in [0, 1], or ``proj_size`` does not fit.

    Example:
        >>> import torch, lstmkern
        >>> lstm = lstmkern.LSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype
        )

    # Without overloads the result would be a union of all four, of no use to a type checker.
    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        resets: Tensor | None = None,
        return_cells: Literal[False] = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...
    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: Literal[True],
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: None = None,
        resets: Tensor | None = None,
        return_cells: Literal[True],
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor], PackedSequence]: ...
    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: bool = False,
    ) -> tuple[Any, ...]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cells: bool = False,
    ) -> tuple[Any, ...]:
        r"""Run the layers over a batch of sequences.

        Sizes: :math:`T` steps, :math:`N` sequences, :math:`I` = ``input_size``, :math:`H` = ``hidden_size``, :math:`P`
        = ``proj_size`` or :math:`H`, :math:`D` = 2 if ``bidirectional`` else 1, :math:`L` = ``num_layers``.

        Args:
            input: ``[T, N, I]``; ``[N, T, I]`` if ``batch_first``; ``[T, I]`` for one sequence; or a
                :class:`~torch.nn.utils.rnn.PackedSequence`. Its dtype is that of the parameters, except under autocast.
            hx: initial states ``(h_0 [L*D, N, P], c_0 [L*D, N, H])``, without ``N`` for one sequence; None for zeros.
            lengths: int64 ``[N]`` on any device, in any order: the number of steps
                :math:`0 \le \mathrm{lengths}_n \le T` of each sequence of a padded batch. The output is zero past a
                sequence's end, ``h_n`` and ``c_n`` are the states at the end, and the reverse direction starts there.
                A sequence of length 0 keeps ``h_0`` and ``c_0``. On a GPU lengths are not checked but clamped to
                :math:`0..T`; in a CUDA graph they must be on the GPU.
            resets: bool, with the layout of ``input`` without its last dimension: ``[T, N]``, ``[N, T]``, or ``[R]``
                for packed data of :math:`R` steps. Where it is true, h and c are set to zero before that step, in the
                time order of each direction: :math:`h_{t-1}` and :math:`c_{t-1}` in the formulas become 0.
            return_cells: whether to return the last layer's c of every step too.

        Returns:
            ``(output, (h_n, c_n))``, or ``(output, (h_n, c_n), cells)`` if ``return_cells``. ``output`` has the layout
            of ``input`` with ``D*P`` columns, ``h_n`` is ``[L*D, N, P]``, ``c_n`` ``[L*D, N, H]``, and ``cells`` has
            the layout of ``output`` with ``D*H`` columns.

        Raises:
            ValueError: wrong rank or dtype of ``input``, or ``lengths`` or ``resets`` that do not fit it.
            RuntimeError: sizes that do not fit, with torch.nn's wording.

        Example:
            A padded batch of two sequences, with 5 and 2 steps:

            >>> import torch, lstmkern
            >>> lstm = lstmkern.LSTM(10, 20)
            >>> x = torch.randn(5, 2, 10)
            >>> output, (h_n, c_n), cells = lstm(x, lengths=torch.tensor([5, 2]), return_cells=True)
            >>> torch.equal(h_n[0, 1], output[1, 1]), torch.equal(c_n[0, 1], cells[1, 1])
            (True, True)

            The second half of a stream starts a new episode:

            >>> resets = torch.zeros(5, 2, dtype=torch.bool)
            >>> resets[3] = True
            >>> output, _ = lstm(x, resets=resets)
            >>> torch.allclose(output[3:], lstm(x[3:])[0], atol=1e-6)
            True
        """
        if disable.DISABLED and lengths is None and resets is None and not return_cells:
            return super().forward(cast(Any, input), hx)
        if not is_dynamo_compiling():
            results: tuple[Any, ...] | None = run_module(self, input, hx, lengths, resets, return_cells, record)
            if results is not None:
                return results
        h0, c0 = both_states("lstm", hx)
        output, h_n, c_n, cells = self._run(input, h0, c0, lengths, resets, return_cells)
        return (output, (h_n, c_n), cells) if return_cells else (output, (h_n, c_n))


class _SingleState(RecurrentModule):
    """The base class of GRU and RNN, which have one state, h."""

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: None = None,
        resets: Tensor | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the layers over a batch of sequences.

        Sizes: ``T`` steps, ``N`` sequences, ``I = input_size``, ``H = hidden_size``, ``D = 2`` if ``bidirectional``
        else 1, ``L = num_layers``.

        Args:
            input: ``[T, N, I]``; ``[N, T, I]`` if ``batch_first``; ``[T, I]`` for one sequence; or a
                :class:`~torch.nn.utils.rnn.PackedSequence`. Its dtype is that of the parameters, except under autocast.
            hx: initial state ``h_0 [L*D, N, H]``, without ``N`` for one sequence; None for zeros.
            lengths: int64 ``[N]``: each sequence's number of steps in a padded batch; see
                :meth:`lstmkern.LSTM.forward`.
            resets: bool, with the layout of ``input`` without its last dimension: where it is true, h is set to zero
                before that step; see :meth:`lstmkern.LSTM.forward`.

        Returns:
            ``(output, h_n)``: ``output`` has the layout of ``input`` with ``D*H`` columns, ``h_n`` is ``[L*D, N, H]``.

        Raises:
            ValueError: wrong rank or dtype of ``input``, or ``lengths`` or ``resets`` that do not fit it.
            RuntimeError: sizes that do not fit, with torch.nn's wording.

        Example:
            >>> import torch, lstmkern
            >>> gru = lstmkern.GRU(10, 20, bidirectional=True)
            >>> output, h_n = gru(torch.randn(5, 2, 10), lengths=torch.tensor([5, 2]))
            >>> output[2:, 1].any().item()  # zero past the second sequence's end
            False
        """
        if disable.DISABLED and lengths is None and resets is None:
            result: tuple[Any, Tensor] = super().forward(input, hx)
            return result
        if not is_dynamo_compiling():
            results: tuple[Any, Tensor] | None = run_module(self, input, hx, lengths, resets, False, record)
            if results is not None:
                return results
        return self._run(input, hx, None, lengths, resets, False)[:2]

    forward.__qualname__ = "forward"  # in Python's errors about arguments, instead of this private class


class GRU(_SingleState, torch.nn.GRU):
    r"""Gated recurrent layers: :class:`torch.nn.GRU` with the same arguments, parameters and results.

    Beyond torch.nn, a call takes ``lengths`` and ``resets``; see :meth:`forward`.

    Each direction of a layer computes, for :math:`t = 1, \dots, T` (the reverse direction from :math:`T` to 1):

    .. math::

        \begin{aligned}
        r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
        z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
        n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
        h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}
        \end{aligned}

    Source: Cho et al., 2014 (arXiv:1406.1078). The reset gate is applied after the matrix product, as in torch.nn and
    cuDNN; the paper applies it before.

    The parameters are those of torch.nn, with the gates stacked in the order r, z, n: ``weight_ih_l[k] [3*H, I]``
    (``[3*H, D*H]`` above the first layer), ``weight_hh_l[k] [3*H, H]``, ``bias_ih_l[k]`` and ``bias_hh_l[k] [3*H]``;
    ``_reverse`` is appended for the reverse direction. :math:`D` is the number of directions.

    Args:
        input_size: features :math:`I` of each input.
        hidden_size: hidden units :math:`H`.
        num_layers: layers :math:`L`, each reading the output of the one before.
        bias: whether the layers have ``b_ih`` and ``b_hh``.
        batch_first: whether dense input and output are ``[N, T, ...]`` instead of ``[T, N, ...]``.
        dropout: probability of dropout on the output of each layer but the last, in training.
        bidirectional: whether each layer has a reverse direction too; outputs are concatenated, forward first.
        device: where the parameters are created.
        dtype: type of the parameters: fp32, fp64, bf16 or fp16.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is not positive, or ``dropout`` is not in [0, 1].

    Example:
        >>> import torch, lstmkern
        >>> gru = lstmkern.GRU(10, 20, batch_first=True)
        >>> output, h_n = gru(torch.randn(3, 5, 10))
        >>> output.shape, h_n.shape
        (torch.Size([3, 5, 20]), torch.Size([1, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device=device, dtype=dtype
        )


class RNN(_SingleState, torch.nn.RNN):
    r"""Elman layers: :class:`torch.nn.RNN` with the same arguments, parameters and results.

    Beyond torch.nn, a call takes ``lengths`` and ``resets``; see :meth:`forward`.

    Each direction of a layer computes, for :math:`t = 1, \dots, T` (the reverse direction from :math:`T` to 1):

    .. math::

        h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    or, with ``nonlinearity="relu"``, :math:`\max(0, \cdot)` in place of :math:`\tanh`.

    Source: Elman, Finding structure in time, 1990.

    The parameters are those of torch.nn: ``weight_ih_l[k] [H, I]`` (``[H, D*H]`` above the first layer),
    ``weight_hh_l[k] [H, H]``, ``bias_ih_l[k]`` and ``bias_hh_l[k] [H]``; ``_reverse`` is appended for the reverse
    direction. :math:`D` is the number of directions.

    Args:
        input_size: features :math:`I` of each input.
        hidden_size: hidden units :math:`H`.
        num_layers: layers :math:`L`, each reading the output of the one before.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bias: whether the layers have ``b_ih`` and ``b_hh``.
        batch_first: whether dense input and output are ``[N, T, ...]`` instead of ``[T, N, ...]``.
        dropout: probability of dropout on the output of each layer but the last, in training.
        bidirectional: whether each layer has a reverse direction too; outputs are concatenated, forward first.
        device: where the parameters are created.
        dtype: type of the parameters: fp32, fp64, bf16 or fp16.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a size is not positive, ``dropout`` is not in [0, 1], or ``nonlinearity`` is unknown.

    Example:
        >>> import torch, lstmkern
        >>> rnn = lstmkern.RNN(10, 20, nonlinearity="relu")
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
        >>> torch.equal(output[-1], h_n[0])
        True
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional,
            device=device, dtype=dtype,
        )  # fmt: skip
