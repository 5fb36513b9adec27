"""How cost grows with T, N, H and threads: time and memory of a call, ours beside torch.nn's.

    python -m benchmarks.growth [--seconds 75] [--out benchmarks/results]

Writes growth.json and the plots growth-time.png and growth-memory.png. Time: interleaved pairs. Memory: every point is
a process of its own (memory.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from benchmarks.memory import measure_memory
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
    """(size, value, case, threads) of every point of every curve; size "threads" varies the threads."""
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


# ---- time ----


def measure_time(work: Sequence[tuple[str, int, Case, int]], seconds: float) -> list[dict]:
    """goals.measure_case of every point, in about ``seconds``."""
    rooflines, found, start = {}, [], now()
    for k, (size, value, case, threads) in enumerate(track(work, "time", transient=True)):
        share = max(seconds - (now() - start), 0) / (len(work) - k)
        with quiet(threads):
            if threads not in rooflines:
                rooflines[threads] = roofline.Roofline.measure(threads)
            found.append({"size": size, "value": value, **goals.measure_case(case, rooflines[threads], 0.6 * share)})
    return found


# ---- plots ----

COLOURS = {"LSTM": "tab:blue", "GRU": "tab:orange"}
WHO = {"ours": ("lstmkern", "-"), "torch": ("torch.nn", ":")}


def _panel(axis, results: Sequence[dict], size: str, ylabel: str, lines: Sequence[tuple], log: bool) -> None:
    """One plot over ``size``: lines are (label, linestyle, train, value of a result or None) for each cell."""
    mine = [r for r in results if r["size"] == size]
    for label, style, train, value in lines:
        for cell in CELLS:
            found = [(r["value"], value(r)) for r in mine if (r["cell"], r["train"]) == (cell, train)]
            found = [(x, y) for x, y in found if y is not None]
            if found:
                axis.plot(*zip(*found, strict=True), style, marker=".", color=COLOURS[cell], label=f"{cell} {label}")
    axis.set_xscale("log", base=2)
    values = sorted({r["value"] for r in mine})
    axis.set_xticks(values, map(str, values))
    axis.minorticks_off()
    if log:
        axis.set_yscale("log")
    else:
        axis.set_ylim(0, None)
    axis.set(xlabel=size, ylabel=ylabel)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="x-small")


def plot(results: Sequence[dict], folder: Path) -> None:
    """growth-time.png: time per token, ratio and share of the roofline; growth-memory.png: peak and saved bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def tokens(r):
        T, N = map(int, r["shape"].split(",")[:2])
        return T * N

    def pages(what):
        return [
            (name, style, True, lambda r, who=who: (r.get("memory", {}).get(who, {}).get(what) or 0) / 2**20 or None)
            for who, (name, style) in WHO.items()
        ]

    modes = (("infer", ":", False), ("train", "-", True))
    both = (("ours_ms", *WHO["ours"]), ("peer_ms", *WHO["torch"]))
    figures = {
        "growth-time.png": [
            (
                "training, microseconds per token",
                [(name, style, True, lambda r, key=key: 1e3 * r[key] / tokens(r)) for key, name, style in both],
                True,
            ),
            ("ratio to torch.nn", [(*mode, lambda r: r["ratio"]) for mode in modes], False),
            ("share of the roofline", [(*mode, lambda r: r["share"]) for mode in modes], False),
        ],
        "growth-memory.png": [
            ("training, peak MiB", pages("peak"), True),
            ("training, saved MiB", pages("saved"), True),
        ],
    }
    for name, rows in figures.items():
        sizes = list(dict.fromkeys(r["size"] for r in results if "memory" in r or name == "growth-time.png"))
        if not sizes:
            continue
        figure, axes = pyplot.subplots(
            len(rows), len(sizes), figsize=(4.5 * len(sizes), 3.5 * len(rows)), squeeze=False
        )
        for line, (label, lines, log) in zip(axes, rows, strict=True):
            for axis, size in zip(line, sizes, strict=True):
                _panel(axis, results, size, label, lines, log)
        figure.tight_layout()
        figure.savefig(folder / name, dpi=90)
        pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=75, help="for the times; memory takes about 30 more")
    parser.add_argument("--threads", type=int, default=roofline.cores())
    parser.add_argument("--most", type=int, help="leave out larger sizes (a quick look)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    curves = {size: (base, [v for v in values if v <= (args.most or v)]) for size, (base, values) in CURVES.items()}
    about, work = report.context(args.threads), points(curves, args.threads)
    training = [k for k, (size, _, case, _) in enumerate(work) if case.train and size != "threads"]
    memory = measure_memory([work[k][2] for k in training])  # before this process has threads
    results = measure_time(work, args.seconds)
    for k, found in zip(training, memory, strict=False):
        results[k]["memory"] = found
    report.write_json(args.out / "growth.json", about, cases=results)
    plot(results, args.out)
    rows = []
    for r in results:
        mode, memory = "train" if r["train"] else "infer", r.get("memory")
        row = [r["size"], str(r["value"]), r["cell"], mode, f"{r['ratio']:.2f}", f"{r['share']:.0%}"]
        for kind in ("peak", "saved"):
            row += [f"{memory[who][kind] / 2**20:.1f}" if memory else "-" for who in ("ours", "torch")]
        rows.append(row)
    head = ["size", "value", "cell", "mode", "ratio", "share", "peak MiB", "torch", "saved MiB", "torch"]
    Console(highlight=False, markup=False).print(report.markdown(head, rows), soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
