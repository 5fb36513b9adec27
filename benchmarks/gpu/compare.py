"""Part: variants (the tiers, or settings of environment variables) compared in one process, interleaved A B A B.

    python -m benchmarks.gpu.compare
    VARIANTS="old:LSTMKERN_CUDA_TIER=grid new:LSTMKERN_CUDA_TIER=grid,LSTMKERN_TRIAL=1" make gpu-check ONLY=compare

A variant is a name and the variables that are set while it runs. Ratios are relative to the first. The code must read
the variable at every call.
"""

from __future__ import annotations

import os
import statistics
from contextlib import contextmanager

import torch

from . import bench, layers, session

WORK = [
    ("LSTM", 512, 64, 512, 512),
    ("LSTM", 256, 16, 768, 768),
    ("GRU", 256, 64, 512, 512),
    ("LSTM", 256, 64, 256, 256),
]


def variants(text: str, where) -> dict[str, dict[str, str]]:
    """{name: {variable: value}} from "name:VARIABLE=value,VARIABLE=value name:..."; the tiers if the text is empty."""
    if not text.strip():
        return {tier: {where.tier_variable: tier} for tier in where.tiers}
    found = {}
    for word in text.split():
        name, _, settings = word.partition(":")
        pairs = [setting.partition("=") for setting in settings.split(",") if setting]
        if not name or any(not equals for _, equals, _ in pairs):
            raise SystemExit(f"VARIANTS must consist of name:VARIABLE=value,VARIABLE=value, got {word!r}")
        found[name] = {variable: value for variable, _, value in pairs}
    return found


@contextmanager
def environment(settings: dict[str, str]):
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def under(settings: dict[str, str], function):
    def run():
        with environment(settings):
            return function()

    return run


def compare(run: session.Session, work: layers.Work, chosen: dict) -> None:
    torch.manual_seed(0)
    _, ours = work.modules(run.device)
    x = work.input(run.device)
    for backward in (False, True):
        step = layers.step_of(ours, x, list(ours.parameters()), backward)
        steps = {name: under(settings, step) for name, settings in chosen.items()}
        ran = {name: run.device.ran(variant) for name, variant in steps.items()}
        first, wrong = None, {}
        for name, variant in steps.items():
            out = [value.double() for value in variant()]
            first = first or out
            distance = max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(out, first, strict=True))
            if not distance <= 2 * bench.FAR[work.dtype]:
                run.failed += 1
                wrong[name] = distance
                run.say(f"WRONG {work}: {name} is {distance:.1e} from {next(iter(steps))}")
        times = bench.measure(run, steps)
        base = next(iter(times.values()))
        us = {name: 1e3 * statistics.median(ms) / work.T for name, ms in times.items()}
        ratio = {n: statistics.median(a / b for a, b in zip(ms, base, strict=True)) for n, ms in times.items()}
        spread = bench.quartiles(times, work.T)
        run.records.write(
            "compare", work=work.record, backward=backward, variants=chosen, ran=ran, us_per_step=us, ratio=ratio,
            milliseconds=times, quartiles=spread, wrong=wrong,
        )  # fmt: skip
        within = {name: f"{low:.2f}-{high:.2f}" for name, (low, high) in spread.items()}
        cells = [f"{n} {us[n]:.2f} us [{within[n]}] ({ratio[n]:.2f}) on {ran[n][int(backward)]}" for n in us]
        run.say(f"{work!s:34} {'f+b' if backward else 'f  '} {', '.join(cells)}")


def main(arguments: list[str] | None = None) -> None:
    run = session.Session("compare", session.arguments(__doc__).parse_args(arguments))
    chosen = variants(os.environ.get("VARIANTS", ""), run.device)
    shapes = [("LSTM", *layers.TINY[0])] if run.rehearsal else WORK
    with run.device.tf32(True):
        for cell, *shape in shapes:
            if run.out_of_time():
                break
            work = layers.Work(cell, "bf16", *shape)
            run.case(f"compare {work}", lambda work=work: compare(run, work, chosen))
    run.finish()


if __name__ == "__main__":
    main()
