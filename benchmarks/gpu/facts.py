"""Part: the machine, its measured peak rates, and how the resident tiers would divide layers on it.

    python -m benchmarks.gpu.facts

The plans depend on the individual chip: a cluster of 16 blocks needs 16 multiprocessors in one GPC. The rates are
needed for lower bounds. Values that later parts need are written first. Programs that may not answer come last, each
with its own record.
"""

from __future__ import annotations

from . import layers, session, tools

SHOWN = ("blocks", "units", "sequences", "batches", "resident_teams")  # of a plan
SHAPES = [(64, 256), (64, 512), (16, 768), (64, 1024), (256, 256), (1, 512), (64, 1152)]  # N, H


def plans(run: session.Session) -> None:
    for cell in layers.BOTH:
        for dtype in ("bf16", "fp32"):
            for N, H in SHAPES:
                work = layers.Work(cell, dtype, 1, N, H, H)
                for tier in run.device.tiers:
                    plan = run.plan(tier, work)
                    if plan is not None:
                        run.records.write("plan", tier=tier, work=work.record, plan=plan)
                        run.say(f"plan {tier} {cell} {dtype} N {N} H {H}:", *(short(p) for p in plan.values()))


def short(plan) -> str:
    if not isinstance(plan, dict):
        return "none;" if plan is None else f"{plan};"
    return " ".join(f"{name} {plan[name]}" for name in SHOWN if name in plan) + ";"


def main(arguments: list[str] | None = None) -> None:
    run = session.Session("facts", session.arguments(__doc__).parse_args(arguments))
    for name, value in run.device.facts().items():
        run.say(f"{name}: {value}")
    peaks = run.case("peaks", run.device.peaks)
    if peaks:
        run.records.write("peaks", **peaks)
        rates = ", ".join(f"{name} {peaks[name] / 1e12:.0f} TFLOP/s" for name in layers.DTYPES)
        run.say(f"copy {peaks['bandwidth'] / 1e12:.2f} TB/s, {rates}")
    run.case("plans", lambda: plans(run))
    for name, ask in tools.FACTS.items():
        said = run.case(name, ask)
        run.records.write("program", name=name, said=said)
        run.say(f"{name}: {said}")
    run.finish()


if __name__ == "__main__":
    main()
