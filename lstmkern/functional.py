"""Stacks of layers as functions of their weights: lstm(), gru(), rnn(), and what the modules call.

Where the CPU kernels alone compute a stack, it is one call of C++ (csrc/calls.h), also in training. Otherwise a layer
is one call of ``autograd.layer_forward``, and this file adds the rest: the layers of a stack, dropout between them,
dtypes under autocast.
"""

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from . import _extension, autocast
from .autograd import layer_forward, record

__all__ = ["gru", "lstm", "rnn"]


def run_stack(
    mode: str,
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Sequence[Tensor]],
    directions: int,
    batch_first: bool,
    dropout: float,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cells: bool,
) -> tuple[Tensor, Any, Any, Any]:
    """Run the layers one after the other; shared by lstm(), gru(), rnn() and the modules.

    Args:
        weights: one list per layer, with the tensors of the forward direction before those of the reverse direction.
        dropout: probability between the layers; 0 unless training.
        h0, c0: initial states of all layers, or None for zeros.
        cells: whether to return the last layer's c of every step.

    Returns:
        (output, h_n, c_n, cells). c_n and cells are None or empty where there are none.
    """
    if not dropout and not is_dynamo_compiling():
        plain = _extension.run_stack(
            mode, input, h0, c0, weights, directions, batch_first, batch_sizes, lengths, resets, cells, record
        )
        if plain is not None:
            return plain
    result_dtypes = None
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(input.device.type):
        projected = len(weights[0]) // directions % 2 == 1
        result_dtypes = autocast.result_dtypes(mode, input, h0, c0, batch_sizes is None and not projected, projected)
        to = torch.get_autocast_dtype(input.device.type)
        input, h0, c0 = autocast.cast(input, to), autocast.cast(h0, to), autocast.cast(c0, to)
        weights = [[autocast.cast(w, to) for w in layer] for layer in weights]
    last = len(weights) - 1
    if not last:
        results = layer_forward(input, h0, c0, weights[0], batch_sizes, lengths, resets, mode, batch_first, cells)
        return results[:4] if result_dtypes is None else autocast.as_dtypes(results, result_dtypes)
    h_ns, c_ns = [], []
    h, c = h0, c0
    for k, layer in enumerate(weights):
        if h0 is not None:
            of_layer = slice(k * directions, (k + 1) * directions)
            h, c = h0[of_layer], None if c0 is None else c0[of_layer]
        input, h_n, c_n, every_c, _ = layer_forward(
            input, h, c, layer, batch_sizes, lengths, resets, mode, batch_first, cells and k == last
        )
        h_ns.append(h_n)
        c_ns.append(c_n)
        if dropout and k < last:
            input = F.dropout(input, dropout)
    stacked = (input, torch.cat(h_ns), torch.cat(c_ns) if mode == "LSTM" else c_n, every_c)
    return stacked if result_dtypes is None else autocast.as_dtypes(stacked, result_dtypes)


