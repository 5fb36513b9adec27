"""One layer with gradients: autograd around the two compiled ops.

``layer_forward`` computes one layer in one or two directions. ``LayerFunction`` gives it a gradient, which the op
``lstmkern::layer_backward`` computes. ``LayerBackward`` makes that gradient differentiable.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as _are_transforms_active
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.overrides import has_torch_function

from . import _extension, distributed, onnx, recomputing, reference

_is_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda _: False)

# The ops as tracers and transforms see them.
forward_op = torch.ops.lstmkern.layer_forward.default
backward_op = torch.ops.lstmkern.layer_backward.default
# The kernels of the same ops, called without the dispatcher's autograd layer (csrc/eager.h). Absent results are None.
# h0 and c0 may be None too; the states then start at zero.
eager_forward = _extension.layer_forward
eager_backward = _extension.layer_backward

# What forward returns: output, h_n, c_n, the c of every step, and the gates saved for backward. Which of these are None
# depends on the call, in a way that types cannot express: hence Any.
Results = tuple[Tensor, Any, Any, Any, Any]
# LayerFunction's: mode, batch_first, cells, every, batch_sizes, lengths, resets.
Settings = tuple[str, bool, bool, bool, Tensor | None, Tensor | None, Tensor | None]
# What backward returns: the gradients of input, h0, c0 and of each weight; None where no gradient is needed.
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Sequence[Tensor | None]]


def call_below_autograd(eager_op: Callable[..., Any], *args: Any) -> Any:
    """Return ``eager_op(*args)``, also inside a torch.func transform."""
    if torch._C._are_functorch_transforms_active():
        # The op calls the next transform. The enclosing autograd.Function has disabled gradients for that one too.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return eager_op(*args)
    return eager_op(*args)


class LayerFunction(torch.autograd.Function):
    """``layer_forward`` with a gradient, for (settings, input, h0, c0, *weights).

    ``settings`` are (mode, batch_first, cells, every, batch_sizes, lengths, resets): one argument, because autograd
    looks at each argument. With ``every`` the results are the five of the op, for callers of the op itself. Otherwise
    those that a call does not have are left out, and so are gates, and the c of every step unless ``cells``.
    """

    @staticmethod
    def forward(
        ctx: Any, settings: Settings, input: Tensor, h0: Tensor | None, c0: Tensor | None, *weights: Tensor
    ) -> tuple[Any, ...]:
        recompute = recomputing.is_active() and settings[0] in ("LSTM", "GRU")
        results: tuple[Any, ...]
        results, saved, biases = call_below_autograd(
            _extension.recorded_forward, settings, input, h0, c0, weights, recompute
        )
        ctx.set_materialize_grads(False)
        if settings[3]:
            cells = settings[2]
            ctx.mark_non_differentiable(*(t for t in (results[4], None if cells else results[3]) if t is not None))
        ctx.save_for_backward(*saved)
        ctx.call = settings, recompute, biases
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad
        settings, recompute, biases = ctx.call
        if not recompute:
            plain: tuple[Tensor | None, ...] | None = _extension.recorded_backward(
                grads, saved, biases, settings, needs
            )
            if plain is not None:
                return plain
        mode, batch_first, *_ = settings
        input, h0, c0, batch_sizes, lengths, resets, output, cells, gates, *weights = saved
        given = _extension.results_in_order(grads, mode, input.dim() == 2 and batch_sizes is None)
        of_biases = iter(biases)
        weights = [next(of_biases)[0] if w is None else w for w in weights]
        if recompute or torch.is_grad_enabled():
            _refuse_changed(biases)
            if h0 is None:
                h0, c0 = zero_states(mode, input, weights, batch_sizes, batch_first)
        if all(g is None for g in given):
            return (None,) * len(needs)
        primals, boundaries, kept = (input, h0, c0, weights), (batch_sizes, lengths, resets), (output, cells, gates)
        wanted = (needs[1], needs[2] or needs[3], any(needs[4:]))
        if recompute and not torch.is_grad_enabled():
            return _in_order_of_arguments(needs, recomputing.layer_backward(
                eager_forward, eager_backward, given, *primals, boundaries, output, cells, mode, batch_first, wanted,
            ))  # fmt: skip
        if recompute:
            with torch.no_grad():
                kept = recomputing.recompute_saved(eager_forward, *primals, boundaries, mode, batch_first)
        return _in_order_of_arguments(
            needs, layer_backward(*given, *primals, *boundaries, *kept, mode, batch_first, wanted)
        )


# LayerFunction.apply without torch.func's part of it, for the calls of csrc/calls.h, which have no transform.
record = super(torch.autograd.Function, LayerFunction).apply


def _refuse_changed(biases: list[tuple[Tensor, int]]) -> None:
    """Raise autograd's error for a changed saved tensor: second derivatives and recompute() do read the biases."""
    for b, version in biases:
        if b._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"bias {list(b.shape)} is at version {b._version}; expected version {version} instead. Only a first "
                "derivative outside of lstmkern.recompute() allows this; clone the bias before it is changed."
            )


