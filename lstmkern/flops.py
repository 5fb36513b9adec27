"""What torch.utils.flop_counter.FlopCounterMode counts for the ops: their matrix products, as for torch.nn's layers.

Forward multiplies every two-dimensional weight by every step of every sequence, once. Backward does so twice: for the
gradient of the other factor and for the weight's own. Padding is left out if lengths are on the CPU; otherwise their
values are unknown and all T steps count.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


def _rows(input: Tensor, h0: Tensor, batch_sizes: Tensor | None, lengths: Tensor | None) -> tuple[int, int, int]:
    """The number of steps of all sequences, and how many of them are first steps: forward in time and in reverse."""
    N = h0.shape[-2]
    if lengths is not None and _has_values(lengths):
        steps = torch.arange(int(lengths.max()) if N else 0)
        batch_sizes = (lengths > steps.unsqueeze(1)).sum(1)
    rows = input.shape[:-1].numel()
    if batch_sizes is None or not _has_values(batch_sizes):
        return rows, N, N
    sizes = batch_sizes.tolist() or [0]
    return sum(sizes), sizes[0], sizes[-1]


def _has_values(t: Tensor) -> bool:
    """Whether the values are known now: no fake tensor, and none that a device may still compute."""
    return type(t) is Tensor and t.device.type == "cpu"


@register_flop_formula(torch.ops.lstmkern.layer_forward, get_raw=True)
def _forward(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    *_: Any,
    **__: Any,
) -> int:
    rows = _rows(input, h0, batch_sizes, lengths)[0]
    return sum(2 * rows * w.numel() for w in weights if w.dim() == 2)


@register_flop_formula(torch.ops.lstmkern.layer_backward, get_raw=True)
def _backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    output: Tensor | None,
    cells: Tensor | None,
    gates: Tensor | None,
    mode: str,
    batch_first: bool,
    needs: Sequence[bool],
    **_: Any,
) -> int:
    rows, *first = _rows(input, h0, batch_sizes, lengths)
    directions = 1 if h0.dim() == 2 else h0.shape[0]
    per = len(weights) // directions
    total = 0
    for d in range(directions):
        w_ih, w_hh, *others = [w.numel() for w in weights[d * per : (d + 1) * per] if w.dim() == 2]
        total += rows * (w_ih * needs[0] + sum(others))
        total += (rows if needs[1] else rows - first[d]) * w_hh
        total += rows * (w_ih + w_hh + sum(others)) * needs[2]
    return 2 * total
