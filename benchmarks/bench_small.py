"""Small layers compared with every peer: on one thread, every core, more threads than cores, and on a busy machine.

    python -m benchmarks.bench_small                              # all parts, about six minutes
    python -m benchmarks.bench_small --part sizes --part calls    # parts of it; the results of the others are kept
    python -m benchmarks.bench_small --part threads --only "GRU 200,2,64,64"    # a look: prints, and writes nothing
    python -m benchmarks.bench_small --redraw                     # the plots again, from bench_small.json

Parts: sizes (T, N and H on one thread), calls (one step of one sequence, layers and cells), threads (one thread, every
core, eight threads per core), busy (one other process per core that never sleeps). Every line compares our layer with
one peer, both run in turn in one process. The sizes also have the least time that the machine allows
(small_floor.py). Each part and number of threads has a process of its own, as JAX sets its
threads once per process. Writes bench_small.json and the plots small-sizes.png and small-threads.png.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track

from benchmarks import bench_cells, small_floor, small_plots
from benchmarks.busy import busy_cores
from benchmarks.peers import PEERS, Unavailable, run_jax_inline
from lstmkern import cells
from lstmkern.bench import report, roofline
from lstmkern.bench.cases import Case, modules_for, step_of
from lstmkern.bench.measure import Pairs, now, quiet

RIVALS = TORCH, ONNX, JAX, COMPILED = "torch.nn", "onnxruntime", "JAX", "compiled cell"
CELLS = ("LSTM", "GRU", "RNN")
CORES = roofline.cores()
HIDDEN = (8, 16, 32, 64, 128)  # I is the same
STEPS = ((1, 1), (1, 16), (10, 5), (100, 1), (100, 8), (1000, 2))  # T, N
CALLS = (64, 128, 256, 512)
NAMED = (
    Case("LSTM", 1000, 1, 16, 16),
    Case("LSTM", 100, 8, 32, 32),
    Case("GRU", 200, 2, 64, 64),
    Case("RNN", 100, 8, 32, 32),
    Case("LSTM", 500, 5, 510, 32),
    Case("GRU", 500, 5, 510, 32),
    Case("LSTM", 100, 64, 256, 256),
)
COMPILED_CASE = NAMED[1]
THREADS = {"sizes": (1,), "calls": (1,), "threads": (1, CORES, 8 * CORES), "busy": (CORES,)}  # part: threads

SECONDS = 0.06  # for the rounds of a pair; three times as long with several threads
BLOCKS = (2e-3, 10e-3)  # least seconds of a block of one thread, and of several, whose time varies more
PAUSE = 0.01  # seconds before our block: the peer's threads may spin for milliseconds after their last call
BUSY_BLOCK = 0.1  # seconds; the scheduler hands out cores in slices of milliseconds
BUSY_ROUNDS = 5


@dataclass(frozen=True)
class Work:
    """One case. cell: LSTMCell instead of LSTM, and so on. compiled: also compared with a compiled cell."""

    case: Case
    cell: bool = False
    compiled: bool = False

    @property
    def peers(self) -> list[str]:
        """Who can do this work, in the order of the tables."""
        return [TORCH, *([] if self.case.train else [ONNX]), JAX, *([COMPILED] if self.compiled else [])]

    def __str__(self) -> str:
        return f"{self.case.cell}{'Cell' if self.cell else ''} {str(self.case).split(' ', 1)[1]}"


def works(part: str) -> list[Work]:
    """The cases of a part. Few have a compiled cell, because compiling one takes seconds."""
    if part == "sizes":
        found = [
            Work(Case(name, T, N, H, H), compiled=(T, N) == (100, 8) and H in HIDDEN[::2])
            for T, N in STEPS
            for H in HIDDEN
            for name in CELLS
        ]
    elif part == "calls":
        found = [Work(Case(name, 1, 1, H, H), cell, H == 64) for cell in (False, True) for H in CALLS for name in CELLS]
    else:
        found = [Work(case, compiled=case == COMPILED_CASE) for case in NAMED]
    return [replace(work, case=replace(work.case, train=train)) for work in found for train in (False, True)]


Contestants = Iterator[tuple[str, Callable[[], object], Callable[[], object]]]


def contestants(work: Work, threads: int, peers: Sequence[str], skipped: list[dict]) -> Contestants:
    """(peer, ours, theirs) for every peer that can run ``work``; adds the others to ``skipped``, with the reason.

    Raises:
        AssertionError: a peer computes something else.
    """
    torch.manual_seed(0)
    case = work.case
    x, state = torch.randn(case.T, case.N, case.I), ()
    if work.cell:
        theirs, ours = (getattr(m, f"{case.cell}Cell")(case.I, case.H) for m in (torch.nn, cells))
        ours.load_state_dict(theirs.state_dict())
        state = tuple(torch.randn(2 if case.cell == "LSTM" else 1, 1, case.N, case.H))
        given = tuple(s[0] for s in state) if case.cell == "LSTM" else state[0][0]
        run, torch_nn = (bench_cells.step_of(module, x[0], given, case.train) for module in (ours, theirs))
    else:
        ours, theirs = modules_for(case)
        run, torch_nn = (step_of(module, x, case.train) for module in (ours, theirs))
    with torch.no_grad():
        wanted = ours(x[0], given) if work.cell else ours(x)[0]
    wanted = (wanted[0] if isinstance(wanted, tuple) else wanted).view(case.T, case.N, case.H)
    for peer in [p for p in work.peers if p in peers]:
        if peer == TORCH:
            yield peer, run, torch_nn
            continue
        try:
            theirs_run, values = PEERS[peer](case, theirs, x, threads, state)
        except Unavailable as reason:
            skipped.append({"case": str(work), "threads": threads, "peer": peer, "reason": str(reason)})
            continue
        with torch.no_grad():
            torch.testing.assert_close(values(), wanted, atol=1e-5, rtol=1e-4)
        yield peer, run, theirs_run


def pause() -> float:
    """Runs between a peer's block and ours."""
    time.sleep(PAUSE)
    return PAUSE


