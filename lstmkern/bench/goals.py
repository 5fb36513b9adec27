"""The table of goals: for each shape the speed relative to torch.nn, the goal and the share of the roofline.

Run by ``python -m lstmkern bench`` and ``make bench-quick``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import report
from .cases import SHAPES, Case, Contest, goal
from .measure import Pairs, now, quiet
from .roofline import Roofline, survey

if TYPE_CHECKING:
    from rich.console import Console

QUICK_SECONDS, FULL_SECONDS = 165, 600
# A rough ratio of torch.nn's time to ours, used only to divide the available time.
_PEER_COST = {"LSTM": 1.4, "GRU": 3.0}


def parse_shape(text: str) -> tuple[int, int, int, int, int]:
    """The numbers in "T,N,I,H" or "T,N,I,H,layers"; ValueError for anything else."""
    sizes = [int(part) for part in text.split(",")]
    if len(sizes) not in (4, 5) or min(sizes) < 1:
        raise ValueError(text)
    T, N, features, H, layers = sizes if len(sizes) == 5 else (*sizes, 1)
    return T, N, features, H, layers


def cases_for(shapes: Sequence[tuple[int, ...]], cells: Sequence[str], dtypes: Sequence[str]) -> list[Case]:
    """A case for each combination of shape, kind of layer and dtype, to infer and to train."""
    return [
        Case(cell, T, N, features, H, layers, dtype, train)
        for T, N, features, H, layers in shapes
        for cell in cells
        for dtype in dtypes
        for train in (False, True)
    ]


def measure_case(case: Case, roofline: Roofline, seconds: float) -> dict[str, Any]:
    """Measure one case and torch.nn with the threads of ``roofline``: Pairs.result, gflops, share and goal."""
    contest = Contest(case)
    pairs = Pairs(
        contest.ours,
        contest.theirs,
        warm_up=contest.warm_up,
        probe=roofline.probe(case),
    )
    return summarize_case(case, roofline, pairs.run(seconds))


def summarize_case(case: Case, roofline: Roofline, pairs: Pairs) -> dict[str, Any]:
    """The result of ``pairs``, which measured ``case`` with the probe roofline.probe(case)."""
    result = pairs.result()
    return {
        "cell": case.cell,
        "shape": case.shape,
        "dtype": case.dtype,
        "train": case.train,
        "threads": roofline.threads,
        **result,
        "gflops": case.flops() / result["ours_ms"] / 1e6,
        "share": statistics.median(floor / ours for floor, ours in zip(pairs.probed, pairs.ours, strict=True)),
        "bound": roofline.floor(case).bound,
        "goal": goal(case),
    }


def run_goals(
    console: Console,
    cases: Sequence[Case],
    threads: Sequence[int],
    seconds: float,
    clock: Callable[[], float] = now,
) -> dict[str, Any]:
    """Measure ``cases`` with each number of ``threads`` in about ``seconds``.

    Cheap cases come first. Each gets a share of the remaining time in proportion to its work. A case is left out if
    not even one round fits into the remaining time.

    Returns:
        {"roofline": [...], "peaks": [...], "cases": [...], "left_out": [...]}.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    table = [(count, case) for count in threads for case in cases]

    def estimate(line: tuple[int, Case]) -> float:
        """Seconds for a round and its warm-up on cores of 100 GFLOP/s, plus a constant for each case."""
        count, case = line
        return 0.25 + 1.25 * (1 + _PEER_COST.get(case.cell, 3)) * case.flops() / 1e11 / count

    work = sorted(table, key=estimate)
    cost = [estimate(line) for line in work]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Redrawn from this thread: another thread would disturb the measurement.
    bar = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    deadline = clock() + seconds
    found, left_out, rooflines, pace = {}, [], {}, 0.0
    with bar:
        task = bar.add_task("", total=len(work))
        peaks = survey(sorted(set(threads)))
        for k, (count, case) in enumerate(work):
            bar.update(task, description=f"{count} thread{'s' if count > 1 else ''}: {case}", refresh=True)
            remaining = deadline - clock()
            # A case that does not fit into the remaining time is not started. pace: least seconds per unit of cost.
            if remaining <= 0 or pace * cost[k] > remaining:
                left_out.append({"threads": count, "case": str(case)})
            else:
                with quiet(count):
                    if count not in rooflines:
                        rooflines[count] = Roofline.measure(count)
                    begun = clock()
                    share = remaining * cost[k] / sum(cost[k:])
                    # Building the modules and warming up take part of the share.
                    result = measure_case(case, rooflines[count], 0.7 * share)
                    took = clock() - begun
                    if result["rounds"] == 1 and cost[k] > 1:
                        pace = took / cost[k]
                found[count, case] = result
            bar.advance(task)
    return {
        "roofline": [r.as_json() for r in rooflines.values()],
        "peaks": peaks,
        "cases": [found[line] for line in table if line in found],
        "left_out": left_out,
    }


