"""Where the time of one training step goes: one step of one sequence, forward and backward (benchmarks/one_call.py).

The floor is an autograd.Function with as many inputs and outputs as the layer, that computes nothing: forward returns
empty tensors, and backward returns gradients that are ready. What the two kernels take, called by themselves, comes on
top of it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

import lstmkern
from lstmkern import _extension
from lstmkern.bench import measure
from lstmkern.bench.cases import Case, step_of

from .peers import jax_scan

ROUNDS, SECONDS = 60, 1e-3  # timed blocks of each function, in turn, and the length of one


def microseconds(functions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Microseconds of a call of each, all in turn: the lowest decile of the blocks."""
    calls, times = {}, {name: [] for name in functions}
    for name, f in functions.items():
        f()
        start, calls[name] = measure.now(), 0
        while measure.now() - start < SECONDS:
            f()
            calls[name] += 1
    for _ in range(ROUNDS):
        for name, f in functions.items():
            start = measure.now()
            for _ in range(calls[name]):
                f()
            times[name].append((measure.now() - start) / calls[name] * 1e6)
    return {name: statistics.quantiles(values, n=10, method="inclusive")[0] for name, values in times.items()}


def empty_step(x: Tensor, weights: list[Tensor], outputs: int, columns: int, grad: Tensor) -> Callable[[], object]:
    """A training step of the Function that computes nothing, for x [T, N, I] and results of so many ``columns``."""
    (T, N, _), ready = x.shape, tuple(torch.empty_like(t) for t in (x, *weights))

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *_):
            return torch.empty(T, N, columns), *(torch.empty(1, N, columns) for _ in range(outputs - 1))

        @staticmethod
        def backward(ctx, *_):
            return ready

    wanted = [x, *weights]
    return lambda: torch.autograd.grad(Empty.apply(*wanted)[0], wanted, grad)


def kernels(module: nn.Module, x: Tensor, grad: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """The kernels of forward and backward by themselves, with the allocation of their results."""
    weights, boundaries = list(module.parameters()), (None, None, None)
    arguments = (x.detach(), None, None, weights, *boundaries, module.mode, False)

    @torch.no_grad()
    def forward():
        return _extension.layer_forward(*arguments, True, False)

    output, _, _, cells, gates = forward()
    received, saved = (grad, None, None, None), (output, cells, gates)

    @torch.no_grad()
    def backward():
        return _extension.layer_backward(
            *received, *arguments[:4], *boundaries, *saved, module.mode, False, (True, False, True)
        )

    return forward, backward


def layers(cell: str, H: int) -> tuple[nn.Module, nn.Module, Tensor, Tensor, Callable[[], object]]:
    """Our layer with H inputs and units, torch.nn's with the same weights, an input, a gradient, and the floor."""
    theirs, ours = getattr(nn, cell)(H, H), getattr(lstmkern, cell)(H, H)
    ours.load_state_dict(theirs.state_dict())
    x, grad = torch.randn(1, 1, H), torch.randn(1, 1, H)
    floor = empty_step(x.clone().requires_grad_(), list(ours.parameters()), 3 if cell == "LSTM" else 2, H, grad)
    return ours, theirs, x, grad, floor


def parts(cell: str, H: int) -> dict[str, float]:
    """Microseconds of a step of the layer ``cell`` with H inputs and units, of torch.nn's, and of parts."""
    ours, theirs, x, grad, floor = layers(cell, H)
    forward, backward = kernels(ours, x, grad)
    leaf = x.clone().requires_grad_()
    product = leaf * 1
    return microseconds(
        {
            "step": step_of(ours, x, True),
            "torch.nn": step_of(theirs, x, True),
            "forward": lambda: ours(leaf),
            "floor": floor,
            "forward kernel": forward,
            "backward kernel": backward,
            # What torch.autograd.grad takes for the smallest graph.
            "grad": lambda: torch.autograd.grad(product, leaf, grad, retain_graph=True),
        }
    )


def against_jax(cell: str, H: int) -> dict[str, float]:
    """Microseconds of the step, the floor and JAX's compiled step in turn, which disturb each other's caches.

    Raises:
        Unavailable: JAX is not installed.
    """
    ours, theirs, x, _, floor = layers(cell, H)
    jax, _ = jax_scan(Case(cell, 1, 1, H, H, train=True), theirs, x, 1)
    return microseconds({"step": step_of(ours, x, True), "floor": floor, "JAX": jax})


def table(found: list[dict], before: list[dict], jax: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a Markdown table, from the lines of the result file."""
    heads = ["us", "before", "now", "torch.nn / now", "floor", "of it grad()", "kernels", "rest", "JAX / now"]
    heads.append("JAX / floor")
    earlier, turns = ({(r["cell"], r["H"]): r for r in lines} for lines in (before, jax))
    rows = []
    for r in found:
        key = r["cell"], r["H"]
        old, turn = earlier.get(key), turns.get(key)
        both = r["forward kernel"] + r["backward kernel"]
        rows.append(
            [
                f"{r['cell']} {r['H']}",
                f"{old['step']:.1f}" if old else "-",
                f"{r['step']:.1f}",
                f"{r['torch.nn'] / r['step']:.2f}",
                *(f"{n:.1f}" for n in (r["floor"], r["grad"], both, r["step"] - r["floor"] - both)),
                *(f"{turn['JAX'] / turn[who]:.2f}" if turn else "-" for who in ("step", "floor")),
            ]
        )
    return heads, rows
