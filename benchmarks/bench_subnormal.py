"""What subnormal numbers cost: our layer on numbers that become subnormal, and the same layer on normal numbers.

``ratio`` is the time on normal numbers over the time on subnormal ones, so 1 is best. ``torch_ratio`` is the same for
torch.nn's layer.
"""

import statistics

import pytest
import torch

from lstmkern.bench import measure
from lstmkern.bench.cases import DTYPES, Case, modules_for, step_of

SUBNORMAL = {"fp32": 1e-40, "fp64": 1e-310, "bf16": 1e-40, "fp16": 1e-7}


def inputs(module, x, tiny):
    """Inputs that are subnormal from the beginning, as in silence."""
    return x * tiny


def decay(module, x, tiny):
    """One step of normal inputs, then zeros: with small weights and no bias, the state decays."""
    for name, parameter in module.named_parameters():
        parameter.data.mul_(0 if "bias" in name else 0.05)
    x = x.clone()
    x[1:] = 0
    return x


def weights(module, x, tiny):
    """Subnormal weights."""
    for parameter in module.parameters():
        parameter.data.mul_(tiny)
    return x


@pytest.mark.parametrize("train", [False, True], ids=["infer", "train"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [inputs, decay, weights], ids=lambda f: f.__name__)
def test_subnormal(contest, threads, kind, dtype, cell, train):
    case = Case(cell, 400, 8, 64, 64, dtype=dtype, train=train)
    x = torch.randn(case.T, case.N, case.I).to(DTYPES[dtype])
    normal, small = modules_for(case), modules_for(case)
    of_small = [step_of(module, kind(module, x, SUBNORMAL[dtype]), train) for module in small]
    of_normal = [step_of(module, x, train) for module in normal]
    result = contest(case, of_small[0], of_normal[0], kind=kind.__name__)
    with measure.quiet(threads):
        result["torch_ratio"] = statistics.median(measure.Pairs(of_small[1], of_normal[1]).run(0.2).ratios)
