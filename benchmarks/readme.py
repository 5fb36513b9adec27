"""Puts the results into README: python -m benchmarks.readme [--results benchmarks/results] [--readme README.md]

Between <!-- bench:begin --> and <!-- bench:end --> comes the table of goals, what bounds a layer in a sentence, and
what the other files say in a line each; between <!-- varlen:begin --> and <!-- varlen:end --> the table of ragged
batches. A missing result file leaves its part out, and says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from lstmkern.bench import goals, report

from . import bounds

ROOT = Path(__file__).resolve().parent.parent


def replace_between(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the markers ``name``; ValueError if they are not there once, in order."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"README must hold {begin} and {end} once, in this order")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{content.strip()}\n{end}{rest.split(end)[1]}"


def _ratios(cases: list[dict], **fields) -> str:
    """ "1.2 to 3.4, median 2.0" of the ratios of those with these fields; empty if there are none."""
    found = sorted(c["ratio"] for c in cases if all(c.get(k) == v for k, v in fields.items()))
    if not found:
        return ""
    return f"{found[0]:.2f} to {found[-1]:.2f}, median {statistics.median(found):.2f}"


def families(load) -> list[tuple[str, str, str]]:
    """(what, ratios, result file) of each kind of case; load(name) gives the cases of a result file."""
    rows = []

    def add(what, name, **fields):
        if text := _ratios(load(name), **fields):
            rows.append((what, text, f"[{name}.json](benchmarks/results/{name}.json)"))

    for train, mode in ((False, "inference"), (True, "training")):
        for cell in ("LSTM", "GRU", "RNN"):
            add(f"{cell} layers, {mode}", "bench_layers", cell=cell, train=train)
        add(f"cells, {mode}", "bench_cells", train=train)
        for dtype in ("fp64", "bf16", "fp16"):
            add(f"{dtype}, {mode}", "bench_dtypes", dtype=dtype, train=train)
        add(f"ragged batches, {mode}", "bench_varlen", train=train)
    for model in dict.fromkeys(c["model"] for c in load("bench_models")):
        add(f"{model} trained, an epoch each in turn", "bench_models", model=model, processes=1)
        add(f"{model} trained, each in its own process", "bench_models", model=model, processes=2)
    for peer in dict.fromkeys(c["peer"] for c in load("bench_peers")):
        for train, mode in ((False, "inference"), (True, "training")):
            add(f"beside {peer}, {mode}", "bench_peers", peer=peer, train=train)
    return rows


def oversubscribed(cases: list[dict]) -> str:
    """One sentence on what busy neighbours do to both."""
    loaded = [c for c in cases if "ours_slowdown" in c]
    if not loaded:
        return ""
    slow = [statistics.median(c[f"{who}_slowdown"] for c in loaded) for who in ("ours", "torch")]
    worst = [max(c[f"{who}_slowdown"] for c in loaded) for who in ("ours", "torch")]
    return (
        f"Beside one busy process per core a call takes {slow[0]:.1f} times as long as on the quiet machine (worst "
        f"{worst[0]:.1f}), one of torch.nn {slow[1]:.1f} times (worst {worst[1]:.1f})."
    )


def ragged(cases: list[dict]) -> str:
    """The table of costs per real token."""
    rows = []
    for cell, shape, train in dict.fromkeys((c["cell"], c["shape"], c["train"]) for c in cases):
        mine = {c["layout"]: c for c in cases if (c["cell"], c["shape"], c["train"]) == (cell, shape, train)}
        T, N, _, H, _ = shape.split(",")
        costs = [f"{mine[k]['token_cost']:.2f}" if k in mine else "-" for k in ("packed", "lengths=")]
        theirs = f"{mine['packed']['torch_token_cost']:.2f}" if "packed" in mine else "-"
        name = f"{cell} T {T}, N {N}, H {H}, {'training' if train else 'inference'}"
        rows.append([name, *costs, theirs])
    return report.markdown(["", "lstmkern, packed", "lstmkern, `lengths=`", "torch, packed"], rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args(argv)

    def read(name):
        path = args.results / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {"cases": []}

    parts = []
    if (table := read("goals"))["cases"]:
        parts += [report.machine_line(table) + ".", goals.goals_table(table), goals.roofline_table(table)]
    load = lambda name: read(name)["cases"]  # noqa: E731
    parts.append(bounds.digest(load("bounds")))
    if rows := families(load):
        parts.append(report.markdown(["", "ratio to torch.nn (or the peer)", "results"], rows))
    parts.append(oversubscribed(load("bench_threads")))
    for name, what in (("time", "Ratio and share of the roofline"), ("memory", "Memory")):
        if (args.results / f"growth-{name}.png").exists():
            parts.append(f"![{what} as the sizes grow](benchmarks/results/growth-{name}.png)")
    if not any(parts):
        print(f"no results in {args.results}: README stays as it is", file=sys.stderr)
        return 1
    text = args.readme.read_text(encoding="utf-8")
    try:
        text = replace_between(text, "bench", "\n\n".join(part.strip() for part in parts if part))
        if cases := load("bench_varlen"):
            about = read("bench_varlen")
            said = f"{report.machine_line(about)}, {about['threads']} threads.\n\n{ragged(cases)}"
            text = replace_between(text, "varlen", said)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    report.write_text(args.readme, text)
    names = ["goals", "bounds", *(p.stem for p in Path(__file__).parent.glob("bench_*.py"))]
    missing = [name for name in names if not load(name)]
    print("README has the results" + (f"; without {', '.join(sorted(missing))}" if missing else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
