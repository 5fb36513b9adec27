"""Autograd around the compiled ops, and lstm(), gru(), rnn() over stacks of layers.

One op call computes one layer in one or two directions; everything here is the little that remains: gradients, dtypes
under autocast, dropout between the layers of a stack.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _are_functorch_transforms_active as _are_transforms_active
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.overrides import has_torch_function

from . import _extension, autocast, distributed, onnx, recomputing, reference  # noqa: F401 (loading the extension registers the ops)

_is_legacy_batched = getattr(torch._C._functorch, "is_legacy_batchedtensor", lambda _: False)

# The ops as tracers and transforms see them.
forward_op = torch.ops.lstmkern.layer_forward.default
backward_op = torch.ops.lstmkern.layer_backward.default
# Their kernels and not their Autograd registration (ops.py), with nothing in between: csrc/eager.h. Absent results
# are None, and so may be h0 (and c0): the states then start at zero.
eager_forward = _extension.layer_forward
eager_backward = _extension.layer_backward


def call_below_autograd(eager_op, *args):
    """eager_op(*args), also where a function transform is at work."""
    if torch._C._are_functorch_transforms_active():
        # What lies below is the next transform, and an enclosing autograd.Function has turned gradients off for it too.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return eager_op(*args)
    return eager_op(*args)


class LayerFunction(torch.autograd.Function):
    """layer_forward with a gradient; returns the op's five results, whatever backward needs among them."""

    @staticmethod
    def forward(ctx, input, h0, c0, batch_sizes, lengths, resets, mode, batch_first, cells, *weights):
        ctx.recompute = recomputing.is_active() and mode in ("LSTM", "GRU")
        results = call_below_autograd(
            eager_forward, input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, not ctx.recompute,
            cells or ctx.recompute,
        )  # fmt: skip
        output, _, _, every_c, gates = results
        ctx.set_materialize_grads(False)
        if gates is not None:
            ctx.mark_non_differentiable(gates)
        if every_c is not None and not cells:
            ctx.mark_non_differentiable(every_c)
        if input.dim() == 2 and batch_sizes is None and mode in ("LSTM", "GRU"):
            # The caller may write into the next state, as a decoder does where a sequence has ended.
            output = None  # only read as the state before a later step
            every_c = every_c if every_c is None else every_c.clone()
        # No first derivative depends on a bias, so a bias may change before backward: not among the saved tensors.
        ctx.biases, others = [], []
        for w in weights:
            if w.dim() == 1:
                ctx.biases.append((w, w._version))
                others.append(None)
            else:
                others.append(w)
        ctx.save_for_backward(input, h0, c0, batch_sizes, lengths, resets, output, every_c, gates, *others)
        ctx.mode, ctx.batch_first = mode, batch_first
        return results

    @staticmethod
    def backward(ctx, grad_output, grad_h_n, grad_c_n, grad_cells, _):
        input, h0, c0, batch_sizes, lengths, resets, output, cells, gates, *weights = ctx.saved_tensors
        biases = iter(ctx.biases)
        weights = [next(biases)[0] if w is None else w for w in weights]
        needs = ctx.needs_input_grad
        if ctx.recompute or torch.is_grad_enabled():
            _refuse_changed(ctx.biases)
            if h0 is None:
                h0, c0 = zero_states(ctx.mode, input, weights, batch_sizes, ctx.batch_first)
        if grad_output is None and grad_h_n is None and grad_c_n is None and grad_cells is None:
            return (None,) * len(needs)
        grads, primals = (grad_output, grad_h_n, grad_c_n, grad_cells), (input, h0, c0, weights)
        ragged, saved = (batch_sizes, lengths, resets), (output, cells, gates)
        wanted = (needs[0], needs[1] or needs[2], any(needs[9:]))
        if ctx.recompute and not torch.is_grad_enabled():
            grad_input, grad_h0, grad_c0, grad_weights = recomputing.layer_backward(
                eager_forward, eager_backward, grads, *primals, ragged, output, cells, ctx.mode, ctx.batch_first, wanted
            )
            return _layer_grads(needs, grad_input, grad_h0, grad_c0, grad_weights)
        if ctx.recompute:
            with torch.no_grad():
                saved = recomputing.saved_again(eager_forward, *primals, ragged, ctx.mode, ctx.batch_first)
        grad_input, grad_h0, grad_c0, grad_weights = layer_backward(
            *grads, *primals, *ragged, *saved, ctx.mode, ctx.batch_first, wanted
        )
        return _layer_grads(needs, grad_input, grad_h0, grad_c0, grad_weights)


