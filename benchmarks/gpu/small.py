"""A few small layers on each tier, forward and backward: the program that the sanitizers and ncu run.

    python -m benchmarks.gpu.small --tiers cluster,grid
    python -m benchmarks.gpu.small --tiers grid --profile

With --profile: two training steps of one layer, of a size that suits the tier. It fails if a tier did not run all the
layers that it can run: another tier would have run them, and nothing would be known about this one.
"""

from __future__ import annotations

import contextlib
import os
import sys

import torch

import lstmkern

from . import records, session

sys.path.insert(0, str(records.ROOT / "tests"))
from simt.layers import Case, make  # noqa: E402

CASES = [
    Case("LSTM", T=3, N=3, I=3, H=7, P=3, D=2, ragged="lengths", resets=True),
    Case("GRU", T=3, N=2, I=5, H=17, batch_first=True, resets=True),
    Case("LSTM", T=3, N=9, I=5, H=40, D=2, ragged="lengths"),
    Case("RNN_TANH", T=3, N=3, I=3, H=5, ragged="packed", D=2),
    Case("RNN_RELU", T=30, N=9, I=3, H=5),
]
RESIDENT = ("cluster", "grid")
LARGER = [  # for resident tiers on a GPU: blocks without units; weights in shared memory, a larger cluster
    Case("LSTM", T=12, N=3, I=5, H=48),
    Case("LSTM", T=6, N=17, I=5, H=250),
]
PROFILED = {"cluster": (64, 64, 512, 512), "grid": (64, 16, 768, 768), "stepwise": (2, 64, 512, 512)}  # T, N, I, H


def run_layer(where, case: Case, dtype: torch.dtype) -> None:
    problem = make(case, dtype)

    def move(value):
        if isinstance(value, list):
            return [move(v) for v in value]
        return value.to(where.torch_device) if isinstance(value, torch.Tensor) else value

    args = [a if i == 4 else move(a) for i, a in enumerate(problem.args)]  # batch_sizes stay on the host
    output, _, _, cells, gates = torch.ops.lstmkern.layer_forward(*args, case.mode, case.batch_first, True, True)
    grads = [move(problem.grads.get(f"grad_{k}")) for k in ("output", "h_n", "c_n", "cells")]
    needs = [True] * 3
    torch.ops.lstmkern.layer_backward(*grads, *args, output, cells, gates, case.mode, case.batch_first, needs)


def profile(where, tier: str) -> None:
    """Runs two steps: the first is a warm-up, ncu measures the second."""
    T, N, features, H = PROFILED.get(tier, (8, 4, 16, 16))
    module = lstmkern.LSTM(features, H, device=where.torch_device, dtype=torch.bfloat16)
    x = torch.randn(T, N, features, device=where.torch_device, dtype=torch.bfloat16, requires_grad=True)
    for looked_at in (False, where.name == "cuda"):
        with torch.cuda.profiler.profile() if looked_at else contextlib.nullcontext():
            module(x)[0].float().square().sum().backward()
            where.synchronize()


def cases_of(tier: str, device: str) -> list[Case]:
    if tier not in RESIDENT:
        return CASES
    return [case for case in CASES if case.mode in ("LSTM", "GRU")] + (LARGER if device == "cuda" else [])


def check_runs(where, tier: str, before: dict, wanted: int) -> None:
    """Checks that the tier itself has run so many layers, forward and backward."""
    after = where.runs()
    if tier not in after or (tier in RESIDENT and not where.resident_tiers()):  # the CPU or an older GPU
        return
    grown = [now - old for now, old in zip(after[tier], before.get(tier, (0, 0)), strict=True)]
    if min(grown) < wanted:
        raise RuntimeError(f"{tier} ran {grown[0]} layers forward and {grown[1]} backward, not {wanted}")


def run_tier(run, tier: str) -> bool:
    """Returns False if the time was up."""
    before, wanted = run.device.runs(), 0
    cases = cases_of(tier, run.device.name)
    for i, case in enumerate(cases):
        if run.out_of_time(tier=tier, left_out=len(cases) - i):
            return False
        for dtype in (torch.bfloat16, torch.float32):
            run.case(f"{tier} {case} {dtype}", lambda dtype=dtype, case=case: run_layer(run.device, case, dtype))
            wanted += tier not in RESIDENT or not case.P  # resident tiers do not run projections
    run.device.synchronize()
    run.say(f"{len(cases)} layers in two dtypes on {tier}: {run.device.runs()}")
    run.case(f"runs of {tier}", lambda: check_runs(run.device, tier, before, wanted))
    return True


def main(arguments: list[str] | None = None) -> None:
    more = {"tiers": {"default": "cluster,grid,stepwise"}, "profile": {"action": "store_true"}}
    options = session.arguments(__doc__, **more).parse_args(arguments)
    run = session.Session("small", options)
    for tier in options.tiers.split(","):
        os.environ[run.device.tier_variable] = tier
        if options.profile:
            ran = run.device.ran(lambda tier=tier: run.case(f"{tier}", lambda: profile(run.device, tier)))
            run.say(f"two steps on {tier}: ran on {ran}")
        elif not run_tier(run, tier):
            run.failed += 1
            break
    run.finish()


if __name__ == "__main__":
    main()