def goals_table(results: dict[str, Any]) -> str:
    """Markdown, one table for each dtype: ratio / goal (share of the roofline); "-" means not measured."""
    cases, text = results["cases"], []
    for dtype in dict.fromkeys(c["dtype"] for c in cases):
        mine = [c for c in cases if c["dtype"] == dtype]
        columns = list(dict.fromkeys((c["cell"], c["train"]) for c in mine))
        head = [f"{dtype}: T,N,I,H,layers", "threads"]
        head += [f"{cell} {'train' if train else 'infer'}" for cell, train in columns]
        rows = []
        shapes = list(dict.fromkeys(c["shape"] for c in mine))
        lines = {(c["shape"], c["threads"]) for c in mine}
        for shape, threads in sorted(lines, key=lambda line: (shapes.index(line[0]), line[1])):
            row = {(c["cell"], c["train"]): c for c in mine if (c["shape"], c["threads"]) == (shape, threads)}
            name = next((n for sizes, n in SHAPES.items() if ",".join(map(str, sizes)) == shape and n), "")
            rows.append([f"{shape} ({name})" if name else shape, str(threads), *(_entry(row.get(c)) for c in columns)])
        text.append(report.markdown(head, rows))
    return "\n".join(text)


def _entry(case: dict[str, Any] | None) -> str:
    if case is None:
        return "-"
    wanted = f" / {case['goal']:g}" if case["goal"] else ""
    return f"{case['ratio']:.2f}{wanted} ({case['share']:.0%})"


# The unit that multiplies, for a rate and the instruction set that its loop was compiled for (roofline.RATES).
_UNITS = {"baseline": "portable code", "avx2": "AVX2", "avx512": "AVX-512"}
_OWN_UNITS = {"bf16": "AVX-512 BF16", "amx": "AMX tiles"}


def _unit(rate: str, capability: str) -> str:
    """What a row of the table measures, such as "bf16 multiply-adds, AMX tiles"."""
    kind = "bf16" if rate in _OWN_UNITS else rate
    return f"{kind} multiply-adds, {_OWN_UNITS.get(rate, _UNITS[capability])}"


def _size(count: float) -> str:
    """A number of bytes, a power of two from 1 KiB on, such as "8 MiB"."""
    unit, name = next((u, n) for u, n in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")) if count >= u)
    return f"{count / unit:.4g} {name}"


def roofline_table(results: dict[str, Any]) -> str:
    """Markdown: the measured peak rates of the machine, with one column for each number of threads."""
    rates: dict[str, dict[int, str]] = {}
    for p in results["peaks"]:
        rates.setdefault(_unit(p["rate"], p["capability"]), {})[p["threads"]] = f"{p['gflops']:.0f} GFLOP/s"
    for found in results["roofline"]:
        for size, rate in found["read_gb_per_s"]:
            rates.setdefault(f"reading a buffer of {_size(size)}", {})[found["threads"]] = f"{rate:.0f} GB/s"
    counts = sorted({count for row in rates.values() for count in row})
    head = ["peak rates measured on this machine", *(f"{n} thread{'s' if n > 1 else ''}" for n in counts)]
    return report.markdown(head, [[name, *(row.get(n, "-") for n in counts)] for name, row in rates.items()])


def main(
    console: Console,
    shapes: Sequence[tuple[int, ...]] | None,
    cells: Sequence[str],
    dtypes: Sequence[str],
    threads: Sequence[int],
    seconds: float,
    out: Path | None,
) -> int:
    """Run the command: measure, print both tables, write goals.json and goals.md to ``out``. Returns exit code 0."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    about = report.context(list(threads))
    results = run_goals(console, cases_for(shapes or list(SHAPES), cells, dtypes), threads, seconds)
    wanted = " / goal" if any(case["goal"] for case in results["cases"]) else ""
    title = f"{report.machine_line(about)}\nratio to torch.nn{wanted} (share of the roofline); above 1 is faster\n"
    text = f"{title}\n{goals_table(results)}\n{roofline_table(results)}"
    console.print(text, soft_wrap=True)
    if results["left_out"]:
        missing, total = len(results["left_out"]), len(results["left_out"]) + len(results["cases"])
        console.print(f"{missing} of {total} not measured within {seconds:g} seconds: use --seconds for more time")
    if out is not None:
        report.write_json(out / "goals.json", about, **results)
        report.write_text(out / "goals.md", text)
        console.print(f"results are in {out}", soft_wrap=True)
    return 0
