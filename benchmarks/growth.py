"""How cost grows with T, N, H and threads: time and memory of a call, ours and torch.nn's.

    python -m benchmarks.growth [--seconds 75] [--out benchmarks/results]
    python -m benchmarks.growth --redraw [--out benchmarks/results]    # redraw the plots from growth.json

Writes growth.json and the plots growth-time.png and growth-memory.png. Time is measured in interleaved pairs, memory in
a separate process for each point (memory.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks import growth_plots, memory
from lstmkern.bench import goals, report, roofline
from lstmkern.bench.cases import Case
from lstmkern.bench.measure import now, quiet

CURVES = {  # name: (the case around which one size varies, the values of that size)
    "T": (Case("LSTM", 0, 16, 128, 128), (16, 64, 256, 1024, 4096)),
    "N": (Case("LSTM", 32, 0, 256, 256), (1, 4, 16, 64, 256, 512)),
    "H": (Case("LSTM", 16, 16, 0, 0), (32, 64, 128, 256, 512, 1024, 2048)),
}
CELLS = ("LSTM", "GRU")


def at(base: Case, size: str, value: int, **changes) -> Case:
    """``base`` with T, N or H (then I as well) set to ``value``."""
    return replace(base, **({"H": value, "I": value} if size == "H" else {size: value}), **changes)


def points(curves: dict, threads: int) -> list[tuple[str, int, Case, int]]:
    """(size, value, case, threads) of every point of every curve. The size "threads" varies the number of threads."""
    found = [
        (size, value, at(base, size, value, cell=cell, train=train), threads)
        for size, (base, values) in curves.items()
        for value in values
        for cell in CELLS
        for train in (False, True)
    ]
    counts = sorted({*(2**k for k in range(threads.bit_length()) if 2**k <= threads), threads})
    middle = Case("LSTM", 64, 32, 256, 256)
    return found + [
        ("threads", count, replace(middle, cell=cell, train=train), count)
        for count in counts
        for cell in CELLS
        for train in (False, True)
    ]


def measure_time(work: Sequence[tuple[str, int, Case, int]], seconds: float) -> list[dict]:
    """The result of goals.measure_case for every point, in about ``seconds``."""
    rooflines, found, start = {}, [], now()
    for k, (size, value, case, threads) in enumerate(track(work, "time", transient=True)):
        share = max(seconds - (now() - start), 0) / (len(work) - k)
        with quiet(threads):
            if threads not in rooflines:
                rooflines[threads] = roofline.Roofline.measure(threads)
            found.append({"size": size, "value": value, **goals.measure_case(case, rooflines[threads], 0.6 * share)})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=75, help="limit of the timings; memory takes about 30 more")
    parser.add_argument("--threads", type=int, default=roofline.cores(), help="CPU threads (default: every core)")
    parser.add_argument("--most", type=int, help="leave out sizes above this one, for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="directory of the results")
    parser.add_argument("--redraw", action="store_true", help="draw the plots from growth.json, without measuring")
    args = parser.parse_args(argv)
    if args.redraw:
        about = json.loads((args.out / "growth.json").read_text(encoding="utf-8"))
        growth_plots.plot(about["cases"], about, args.out)
        return 0
    curves = {size: (base, [v for v in values if v <= (args.most or v)]) for size, (base, values) in CURVES.items()}
    about, work = report.context(args.threads), points(curves, args.threads)
    training = [k for k, (size, _, case, _) in enumerate(work) if case.train and size != "threads"]
    kept = memory.measure_memory([work[k][2] for k in training])  # while this process has no threads yet
    results = measure_time(work, args.seconds)
    for k, found in zip(training, kept, strict=False):
        results[k]["memory"] = found
    report.write_json(args.out / "growth.json", about, cases=results)
    growth_plots.plot(results, about, args.out)
    rows = []
    for r in results:
        mode, kept = "train" if r["train"] else "infer", r.get("memory")
        row = [r["size"], str(r["value"]), r["cell"], mode, f"{r['ratio']:.2f}", f"{r['share']:.0%}"]
        for kind in ("peak", "saved"):
            row += [f"{kept[who][kind] / 2**20:.1f}" if kept else "-" for who in ("ours", "torch")]
        rows.append(row)
    head = ["size", "value", "cell", "mode", "ratio", "share", "peak MiB", "torch", "saved MiB", "torch"]
    Console(highlight=False, markup=False).print(report.markdown(head, rows), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
