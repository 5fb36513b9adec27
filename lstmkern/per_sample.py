"""Per-sample gradients, for torch.nn.utils._per_sample_grad.call_for_per_sample_grads.

torch replaces each parameter by an ExpandedWeight, a tensor subclass with a table of the functions that support it.
This file adds lstmkern::layer_forward to that table. Forward is unchanged. Backward recomputes and differentiates each
sequence separately and stores the gradients in ``grad_sample``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import recomputing
from .autograd import eager_backward, eager_forward, forward_op

try:
    from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight, implements_per_sample_grads
    from torch.nn.utils._expanded_weights.expanded_weights_utils import set_grad_sample_if_exists, standard_kwargs
except ImportError:  # a torch without ExpandedWeights: this is never called

    def implements_per_sample_grads(torch_function: Any) -> Any:
        return lambda cls: cls


@implements_per_sample_grads(forward_op)
class PerSampleLayer:
    """The op if some weights are ExpandedWeights, as all weights that need a gradient must be."""

    @staticmethod
    def apply(kwarg_names: Sequence[str], _: Any, *args: Any) -> Any:
        args, kwargs = standard_kwargs(kwarg_names, args)
        return PerSampleLayer.layer(*args, **kwargs)

    @staticmethod
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
        save: bool,
        cells: bool,
    ) -> Any:
        for t in (input, h0, c0):
            if isinstance(t, ExpandedWeight):
                raise RuntimeError("Expanded Weights do not support inputs or states that are also ExpandedWeights")
        _check(weights, h0.shape[-2], packed=batch_sizes is not None)
        args = (input, h0, c0, batch_sizes, lengths, resets, mode, batch_first, save or cells, *weights)
        return PerSampleFunction.apply(*args)  # type: ignore[no-untyped-call]  # untyped in torch


def _check(weights: Sequence[Tensor], N: int, packed: bool) -> None:
    """The checks of torch. A packed batch may be smaller than the batch size of the weights."""
    expanded = [w for w in weights if isinstance(w, ExpandedWeight)]
    for w in expanded:
        if w.batch_size < N or (w.batch_size > N and not packed):
            raise RuntimeError(
                "Expected ExpandedWeights to have batch size matching input but got input batch size of "
                f"{N} with ExpandedWeight of batch size {w.batch_size}"
            )
        if w.loss_reduction != expanded[0].loss_reduction:
            raise RuntimeError(
                "Expected ExpandedWeights to all have the same loss_reduction argument but got one with "
                f"{expanded[0].loss_reduction} and one with {w.loss_reduction}"
            )


class PerSampleFunction(torch.autograd.Function):
    """layer_forward whose backward sets grad_sample [N, *weight.shape] of the original parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        batch_sizes: Tensor | None,
        lengths: Tensor | None,
        resets: Tensor | None,
        mode: str,
        batch_first: bool,
        cells: bool,
        *weights: Any,
    ) -> Any:
        plain = [w.orig_weight if isinstance(w, ExpandedWeight) else w for w in weights]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, h0, c0, batch_sizes, lengths, resets, *plain)
        ctx.mode, ctx.batch_first, ctx.weights = mode, batch_first, weights
        return eager_forward(input, h0, c0, plain, batch_sizes, lengths, resets, mode, batch_first, False, cells)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        grad_c_n: Tensor | None,
        grad_cells: Tensor | None,
        _: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        input, h0, c0, batch_sizes, lengths, resets, *weights = ctx.saved_tensors
        if grad_output is None and grad_h_n is None and grad_c_n is None and grad_cells is None:
            return (None,) * len(ctx.needs_input_grad)
        needs = (ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3]), True)
        N, batch_first = h0.size(-2), ctx.batch_first and batch_sizes is None
        grad_input = torch.empty_like(input) if needs[0] else None
        grad_h0, grad_c0 = (torch.empty_like(t) if needs[1] and t is not None else None for t in (h0, c0))
        samples = [
            w.new_empty(N, *w.shape) if isinstance(passed, ExpandedWeight) else None
            for w, passed in zip(weights, ctx.weights, strict=True)
        ]
        for n in range(N):
            one = slice(n, n + 1)
            if batch_sizes is not None:
                starts = batch_sizes.cumsum(0) - batch_sizes
                steps = (starts[batch_sizes > n] + n).unsqueeze(1)  # of packed data, as [T, 1]
            else:
                steps = one if batch_first or h0.dim() == 2 else (slice(None), one)
            state = (..., one, slice(None))
            received = _at(steps, grad_output), _at(state, grad_h_n), _at(state, grad_c_n), _at(steps, grad_cells)
            boundaries = None, _at(one, lengths), _at(steps, resets)
            layer = (_at(steps, input), _at(state, h0), _at(state, c0), weights)
            saved = recomputing.recompute_saved(eager_forward, *layer, boundaries, ctx.mode, batch_first)
            dx, dh, dc, dw = eager_backward(*received, *layer, *boundaries, *saved, ctx.mode, batch_first, needs)
            part: Any
            for whole, where, part in ((grad_input, steps, dx), (grad_h0, state, dh), (grad_c0, state, dc)):
                if whole is not None:
                    whole[where] = part
            for whole, part in zip(samples, dw, strict=True):
                if whole is not None:
                    whole[n] = part
        for w, sample in zip(ctx.weights, samples, strict=True):
            set_grad_sample_if_exists(w, lambda _, sample=sample: sample)
        return grad_input, grad_h0, grad_c0, *[None] * (6 + len(weights))


def _at(where: Any, t: Tensor | None) -> Any:
    return t if t is None else t[where]
