"""The least time of a call: that of a module that computes nothing, and that of the GEMMs at the machine's peak rates.

A layer that trains with a torch.autograd.Function in Python must do what this module does: it passes x and the weights
to the Function, which saves them, and allocates results and gradients. For inference the module returns results that it
has already, because a layer can allocate them in C++. The arithmetic of the cell, packing, and the wait of a step for
the one before are not counted, so no layer reaches this time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lstmkern.bench.cases import Case, modules_for, step_of
from lstmkern.bench.measure import Pairs
from lstmkern.bench.roofline import Roofline


class Nothing(torch.autograd.Function):
    """(x, states, H, *weights) -> the output [T, N, H] and ``states`` states [1, N, H], none of them initialized."""

    @staticmethod
    def forward(ctx, x: Tensor, states: int, H: int, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        ctx.set_materialize_grads(False)
        return (x.new_empty(*x.shape[:2], H), *(x.new_empty(1, x.size(1), H) for _ in range(states)))

    @staticmethod
    def backward(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        return (torch.empty_like(x), None, None, *(torch.empty_like(weight) for weight in weights))


class Empty(torch.nn.Module):
    """A call of ``layer`` on an input of x's size without the computation. layer: a layer of torch.nn."""

    def __init__(self, layer: torch.nn.RNNBase, x: Tensor) -> None:
        super().__init__()
        self.hidden_size, self.proj_size, self.bidirectional = layer.hidden_size, 0, False
        self.states = 2 if layer.mode == "LSTM" else 1
        self.listed = torch.nn.ParameterList(layer.parameters())
        self.weights = list(self.listed)  # reading a ParameterList takes microseconds
        self.results = torch.empty(*x.shape[:2], self.hidden_size), torch.empty(1, x.size(1), self.hidden_size)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if not x.requires_grad:
            return self.results
        return Nothing.apply(x, self.states, self.hidden_size, *self.weights)


def floor_ms(case: Case, limits: Roofline, seconds: float) -> float:
    """The least milliseconds of a call of ``case``. limits: the rates of this machine. seconds: to measure for."""
    ours, theirs = modules_for(case)
    x = torch.randn(case.T, case.N, case.I)
    pairs = Pairs(step_of(ours, x, case.train), step_of(Empty(theirs, x), x, case.train))
    return pairs.run(seconds).result()["peer_ms"] + 1e3 * limits.floor(case).seconds
