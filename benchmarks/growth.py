"""How cost grows with T, N, H and threads: time and memory of a call, ours beside torch.nn's.

    python -m benchmarks.growth [--seconds 90] [--out benchmarks/results]

Writes growth.json and the plots growth-time.png and growth-memory.png. Time: interleaved pairs. Memory: every point is
a process of its own that does one call; peak is how far its resident memory rises above what modules and input take,
saved what autograd keeps between forward and backward.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from lstmkern.bench import goals, report, roofline
from lstmkern.bench.cases import Case, Contest
from lstmkern.bench.measure import quiet

CURVES = {  # name: (the case around which one size varies, the values of that size)
    "T": (Case("LSTM", 0, 16, 128, 128), (16, 64, 256, 1024, 4096)),
    "N": (Case("LSTM", 32, 0, 256, 256), (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)),
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


# ---- memory ----


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def memory_of(case: Case, ours: bool) -> dict[str, int]:
    """{"peak", "saved"} bytes of one call in this process, which must not have run any kernel before."""
    with quiet(1):
        contest = Contest(case)
        run = contest.ours if ours else contest.theirs
        own = {p.untyped_storage().data_ptr() for module in contest.modules for p in module.parameters()}
        saved = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
        run()
        peak = _resident("VmHWM") - before
        if case.train:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                run()
    return {"peak": peak, "saved": sum(saved.values())}


def _memory_job(job: tuple[Case, bool]) -> dict[str, int]:
    return memory_of(*job)


def measure_memory(cases: Sequence[Case]) -> list[dict]:
    """[{"ours": memory_of, "torch": memory_of}] for ``cases``, each call in a fresh process; [] but on Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return []
    server = multiprocessing.get_context("forkserver")  # forked from a process that has torch and has run nothing
    server.set_forkserver_preload(["benchmarks.growth"])
    jobs = [(case, ours) for case in cases for ours in (True, False)]
    with server.Pool(1, maxtasksperchild=1) as pool:
        found = list(track(pool.imap(_memory_job, jobs, chunksize=1), "memory", len(jobs), transient=True))
    return [{"ours": ours, "torch": theirs} for ours, theirs in zip(found[::2], found[1::2], strict=True)]


# ---- time ----


def measure_time(work: Sequence[tuple[str, int, Case, int]], seconds: float) -> list[dict]:
    """goals.measure_case of every point, in about ``seconds``."""
    rooflines, found, start = {}, [], time.monotonic()
    for k, (size, value, case, threads) in enumerate(track(work, "time", transient=True)):
        share = max(seconds - (time.monotonic() - start), 0) / (len(work) - k)
        with quiet(threads):
            if threads not in rooflines:
                rooflines[threads] = roofline.Roofline.measure(threads)
            found.append({"size": size, "value": value, **goals.measure_case(case, rooflines[threads], 0.6 * share)})
    return found


# ---- plots ----


def plot(results: Sequence[dict], folder: Path) -> None:
    """growth-time.png: microseconds per token and ratio; growth-memory.png: peak and saved bytes in training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = list(dict.fromkeys(r["size"] for r in results))
    colours = dict(zip(CELLS, ("tab:blue", "tab:orange"), strict=True))

    def lines(axis, size, train, value, **style):
        for cell in CELLS:
            mine = [r for r in results if (r["size"], r["cell"], r["train"]) == (size, cell, train)]
            found = [(r["value"], v) for r in mine if (v := value(r)) is not None]
            if found:
                mode = "train" if train else "infer"
                label = f"{cell} {mode}{style.get('label', '')}"
                axis.plot(*zip(*found, strict=True), color=colours[cell], **{"marker": ".", **style, "label": label})

    def finish(figure, name):
        figure.tight_layout()
        figure.savefig(folder / name, dpi=110)
        pyplot.close(figure)

    figure, axes = pyplot.subplots(2, len(sizes), figsize=(4.5 * len(sizes), 7), squeeze=False)
    for column, size in zip(axes.T, sizes, strict=True):
        for train, dash in ((False, ":"), (True, "-")):
            lines(column[0], size, train, lambda r: r["ratio"], linestyle=dash)
            lines(column[1], size, train, lambda r: r["share"], linestyle=dash)
        for axis, name in zip(column, ("ratio to torch.nn", "share of the roofline"), strict=True):
            axis.set(xscale="log", xlabel=size, ylabel=name, ylim=(0, None))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.3)
        column[0].axhline(1, color="grey", linewidth=1)
    axes[0][0].legend(fontsize="small")
    finish(figure, "growth-time.png")

    sizes = [s for s in sizes if any(r["size"] == s and "memory" in r for r in results)]
    if not sizes:
        return
    figure, axes = pyplot.subplots(2, len(sizes), figsize=(4.5 * len(sizes), 7), squeeze=False)
    for column, size in zip(axes.T, sizes, strict=True):
        for axis, what in zip(column, ("peak", "saved"), strict=True):
            for who, dash in (("ours", "-"), ("torch", ":")):
                value = lambda r, who=who, what=what: r.get("memory", {}).get(who, {}).get(what, 0) / 2**20 or None  # noqa: E731
                lines(axis, size, True, value, linestyle=dash, label=f", {'lstmkern' if who == 'ours' else 'torch.nn'}")
            axis.set(xscale="log", yscale="log", xlabel=size, ylabel=f"{what} MiB, training")
            axis.xaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small")
    finish(figure, "growth-memory.png")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=90, help="for the times; memory takes about 30 more")
    parser.add_argument("--threads", type=int, default=roofline.cores())
    parser.add_argument("--most", type=int, help="leave out larger sizes (a quick look)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(argv)
    curves = {size: (base, [v for v in values if v <= (args.most or v)]) for size, (base, values) in CURVES.items()}
    about, work = report.context(args.threads), points(curves, args.threads)
    memory = measure_memory([case for size, _, case, _ in work if size != "threads"])  # before this process has threads
    results = measure_time(work, args.seconds)
    for result, found in zip(results, memory, strict=False):
        result["memory"] = found
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
