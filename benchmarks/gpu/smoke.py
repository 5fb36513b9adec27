"""Part: small layers on one tier, forward and backward, compared with fp64. Each line is printed at once.

    python -m benchmarks.gpu.smoke --tier cluster

The reference is torch.nn in fp64 on the same device. The error of torch.nn in the layer's own dtype sets the allowed
error.
"""

from __future__ import annotations

import copy
import os
import time

import torch

from . import layers, session

NAMES = ["out", "dx", "dW_ih", "dW_hh", "db_ih", "db_hh"]


def results(module, x, grad) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    out = module(x)[0]
    return [out.detach(), *torch.autograd.grad(out, [x, *module.parameters()], grad.to(out.dtype))]


def distances(found, exact) -> list[float]:
    """Relative distances in the Euclidean norm."""
    return [float((a.double() - e).norm() / e.norm().clamp(min=1e-30)) for a, e in zip(found, exact, strict=True)]


def run_case(run: session.Session, tier: str, work: layers.Work) -> None:
    torch.manual_seed(0)
    theirs, ours = work.modules(run.device)
    x = work.input(run.device)
    grad = torch.randn(work.T, work.N, work.H, device=x.device, dtype=x.dtype)
    with run.device.peer_enabled(run.device.name == "cuda" or work.dtype != "fp16"):  # oneDNN cannot train in fp16
        exact = results(copy.deepcopy(theirs).double(), x.double(), grad)
        peer = distances(results(theirs, x, grad), exact)
    found = []
    start = time.perf_counter()
    ran = run.device.ran(lambda: found.extend(results(ours, x, grad)))
    run.device.synchronize()
    seconds = time.perf_counter() - start
    errors = distances(found, exact)
    rounding = torch.finfo(x.dtype).eps
    wrong = [n for n, e, p in zip(NAMES, errors, peer, strict=True) if not e <= 3 * p + 2 * rounding]
    run.records.write(
        "smoke", tier=tier, work=work.record, ran=ran, plan=run.plan(tier, work), seconds=seconds,
        errors=dict(zip(NAMES, errors, strict=True)), peer_errors=dict(zip(NAMES, peer, strict=True)), wrong=wrong,
    )  # fmt: skip
    mark = f"WRONG ({', '.join(wrong)})" if wrong else "ok"
    mark += "" if ran == (tier, tier) else f" on {'/'.join(map(str, ran))}"
    listed = " ".join(f"{n} {e:.1e}" for n, e in zip(NAMES, errors, strict=True))
    run.say(f"{tier:8} {work!s:28} {mark:4} {listed} ({seconds:.2f} s)")
    run.failed += bool(wrong)


def main(arguments: list[str] | None = None) -> None:
    options = session.arguments(__doc__, tier={"required": True}).parse_args(arguments)
    run = session.Session("smoke", options)
    os.environ[run.device.tier_variable] = options.tier
    with run.device.tf32(False):
        for work in layers.smoke(run.rehearsal):
            if run.out_of_time(tier=options.tier):
                break
            run.case(f"smoke {options.tier} {work}", lambda work=work: run_case(run, options.tier, work))
    run.finish()


if __name__ == "__main__":
    main()
