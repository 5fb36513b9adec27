r"""The layer that the kernels compute, in plain torch operations: read this to see what a layer does.

It is slow and short. The tests compare the kernels with it, and second and forward-mode derivatives run on it. Nothing
is written in place, so it can be differentiated any number of times.

From the inside out: :func:`lstm_step`, :func:`gru_step` and :func:`rnn_step` are one time step of each cell;
:func:`layer` runs the steps of one layer over time, in one or two directions, over dense, padded or packed batches;
:func:`layer_vjp` is its backward pass.

Sizes: :math:`T` steps, :math:`N` sequences, :math:`I` inputs, :math:`H` hidden units, :math:`P` outputs
(``proj_size`` or :math:`H`), :math:`D` directions, :math:`R` steps of packed data (of all sequences together).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["gru_step", "layer", "layer_vjp", "lstm_step", "rnn_step", "step"]


# ---- one step of each cell ----


def lstm_step(x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    r"""One step of an LSTM.

    .. math::

        (i, f, g, o) &= W_{ih} x + b_{ih} + W_{hh} h + b_{hh} \\
        c' &= \sigma(f) \odot c + \sigma(i) \odot \tanh(g) \\
        h' &= W_{hr} (\sigma(o) \odot \tanh(c'))

    without :math:`W_{hr}` if there is no projection. Sources: see :class:`lstmkern.LSTM`.

    Args:
        x: ``[N, I]``.
        h: ``[N, P]``.
        c: ``[N, H]``.
        weights: ``w_ih [4*H, I]``, ``w_hh [4*H, P]``; then ``b_ih``, ``b_hh [4*H]`` and ``w_hr [P, H]`` if the layer
            has them.

    Returns:
        The next ``(h, c)``.

    Example:
        >>> import torch, lstmkern
        >>> cell = lstmkern.LSTMCell(10, 20)
        >>> x, h, c = torch.randn(3, 10), torch.randn(3, 20), torch.randn(3, 20)
        >>> next_h, next_c = lstmkern.reference.lstm_step(x, h, c, list(cell.parameters()))
        >>> torch.allclose(next_h, cell(x, (h, c))[0], atol=1e-6)
        True
    """
    from_x, from_h = _matrix_products(x, h, weights)
    i, f, g, o = (from_x + from_h).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    projected = len(weights) % 2 == 1
    return (F.linear(h, weights[-1]) if projected else h), c


def gru_step(x: Tensor, h: Tensor, weights: Sequence[Tensor]) -> Tensor:
    r"""One step of a GRU.

    .. math::

        r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h + b_{hr}) \\
        z &= \sigma(W_{iz} x + b_{iz} + W_{hz} h + b_{hz}) \\
        n &= \tanh(W_{in} x + b_{in} + r \odot (W_{hn} h + b_{hn})) \\
        h' &= (1 - z) \odot n + z \odot h

    Source: see :class:`lstmkern.GRU`.

    Args:
        x: ``[N, I]``.
        h: ``[N, H]``.
        weights: ``w_ih [3*H, I]``, ``w_hh [3*H, H]``, and ``b_ih``, ``b_hh [3*H]`` if the layer has them.

    Returns:
        The next ``h``.

    Example:
        >>> import torch, lstmkern
        >>> cell, x, h = lstmkern.GRUCell(10, 20), torch.randn(3, 10), torch.randn(3, 20)
        >>> torch.allclose(lstmkern.reference.gru_step(x, h, list(cell.parameters())), cell(x, h), atol=1e-6)
        True
    """
    from_x, from_h = _matrix_products(x, h, weights)
    (xr, xz, xn), (hr, hz, hn) = from_x.chunk(3, -1), from_h.chunk(3, -1)
    r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
    n = torch.tanh(xn + r * hn)
    return (1 - z) * n + z * h


def rnn_step(x: Tensor, h: Tensor, weights: Sequence[Tensor], nonlinearity: str = "tanh") -> Tensor:
    r"""One step of an Elman network, :math:`h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})`, or relu of the sum.

    Source: see :class:`lstmkern.RNN`.

    Args:
        x: ``[N, I]``.
        h: ``[N, H]``.
        weights: ``w_ih [H, I]``, ``w_hh [H, H]``, and ``b_ih``, ``b_hh [H]`` if the layer has them.
        nonlinearity: ``"tanh"`` or ``"relu"``.

    Returns:
        The next ``h``.

    Example:
        >>> import torch, lstmkern
        >>> cell, x, h = lstmkern.RNNCell(10, 20), torch.randn(3, 10), torch.randn(3, 20)
        >>> torch.allclose(lstmkern.reference.rnn_step(x, h, list(cell.parameters())), cell(x, h), atol=1e-6)
        True
    """
    from_x, from_h = _matrix_products(x, h, weights)
    return {"tanh": torch.tanh, "relu": torch.relu}[nonlinearity](from_x + from_h)


def _matrix_products(x: Tensor, h: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if len(weights) >= 4 else (None, None)
    return F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh)


def step(mode: str, x: Tensor, h: Tensor, c: Tensor | None, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """One step of the cell that ``mode`` names.

    Args:
        mode: ``"LSTM"``, ``"GRU"``, ``"RNN_TANH"`` or ``"RNN_RELU"``, as in torch.nn.
        x: ``[N, I]``.
        h: ``[N, P]``.
        c: ``[N, H]`` for an LSTM, otherwise None.
        weights: see the step of each cell.

    Returns:
        The next ``(h, c)``; ``c`` is None except for an LSTM.

    Raises:
        KeyError: an unknown ``mode``.

    Example:
        >>> import torch, lstmkern
        >>> weights = [torch.randn(4, 3), torch.randn(4, 4)]
        >>> h, c = lstmkern.reference.step("RNN_TANH", torch.randn(2, 3), torch.zeros(2, 4), None, weights)
        >>> h.shape, c
        (torch.Size([2, 4]), None)
    """
    if mode == "LSTM" and c is not None:
        return lstm_step(x, h, c, weights)
    if mode == "GRU":
        return gru_step(x, h, weights), None
    return rnn_step(x, h, weights, {"RNN_TANH": "tanh", "RNN_RELU": "relu"}[mode]), None


# ---- one layer ----


class _Batch(NamedTuple):
    """A batch of any kind in one form: time-major, padded."""

    x: Tensor  # [T, N, I]
    alive: Tensor | None  # bool [T, N, 1]: steps that exist; None if all do
    resets: Tensor | None  # bool [T, N, 1]


def layer(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer in one or two directions. Arguments and results are those of the op ``lstmkern::layer_forward``.

    Args:
        input: ``[T, N, I]``; ``[N, T, I]`` if ``batch_first``; packed ``[R, I]`` with ``batch_sizes``; or, for one
            step, ``[N, I]``.
        h0: ``[D, N, P]``; ``[N, P]`` for one step.
        c0: ``[D, N, H]`` or ``[N, H]`` for an LSTM, otherwise None.
        weights: those of the cell's step, once for each direction.
        batch_sizes: int64 ``[T]`` on the CPU: how many sequences have a step t. Only for packed input.
        lengths: int64 ``[N]``: each sequence's number of steps in a padded batch. None if all have T.
        resets: bool, with the layout of ``input`` without its last dimension: the state is set to zero before that
            step.
        mode: as for :func:`step`.
        batch_first: whether dense input, output, cells and resets are ``[N, T, ...]``.

    Returns:
        ``(output, h_n, c_n, cells)``: ``output`` has the layout of ``input`` with ``D*P`` columns and is zero past a
        sequence's end; ``h_n`` is ``[D, N, P]``, ``c_n`` ``[D, N, H]``; ``cells`` is c of every step, with the layout
        of ``output`` and ``D*H`` columns. ``c_n`` and ``cells`` are empty except for an LSTM. For one step ``output``
        and ``cells`` are the next state, and ``h_n`` and ``c_n`` are empty.

    Example:
        >>> import torch, lstmkern
        >>> gru, x = lstmkern.GRU(4, 8), torch.randn(5, 3, 4)
        >>> weights, h0 = list(gru.parameters()), torch.zeros(1, 3, 8)
        >>> output, h_n, _, _ = lstmkern.reference.layer(x, h0, None, weights, None, None, None, "GRU", False)
        >>> torch.allclose(output, gru(x)[0], atol=1e-6)
        True
    """
    nothing = input.new_empty(0)
    if batch_sizes is None and input.dim() == 2:  # one step: a batch of T = 1
        h0, c0 = h0.unsqueeze(0), None if c0 is None else c0.unsqueeze(0)
        resets = None if resets is None else resets.unsqueeze(0)
        output, _, _, cells = layer(input.unsqueeze(0), h0, c0, weights, None, lengths, resets, mode, False)
        return output.squeeze(0), nothing, nothing, nothing if c0 is None else cells.squeeze(0)

    dtype, D, N = input.dtype, h0.size(0), h0.size(1)
    wide = torch.promote_types(dtype, torch.float32)  # 16-bit types only store values: the arithmetic is fp32
    batch = _time_major(input.to(wide), N, batch_sizes, lengths, resets, batch_first)
    h0, c0 = h0.to(wide), None if c0 is None else c0.to(wide)
    per_direction = len(weights) // D
    outputs, h_n, every_c, c_n = [], [], [], []
    for d in range(D):
        w = [w.to(wide) for w in weights[d * per_direction : (d + 1) * per_direction]]
        hs, cs, h, c = _direction(mode, batch, h0[d], None if c0 is None else c0[d], w, reverse=d == 1)
        outputs.append(hs)
        h_n.append(h)
        if c is not None and cs is not None:
            every_c.append(cs)
            c_n.append(c)

    def in_input_layout(directions: list[Tensor]) -> Tensor:
        whole = torch.cat(directions, -1)  # [T, N, D * columns]
        if batch_sizes is not None:
            assert batch.alive is not None
            return whole.flatten(0, 1)[batch.alive.flatten().nonzero().squeeze(1)].to(dtype)
        return (whole.transpose(0, 1) if batch_first else whole).to(dtype)

    return (
        in_input_layout(outputs),
        torch.stack(h_n).to(dtype),
        torch.stack(c_n).to(dtype) if c_n else nothing,
        in_input_layout(every_c) if every_c else nothing,
    )