def _in_order_of_arguments(needs: Sequence[bool], gradients: Gradients) -> tuple[Tensor | None, ...]:
    """The gradients in the order of LayerFunction.forward's arguments."""
    grad_input, grad_h0, grad_c0, grad_weights = gradients
    states = grad_h0 if needs[2] else None, grad_c0 if needs[3] else None
    return None, grad_input if needs[1] else None, *states, *grad_weights


class LayerBackward(torch.autograd.Function):
    """``layer_backward`` with a gradient, for derivatives of any order; reference.py computes them."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: tuple[str, bool, tuple[bool, bool, bool]],
        boundaries: tuple[Tensor | None, ...],
        saved: tuple[Tensor | None, ...],
        *tensors: Any,
    ) -> tuple[Tensor | None, ...]:
        grads, (input, h0, c0, *weights) = tensors[:4], tensors[4:]
        mode, batch_first, needs = settings
        *results, grad_weights = call_below_autograd(
            eager_backward, *grads, input, h0, c0, weights, *boundaries, *saved, mode, batch_first, needs
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *boundaries)
        ctx.settings = settings
        return *results, *grad_weights

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, batch_sizes, lengths, resets = ctx.saved_tensors
        mode, batch_first, _ = ctx.settings
        given = [i for i, t in enumerate(tensors) if t is not None]
        received = [i for i, v in enumerate(cotangents) if v is not None]
        if not received:
            return (None,) * (3 + len(tensors))
        _refuse_freed(tensors)

        def first_derivative(*present: Tensor) -> tuple[Tensor, ...]:
            filled: list[Any] = [None] * len(tensors)
            for i, t in zip(given, present, strict=True):
                filled[i] = t
            grads, (input, h0, c0, *weights) = filled[:4], filled[4:]
            *states, grad_weights = reference.layer_vjp(
                grads, input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first
            )
            results = (*states, *grad_weights)
            return tuple(results[i] for i in received)

        # torch declares that vjp may return three values, which it does only with has_aux.
        _, pull_back = torch.func.vjp(first_derivative, *(tensors[i] for i in given))  # type: ignore[misc]
        result: list[Tensor | None] = [None] * (3 + len(tensors))
        for i, grad in zip(given, pull_back(tuple(cotangents[i] for i in received)), strict=True):
            result[3 + i] = grad
        return tuple(result)


def _refuse_freed(tensors: Iterable[Tensor | None]) -> None:
    """Raise RuntimeError if the memory of a tensor was freed, as fully_shard does with gathered weights.

    torch's operations would read that memory and crash.
    """
    for t in tensors:
        if t is None or type(t) not in (Tensor, torch.nn.Parameter) or not t.numel():
            continue
        try:
            freed = not t.untyped_storage().size()
        except (NotImplementedError, RuntimeError):
            continue  # a transform's wrapper
        if freed:
            raise RuntimeError(
                f"the memory of a tensor {list(t.shape)} that a second derivative needs was freed since forward: keep "
                "it, as fully_shard(..., reshard_after_forward=False) and set_reshard_after_backward(False) do."
            )


def _through_dispatcher(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a tracer, a transform or a tensor subclass must see the op itself."""
    return (
        is_compiling()
        or _are_transforms_active()
        or forward_ad._current_level >= 0  # the Autograd registration (ops.py) reads tangents
        or has_torch_function(tensors)
    )


