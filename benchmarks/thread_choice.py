"""How good the number of threads is that a layer chooses: its time, compared with every fixed number of threads.

    python -m benchmarks.thread_choice [--part 1/20] [--seconds 50] [--out benchmarks/results]
    python -m benchmarks.thread_choice --dtype bf16       # another dtype; the results of the others are kept
    python -m benchmarks.thread_choice --again 1.15       # measure the cases above 1.15 a second time

The sweep has thousands of cases, so it is divided into parts that each hold a random sample of it. Every run adds its
cases to thread_choice.json. A part that was stopped goes on where it ended. A case that is measured again keeps the
result of each run. The summary has an entry for each dtype.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from lstmkern import _extension, modules
from lstmkern.bench import report, roofline
from lstmkern.bench.cases import DTYPES, GATES, Case, step_of
from lstmkern.bench.measure import now, quiet

STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
SEQUENCES = (1, 2, 5, 8, 16, 64)
UNITS = (8, 16, 32, 64, 128, 256)
INPUTS = (None, 510)  # None: as many as units
LARGEST = 5e8  # multiplications: larger layers use every thread in any case
BLOCK, ROUNDS = (
    6e-4,
    9,
)  # seconds of calls between two looks at the clock, and how often all numbers of threads take turns


def sweep(dtype: str) -> list[Case]:
    """Every case of the sweep, in an order that is random but always the same."""
    sizes = itertools.product(GATES, STEPS, SEQUENCES, UNITS, INPUTS, (False, True))
    cases = [Case(cell, T, N, inputs or H, H, dtype=dtype, train=train) for cell, T, N, H, inputs, train in sizes]
    cases = [case for case in cases if case.tokens * GATES[case.cell] * case.H * (case.I + case.H) <= LARGEST]
    random.Random(0).shuffle(cases)
    return cases


def measure(case: Case, counts: Sequence[int], division: str = "chosen") -> dict[str, float]:
    """Milliseconds of ``case`` with each number of threads, and "default": with the number that the layer chooses."""
    torch.manual_seed(0)
    module = getattr(modules, case.cell)(case.I, case.H, dtype=DTYPES[case.dtype])
    run = step_of(module, torch.randn(case.T, case.N, case.I).to(DTYPES[case.dtype]), case.train)

    def seconds(calls: int) -> float:
        start = now()
        for _ in range(calls):
            run()
        return (now() - start) / calls

    _extension.fix_threads(1)
    calls = max(1, int(BLOCK / min(seconds(1) for _ in range(4))))
    times: dict[int, list[float]] = {n: [] for n in (*counts, 0)}
    for _ in range(ROUNDS):
        for n, found in times.items():
            _extension.fix_threads(n, division)
            seconds(1)
            found.append(seconds(calls))
    _extension.fix_threads(0)
    return {str(n) if n else "default": statistics.median(found) * 1e3 for n, found in times.items()}


def team_costs(counts: Sequence[int]) -> dict[str, dict[str, float]]:
    """Microseconds for each number of threads: "waking" a team that is awake and waiting for it, and a "barrier".

    A layer of 8 units has one panel, so a team that divides units only waits for the thread that computes: what one
    step takes longer than with one thread is waking, and what a thousand steps take longer is that and their barriers.
    """
    step, steps = (Case("RNN", T, 1, 8, 8) for T in (1, 1001))
    one, thousand = (measure(case, counts, division="units") for case in (step, steps))
    return {
        str(n): {
            "waking": 1e3 * (one[str(n)] - one["1"]),
            "barrier": thousand[str(n)] - thousand["1"] - (one[str(n)] - one["1"]),
        }
        for n in counts
        if n > 1
    }


def chosen(case: Case, threads: int) -> list[int]:
    """The numbers of threads of the passes of ``case``: forward, and in training backward."""
    mode = "RNN_TANH" if case.cell == "RNN" else case.cell
    passes = ("forward", "backward") if case.train else ("infer",)
    sizes = (case.T, case.N, case.I, case.H, threads)
    return [_extension.choose_threads(mode, case.dtype, *sizes, pass_=which)[0] for which in passes]


def ratios(line: dict[str, Any], one: bool = False) -> list[float]:
    """Of each run of a case: the default's time divided by the best (or one thread's)."""
    return [
        run["default"] / (run["1"] if one else min(ms for n, ms in run.items() if n != "default")) for run in line["ms"]
    ]


def summarize(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The geometric mean of default / best in the first runs, and the cases above 1.15 in every one of several runs."""
    first = [ratios(line)[0] for line in lines]
    alone = [ratios(line, one=True)[0] for line in lines]

    def mean(values: Sequence[float]) -> float:
        return math.exp(statistics.fmean(map(math.log, values)))

    repeated = [line for line in lines if len(line["ms"]) > 1]
    return {
        "cases": len(lines),
        "default_over_best": mean(first),
        "worst_of_best_run": max(min(ratios(line)) for line in lines),
        "above_1.15_once": sum(r > 1.15 for r in first),
        "above_1.15_in_every_of_several_runs": [
            line["case"] for line in repeated if min(ratios(line)) > 1.15
        ],
        "speed_over_one_thread": 1 / mean(alone),
        "slower_than_one_thread_by_0.1": [line["case"] for line in lines if min(ratios(line, one=True)) > 1.1],
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="1/20", help="which part of the sweep, of how many (default: 1/20)")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--seconds", type=float, default=50, help="stop after this time (default: 50)")
    parser.add_argument("--threads", type=int, default=roofline.cores(), help="the most threads (default: every core)")
    parser.add_argument("--again", type=float, help="instead of a part: the recorded cases whose ratio is above this")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="directory of the results")
    args = parser.parse_args(argv)
    path, stop = args.out / "thread_choice.json", now() + args.seconds
    lines = {line["case"]: line for line in json.loads(path.read_text())["results"]} if path.exists() else {}
    cases = sweep(args.dtype)
    if args.again:
        cases = [case for case in cases if str(case) in lines and min(ratios(lines[str(case)])) > args.again]
    else:
        part, parts = map(int, args.part.split("/"))
        cases = cases[part - 1 :: parts]
    counts = sorted({1, 2, *(2**k for k in range(1, args.threads.bit_length())), args.threads})
    with quiet(args.threads):
        costs = team_costs(counts)
        for case in track(cases, "cases", transient=True):
            if now() > stop:
                break
            if str(case) in lines and not args.again:
                continue
            line = lines.setdefault(str(case), {"case": str(case), "chosen": chosen(case, args.threads), "ms": []})
            line["ms"].append(measure(case, counts))
    results = list(lines.values())
    summary = {}
    for dtype in DTYPES:
        if of_dtype := [line for line in results if dtype in line["case"].split()]:
            summary[dtype] = summarize(of_dtype)
    report.write_json(path, report.context(args.threads), costs_us=costs, summary=summary, results=results)
    print(json.dumps({"costs_us": costs, **summary}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
