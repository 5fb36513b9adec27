"""Where the time of one training step goes: one step of one sequence, forward and backward (benchmarks/one_call.py).

The floor is an autograd.Function with as many inputs and outputs as the layer, that computes nothing: forward returns
empty tensors, and backward returns gradients that are ready. What the two kernels take, called by themselves, comes on
top of it.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

import lstmkern
from lstmkern import _extension
from lstmkern.bench import measure
from lstmkern.bench.cases import Case, step_of

from .peers import Unavailable, jax_scan

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
    return {name: statistics.quantiles(values, n=10)[0] for name, values in times.items()}


def empty_step(x: Tensor, weights: list[Tensor], outputs: int, columns: int, grad: Tensor) -> Callable[[], object]:
    """A training step of the Function that computes nothing."""
    ready = tuple(torch.empty_like(t) for t in (x, *weights))

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *_):
            return tuple(torch.empty(1, 1, columns) for _ in range(outputs))

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


def parts(cell: str, H: int) -> dict[str, float]:
    """Microseconds of a step of the layer ``cell`` with H inputs and units, of torch.nn's and JAX's, and of parts."""
    theirs = getattr(nn, cell)(H, H)
    ours = getattr(lstmkern, cell)(H, H)
    ours.load_state_dict(theirs.state_dict())
    x, grad = torch.randn(1, 1, H), torch.randn(1, 1, H)
    leaf = x.clone().requires_grad_()
    forward, backward = kernels(ours, x, grad)
    product = leaf * 1
    functions = {
        "step": step_of(ours, x, True),
        "torch.nn": step_of(theirs, x, True),
        "forward": lambda: ours(leaf),
        "floor": empty_step(leaf, list(ours.parameters()), 3 if cell == "LSTM" else 2, H, grad),
        "forward kernel": forward,
        "backward kernel": backward,
        # What torch.autograd.grad takes for the smallest graph.
        "grad": lambda: torch.autograd.grad(product, leaf, grad, retain_graph=True),
    }
    with contextlib.suppress(Unavailable):
        functions["JAX"], _ = jax_scan(Case(cell, 1, 1, H, H, train=True), theirs, x, 1)
    return microseconds(functions)


def table(found: list[dict]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of a Markdown table, from the lines of the result file."""
    heads = ["us", "torch.nn / ours", "JAX", "ours", "floor", "of it grad()", "kernels", "rest", "floor / JAX"]
    rows = []
    for r in found:
        both = r["forward kernel"] + r["backward kernel"]
        jax = r.get("JAX")
        numbers = (r["step"], r["floor"], r["grad"], both, r["step"] - r["floor"] - both)
        rows.append(
            [
                f"{r['cell']} {r['H']}",
                f"{r['torch.nn'] / r['step']:.2f}",
                f"{jax:.1f}" if jax else "-",
                *(f"{n:.1f}" for n in numbers),
                f"{r['floor'] / jax:.2f}" if jax else "-",
            ]
        )
    return heads, rows
