"""The least time of a call: of one that computes nothing, and of the GEMMs at the machine's peak rates.

In training, the call that computes nothing is a torch.autograd.Function in Python that allocates results (empty_step in
training_parts.py), in inference a module that returns its input. The arithmetic of the cell, packing, and the wait of a
step for the one before are not counted, so no layer with such a Function reaches this time.
"""

from __future__ import annotations

import torch

from lstmkern.bench.cases import Case, modules_for, step_of
from lstmkern.bench.measure import Pairs
from lstmkern.bench.roofline import Roofline

from .training_parts import empty_step


def floor_ms(case: Case, limits: Roofline, seconds: float) -> float:
    """The least milliseconds of a call of ``case``. limits: the rates of this machine. seconds: to measure for."""
    ours, _ = modules_for(case)
    x, empty = torch.randn(case.T, case.N, case.I), torch.nn.Identity()
    run = step_of(ours, x, case.train)
    if case.train:
        grad, outputs = torch.randn(case.T, case.N, case.H), 3 if case.cell == "LSTM" else 2
        nothing = empty_step(x.clone().requires_grad_(), list(ours.parameters()), outputs, case.H, grad)
    else:
        nothing = step_of(empty, x, False)
    return 1e3 * (min(Pairs(run, nothing).run(seconds).theirs) + limits.floor(case).seconds)
