"""Write the tables of README.md and of docs/ from the result files.

    python -m benchmarks.readme [--results benchmarks/results] [--root .]

A table is written between two markers of its page, <!-- NAME:begin --> and <!-- NAME:end -->. TABLES lists the markers
of each page. Tables whose result file is missing stay as they are, and the file is named. Nothing is measured; a second
run changes nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lstmkern.bench import goals, report

from . import bounds, hotspots, models, small_tables

ROOT = Path(__file__).resolve().parent.parent
LINK = "../benchmarks/results"  # from docs/performance.md to the result files
COLUMNS = [(cell, train) for cell in ("LSTM", "GRU") for train in (False, True)]


class Results:
    """The result files of one directory: ``results[name]`` is the content of NAME.json."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.missing: set[str] = set()

    def __getitem__(self, name: str) -> dict:
        path = self.folder / f"{name}.json"
        if not path.exists():
            self.missing.add(name)
            return {}
        return json.loads(path.read_text(encoding="utf-8"))

    def cases(self, name: str) -> list[dict]:
        return self[name].get("cases", [])


def replace_between(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the markers ``name``; ValueError unless each marker is there once, in order."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"the page must hold {begin} and {end} once each, in this order")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def mode_of(train: bool) -> str:
    return "training" if train else "inference"


# ---- README: the claim and one table ----


def sizes_of(shape: str) -> str:
    """The sizes of "T,N,I,H,layers" in words; the input size only where it is not H."""
    T, N, I, H, layers = shape.split(",")  # noqa: E741
    text = f"{layers} layers, " if layers != "1" else ""
    return f"{text}T {T}, N {N}, " + (f"I = H = {H}" if I == H else f"I {I}, H {H}")


# The rows of the claim: (what, result file, the fields that choose the cases).
CLAIM = [
    ("small layer, 1 thread", "bench_small", {"part": "sizes", "shape": "100,8,32,32,1", "peer": "torch.nn"}),
    ("large layer", "goals", {"shape": "128,128,512,512,1", "dtype": "fp32"}),
    ("variable lengths, packed", "bench_varlen", {"shape": "100,64,128,128,1", "layout": "packed"}),
    ("bf16", "goals", {"shape": "35,20,650,650,2", "dtype": "bf16"}),
]


def machine(about: dict) -> str:
    """The machine and torch, in a few words."""
    units = {about["capability"], about.get("capability_bf16", about["capability"])}
    return (
        f"{about['machine']['cpu']}, {about['machine']['cores']} cores, {' and '.join(sorted(units, reverse=True))}; "
        f"torch {about['versions']['torch']}"
    )


def claim(results: Results) -> str:
    """Four kinds of layer as ratios to torch.nn, with every core of the machine unless the row says otherwise."""
    rows, machines = [], {}  # machine: the most threads that were used on it
    for what, name, fields in CLAIM:
        found = [c for c in results.cases(name) if all(c[key] == value for key, value in fields.items())]
        most = max((c["threads"] for c in found), default=0)
        ratio = {(c["cell"], c["train"]): f"{c['ratio']:.1f}" for c in found if c["threads"] == most}
        if not ratio:
            return ""
        rows.append([f"{what}: {sizes_of(fields['shape'])}", *(ratio.get(column, "-") for column in COLUMNS)])
        where = machine(results[name])
        machines[where] = max(most, machines.get(where, 0))
    head = ["speed relative to torch.nn", *(f"{cell} {mode_of(train)}" for cell, train in COLUMNS)]
    used = ";\n".join(f"{where}, {count} thread{'s' if count > 1 else ''}" for where, count in machines.items())
    return f"{report.markdown(head, rows)}\n{used}."


def short_goals(results: Results) -> str:
    """The fp32 shapes of the goals' table with every core: ratio to torch.nn (share of the roofline)."""
    cases = [c for c in results.cases("goals") if c["dtype"] == "fp32"]
    most = max((c["threads"] for c in cases), default=0)
    rows = []
    for shape in dict.fromkeys(c["shape"] for c in cases):
        row = {(c["cell"], c["train"]): c for c in cases if (c["shape"], c["threads"]) == (shape, most)}
        entries = [f"{row[k]['ratio']:.2f} ({row[k]['share']:.0%})" if k in row else "-" for k in COLUMNS]
        rows.append([sizes_of(shape), *entries])
    if not rows:
        return ""
    head = [f"fp32, {most} threads", *(f"{cell} {mode_of(train)}" for cell, train in COLUMNS)]
    return report.markdown(head, rows)


# ---- docs/performance.md: everything ----


def full_goals(results: Results) -> str:
    if not (table := results["goals"]):
        return ""
    return "\n\n".join([report.machine_line(table) + ".", goals.goals_table(table), goals.roofline_table(table)])


def summary(cases: list[dict], **fields) -> str:
    """ "1.2 to 3.4, median 2.0" of the ratios of the cases with these fields; empty if there are none."""
    found = sorted(c["ratio"] for c in cases if all(c.get(k) == v for k, v in fields.items()))
    if not found:
        return ""
    return f"{found[0]:.2f} to {found[-1]:.2f}, median {statistics.median(found):.2f}"


def families(results: Results) -> str:
    """One line for each kind of case: the range of its ratios, and its result file."""
    rows = []

    def add(what: str, name: str, **fields) -> None:
        if text := summary(results.cases(name), **fields):
            rows.append([what, text, f"[{name}.json]({LINK}/{name}.json)"])

    for train in (False, True):
        mode = mode_of(train)
        for cell in ("LSTM", "GRU", "RNN"):
            add(f"{cell} layers, {mode}", "bench_layers", cell=cell, train=train)
        add(f"cells, {mode}", "bench_cells", train=train)
        for dtype in ("fp64", "bf16", "fp16"):
            add(f"{dtype}, {mode}", "bench_dtypes", dtype=dtype, train=train)
        add(f"variable-length batches, {mode}", "bench_varlen", train=train)
    for model in dict.fromkeys(c["model"] for c in results.cases("bench_models")):
        add(f"{model} trained, both in one process", "bench_models", model=model, processes=1)
        add(f"{model} trained, a process each", "bench_models", model=model, processes=2)
    for peer in dict.fromkeys(c["peer"] for c in results.cases("bench_peers")):
        for train in (False, True):
            add(f"compared with {peer}, {mode_of(train)}", "bench_peers", peer=peer, train=train)
    return report.markdown(["", "speed relative to torch.nn (or the peer)", "results"], rows) if rows else ""


def variable_lengths(results: Results) -> str:
    """The cost of a non-padding token, as a table."""
    about, rows = results["bench_varlen"], []
    cases = about.get("cases", [])
    for cell, shape, train in dict.fromkeys((c["cell"], c["shape"], c["train"]) for c in cases):
        mine = {c["layout"]: c for c in cases if (c["cell"], c["shape"], c["train"]) == (cell, shape, train)}
        costs = [f"{mine[k]['token_cost']:.2f}" if k in mine else "-" for k in ("packed", "lengths=")]
        theirs = f"{mine['packed']['torch_token_cost']:.2f}" if "packed" in mine else "-"
        rows.append([f"{cell} {mode_of(train)}, {sizes_of(shape)}", *costs, theirs])
    if not rows:
        return ""
    table = report.markdown(["", "lstmkern, packed", "lstmkern, `lengths=`", "torch.nn, packed"], rows)
    return f"{report.machine_line(about)}, {about['threads']} threads.\n\n{table}"


def busy_machine(results: Results) -> str:
    """One sentence on how much a busy machine slows a call."""
    loaded = [c for c in results.cases("bench_threads") if "ours_slowdown" in c]
    if not loaded:
        return ""
    slow = [statistics.median(c[f"{who}_slowdown"] for c in loaded) for who in ("ours", "torch")]
    worst = [max(c[f"{who}_slowdown"] for c in loaded) for who in ("ours", "torch")]
    return (
        f"With one busy process per core, a call takes {slow[0]:.1f} times as long as on the idle machine (at most "
        f"{worst[0]:.1f} times). A call of torch.nn takes {slow[1]:.1f} times as long (at most {worst[1]:.1f} times)."
    )


def model_table(results: Results) -> str:
    if not (about := results["models"]):
        return ""
    return f"{report.machine_line(about)}, {about['threads']} threads.\n\n{models.markdown(about['rows'])}"


def plots(results: Results, folder: str, names: dict[str, str]) -> str:
    """The plots ``names`` {file: what it shows} that are there; ``folder`` leads to them from the page."""
    return "\n\n".join(f"![{what}]({folder}/{f})" for f, what in names.items() if (results.folder / f).exists())


def growth_plots(results: Results) -> str:
    names = {"time": "Speed and share of the roofline", "memory": "Memory of a training step"}
    return plots(results, LINK, {f"growth-{name}.png": f"{what} as one size grows" for name, what in names.items()})


def small(table: str) -> Callable[[Results], str]:
    """One table of small networks."""
    return lambda results: getattr(small_tables, table)(about) if (about := results["bench_small"]) else ""


def small_plots(results: Results) -> str:
    names = {"small-sizes.png": "Time of a call over H", "small-threads.png": "Time of a call over threads"}
    return plots(results, "../../benchmarks/results", names)


TABLES: dict[str, dict[str, Callable[[Results], str]]] = {  # page: {marker: content, "" where results are missing}
    "README.md": {"claim": claim, "small": small("summary"), "goals": short_goals},
    "docs/performance.md": {
        "goals": full_goals,
        "bounds": lambda results: bounds.digest(about) if (about := results["bounds"]) else "",
        "families": families,
        "small": small("summary"),
        "varlen": variable_lengths,
        "models": model_table,
        "threads": busy_machine,
        "growth": growth_plots,
        "limits": lambda results: bounds.document(about) if (about := results["bounds"]) else "",
        "hotspots": lambda results: hotspots.document(about) if (about := results["hotspots"]) else "",
    },
    "docs/benchmarks/small-networks.md": {
        "sizes": small("sizes"),
        "missed": small("missed"),
        "threads": small("threads"),
        "calls": small("calls"),
        "losses": small("losses"),
        "plots": small_plots,
    },
}


def pages(results: Results, root: Path) -> dict[Path, str]:
    """{page: its text with the tables of ``results``}; ValueError names a page that lacks a marker."""
    written = {}
    for name, tables in TABLES.items():
        text = (root / name).read_text(encoding="utf-8")
        for marker, content in tables.items():
            try:
                text = replace_between(text, marker, found) if (found := content(results)) else text
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        written[root / name] = text
    return written


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="directory of the result files"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="directory that holds README.md and docs/")
    args = parser.parse_args(argv)
    if not any(args.results.glob("*.json")):
        print(f"no results in {args.results}: the pages stay as they are", file=sys.stderr)
        return 1
    results = Results(args.results)
    try:
        written = pages(results, args.root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for page, text in written.items():
        report.write_text(page, text)
    missing = f"; no results for {', '.join(sorted(results.missing))}" if results.missing else ""
    print(f"written: {', '.join(TABLES)}{missing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