def pairs_of(ours: Callable[[], object], theirs: Callable[[], object], threads: int, seconds: float) -> Pairs:
    """The two in turn for about ``seconds``, on the quiet machine."""
    several = threads > 1
    pairs = Pairs(ours, theirs, block=min(BLOCKS[several], seconds), probe=pause if several else None)
    return pairs.run(3 * seconds if several else seconds)


def mean_seconds(run: Callable[[], object], within: float) -> float:
    """The mean time of a call, of as many as begin within that many seconds."""
    start, calls = now(), 0
    while calls == 0 or now() - start < within:
        run()
        calls += 1
    return (now() - start) / calls


def measure_busy(work: Work, threads: int, peers: Sequence[str], seconds: float, skipped: list[dict]) -> list[dict]:
    """The same with one busy process bound to each core; ``slowdown`` is the time then, divided by the quiet time."""
    rivals = list(contestants(work, threads, peers, skipped))
    idle = [pairs_of(ours, theirs, threads, seconds).result() for _, ours, theirs in rivals]

    def estimate(*both: Callable[[], object]) -> Callable[[], tuple[float, ...]]:
        return lambda: tuple(mean_seconds(run, seconds) for run in both)

    with busy_cores(pinned=True):
        loaded = [Pairs(a, b, warm_up=estimate(a, b), block=min(BUSY_BLOCK, 2 * seconds)) for _, a, b in rivals]
    for _ in range(BUSY_ROUNDS):
        with busy_cores(pinned=True):  # started again: a thread may stay on one core for a second
            for pairs in loaded:
                pairs.run(0, least=1)
    found = []
    for (peer, *_), before, pairs in zip(rivals, idle, loaded, strict=True):
        result = pairs.result()
        slow = {f"{who}_slowdown": result[f"{who}_ms"] / before[f"{who}_ms"] for who in ("ours", "peer")}
        found.append({"peer": peer, **result, **slow})
    return found


def measure(part: str, threads: int, only: str, peers: Sequence[str], seconds: float) -> tuple[list[dict], list[dict]]:
    """The lines of a part with one number of threads, and what was skipped."""
    found, skipped, limits = [], [], roofline.Roofline.measure(threads) if part == "sizes" else None
    if part == "calls":
        run_jax_inline()
    with quiet(threads):
        chosen = [work for work in works(part) if only in str(work)]
        for work in track(chosen, f"{part}, {threads} threads", console=Console(stderr=True), transient=True):
            if part == "busy":
                results = measure_busy(work, threads, peers, seconds, skipped)
            else:
                rivals = contestants(work, threads, peers, skipped)
                results = [{"peer": p, **pairs_of(a, b, threads, seconds).result()} for p, a, b in rivals]
            case = work.case
            about = {"part": part, "module": "cell" if work.cell else "layer", "cell": case.cell, "shape": case.shape}
            if limits:
                about["floor_ms"] = small_floor.floor_ms(case, limits, seconds)
            found += [{**about, "train": case.train, "threads": threads, **result} for result in results]
    return found, [{"part": part, **line} for line in skipped]


