"""Layers for the tests of the CUDA kernels: random problems of every kind, and the results of torch.nn for them."""

from dataclasses import dataclass, field

import torch


@dataclass
class Case:
    """A layer's sizes and special features.

    ragged: None, "packed" or "lengths". empty: how many sequences (the first ones) then have no steps.
    """

    mode: str
    T: int
    N: int
    I: int  # noqa: E741
    H: int
    P: int = 0
    D: int = 1
    bias: bool = True
    batch_first: bool = False
    ragged: str | None = None
    resets: bool = False
    seed: int = 0
    empty: int = 0

    def __str__(self):
        special = [k for k in ("batch_first", "resets") if getattr(self, k)] + ([self.ragged] if self.ragged else [])
        special += [f"{self.empty}-empty"] if self.empty else []
        special += [] if self.bias else ["no-bias"]
        return "-".join(map(str, [self.mode, self.T, self.N, self.I, self.H, self.P, self.D, *special]))


# Layers that run on one device one after the other: mode, dtype, N, H, D. Each differs from the one before in
# something that a resident tier's plan depends on: H, N (8, then 40 and back), D, the dtype, the cell. On devices
# with FEW_MULTIPROCESSORS the plans also differ at each of the first CHANGES changes.
B16, F32 = torch.bfloat16, torch.float32
SEQUENCE = [("LSTM", B16, 8, 24, 1), ("LSTM", B16, 8, 100, 1), ("LSTM", B16, 40, 100, 1), ("LSTM", B16, 8, 100, 1)]
SEQUENCE += [("LSTM", B16, 8, 100, 2), ("LSTM", F32, 8, 100, 2), ("GRU", F32, 8, 100, 2), ("GRU", B16, 8, 100, 2)]
CHANGES = 4
FEW_MULTIPROCESSORS = {"cluster": 4, "grid": 5}


def plans_in_sequence(new_simulator, tier, backward):
    """The plans for SEQUENCE and then for one of its layers on two devices.

    Returns (the plans of a tier that may remember its last one, the plans on devices that it has not seen).
    new_simulator(tier, **options) makes a Simulator.
    """
    few = {"multiprocessors": FEW_MULTIPROCESSORS[tier]}
    work = [(few, 1, layer) for layer in [*SEQUENCE, SEQUENCE[2]]] + [({}, 2, SEQUENCE[2])]
    kept = [new_simulator(tier, device_number=n, **device).plan(*layer, backward) for device, n, layer in work]
    return kept, [new_simulator(tier, **device).plan(*layer, backward) for device, _, layer in work]


@dataclass
class Problem:
    """A case's tensors: time-major or batch-first as the case says; rows if packed."""

    case: Case
    input: torch.Tensor
    h0: torch.Tensor
    c0: torch.Tensor | None
    weights: list
    grads: dict
    length_list: list
    batch_sizes: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    resets: torch.Tensor | None = None
    args: tuple = field(default=())