def _time_major(
    x: Tensor,
    N: int,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    batch_first: bool,
) -> _Batch:
    """Bring a batch of any kind into one form."""
    alive = None
    if batch_sizes is not None:  # unpack: step t of sequence n is row starts[t] + n of the data
        exists = torch.arange(N) < batch_sizes.unsqueeze(1)
        starts = batch_sizes.cumsum(0) - batch_sizes
        rows = ((starts.unsqueeze(1) + torch.arange(N)) * exists).to(x.device)
        alive = exists.to(x.device)
        x, resets = x[rows], None if resets is None else resets[rows]
    elif batch_first:
        x, resets = x.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
    if lengths is not None:
        alive = torch.arange(x.size(0), device=x.device).unsqueeze(1) < lengths.to(x.device)
    if alive is not None:
        resets = None if resets is None else resets & alive
        alive = alive.unsqueeze(-1)
        x = torch.where(alive, x, 0)  # padding of any value must not reach a gradient, not even as 0 * inf
    return _Batch(x, alive, None if resets is None else resets.unsqueeze(-1))


def _direction(
    mode: str, batch: _Batch, h: Tensor, c: Tensor | None, weights: Sequence[Tensor], reverse: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """The loop over time of one direction: (h of every step, c of every step, final h, final c)."""
    T = batch.x.size(0)
    hs, cs = [], []
    for t in reversed(range(T)) if reverse else range(T):
        if batch.resets is not None:
            h, c = torch.where(batch.resets[t], 0, h), None if c is None else torch.where(batch.resets[t], 0, c)
        if batch.alive is None:
            h, c = step(mode, batch.x[t], h, c, weights)
            h_out, c_out = h, c
        else:
            exists = batch.alive[t]
            # A padding step starts from zeros: an infinite state must not reach a gradient as 0 * inf.
            h_new, c_new = step(mode, batch.x[t], torch.where(exists, h, 0), _where(exists, c, 0), weights)
            h_out, c_out = torch.where(exists, h_new, 0), _where(exists, c_new, 0)
            # Padding keeps the state: a forward pass meets it after the sequence, a reverse pass before.
            h, c = torch.where(exists, h_new, h), None if c is None else _where(exists, c_new, c)
        hs.append(h_out)
        if c_out is not None:
            cs.append(c_out)
    if reverse:
        hs, cs = hs[::-1], cs[::-1]
    return torch.stack(hs), torch.stack(cs) if cs else None, h, c


def _where(condition: Tensor, value: Tensor | None, other: Tensor | int) -> Tensor | None:
    return None if value is None else torch.where(condition, value, other)


def layer_vjp(
    grads: Sequence[Tensor | None],
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The layer's vector-Jacobian product: what ``lstmkern::layer_backward`` computes, itself differentiable.

    Args:
        grads: gradients of output, h_n, c_n and cells; None counts as zero.
        input: this and the other arguments as for :func:`layer`.
        h0: initial h.
        c0: initial c, for an LSTM.
        weights: of all directions.
        batch_sizes: for packed input.
        lengths: for a padded batch.
        resets: as for :func:`layer`.
        mode: as for :func:`step`.
        batch_first: as for :func:`layer`.

    Returns:
        Gradients of input, h0, c0 (empty except for an LSTM) and weights.

    Example:
        >>> import torch, lstmkern
        >>> weights = [torch.randn(3, 2), torch.randn(3, 3)]
        >>> grads = torch.ones(5, 1, 3), None, None, None
        >>> x, h0 = torch.randn(5, 1, 2), torch.zeros(1, 1, 3)
        >>> grad_x, grad_h0, _, grad_weights = lstmkern.reference.layer_vjp(
        ...     grads, x, h0, None, weights, None, None, None, "RNN_TANH", False
        ... )
        >>> grad_x.shape, [g.shape for g in grad_weights]
        (torch.Size([5, 1, 2]), [torch.Size([3, 2]), torch.Size([3, 3])])
    """
    with torch.enable_grad():
        # Derivatives with respect to an added zero: the results still depend on the given tensors, for derivatives of
        # any order and under any transform.
        primals = (input, h0, *(() if c0 is None else (c0,)), *weights)
        shifts = [torch.zeros_like(p, requires_grad=True) for p in primals]
        input, h0, *rest = [p + s for p, s in zip(primals, shifts, strict=True)]
        c0, *weights = (None, *rest) if c0 is None else rest
        results = layer(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first)
        received = [(result, grad) for result, grad in zip(results, grads, strict=True) if grad is not None]
        grad_input, grad_h0, *rest = torch.autograd.grad(
            [r for r, _ in received], shifts, [g for _, g in received], create_graph=True, materialize_grads=True
        )
    grad_c0, *grad_weights = rest if mode == "LSTM" else (h0.new_empty(0), *rest)
    return grad_input, grad_h0, grad_c0, grad_weights
