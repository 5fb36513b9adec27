"""Training with less memory: gates are computed again in backward instead of being kept from forward.

    with lstmkern.recompute():
        loss = criterion(model(x), y)
    loss.backward()

A layer then keeps its input, its output and (LSTM) its cell states, a third of what it keeps otherwise, and a training
step takes 1.4 to 1.5 times as long (one thread, LSTM and GRU of 200 and 256 units). A dense layer of one direction
recomputes an eighth of its steps at a time; others (packed, padded, both directions) all at once, so only stacks of
them profit. torch.compile and torch.func do not look at this. What torch.utils.checkpoint runs a second time, outside,
enters recompute() itself, inside of the function that is given to checkpoint.
"""

from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_active: ContextVar[bool] = ContextVar("lstmkern_recompute", default=False)
CHUNKS = 8


@contextmanager
def recompute(enabled: bool = True):
    """Layers called inside keep no gates for backward; see this module's description."""
    token = _active.set(enabled)
    try:
        yield
    finally:
        _active.reset(token)


def is_active() -> bool:
    return _active.get() and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def recompute_saved(forward, input, h0, c0, weights, ragged, mode, batch_first) -> tuple[Tensor, Tensor, Tensor]:
    """(output, cells, gates) as the forward op keeps them for backward."""
    output, _, _, cells, gates = forward(input, h0, c0, weights, *ragged, mode, batch_first, True, False)
    return output, cells, gates


def layer_backward(forward, backward, grads, input, h0, c0, weights, ragged, output, cells, mode, batch_first, needs):
    """As lstmkern::layer_backward for a layer without saved gates: chunk by chunk of steps, from the last.

    forward and backward are the eager ops (absent results are None); output and cells are the forward's own.
    """
    batch_sizes, lengths, resets = ragged
    time = 1 if batch_first else 0
    whole = input.dim() == 2 or lengths is not None or h0.size(0) > 1  # 2: packed, or one step
    T = input.size(time)
    steps = T if whole else max(-(-T // CHUNKS), 1)
    grad_output, dh, dc, grad_cells = grads
    grad_input, grad_weights = [], None
    for begin in reversed(range(0, max(T, 1), steps) if not whole else (0,)):

        def part(tensor: Tensor | None) -> Tensor | None:
            return tensor if whole or tensor is None else tensor.narrow(time, begin, min(steps, T - begin))  # noqa: B023

        def state(initial: Tensor | None, every: Tensor) -> Tensor | None:
            return initial if begin == 0 or initial is None else every.select(time, begin - 1).unsqueeze(0)  # noqa: B023

        x, h, c, own = part(input), state(h0, output), state(c0, cells), (batch_sizes, lengths, part(resets))
        saved = recompute_saved(forward, x, h, c, weights, own, mode, batch_first)
        last = begin == 0
        dx, dh, dc, dw = backward(
            part(grad_output), dh, dc, part(grad_cells), x, h, c, weights, *own, *saved, mode, batch_first,
            (needs[0], needs[1] or not last, needs[2]),
        )  # fmt: skip
        grad_input.append(dx)
        if grad_weights is None:
            grad_weights = dw
        elif needs[2]:
            for total, more in zip(grad_weights, dw, strict=True):
                total.add_(more)
    if needs[0] and len(grad_input) > 1:
        grad_input = [torch.cat(grad_input[::-1], time)]
    return grad_input[0], dh, dc, grad_weights