def measure_apart(*arguments) -> tuple[list[dict], list[dict]]:
    """``measure`` in a new process, as JAX's and OpenMP's threads outlive a part."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def context() -> dict:
    """What the result file says about this run: see report.context. "peers" has the versions of their packages."""
    found = {}
    for package in (ONNX, JAX.lower()):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return {**report.context(1), "peers": found}


def check_same(old: dict, about: dict) -> None:
    """Raise ValueError if the result file ``old`` is from another machine or other versions than ``about``."""
    for key in ("machine", "versions", "peers"):
        if old and old[key] != about[key]:
            raise ValueError(
                f"bench_small.json has another {key}, so that its other parts cannot be kept: remove it, measure all "
                "parts, or choose another directory with --out"
            )


def merged(old: dict, part: str, about: dict, cases: list[dict], skipped: list[dict]) -> dict:
    """The result file ``old`` with the lines of ``part`` replaced. about: the context of this run."""
    lines = {key: [x for x in old.get(key, []) if x["part"] != part] for key in ("skipped", "cases")}
    order = list(THREADS).index
    runs = {**old.get("parts", {}), part: {key: about[key] for key in ("command", "date", "commit")}}
    return {
        **about,
        "threads": sorted({count for p in runs for count in THREADS[p]}),
        "parts": {p: runs[p] for p in THREADS if p in runs},
        "skipped": sorted(lines["skipped"] + skipped, key=lambda x: order(x["part"])),
        "cases": sorted(lines["cases"] + cases, key=lambda x: order(x["part"])),
    }


def table(cases: Sequence[dict]) -> str:
    """The results as a Markdown table, one line per case and number of threads, one column per peer."""
    keys = ("part", "module", "cell", "shape", "train", "threads")
    peers = list(dict.fromkeys(c["peer"] for c in cases))
    rows = []
    for key in dict.fromkeys(tuple(c[k] for k in keys) for c in cases):
        mine = {c["peer"]: c for c in cases if tuple(c[k] for k in keys) == key}
        part, module, cell, shape, train, threads = key
        what = f"{cell}{'Cell' if module == 'cell' else ''} {shape} {'train' if train else 'infer'}"
        ours = statistics.median(c["ours_ms"] for c in mine.values())
        slow = [c["ours_slowdown"] for c in mine.values() if "ours_slowdown" in c]
        slowdown = f"{statistics.median(slow):.1f}" if slow else ""
        entries = [f"{mine[p]['ratio']:.2f}" if p in mine else "" for p in peers]
        rows.append([part, str(threads), what, report.number(ours), *entries, slowdown])
    return report.markdown(["part", "threads", "", "ours, ms", *peers, "slowdown"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=list(THREADS), help="only this part; may be repeated")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--peer", action="append", choices=RIVALS, help="only this peer; may be repeated")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for the rounds of a pair (default: {SECONDS})")
    parser.add_argument(
        "--out", type=Path, help="directory of results; default: benchmarks/results, if all is measured"
    )
    parser.add_argument("--redraw", action="store_true", help="draw the plots from bench_small.json, without measuring")
    args = parser.parse_args(argv)
    folder = args.out or Path(__file__).parent / "results"
    path = folder / "bench_small.json"
    if args.redraw:
        about = json.loads(path.read_text(encoding="utf-8"))
        small_plots.plot(about["cases"], about, folder)
        return 0
    results = json.loads(path.read_text(encoding="utf-8")) if args.part and path.exists() else {}
    writes = args.out or not (args.only or args.peer)
    try:
        check_same(results if writes else {}, context())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for part in args.part or THREADS:
        about, cases, skipped = context(), [], []
        for threads in dict.fromkeys(THREADS[part]):
            lines = measure_apart(part, threads, args.only, args.peer or RIVALS, args.seconds)
            cases, skipped = cases + lines[0], skipped + lines[1]
        if cases:
            Console(highlight=False, markup=False).print(table(cases), soft_wrap=True)
        for reason in dict.fromkeys(f"{line['peer']}: {line['reason']}" for line in skipped):
            print(f"skipped: {reason}", file=sys.stderr)
        if writes:
            results = merged(results, part, about, cases, skipped)
            report.write_json(path, results)
            small_plots.plot(results["cases"], results, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
