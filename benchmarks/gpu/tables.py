"""The tables at the end of a command, from its records. Records of parts that were killed are included.

    python -m benchmarks.gpu.tables benchmarks/results/gpu-bench.jsonl

This prints the tables of the file's last run. Does not need torch.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from pathlib import Path

from . import records

COUNTERS = ("Duration", "Compute (SM) Throughput", "DRAM Throughput")
COUNT = re.compile(r"\b(\d[\d,]*) (?:error|warning|hazard)s?\b")
WIDTH, LINES = 120, 15  # limits for printed errors; the file has all of them
SHORT = {"ours in a graph": "graph"}


def of_kind(found: list[dict], kind: str) -> list[dict]:
    return [record for record in found if record.get("kind") == kind]


def few(lines: list[str]) -> list[str]:
    shown = [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in lines[:LINES]]
    return shown + [f"  ... and {len(lines) - LINES} more in the file"] * (len(lines) > LINES)


def name_of(work: dict) -> str:
    special = ["packed"] * work["packed"] + [f"{work['layers']} layers"] * (work["layers"] > 1)
    special += ["both ways"] * (work["directions"] > 1)
    return " ".join([f"{work['cell']:4} {work['dtype']} {work['T']},{work['N']},{work['I']},{work['H']}", *special])


def machine(found: list[dict]) -> list[str]:
    headers = of_kind(found, "header")
    if not headers:
        return ["no process wrote its header"]
    about = headers[0]
    facts, built = about["facts"], about["extension"]
    line = f"{facts.get('name')}; torch {about['torch']}, cuDNN {facts.get('cudnn')}, Python {about['python']}"
    line += f"; extension for CUDA {built['cuda']} {built['cuda_archs']}, commit {about['commit'] or 'unknown'}"
    line += f", sources {about['sources']['all']}"
    return [line, f"CPU rehearsal: {found[0]['rehearsal']}"] if "rehearsal" in found[0] else [line]


def smoke(found: list[dict]) -> list[str]:
    lines = []
    for tier in dict.fromkeys(r["tier"] for r in of_kind(found, "smoke")):
        mine = [r for r in of_kind(found, "smoke") if r["tier"] == tier]
        on_tier = sum(r["ran"] == [tier, tier] for r in mine)
        wrong = [r for r in mine if r["wrong"]]
        worst = {}
        for r in mine:
            dtype = r["work"]["dtype"]
            errors = [math.inf if math.isnan(error) else error for error in r["errors"].values()]
            worst[dtype] = max(worst.get(dtype, 0.0), *errors)
        errors = ", ".join(f"{dtype} {error:.1e}" for dtype, error in worst.items())
        counts = f"{len(mine)} layers, {on_tier} on the tier, {len(wrong)} wrong"
        lines.append(f"smoke {tier:8} {counts}; largest error {errors}")
        lines += few([f"  WRONG {name_of(r['work'])}: {', '.join(r['wrong'])}" for r in wrong])
    return lines


def bench(found: list[dict]) -> list[str]:
    """A line for each layer and pass: microseconds per step (time / the peer's time; share of the lower bound).

    Results that differ too much from the peer's have no times. A further line for each tier lists the layers that it
    did not run.
    """
    rows: dict[tuple, dict[str, str]] = {}
    left: dict[str, list[str]] = {}
    for r in of_kind(found, "bench"):
        if not r["taken"]:
            left.setdefault(r["tier"], []).append(f"{name_of(r['work'])} {r['why']}")
            continue
        backward = r["backward"]
        cells = rows.setdefault((name_of(r["work"]), backward), {"path": r["peer_path"]})
        for name, us in r["us_per_step"].items():
            label = SHORT.get(name, r["tier"] if name == "ours" else name)
            share = (r["share_of_floor"] or {}).get(name)
            ratio = r["time_over_peer"][name]
            shown = f"{label} {us:.2f} ({ratio:.2f}" + (f"; {100 * share:.0f}%)" if share else ")")
            if name in r["wrong"]:
                shown = f"{label} WRONG d={r['wrong'][name]:.1e}"
            cells.setdefault(label, shown)
    lines = ["", "microseconds per step (time / cuDNN's time; share of the floor), [cuDNN's path]"] if rows else []
    for (work, backward), cells in rows.items():
        path = cells.pop("path")
        lines.append(f"{work:38} {'f+b' if backward else 'f  '} {'  '.join(cells.values())} [{path}]")
    for tier, layers in left.items():
        more = ", ..." if len(layers) > 3 else ""
        lines.append(f"{tier}: not taken: {len(layers)} ({', '.join(layers[:3])}{more})")
    return lines


def compare(found: list[dict]) -> list[str]:
    lines = []
    for r in of_kind(found, "compare"):
        good = {n: f"{n} {us:.2f} ({r['ratio'][n]:.2f})" for n, us in r["us_per_step"].items()}
        cells = [f"{n} WRONG d={r['wrong'][n]:.1e}" if n in r["wrong"] else cell for n, cell in good.items()]
        lines.append(f"A/B {name_of(r['work']):34} {'f+b' if r['backward'] else 'f  '} {'  '.join(cells)}")
    return lines


def tests(found: list[dict]) -> list[str]:
    mine = of_kind(found, "test")
    counts = Counter(r["outcome"] for r in mine)
    lines = [f"tests: {', '.join(f'{n} {outcome}' for outcome, n in counts.most_common())}"] if mine else []
    slowest = sorted(mine, key=lambda r: -r["seconds"])[:3]
    if slowest:
        lines.append("  slowest: " + ", ".join(f"{r['test']} {r['seconds']:.1f} s" for r in slowest))
    failures = [r for r in mine if r["outcome"].startswith("failed")]
    return lines + few([f"  FAILED {r['test']}: {r.get('error', '')}" for r in failures])


def says_something(line: str) -> bool:
    """Whether a line of compute-sanitizer reports anything. A summary that counts zero errors, warnings and hazards
    does not."""
    counts = COUNT.findall(line)
    return not counts or any(count.strip("0,") for count in counts)


def tools(found: list[dict]) -> list[str]:
    lines = []
    for r in of_kind(found, "sanitizer"):
        lines.append(f"{r['tool']} ({r['tiers']}): {r['status']}")
        lines += few([f"  {line}" for line in r["found"] if says_something(line)])
    lines += [f"ncu {r['tier']}: {r['status']}" for r in of_kind(found, "profile")]
    for r in of_kind(found, "counters"):
        shown = [f"{n} {' '.join(r['metrics'][n])}" for n in COUNTERS if n in r["metrics"]]
        lines.append(f"  {r['kernel'][:60]}: {', '.join(shown)}")
    return lines


def parts(found: list[dict]) -> list[str]:
    return [f"{r['name']:16} {r['status']:34} {r['seconds']:6.1f} s of {r['limit']}" for r in of_kind(found, "part")]


def failures(found: list[dict]) -> list[str]:
    mine = of_kind(found, "failure")
    return few([f"FAILED {r['part']}: {r['what']}: {' '.join(r['error'].splitlines()[:1])}" for r in mine])


def out_of_time(found: list[dict]) -> list[str]:
    return [f"{r['part']}: time was up, {r.get('left_out', 'some')} left out" for r in of_kind(found, "time is up")]


NO_TABLE = "no table of"


def everything(found: list[dict]) -> list[str]:
    """All tables. If a table cannot read a record, a line says so (NO_TABLE) and the other tables are still printed."""
    lines = []
    for table in (bench, compare, tools, tests, smoke, failures, out_of_time, machine, parts):
        if table is machine:
            lines.append("")
        try:
            lines += table(found)
        except Exception as error:
            lines.append(f"{NO_TABLE} {table.__name__}: {type(error).__name__}: {error} (the file has the records)")
    return lines


def main() -> None:
    found = records.read(Path(sys.argv[1]))
    last = found[-1]["run"] if found else ""
    print("\n".join(everything([record for record in found if record["run"] == last])))


if __name__ == "__main__":
    main()