def _refuse_changed(biases: list[tuple[Tensor, int]]) -> None:
    """Second derivatives and recompute() do read the biases: an error as autograd's own for a saved tensor."""
    for b, version in biases:
        if b._version != version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: a "
                f"bias {list(b.shape)} is at version {b._version}; expected version {version} instead. Only a first "
                "derivative outside of lstmkern.recompute() allows this; clone the bias before it is changed."
            )


def _layer_grads(needs, grad_input, grad_h0, grad_c0, grad_weights):
    """The gradients in the order of LayerFunction.forward's arguments."""
    states = grad_h0 if needs[1] else None, grad_c0 if needs[2] else None
    return grad_input if needs[0] else None, *states, None, None, None, None, None, None, *grad_weights


class LayerBackward(torch.autograd.Function):
    """layer_backward with a gradient of its own: second derivatives, through the reference, of any order."""

    @staticmethod
    def forward(ctx, settings, ragged, saved, *tensors):
        grads, (input, h0, c0, *weights) = tensors[:4], tensors[4:]
        mode, batch_first, needs = settings
        *results, grad_weights = call_below_autograd(
            eager_backward, *grads, input, h0, c0, weights, *ragged, *saved, mode, batch_first, needs
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *ragged)
        ctx.settings = settings
        return *results, *grad_weights

    @staticmethod
    def backward(ctx, *cotangents):
        *tensors, batch_sizes, lengths, resets = ctx.saved_tensors
        mode, batch_first, _ = ctx.settings
        given = [i for i, t in enumerate(tensors) if t is not None]
        received = [i for i, v in enumerate(cotangents) if v is not None]
        if not received:
            return (None,) * (3 + len(tensors))
        _refuse_freed(tensors)

        def first_derivative(*present):
            filled = [None] * len(tensors)
            for i, t in zip(given, present, strict=True):
                filled[i] = t
            grads, (input, h0, c0, *weights) = filled[:4], filled[4:]
            *results, grad_weights = reference.layer_vjp(
                grads, input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first
            )
            results = (*results, *grad_weights)
            return tuple(results[i] for i in received)

        _, pull_back = torch.func.vjp(first_derivative, *(tensors[i] for i in given))
        result = [None] * (3 + len(tensors))
        for i, grad in zip(given, pull_back(tuple(cotangents[i] for i in received)), strict=True):
            result[3 + i] = grad
        return tuple(result)


def _refuse_freed(tensors) -> None:
    """torch's own sums read a tensor whose memory was freed, as fully_shard does with gathered weights: a crash."""
    for t in tensors:
        if type(t) not in (Tensor, torch.nn.Parameter) or not t.numel():
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


def _through_dispatcher(tensors) -> bool:
    """Whether a tracer, a transform or a subclass must see the op itself instead of what we would make of it."""
    return (
        is_compiling()
        or _are_transforms_active()
        or forward_ad._current_level >= 0  # the Autograd registration looks at tangents
        or has_torch_function(tensors)
    )


def _any_batched(grads) -> bool:
    """Whether autograd.grad(is_grads_batched=True) maps over these gradients. Results of an autograd.Function then lose
    their history with the mapped dimension; the op's own rule (ops.py) keeps it."""
    return any(g is not None and _is_legacy_batched(g) for g in grads)


