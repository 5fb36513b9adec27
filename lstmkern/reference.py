"""The layer that the kernels compute, in plain torch operations.

Slow and short: this is what the tests compare with, what second and forward-mode derivatives run on, and the place to
read what a layer does. Nothing is written in place, so it can be differentiated any number of times.

Sizes: T steps, N rows, I inputs, H hidden, P = proj_size or H, D directions, R rows of packed data.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def step(mode: str, x: Tensor, h: Tensor, c: Tensor | None, weights: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """One time step of one direction, as torch.nn.LSTMCell, GRUCell and RNNCell define it.

    x [N, I], h [N, P], c [N, H] (LSTM only), weights w_ih [G*H, I], w_hh [G*H, P], then b_ih, b_hh [G*H] and
    w_hr [P, H] as far as the layer has them; gates are stacked as i, f, g, o (LSTM) or r, z, n (GRU). Returns the
    next (h, c).
    """
    w_ih, w_hh, *rest = weights
    b_ih, b_hh = rest[:2] if len(rest) >= 2 else (None, None)
    from_x, from_h = F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh)
    if mode == "LSTM":
        i, f, g, o = (from_x + from_h).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return (F.linear(h, rest[-1]) if len(rest) % 2 else h), c
    if mode == "GRU":
        (xr, xz, xn), (hr, hz, hn) = from_x.chunk(3, -1), from_h.chunk(3, -1)
        z = torch.sigmoid(xz + hz)
        n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
        return (1 - z) * n + z * h, None
    squash = {"RNN_TANH": torch.tanh, "RNN_RELU": torch.relu}[mode]
    return squash(from_x + from_h), None


def layer(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One layer in one or two directions; arguments and results are those of the op lstmkern::layer_forward.

    input [T, N, I], [N, T, I] if batch_first, or packed [R, I] with batch_sizes int64 [T]; h0 [D, N, P]; c0 [D, N, H]
    (LSTM); lengths int64 [N]; resets bool, laid out like input without its last dimension: the state is zeroed before
    that step. Returns output (laid out like input, D*P columns, zero past a row's end), h_n [D, N, P], c_n [D, N, H]
    and cells (every step's c, laid out like output, D*H columns); the last two are empty except for an LSTM.
    One step alone: input [N, I], h0 [N, P], c0 [N, H]; output and cells are the next state, h_n and c_n empty.
    """
    if batch_sizes is None and input.dim() == 2:
        input, h0, c0, resets = (None if t is None else t.unsqueeze(0) for t in (input, h0, c0, resets))
        output, _, _, cells = layer(input, h0, c0, weights, None, lengths, resets, mode, False)
        nothing = input.new_empty(0)
        return output.squeeze(0), nothing, nothing, cells if c0 is None else cells.squeeze(0)
    dtype, D, N = input.dtype, h0.size(0), h0.size(1)
    wide = torch.promote_types(dtype, torch.float32)  # 16-bit types are storage: the arithmetic is fp32
    x, h0, c0 = input.to(wide), h0.to(wide), None if c0 is None else c0.to(wide)
    weights = [w.to(wide) for w in weights]

    rows = None  # of a packed sequence: row (t, n) of the time-major batch lies at data[rows[t, n]]
    if batch_sizes is not None:
        alive = torch.arange(N) < batch_sizes.unsqueeze(1)
        starts = batch_sizes.cumsum(0) - batch_sizes
        rows = ((starts.unsqueeze(1) + torch.arange(N)) * alive).to(x.device)
        alive = alive.to(x.device)
        x, resets = x[rows], None if resets is None else resets[rows]
    elif batch_first:
        x, resets = x.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
    T = x.size(0)
    if lengths is not None:
        alive = torch.arange(T, device=x.device).unsqueeze(1) < lengths.to(x.device)
    elif batch_sizes is None:
        alive = None
    if alive is not None:
        resets = None if resets is None else resets & alive
        alive = alive.unsqueeze(-1)
        x = torch.where(alive, x, 0)  # whatever the padding holds must not reach a gradient, not even as 0 * inf

    per_direction = len(weights) // D
    outputs, cells, h_n, c_n = [], [], [], []
    for d in range(D):
        w, h, c = weights[d * per_direction : (d + 1) * per_direction], h0[d], None if c0 is None else c0[d]
        hs, cs = [None] * T, [None] * T
        for t in reversed(range(T)) if d else range(T):
            if resets is not None:
                fresh = resets[t].unsqueeze(-1)
                h, c = torch.where(fresh, 0, h), None if c is None else torch.where(fresh, 0, c)
            if alive is None:
                h, c = hs[t], cs[t] = step(mode, x[t], h, c, w)
                continue
            # From zeros in padding: an infinite state that is kept must not reach a gradient as 0 * inf either.
            h_before, c_before = (None if s is None else torch.where(alive[t], s, 0) for s in (h, c))
            h_new, c_new = step(mode, x[t], h_before, c_before, w)
            # A row that has ended keeps its state: a reverse pass meets the padding first, a forward pass last.
            h, hs[t] = torch.where(alive[t], h_new, h), torch.where(alive[t], h_new, 0)
            if c is not None:
                c, cs[t] = torch.where(alive[t], c_new, c), torch.where(alive[t], c_new, 0)
        outputs.append(torch.stack(hs))
        h_n.append(h)
        if c is not None:
            cells.append(torch.stack(cs))
            c_n.append(c)

    def laid_out(steps: list[Tensor]) -> Tensor:
        whole = torch.cat(steps, -1)
        if rows is not None:
            return whole.flatten(0, 1)[alive.flatten().nonzero().squeeze(1)].to(dtype)
        return (whole.transpose(0, 1) if batch_first else whole).to(dtype)

    nothing = input.new_empty(0)
    return (
        laid_out(outputs),
        torch.stack(h_n).to(dtype),
        torch.stack(c_n).to(dtype) if c_n else nothing,
        laid_out(cells) if cells else nothing,
    )


def layer_vjp(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    mode: str,
    batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The layer's vector-Jacobian product: what lstmkern::layer_backward computes, itself differentiable.

    grads are those of output, h_n, c_n and cells (None counts as zero). Returns those of input, h0, c0 (empty except
    for an LSTM) and weights.
    """
    with torch.enable_grad():
        # Derivatives with respect to a shift of zero: the results keep their dependence on the given tensors,
        # of whatever order and under whatever transform.
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
