"""recompute(): training with less memory. Forward does not save the gates, and backward computes them again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_active: ContextVar[bool] = ContextVar("lstmkern_recompute", default=False)
CHUNKS = 8


@contextmanager
def recompute(enabled: bool = True) -> Iterator[None]:
    r"""A context in which layers save no gates for backward; backward computes them again.

    A layer then saves its input, its output and, for an LSTM, its cell states: :math:`I + 2H` values per step and
    sequence instead of :math:`I + 6H` for an LSTM, :math:`I + H` instead of :math:`I + 5H` for a GRU. A training step
    takes 1.4 to 1.5 times as long (one CPU thread, LSTM and GRU of 200 and 256 units).

    A dense layer with one direction recomputes an eighth of its steps at a time. Other layers (packed or padded input,
    two directions) recompute all steps at once, so memory is saved only in stacks of them. RNN layers save no gates, so
    nothing changes for them. torch.compile and torch.func ignore this setting.

    A function that is given to :func:`torch.utils.checkpoint.checkpoint` must enter ``recompute()`` itself, because
    checkpoint runs it a second time, outside of the caller's.

    Args:
        enabled: False switches it off inside an outer ``recompute()``.

    Example:
        >>> import torch, lstmkern
        >>> lstm, x = lstmkern.LSTM(10, 20), torch.randn(50, 3, 10)
        >>> with lstmkern.recompute():
        ...     loss = lstm(x)[0].sum()
        >>> loss.backward()
    """
    token = _active.set(enabled)
    try:
        yield
    finally:
        _active.reset(token)


def is_active() -> bool:
    """Whether a layer that is called now saves no gates."""
    return _active.get() and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def recompute_saved(
    forward: Callable[..., Any],
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    boundaries: tuple[Tensor | None, Tensor | None, Tensor | None],
    mode: str,
    batch_first: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(output, cells, gates) as the forward op saves them for backward."""
    output, _, _, cells, gates = forward(input, h0, c0, weights, *boundaries, mode, batch_first, True, False)
    return output, cells, gates


def layer_backward(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    boundaries: tuple[Tensor | None, Tensor | None, Tensor | None],
    output: Tensor,
    cells: Tensor | None,
    mode: str,
    batch_first: bool,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Sequence[Tensor | None]]:
    """Compute ``lstmkern::layer_backward`` for a layer without saved gates, in chunks of steps, the last first.

    Args:
        forward, backward: the eager ops (absent results are None).
        grads: the gradients with respect to output, h_n, c_n and cells.
        boundaries: batch_sizes, lengths and resets: where sequences end and where their states are set to zero.
        output, cells: what forward returned.
    """
    batch_sizes, lengths, resets = boundaries
    time = 1 if batch_first else 0
    # Packed input, one step, padded input and two directions: all steps at once.
    whole = input.dim() == 2 or lengths is not None or h0.size(0) > 1
    T = input.size(time)
    steps = T if whole else max(-(-T // CHUNKS), 1)
    grad_output, dh, dc, grad_cells = grads
    grad_input: list[Tensor] = []
    grad_weights: Sequence[Tensor] = []
    for begin in reversed(range(0, max(T, 1), steps) if not whole else (0,)):

        def part(tensor: Tensor | None) -> Any:
            return tensor if whole or tensor is None else tensor.narrow(time, begin, min(steps, T - begin))  # noqa: B023

        def state(initial: Tensor | None, every: Tensor | None) -> Tensor | None:
            if begin == 0 or initial is None or every is None:  # noqa: B023
                return initial
            return every.select(time, begin - 1).unsqueeze(0)  # noqa: B023

        x, h, c = part(input), state(h0, output), state(c0, cells)
        chunk_boundaries = (batch_sizes, lengths, part(resets))
        assert h is not None
        saved = recompute_saved(forward, x, h, c, weights, chunk_boundaries, mode, batch_first)
        last = begin == 0
        dx, dh, dc, dw = backward(
            part(grad_output), dh, dc, part(grad_cells), x, h, c, weights, *chunk_boundaries, *saved, mode, batch_first,
            (needs[0], needs[1] or not last, needs[2]),
        )  # fmt: skip
        grad_input.append(dx)
        if not grad_weights:
            grad_weights = dw
        elif needs[2]:
            for total, more in zip(grad_weights, dw, strict=True):
                total.add_(more)
    if needs[0] and len(grad_input) > 1:
        grad_input = [torch.cat(grad_input[::-1], time)]
    return grad_input[0], dh, dc, grad_weights