def count_directions(weights) -> int:
    """1 or 2, from a layer's weights: without biases two directions have four."""
    return 2 if len(weights) > 5 or (len(weights) == 4 and len(weights[2].shape) == 2) else 1


def zero_states(mode, input, weights, batch_sizes, batch_first) -> tuple[Tensor, Tensor | None]:
    """What h0 and c0 (None unless LSTM) are if not given; arguments as for layer_forward()."""
    directions = count_directions(weights)
    N = int(batch_sizes[0]) if batch_sizes is not None else input.size(0 if batch_first else -2)
    sizes = (N,) if input.dim() == 2 and batch_sizes is None else (directions, N)
    h0 = input.new_zeros(*sizes, weights[1].shape[-1])
    if mode != "LSTM":
        return h0, None
    projected = len(weights) // directions % 2 == 1
    return h0, input.new_zeros(*sizes, weights[-1].shape[-1]) if projected else h0


def needs_grad(tensors) -> bool:
    """Whether autograd wants to know about a call with these tensors, None among them."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def layer_forward(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, cells):
    """One layer, differentiable; arguments and results as for lstmkern::layer_forward, absent results may be None.

    Without h0 (and c0) the states start at zero.
    """
    tensors = (input, h0, c0, *weights)
    if _through_dispatcher(tensors):
        if torch.onnx.is_in_onnx_export():
            ragged = (batch_sizes, lengths, resets)
            return onnx.layer(input, h0, c0, weights, count_directions(weights), *ragged, mode, batch_first, cells)
        if h0 is None:
            h0, c0 = zero_states(mode, input, weights, batch_sizes, batch_first)
        return forward_op(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, False, cells)
    if type(input) is not Tensor and distributed.takes_dtensors(input) and h0 is None:
        h0, c0 = zero_states(mode, input, weights, batch_sizes, batch_first)
    if needs_grad(tensors):
        return LayerFunction.apply(input, h0, c0, batch_sizes, lengths, resets, mode, batch_first, cells, *weights)
    return eager_forward(input, h0, c0, weights, batch_sizes, lengths, resets, mode, batch_first, False, cells)


def layer_backward(
    grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, weights, batch_sizes, lengths, resets,
    output, cells, gates, mode, batch_first, needs,
):  # fmt: skip
    """The gradients of one layer, themselves differentiable; arguments and results as for lstmkern::layer_backward."""
    tensors = (grad_output, grad_h_n, grad_c_n, grad_cells, input, h0, c0, *weights)
    ragged, saved = (batch_sizes, lengths, resets), (output, cells, gates)
    if _through_dispatcher(tensors) or (needs_grad(tensors) and _any_batched(tensors[:4])):
        return backward_op(*tensors[:7], weights, *ragged, *saved, mode, batch_first, needs)
    if needs_grad(tensors):
        results = LayerBackward.apply((mode, batch_first, needs), ragged, saved, *tensors)
        return *results[:3], list(results[3:])
    return eager_backward(*tensors[:7], weights, *ragged, *saved, mode, batch_first, needs)


# ---- stacks of layers ----


def run_stack(
    mode: str,
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[list[Tensor]],
    directions: int,
    batch_first: bool,
    dropout: float,
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    cells: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What lstm(), gru(), rnn() and the modules share: the layers one after the other, (output, h_n, c_n, cells).

    weights holds one list per layer, its directions one after the other; dropout is 0 unless training; without h0 (and
    c0) the state starts at zero.
    """
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
            own = slice(k * directions, (k + 1) * directions)
            h, c = h0[own], None if c0 is None else c0[own]
        input, h_n, c_n, every_c, _ = layer_forward(
            input, h, c, layer, batch_sizes, lengths, resets, mode, batch_first, cells and k == last
        )
        h_ns.append(h_n)
        c_ns.append(c_n)
        if dropout and k < last:
            input = F.dropout(input, dropout)
    results = input, torch.cat(h_ns), torch.cat(c_ns) if mode == "LSTM" else c_n, every_c
    return results if result_dtypes is None else autocast.as_dtypes(results, result_dtypes)


