"""Registrations of the compiled ops for the rest of torch: shapes without data, gradients, vmap.

The compiled part registers the schemas with their CPU and CUDA kernels; csrc/ops.cpp describes each argument. The
registrations in Python are fakes (for torch.compile, torch.export and the meta device), Autograd (so that an op
called directly never drops a gradient), and the batching rules of torch.func.vmap and of autograd's older vmap.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from . import _extension, leaf, reference
from .autograd import (
    LayerBackward,
    LayerFunction,
    backward_op,
    call_below_autograd,
    eager_backward,
    eager_forward,
    forward_op,
    needs_grad,
)  # fmt: skip

# For each mode: gates in the weights, and values that forward saves for backward per unit and step (csrc/layer.h).
GATES = {mode: gates for mode, (gates, _) in _extension.cells.items()}
SAVED_PER_UNIT = {mode: saved for mode, (_, saved) in _extension.cells.items()}


# ---- fakes: the results' shapes, dtypes and devices ----


def _forward_fake(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
    save: bool,
    cells: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_same_device(input, h0, c0, weights)
    _check_meta(input, batch_sizes, lengths, resets)
    one_step = h0.dim() == 2  # [N, P]: output and cells are the next state
    D, N, P = (1, *h0.shape) if one_step else h0.shape
    H = weights[1].size(0) // GATES[mode]
    steps = input.shape[:-1]  # (T, N), (N, T) or (R,)
    rows = steps[0] if len(steps) == 1 else steps[0] * steps[1]
    padded_H, lstm = -(-H // _extension.padding) * _extension.padding, mode == "LSTM"

    def per_step(columns: int) -> Tensor:
        return _rows_like(input, columns, batch_first)

    return (
        per_step(D * P),
        input.new_empty(0) if one_step else input.new_empty(D, N, P),
        input.new_empty(D, N, H) if lstm and not one_step else input.new_empty(0),
        per_step(D * H) if lstm and (save or cells) else input.new_empty(0),
        input.new_empty(D, rows, SAVED_PER_UNIT[mode] * padded_H)
        if save and SAVED_PER_UNIT[mode]
        else input.new_empty(0),
    )


def _backward_fake(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    output: Tensor | None,
    cells: Tensor | None,
    gates: Tensor | None,
    mode: str,
    batch_first: bool,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    _check_same_device(input, h0, c0, weights)
    _check_meta(input, grad_output, grad_h_n, grad_c_n, grad_cells, batch_sizes, lengths, resets, output, cells, gates)

    def like(tensor: Tensor, needed: bool) -> Tensor:
        return tensor.new_empty(tensor.shape) if needed else tensor.new_empty(0)

    grad_c0 = like(c0, needs[1]) if c0 is not None else input.new_empty(0)
    grad_input = _rows_like(input, input.size(-1), batch_first) if needs[0] else input.new_empty(0)
    return grad_input, like(h0, needs[1]), grad_c0, [like(w, needs[2]) for w in weights]


torch.library.register_fake("lstmkern::layer_forward", _forward_fake)
torch.library.register_fake("lstmkern::layer_backward", _backward_fake)


def _rows_like(input: Tensor, columns: int, batch_first: bool) -> Tensor:
    """A result with a row for each row of the input; time-major in memory, as the kernels write it."""
    if batch_first and input.dim() == 3:
        return input.new_empty(input.size(1), input.size(0), columns).transpose(0, 1)
    return input.new_empty(*input.shape[:-1], columns)


def _check_meta(input: Tensor, *others: Tensor | None) -> None:
    """Refuse a tensor on the meta device with an input that is not: the results would have undefined values.

    One tensor on the meta device is enough for a call to arrive here.
    """
    for t in others:
        if t is not None and t.is_meta and not input.is_meta:
            raise RuntimeError(f"a tensor on the meta device has no values to use with an input at {input.device}")


def _check_same_device(input: Tensor, h0: Tensor, c0: Tensor | None, weights: list[Tensor]) -> None:
    for kind, tensors in (("hidden", (h0, c0)), ("parameter", weights)):
        for t in tensors:
            if t is not None and t.device != input.device:
                raise RuntimeError(
                    f"Input and {kind} tensors are not at the same device, found input tensor at {input.device} "
                    f"and {kind} tensor at {t.device}"
                )


# ---- autograd: for an op that is called from outside autograd.py, by a tracer, or under a transform ----


def _has_tangent(tensors: Iterable[Tensor | None]) -> bool:
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


@functools.cache
def _single_level(function: Any) -> Any:
    """The function for one level of grad, without torch.autograd.Function's search for levels."""
    methods = {"forward": staticmethod(function.forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.function._SingleLevelFunction,), methods)


