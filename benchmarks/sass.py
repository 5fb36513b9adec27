"""Counts the instructions of the resident tiers' loops: python -m benchmarks.sass [--label before|after] [--commit
COMMIT]

Compiles cluster.cu and grid.cu for sm_90a and disassembles them. For every instantiation of the loops it prints the
counts of the kernel and of its step loop (see step_loop.py). --label writes the numbers to benchmarks/results/sass.json
and keeps those of the other label. --commit measures the csrc of that commit. Needs nvcc and nvdisasm, but no GPU.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import nvcc
from .common_path import CommonPath
from .disassembly import parse
from .step_loop import StepLoop, identity, key

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "sass.json"
TIERS = ("cluster", "grid")
BETWEEN_GOAL, INSTRUCTIONS_GOAL = 12, 0.5  # instructions between groups; instructions of a step, relative to before

PTXAS = re.compile(
    r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\s+"
    r"ptxas info\s*: Used (\d+) registers([^\n]*)"
)


def resources(log: str) -> dict[str, dict]:
    """{mangled name: registers, stack, spilled and static shared bytes} from the output of ptxas -v."""
    found = {}
    for name, stack, stores, loads, registers, rest in PTXAS.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        found[name] = {
            "registers": int(registers),
            "stack": int(stack),
            "spilled": int(stores) + int(loads),
            "static_shared": int(shared[1]) if shared else 0,
        }
    return found


def measure_file(source: Path) -> dict[str, dict]:
    """{key: measurements} of the loops in a .cu file."""
    cubin, log = nvcc.compiled(source)
    used, loops = resources(log), {}
    for function in parse(nvcc.disassembled(cubin)):
        kernel = identity(function.name)
        if kernel is None:
            continue
        opcodes = [x.name for x in function.instructions]
        whole = {"instructions_kernel": len(opcodes), "LDL_kernel": opcodes.count("LDL"),
                 "STL_kernel": opcodes.count("STL")}  # fmt: skip
        step = StepLoop(function, kernel["dtype"] == "float32")
        loops[key(kernel)] = kernel | used[function.name] | whole | step.measure() | CommonPath(step).count()
    return loops


def measure(csrc: Path) -> dict[str, dict]:
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(measure_file, [csrc / "cuda" / f"{tier}.cu" for tier in TIERS]))
    return {name: loop for part in parts for name, loop in sorted(part.items())}


COLUMNS = {
    "regs": "registers",
    "spill": "spilled",
    "smem": "static_shared",
    "step": "instructions",
    "executed": "executed",
    "by one": "executed_one",
    "k loop": "instructions_k_loop",
    "smem loop": "instructions_shared_loop",
    "HMMA": "HMMA",
    "FFMA": "FFMA",
    **{f"LDS.{w}" if w[0] != "L" else w: ("LDS", w) for w in ("U8", "U16", "32", "64", "128", "LDSM")},
    "LDL": "LDL",
    "STL": "STL",
    "bra": "branches",
    "bra k": "branches_k_loop",
    "bra smem": "branches_shared_loop",
    "MEMBAR": "MEMBAR",
    "flush": "L1_flush",
    "LDG": "loads_of_values",
    "waited": "loads_waited_for",
    "group": "group_period",
    "between": "between_groups",
    "mean": "per_group",
}


def cell(loop: dict, column) -> str:
    value = loop[column[0]].get(column[1], 0) if isinstance(column, tuple) else loop.get(column, "")
    if isinstance(value, dict):
        value = " ".join(f"{n} {o.removeprefix('MEMBAR.')}" for o, n in value.items()) or 0
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(loops: dict[str, dict]) -> str:
    rows = [["loop", *COLUMNS]] + [[name, *(cell(x, c) for c in COLUMNS.values())] for name, x in loops.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        " | ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )


README_COLUMNS = {
    "registers": "registers",
    "instructions of a step": "instructions",
    "executed": "executed_one",
    "per HMMA group": "per_group",
    "LDS.U8": ("LDS", "U8"),
    "branches in the k-loop": "branches_k_loop",
    "MEMBAR": "MEMBAR",
}


def readme_table(results: dict[str, dict]) -> str:
    """The committed numbers in short, before and after if both exist. Of each loop the variant with the most weights in
    registers; without fp16, which equals bf16."""
    before = results["before"]["loops"] if len(results) > 1 else {}
    lines = [f"| loop | {' | '.join(README_COLUMNS)} |", "|---|" + "---:|" * len(README_COLUMNS)]
    largest: dict[str, dict] = {}
    for x in list(results.values())[-1]["loops"].values():
        name = key({k: v for k, v in x.items() if k != "variant"})
        if x["dtype"] != "float16" and (name not in largest or x["kept"] > largest[name]["kept"]):
            largest[name] = x
    for name, x in largest.items():
        versions = [v for v in (earlier(x, before), x) if v]
        values = [" → ".join(cell(v, c).partition(" ")[0] or "-" for v in versions) for c in README_COLUMNS.values()]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


LEGEND = """\
regs, spill, smem: of the kernel (smem: static only; the plan sets the dynamic part). All others are of the step loop.
step: instructions, each counted once. executed, by one: an estimate of the instructions that a warp issues in a step of
a dense batch, with all elements that a thread may have and with one, each inner loop counted once (common_path.py).
k loop, smem loop: instructions of the unrolled k-loop over weights in registers, and of the k-loop over weights in
shared memory. bra: branches; bra k: in the unrolled k-loop; bra smem: in the k-loop over shared memory, except the one
back to its start. flush: CCTL.IVALL. LDG, waited: loads of values from global memory, and how many of them are used
within the next 64 instructions. A group is the HMMAs with one B fragment. group: instructions from the first HMMA of a
group to the first of the next, median; between: the same without the HMMAs; mean: all instructions of the unrolled
k-loop except HMMAs, per group. A number after the tiles is a further argument of the kernel's template."""