def _any_batched(grads: Iterable[Tensor | None]) -> bool:
    """Whether autograd.grad(is_grads_batched=True) maps over these gradients.

    The results of an autograd.Function then lose their history with the mapped dimension. The op's batching rule in
    ops.py keeps it.
    """
    return any(g is not None and _is_legacy_batched(g) for g in grads)


def count_directions(weights: Sequence[Tensor]) -> int:
    """1 or 2, from the weights of a layer. (Four weights: two directions without biases, or one with biases.)"""
    return 2 if len(weights) > 5 or (len(weights) == 4 and len(weights[2].shape) == 2) else 1


def zero_states(
    mode: str, input: Tensor, weights: Sequence[Tensor], batch_sizes: Tensor | None, batch_first: bool
) -> tuple[Tensor, Tensor | None]:
    """(h0, c0) of zeros, for calls without initial states. c0 is None except for an LSTM; see layer_forward()."""
    directions = count_directions(weights)
    N = int(batch_sizes[0]) if batch_sizes is not None else input.size(0 if batch_first else -2)
    sizes = (N,) if input.dim() == 2 and batch_sizes is None else (directions, N)
    h0 = input.new_zeros(*sizes, weights[1].shape[-1])
    if mode != "LSTM":
        return h0, None
    projected = len(weights) // directions % 2 == 1
    return h0, input.new_zeros(*sizes, weights[-1].shape[-1]) if projected else h0


def needs_grad(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd must record a call with these tensors; some may be None."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def layer_forward(
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
    cells: bool,
) -> Results:
    """One layer, differentiable.

    Arguments and results are those of the op ``lstmkern::layer_forward`` (csrc/ops.cpp; the same as
    ``reference.layer``), with two differences: absent results may be None, and without h0 (and c0) the states start at
    zero.
    """
    tensors = (input, h0, c0, *weights)
    results: Results
    if _through_dispatcher(tensors):
        if torch.onnx.is_in_onnx_export():
            boundaries = (batch_sizes, lengths, resets)
            return onnx.layer(input, h0, c0, weights, count_directions(weights), *boundaries, mode, batch_first, cells)
        if h0 is None:
            h0, c0 = zero_states(mode, input, weights, batch_sizes, batch_first)
        results = forward_op(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, False, cells)
        return results
    if type(input) is not Tensor and distributed.takes_dtensors(input) and h0 is None:
        h0, c0 = zero_states(mode, input, weights, batch_sizes, batch_first)
    if needs_grad(tensors):
        apply: Any = LayerFunction.apply
        settings: Settings = (mode, batch_first, cells, False, batch_sizes, lengths, resets)
        recorded = apply(settings, input, h0, c0, *weights)
        one_step = input.dim() == 2 and batch_sizes is None
        results = (*cast(Any, _extension.results_in_order(recorded, mode, one_step)), None)
        return results
    return eager_forward(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, False, cells)


def layer_backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_cells: Tensor | None,
    input: Tensor,
    h0: Tensor | None,
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
    needs: tuple[bool, bool, bool],
) -> Gradients:
    """The gradients of one layer, themselves differentiable; see the op ``lstmkern::layer_backward`` (csrc/ops.cpp)."""
    tensors = (grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, *weights)
    boundaries, saved = (batch_sizes, lengths, resets), (output, cells, gates)
    if _through_dispatcher(tensors) or (needs_grad(tensors) and _any_batched(tensors[:4])):
        gradients: Gradients = backward_op(*tensors[:7], weights, *boundaries, *saved, mode, batch_first, needs)
        return gradients
    if needs_grad(tensors):
        settings = (mode, batch_first, needs)
        apply: Any = LayerBackward.apply
        results: tuple[Tensor | None, ...] = apply(settings, boundaries, saved, *tensors)
        return results[0], results[1], results[2], list(results[3:])
    return eager_backward(
        grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, *boundaries, *saved, mode, batch_first,
        needs,
    )  # fmt: skip