def _apply(function: Any, *args: Any) -> Any:
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    # The dispatcher has removed the transforms down to one level of grad, as Function.apply would.
    with enable_single_level_autograd_function():
        return _single_level(function).apply(*args)


def _forward_autograd(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
    save: bool,
    cells: bool,
) -> tuple[Tensor, ...]:
    tensors = (input, h0, c0, *weights)
    if _has_tangent(tensors):  # forward-mode derivatives, computed by reference.py
        *results, every_c = reference.layer(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first)
        gates = None
    elif needs_grad(tensors):
        *results, every_c, gates = _apply(
            LayerFunction, (mode, batch_first, cells, True, batch_sizes, lengths, resets), input, h0, c0, *weights
        )
    else:
        return _filled(input, *call_below_autograd(
            eager_forward, input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, save, cells
        ))  # fmt: skip
    return _filled(input, *results, every_c if save or cells else None, gates if save else None)


def _filled(input: Tensor, *results: Tensor | None) -> tuple[Tensor, ...]:
    """The results of an op, with an empty tensor for each absent one."""
    return tuple(input.new_empty(0) if r is None else r for r in results)


def _backward_autograd(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    output: Tensor | None,
    cells: Tensor | None,
    gates: Tensor | None,
    mode: str,
    batch_first: bool,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    tensors = (grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, *weights)
    boundaries, saved = (batch_sizes, lengths, resets), (output, cells, gates)
    if _has_tangent(tensors):
        return reference.layer_vjp(tensors[:4], input, h0, c0, weights, *boundaries, mode, batch_first)
    if needs_grad(tensors):
        results = _apply(LayerBackward, (mode, batch_first, needs), boundaries, saved, *tensors)
        grad_weights = results[3:]
    else:
        *results, grad_weights = call_below_autograd(
            eager_backward, *tensors[:7], weights, *boundaries, *saved, mode, batch_first, needs
        )
    grad_input, grad_h0, grad_c0 = _filled(input, *results[:3])
    return grad_input, grad_h0, grad_c0, list(_filled(input, *grad_weights))


_library = torch.library.Library("lstmkern", "FRAGMENT")
_library.impl("layer_forward", _forward_autograd, "Autograd")
_library.impl("layer_backward", _backward_autograd, "Autograd")
_library.impl("layer_forward", leaf.refuse_torchscript, "Tracer")  # torch.jit.trace of functional's layers


# ---- vmap ----


def _forward_vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
    save: bool,
    cells: bool,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    B = info.batch_size
    args = (input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, save, cells)
    weights_differ = any(dim is not None for dim in in_dims[3])
    if weights_differ or batch_sizes is not None or save:  # only the kernels know the layout of saved gates
        return _one_by_one(forward_op, B, in_dims, args)

    def with_rows(tensor: Tensor | None, dim: int | None, n: int) -> Tensor | None:
        """Fold the mapped dimension into dimension n, the batch dimension: one larger batch."""
        if tensor is None:
            return None
        if dim is None:
            spread = tensor.unsqueeze(n).expand(*tensor.shape[:n], B, *tensor.shape[n:])
        else:
            spread = tensor.movedim(dim, n)
        return spread.flatten(n, n + 1)

    rank = h0.dim() - (in_dims[1] is not None)  # of h0 in one call: 3, or 2 for one step
    n = 0 if batch_first or rank == 2 else 1
    h0 = h0 if in_dims[1] is None else h0.movedim(in_dims[1], 0)
    N = h0.size(-2)
    output, h_n, c_n, every_c, gates = forward_op(
        with_rows(input, in_dims[0], n),
        with_rows(h0, None if in_dims[1] is None else 0, rank - 2),
        with_rows(c0, in_dims[2], rank - 2),
        weights,
        None,
        with_rows(lengths, in_dims[5], 0),
        with_rows(resets, in_dims[6], n),
        mode, batch_first, save, cells,
    )  # fmt: skip
    results, dims = [], []
    for result, dim in ((output, n), (h_n, rank - 2), (c_n, rank - 2), (every_c, n), (gates, None)):
        absent = result.dim() == 1  # an empty tensor in place of a result that this call does not have
        results.append(result if absent else result.unflatten(dim, (B, N)))
        dims.append(None if absent else dim)
    return tuple(results), tuple(dims)


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return _one_by_one(backward_op, info.batch_size, in_dims, args)


torch.library.register_vmap("lstmkern::layer_forward", _forward_vmap)
torch.library.register_vmap("lstmkern::layer_backward", _backward_vmap)


def _one_by_one(
    op: Callable[..., Any], B: int, in_dims: Sequence[Any], args: Sequence[Any]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Call the op once for each element of the mapped dimension and stack the results."""

    def pick(arg: Any, dim: Any, b: int) -> Any:
        if isinstance(dim, (list, tuple)):
            return [pick(a, d, b) for a, d in zip(arg, dim, strict=True)]
        return arg if dim is None else arg.select(dim, b)

    each = [op(*(pick(arg, dim, b) for arg, dim in zip(args, in_dims, strict=True))) for b in range(B)]
    results = tuple(
        [torch.stack(w) for w in zip(*parts, strict=True)] if isinstance(parts[0], list) else torch.stack(parts)
        for parts in zip(*each, strict=True)
    )
    return results, tuple([0] * len(r) if isinstance(r, list) else 0 for r in results)


# ---- vmap of autograd.grad(is_grads_batched=True), jacobian(vectorize=True), gradcheck(check_batched_grad=True) ----


def _register_legacy_vmap(op: Any) -> None:
    """The same, element by element, for autograd's internal vmap, whose tensors hide the mapped dimensions."""

    def rule(*args: Any) -> Any:
        level = torch._C._vmapmode_increment_nesting() - 1  # the enclosing vmaps, numbered from 1
        torch._C._vmapmode_decrement_nesting()
        leaves, structure = tree_flatten(args)
        while True:
            # The mapped dimension comes first; it has size 0 if there is none of this level.
            opened = [torch._remove_batch_dim(t, level, 0, 0) if isinstance(t, Tensor) else None for t in leaves]
            B = max(0 if t is None else t.size(0) for t in opened)
            if B:
                break
            level -= 1
            if not level:
                raise RuntimeError(f"{op}: vmap over no elements is not supported")
        mapped = [t is not None and t.size(0) > 0 for t in opened]
        inner = [o if m else t for o, m, t in zip(opened, mapped, leaves, strict=True)]
        dims = tree_unflatten([0 if m else None for m in mapped], structure)
        results, _ = _one_by_one(op, B, dims, tree_unflatten(inner, structure))
        return tree_map(lambda t: torch._add_batch_dim(t, 0, level), results)

    _library.impl(op, rule, "Batched")


if hasattr(torch._C, "_vmapmode_increment_nesting"):
    _register_legacy_vmap(forward_op)
    _register_legacy_vmap(backward_op)