def violations(loop: dict) -> list[str]:
    """What a loop has that no loop may have."""
    k = {"the k-loop": loop["branches_k_loop"], "the k-loop over shared memory": loop["branches_shared_loop"]}
    limits = {
        "bytes spilled": loop["spilled"],
        "bytes of stack": loop["stack"],
        "LDL": loop["LDL_kernel"],
        "STL": loop["STL_kernel"],
        "LDS.U8": loop["LDS"].get("U8", 0),
        **{f"branches in {where}": count for where, count in k.items()},
    }
    if loop["tier"] == "cluster":
        limits |= {o: count for o, count in loop["MEMBAR"].items() if re.search(r"GPU|SYS", o)}
        limits["L1 flushes"] = loop["L1_flush"]
    return [f"{count} {what}" for what, count in limits.items() if count]


def summary(loops: dict[str, dict], before: dict[str, dict] | None) -> str:
    """Every loop compared with the goals, and with its instructions in ``before`` if that is given."""
    lines = [
        f"Goals: at most {BETWEEN_GOAL} instructions between HMMA groups (mean), and a step of at most"
        f" {INSTRUCTIONS_GOAL:g} times the instructions before."
    ]
    for name, x in loops.items():
        parts = []
        if "per_group" in x:
            parts.append(
                f"{x['per_group']:4.1f} between groups{' (reached)' if x['per_group'] <= BETWEEN_GOAL else ''}"
            )
        old = earlier(x, before or {})
        for what, title in (("instructions", "step"), ("executed_one", "executed")) if old else ():
            ratio = x[what] / old[what]
            parts.append(
                f"{title} {x[what]} of {old[what]}: {ratio:.2f}{' (reached)' if ratio <= INSTRUCTIONS_GOAL else ''}"
            )
        if parts:
            lines.append(f"{name:38s} {'; '.join(parts)}")
    for name, x in loops.items():
        if found := violations(x):
            lines.append(f"not allowed: {name}: {', '.join(found)}")
    return "\n".join(lines)


def earlier(loop: dict, before: dict[str, dict]) -> dict | None:
    """The loop's measurements before. If that variant did not exist, those of the loop that did its work."""
    return before.get(key(loop)) or before.get(key(loop, variant=False))


def git(*arguments: str) -> str:
    return subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True).stdout.strip()


def checkout(commit: str, to: Path) -> Path:
    """The csrc of a commit, under ``to``."""
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit, "csrc"], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(to, filter="data")
    return to / "csrc"


def to_json(results: dict) -> str:
    """JSON with one line per loop."""
    parts = []
    for label, result in results.items():
        head = json.dumps({k: v for k, v in result.items() if k != "loops"}, indent=1)[:-2]
        loops = ",\n".join(f"  {json.dumps(name)}: {json.dumps(x)}" for name, x in result["loops"].items())
        parts.append(f'{json.dumps(label)}: {head},\n "loops": {{\n{loops}\n }}\n}}')
    return "{" + ",\n".join(parts) + "}\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sass", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--label", choices=("before", "after"), help="write the numbers to the result file under this label"
    )
    parser.add_argument("--commit", help="measure this commit's csrc instead of the working tree's")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if sentence := nvcc.missing():
        print(sentence, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        csrc = checkout(args.commit, Path(temporary)) if args.commit else ROOT / "csrc"
        loops = measure(csrc)
    print(table(loops))
    print(LEGEND)
    results = json.loads(args.results.read_text()) if args.results.exists() else {}
    before = results.get("before", {}).get("loops")
    print()
    print(summary(loops, None if args.label == "before" else before))
    if args.label:
        changed = not args.commit and bool(git("status", "--porcelain", "csrc"))
        results[args.label] = {
            "command": " ".join(["python -m benchmarks.sass", *(argv if argv is not None else sys.argv[1:])]),
            "nvcc": nvcc.version(),
            "flags": " ".join(f for f in nvcc.FLAGS if f != "--keep"),
            "arch": nvcc.ARCH,
            "commit": git("rev-parse", "--short", args.commit or "HEAD") + ("+" if changed else ""),
            "loops": loops,
        }
        ordered = {k: results[k] for k in ("before", "after") if k in results}
        args.results.write_text(to_json(ordered))
    return 0


if __name__ == "__main__":
    sys.exit(main())