def make(case, dtype):
    """A problem with random values that are exact in `dtype`."""
    g = torch.Generator().manual_seed(case.seed)
    G = {"LSTM": 4, "GRU": 3}.get(case.mode, 1)
    T, N, I, H, D = case.T, case.N, case.I, case.H, case.D  # noqa: E741
    P = case.P or H

    def random(*shape, scale=1.0):
        return (torch.randn(shape, generator=g, dtype=torch.float64) * scale).to(dtype)

    lengths = [T] * N
    if case.ragged:
        lengths = torch.randint(1, T + 1, (N,), generator=g).tolist()
        lengths[N // 2] = T
        lengths[: case.empty] = [0] * case.empty
    if case.ragged == "packed":
        lengths.sort(reverse=True)
    batch_sizes = None
    if case.ragged == "packed":
        batch_sizes = torch.tensor([sum(n > t for n in lengths) for t in range(T)])
    lead = (sum(lengths),) if case.ragged == "packed" else (N, T) if case.batch_first else (T, N)
    weights = []
    for _ in range(D):
        weights += [random(G * H, I, scale=I**-0.5), random(G * H, P, scale=P**-0.5)]
        weights += [random(G * H), random(G * H)] if case.bias else []
        weights += [random(P, H, scale=H**-0.5)] if case.P else []
    lstm = case.mode == "LSTM"
    grads = {"grad_output": random(*lead, D * P), "grad_h_n": random(D, N, P)}
    grads |= {"grad_c_n": random(D, N, H), "grad_cells": random(*lead, D * H)} if lstm else {}
    problem = Problem(
        case, random(*lead, I), random(D, N, P), random(D, N, H) if lstm else None, weights, grads, lengths, batch_sizes
    )
    if case.ragged == "lengths":
        problem.lengths = torch.tensor(lengths)
        # Padding may hold any value.
        padding(problem, problem.input).fill_(float("nan"))
        for name in ("grad_output", "grad_cells"):
            if name in grads:
                padding(problem, grads[name]).fill_(float("nan"))
    if case.resets:
        problem.resets = torch.rand(lead, generator=g) < 0.3
    problem.args = (
        problem.input, problem.h0, problem.c0, weights, batch_sizes, problem.lengths, problem.resets,
    )  # fmt: skip
    return problem


class padding:
    """The rows of a tensor that are after the ends of their sequences."""

    def __init__(self, problem, tensor):
        steps = torch.arange(problem.case.T)
        past = steps[:, None] >= torch.tensor(problem.length_list)[None, :]
        self.tensor, self.past = tensor, past.T if problem.case.batch_first else past

    def fill_(self, value):
        self.tensor[self.past] = value

    def all_zero(self):
        return bool((self.tensor[self.past] == 0).all())


def rows_of(problem, tensor):
    """[T][N] rows of a tensor in the layout of the input; None after a sequence's end."""
    case, T, N = problem.case, problem.case.T, problem.case.N
    if case.ragged == "packed":
        starts = [0, *problem.batch_sizes.cumsum(0).tolist()]
        return [[tensor[starts[t] + j] if t < problem.length_list[j] else None for j in range(N)] for t in range(T)]
    at = (lambda t, j: tensor[j, t]) if case.batch_first else (lambda t, j: tensor[t, j])
    return [[at(t, j) if t < problem.length_list[j] else None for j in range(N)] for t in range(T)]


def torch_nn(problem, dtype):
    """The layer as torch.nn computes it in `dtype`.

    It is computed one direction and step at a time, and one sequence at a time if there are lengths or resets. Returns
    a dict of the results and gradients under the ops' names; `output`, `cells` and their gradients are [T][N] lists of
    rows.
    """
    case, T, N, D = problem.case, problem.case.T, problem.case.N, problem.case.D
    leaf = lambda t: None if t is None else t.detach().to(dtype).requires_grad_()  # noqa: E731
    input, h0, c0, weights = leaf(problem.input), leaf(problem.h0), leaf(problem.c0), [leaf(w) for w in problem.weights]
    x = rows_of(problem, input)
    resets = None if problem.resets is None else rows_of(problem, problem.resets)
    function = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[case.mode]
    per = len(weights) // D
    output = [[[None] * D for _ in range(N)] for _ in range(T)]
    cells = [[[None] * D for _ in range(N)] for _ in range(T)]
    h_n, c_n = [[None] * N for _ in range(D)], [[None] * N for _ in range(D)]
    for d in range(D):
        w = weights[d * per : (d + 1) * per]
        together = len(set(problem.length_list)) == 1 and resets is None
        for js in [list(range(N))] if together else [[j] for j in range(N)]:
            h, c = h0[d, js], None if c0 is None else c0[d, js]
            steps = range(problem.length_list[js[0]])
            for t in reversed(steps) if d else steps:
                if resets is not None and resets[t][js[0]]:
                    h, c = torch.zeros_like(h), None if c is None else torch.zeros_like(c)
                state = h[None] if c is None else (h[None], c[None])
                now = torch.stack([x[t][j] for j in js])[None]
                got = function(now, state, w, case.bias, 1, 0.0, False, False, False)
                h, c = got[1][0], None if c is None else got[2][0]
                for i, j in enumerate(js):
                    output[t][j][d], cells[t][j][d] = h[i], None if c is None else c[i]
            for i, j in enumerate(js):
                h_n[d][j], c_n[d][j] = h[i], None if c is None else c[i]
    glue = lambda table: [[None if r[0] is None else torch.cat(r) for r in step] for step in table]  # noqa: E731
    out = {"output": glue(output), "h_n": torch.stack([torch.stack(r) for r in h_n])}
    if c0 is not None:
        out |= {"cells": glue(cells), "c_n": torch.stack([torch.stack(r) for r in c_n])}
    loss = 0
    for name, grad in problem.grads.items():
        value, grad = out[name.removeprefix("grad_")], grad.to(dtype)
        if isinstance(value, list):
            grad = rows_of(problem, grad)
            loss = loss + sum(
                (value[t][j] * grad[t][j]).sum() for t in range(T) for j in range(N) if grad[t][j] is not None
            )
        else:
            loss = loss + (value * grad).sum()
    loss.backward()
    grads = {"input": input, "h0": h0, "c0": c0, **{f"weight_{i}": w for i, w in enumerate(weights)}}
    zeros = lambda t: None if t is None else torch.zeros_like(t)  # noqa: E731
    return out | {f"grad_{k}": zeros(t) if t is None or t.grad is None else t.grad for k, t in grads.items()}


def flat(problem, name, value):
    """A result as one vector without padding."""
    if isinstance(value, torch.Tensor) and name in ("output", "cells", "grad_input"):
        value = rows_of(problem, value)
    if isinstance(value, list):
        value = torch.cat([torch.empty(0), *(r for step in value for r in step if r is not None)])
    return value.detach().double().flatten()


def check(problem, ours, exact, theirs):
    """Asserts that our results are correct.

    The error of each, relative to torch.nn in fp64 (``exact``), may be twice that of torch.nn in the same dtype
    (``theirs``) and a few roundings. The padding of sequences that are shorter than T must be zero.
    """
    dtype = problem.input.dtype
    if problem.case.ragged == "lengths":
        for name in ("output", "grad_input", *(["cells"] if problem.case.mode == "LSTM" else [])):
            assert padding(problem, ours[name]).all_zero(), f"{name}: padding is not zero"
    for name, wanted in exact.items():
        if wanted is None:
            continue
        got, wanted = flat(problem, name, ours[name]), flat(problem, name, wanted)
        assert got.isfinite().all(), f"{name} has infinite or NaN values"
        if not wanted.numel():  # no sequence has any steps
            continue
        scale = wanted.abs().max().clamp(min=1)
        roundings = (
            8 + 2 * (problem.case.T * problem.case.N) ** 0.5
        )  # a sum over all rows, with a random walk of rounding errors on both sides
        bound = 2 * (flat(problem, name, theirs[name]) - wanted).abs().max()
        bound += roundings * torch.finfo(dtype).eps * scale
        error = (got - wanted).abs().max()
        assert error <= bound, f"{name}: error {error:.3g}, allowed {bound:.3g}"


def compare(run, case, dtype):
    """Makes a problem, checks the results of run(problem) against torch.nn and returns (problem, results)."""
    problem = make(case, dtype)
    results = run(problem)
    check(problem, results, torch_nn(problem, torch.float64), torch_nn(problem, dtype))
    return problem, results


def dtype_name(dtype):
    """The name of a dtype, or of any other parameter, in the id of a test."""
    return str(dtype).removeprefix("torch.")
