"""torch_nn of simt/layers.py for larger layers: all sequences of a step at once, so it takes milliseconds."""

import torch

FUNCTIONS = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}


def positions(problem):
    """Steps and sequences of the rows that exist, in the order of packed rows."""
    found = [(t, j) for t in range(problem.case.T) for j, n in enumerate(problem.length_list) if t < n]
    return torch.tensor(found, dtype=torch.long).view(-1, 2).T


def torch_nn(problem, dtype):
    """The layer as torch.nn computes it in `dtype`, one direction and step at a time.

    Returns a dict of the results and gradients under the ops' names and in the ops' layout (0 where there is no row).
    """
    case, T, N, D = problem.case, problem.case.T, problem.case.N, problem.case.D
    steps, sequences = positions(problem)
    real = torch.zeros(T, N, dtype=torch.bool)
    real[steps, sequences] = True

    def time_major(tensor):
        """[T, N, ...], with zeros as padding."""
        if case.ragged == "packed":
            padded = tensor.new_zeros(T, N, *tensor.shape[1:])
            return padded.index_put((steps, sequences), tensor)
        tensor = tensor.transpose(0, 1) if case.batch_first else tensor
        shape = (T, N) + (1,) * (tensor.dim() - 2)
        return torch.where(real.view(shape), tensor, torch.zeros((), dtype=tensor.dtype))

    def laid_out(tensor):
        if case.ragged == "packed":
            return tensor[steps, sequences]
        return tensor.transpose(0, 1) if case.batch_first else tensor

    def leaf(tensor):
        return None if tensor is None else tensor.detach().to(dtype).requires_grad_()

    input, h0, c0, weights = leaf(problem.input), leaf(problem.h0), leaf(problem.c0), [leaf(w) for w in problem.weights]
    x, per = time_major(input), len(weights) // D
    resets = None if problem.resets is None else time_major(problem.resets)
    output, cells, h_n, c_n = [], [], [], []
    for d in range(D):
        state = [h0[d]] if c0 is None else [h0[d], c0[d]]
        found = [None] * T
        for t in range(T - 1, -1, -1) if d else range(T):
            old = state
            if resets is not None:
                old = [torch.where(resets[t][:, None], torch.zeros_like(s), s) for s in state]
            given = old[0][None] if c0 is None else tuple(s[None] for s in old)
            _, *new = FUNCTIONS[case.mode](
                x[t][None], given, weights[d * per : (d + 1) * per], case.bias, 1, 0.0, False, False, False
            )
            state = [torch.where(real[t][:, None], n[0], s) for n, s in zip(new, state, strict=True)]
            found[t] = state
        masks = real[..., None]
        hidden = torch.stack([step[0] for step in found])
        output.append(torch.where(masks, hidden, torch.zeros_like(hidden)))
        h_n.append(state[0])
        if c0 is not None:
            cell = torch.stack([step[1] for step in found])
            cells.append(torch.where(masks, cell, torch.zeros_like(cell)))
            c_n.append(state[1])
    out = {"output": laid_out(torch.cat(output, -1)), "h_n": torch.stack(h_n)}
    if c0 is not None:
        out |= {"cells": laid_out(torch.cat(cells, -1)), "c_n": torch.stack(c_n)}
    loss = 0
    for name, grad in problem.grads.items():
        if case.ragged == "lengths" and name in ("grad_output", "grad_cells"):  # padding may hold any value
            mask = (real.T if case.batch_first else real)[..., None]
            grad = torch.where(mask, grad, torch.zeros_like(grad))
        loss = loss + (out[name.removeprefix("grad_")] * grad.to(dtype)).sum()
    loss.backward()
    out |= {"grad_input": input.grad, "grad_h0": h0.grad, "grad_c0": None if c0 is None else c0.grad}
    return out | {f"grad_weight_{i}": w.grad for i, w in enumerate(weights)}