def run_cell(
    mode: str, input: Tensor, h: Tensor | None, c: Tensor | None, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """One step: input [N, I], h and c [N, H] or None for zeros; returns the next (h, c), with a c only for an LSTM."""
    result_dtypes = None
    if torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(input.device.type):
        result_dtypes = autocast.result_dtypes(mode, input, h, c, False, False)
        to = torch.get_autocast_dtype(input.device.type)
        input, h, c = autocast.cast(input, to), autocast.cast(h, to), autocast.cast(c, to)
        weights = [autocast.cast(w, to) for w in weights]
    results = layer_forward(input, h, c, weights, None, None, None, mode, False, mode == "LSTM")
    output, _, _, cells = results[:4] if result_dtypes is None else autocast.as_dtypes(results, result_dtypes)
    return output, cells


def both_states(name: str, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """An LSTM's (h, c), or (None, None) for zeros.

    Raises:
        TypeError: ``hx`` is one tensor that holds both states. As in torch.nn, such a tensor counts as a pair only
            where it has no batch dimension: [2, L, H] or [2, H].
        RuntimeError: ``hx`` is a tuple without two tensors.
    """
    if hx is None:
        return None, None
    if type(hx) is not tuple:
        _refuse_no_pair(name, hx)
    if len(hx) == 2:
        h, c = hx[0], hx[1]
        if h is not None and c is not None:
            return h, c
    raise RuntimeError(f"{name} expects two hidden states")


def _refuse_no_pair(name: str, hx: object) -> None:
    batched = 4 if name == "lstm" else 3
    if isinstance(hx, (tuple, list)) or (isinstance(hx, Tensor) and hx.dim() < batched):
        return
    got = f"must be tuple of Tensors, not {type(hx).__name__}"
    if name == "lstm":
        raise TypeError(f"lstm() received an invalid combination of arguments: hx {got}")
    raise TypeError(f"{name}(): argument 'hx' (position 2) {got}")


# What the three functions below do alike.
def _checked_stack(
    mode: str,
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Sequence[Tensor]],
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    training: bool,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cells: bool = False,
) -> tuple[Tensor, Any, Any, Any]:
    directions = 2 if bidirectional else 1
    for k, layer in enumerate(weights):
        if len(layer) not in [n * directions for n in (2, 3, 4, 5)]:
            raise ValueError(
                f"weights[{k}]: Expected 2 to 5 tensors for each of {directions} directions, got {len(layer)}"
            )
    for i, state in enumerate((h0, c0)):
        if state is not None and (state.dim() != 3 or state.size(0) != len(weights) * directions):
            raise ValueError(f"hx[{i}]: Expected [{len(weights) * directions}, N, features], got {list(state.shape)}")
    return run_stack(
        mode, input, h0, c0, weights, directions, batch_first, dropout if training else 0.0,
        batch_sizes, lengths, resets, cells,
    )  # fmt: skip


# Without overloads the result would be a union, of no use to a type checker.
@overload
def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_cells: Literal[False] = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
@overload
def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_cells: Literal[True],
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]: ...
@overload
def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_cells: bool = False,
) -> tuple[Any, ...]: ...
def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_cells: bool = False,
) -> tuple[Any, ...]:
    r"""Compute :class:`lstmkern.LSTM` as a function of its weights.

    Sizes as in :meth:`lstmkern.LSTM.forward`: :math:`T` steps, :math:`N` sequences, :math:`I` inputs, :math:`H` hidden
    units, :math:`P` outputs (the projection's size, or :math:`H`), :math:`D` directions, :math:`L` layers.

    Args:
        input: ``[T, N, I]``, ``[N, T, I]`` if ``batch_first``, or the data ``[R, I]`` of a packed batch, which needs
            ``batch_sizes``. fp32, fp64, bf16 or fp16.
        hx: initial states ``(h_0 [L*D, N, P], c_0 [L*D, N, H])``; None for zeros.
        weights: one list per layer with ``w_ih [4*H, I]``, ``w_hh [4*H, P]`` and, if the layer has them,
            ``b_ih [4*H]``, ``b_hh [4*H]`` and ``w_hr [P, H]``; then the same of the reverse direction.
            ``module.all_weights`` of a module with one direction has this form.
        bidirectional: whether each layer has a reverse direction.
        batch_first: whether dense input and output are ``[N, T, ...]``.
        dropout: probability of dropout on the output of each layer but the last, applied only if ``training``.
        training: whether dropout is applied.
        batch_sizes: int64 ``[T]`` on the CPU, as in a
            :class:`~torch.nn.utils.rnn.PackedSequence`: the number of sequences at each step of packed data.
        lengths: int64 ``[N]``; see :meth:`lstmkern.LSTM.forward`.
        resets: bool ``[T, N]``, ``[N, T]`` or ``[R]``; see :meth:`lstmkern.LSTM.forward`.
        return_cells: whether to return the last layer's c of every step too.

    Returns:
        ``(output, (h_n, c_n))``, or ``(output, (h_n, c_n), cells)`` if ``return_cells``: ``output`` has the layout of
        ``input`` with ``D*P`` columns, ``h_n`` is ``[L*D, N, P]``, ``c_n`` ``[L*D, N, H]``, and ``cells`` has the
        layout of ``output`` with ``D*H`` columns.

    Raises:
        ValueError: a layer has too few or too many weights, or ``hx`` does not fit their number.
        RuntimeError: sizes, dtypes or devices do not fit each other.

    Example:
        >>> import torch, lstmkern
        >>> module = lstmkern.LSTM(8, 16)
        >>> x = torch.randn(5, 3, 8)
        >>> output, (h_n, c_n) = lstmkern.functional.lstm(x, None, module.all_weights)
        >>> output.shape, torch.equal(output, module(x)[0])
        (torch.Size([5, 3, 16]), True)
    """
    h0, c0 = both_states("lstm", hx)
    output, h_n, c_n, cells = _checked_stack(
        "LSTM", input, h0, c0, weights, bidirectional, batch_first, dropout, training,
        batch_sizes, lengths, resets, return_cells,
    )  # fmt: skip
    return (output, (h_n, c_n), cells) if return_cells else (output, (h_n, c_n))


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute :class:`lstmkern.GRU` as a function of its weights.

    Args:
        input: as for :func:`lstm`.
        hx: initial state ``h_0 [L*D, N, H]``; None for zeros.
        weights: one list per layer with ``w_ih [3*H, I]``, ``w_hh [3*H, H]`` and, if the layer has them, ``b_ih [3*H]``
            and ``b_hh [3*H]``; then the same of the reverse direction.
        bidirectional: as for :func:`lstm`, like the other arguments.
        batch_first: whether dense input and output are ``[N, T, ...]``.
        dropout: probability of dropout between the layers.
        training: whether dropout is applied.
        batch_sizes: int64 ``[T]``, for packed data.
        lengths: int64 ``[N]``.
        resets: bool ``[T, N]``, ``[N, T]`` or ``[R]``.

    Returns:
        ``(output, h_n)``: ``output`` has the layout of ``input`` with ``D*H`` columns, ``h_n`` is ``[L*D, N, H]``.

    Raises:
        ValueError: a layer has too few or too many weights, or ``hx`` does not fit their number.
        RuntimeError: sizes, dtypes or devices do not fit each other.

    Example:
        >>> import torch, lstmkern
        >>> weights = lstmkern.GRU(8, 16).all_weights
        >>> output, h_n = lstmkern.functional.gru(torch.randn(5, 3, 8), None, weights, lengths=torch.tensor([5, 2, 0]))
        >>> output[2:, 1].any().item()  # zero past the second sequence's end
        False
    """
    return _checked_stack(
        "GRU", input, hx, None, weights, bidirectional, batch_first, dropout, training, batch_sizes, lengths, resets
    )[:2]


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Sequence[Tensor]],
    *,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute :class:`lstmkern.RNN` as a function of its weights.

    Args:
        input: as for :func:`lstm`.
        hx: initial state ``h_0 [L*D, N, H]``; None for zeros.
        weights: one list per layer with ``w_ih [H, I]``, ``w_hh [H, H]`` and, if the layer has them, ``b_ih [H]`` and
            ``b_hh [H]``; then the same of the reverse direction.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bidirectional: as for :func:`lstm`, like the other arguments.
        batch_first: whether dense input and output are ``[N, T, ...]``.
        dropout: probability of dropout between the layers.
        training: whether dropout is applied.
        batch_sizes: int64 ``[T]``, for packed data.
        lengths: int64 ``[N]``.
        resets: bool ``[T, N]``, ``[N, T]`` or ``[R]``.

    Returns:
        ``(output, h_n)``: ``output`` has the layout of ``input`` with ``D*H`` columns, ``h_n`` is ``[L*D, N, H]``.

    Raises:
        ValueError: ``nonlinearity`` is unknown, a layer has too few or too many weights, or ``hx`` does not fit their
            number.
        RuntimeError: sizes, dtypes or devices do not fit each other.

    Example:
        >>> import torch, lstmkern
        >>> weights = lstmkern.RNN(8, 16, nonlinearity="relu").all_weights
        >>> output, h_n = lstmkern.functional.rnn(torch.randn(5, 3, 8), None, weights, nonlinearity="relu")
        >>> h_n.shape
        torch.Size([1, 3, 16])
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return _checked_stack(
        f"RNN_{nonlinearity.upper()}", input, hx, None, weights, bidirectional, batch_first, dropout, training,
        batch_sizes, lengths, resets,
    )[:2]  # fmt: skip