def run_cell(
    mode: str, input: Tensor, h: Tensor | None, c: Tensor | None, weights: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """One step: input [N, I], h and c [N, H] or None for zeros; returns the next (h, c), c only of an LSTM."""
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
    """An LSTM's (h, c), (None, None) for zeros. TypeError for one tensor with both, as torch.nn has it: only without a
    batch dimension, [2, L, H] or [2, H], is it a pair."""
    if hx is None:
        return None, None
    if type(hx) is not tuple:
        _refuse_no_pair(name, hx)
    if len(hx) == 2:
        h, c = hx[0], hx[1]
        if h is not None and c is not None:
            return h, c
    raise RuntimeError(f"{name} expects two hidden states")


def _refuse_no_pair(name: str, hx) -> None:
    batched = 4 if name == "lstm" else 3
    if isinstance(hx, (tuple, list)) or (isinstance(hx, Tensor) and hx.dim() < batched):
        return
    got = f"must be tuple of Tensors, not {type(hx).__name__}"
    if name == "lstm":
        raise TypeError(f"lstm() received an invalid combination of arguments: hx {got}")
    raise TypeError(f"{name}(): argument 'hx' (position 2) {got}")


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: list[list[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_cells: bool = False,
):
    """lstmkern.LSTM as a function of its weights.

    input [T, N, I], [N, T, I] if batch_first, or packed [R, I] with batch_sizes (int64 [T] on the CPU); hx (h_0
    [L*D, N, P], c_0 [L*D, N, H]) or None for zeros. weights holds one list per layer: w_ih, w_hh, then b_ih, b_hh and
    w_hr as far as there are any, the reverse direction's after the forward one's. Returns (output, (h_n, c_n)) and, if
    return_cells, the last layer's c of every step; see lstmkern.LSTM.forward for these and for lengths and resets.
    """
    h0, c0 = both_states("lstm", hx)
    output, h_n, c_n, cells = _checked_stack(
        "LSTM", input, h0, c0, weights, bidirectional, batch_first, dropout if training else 0.0,
        batch_sizes, lengths, resets, return_cells,
    )  # fmt: skip
    return (output, (h_n, c_n), cells) if return_cells else (output, (h_n, c_n))


def gru(
    input: Tensor,
    hx: Tensor | None,
    weights: list[list[Tensor]],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """lstmkern.GRU as a function of its weights; arguments as for lstm(), hx being h_0. Returns (output, h_n)."""
    return _checked_stack(
        "GRU", input, hx, None, weights, bidirectional, batch_first, dropout if training else 0.0,
        batch_sizes, lengths, resets, False,
    )[:2]  # fmt: skip


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: list[list[Tensor]],
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
    """lstmkern.RNN as a function of its weights; arguments as for lstm(), hx being h_0. Returns (output, h_n)."""
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return _checked_stack(
        f"RNN_{nonlinearity.upper()}", input, hx, None, weights, bidirectional, batch_first,
        dropout if training else 0.0, batch_sizes, lengths, resets, False,
    )[:2]  # fmt: skip


def _checked_stack(mode, input, h0, c0, weights, bidirectional, *rest):
    directions = 2 if bidirectional else 1
    for k, layer in enumerate(weights):
        if len(layer) not in [n * directions for n in (2, 3, 4, 5)]:
            raise ValueError(
                f"weights[{k}]: Expected 2 to 5 tensors for each of {directions} directions, got {len(layer)}"
            )
    for i, state in enumerate((h0, c0)):
        if state is not None and (state.dim() != 3 or state.size(0) != len(weights) * directions):
            raise ValueError(f"hx[{i}]: Expected [{len(weights) * directions}, N, features], got {list(state.shape)}")
    return run_stack(mode, input, h0, c0, weights, directions, *rest)
