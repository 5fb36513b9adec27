"""The estimated time of a step of the resident CUDA tiers: python -m benchmarks.floor [--write]

Prints the tables of docs/benchmarks/gpu.md; --write puts them into that file. The plan of a layer (blocks, units,
sequences, weights in registers and in shared memory) is the real one: csrc/cuda/resident.h computes it on the
simulator. The instructions of a step come from benchmarks/results/sass.json ("after" if present, else "before"). The
rates below are from data sheets and publications; we have not measured them.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

import torch

from .readme import replace_between
from .sass import RESULTS, readme_table

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks" / "gpu.md"
sys.path.insert(0, str(ROOT / "tests"))
from simt.simulator import simulator  # noqa: E402

CLOCK = 1.755e9  # Hz, of an H100 or H200 SXM under load
MULTIPROCESSORS = 132
SCHEDULERS = 4  # per multiprocessor; each issues one instruction per clock
SHARED = 128  # bytes per clock and multiprocessor
MMA = 1024  # 16-bit multiply-adds per clock and multiprocessor with mma.sync: half of wgmma's
FMA = 128  # fp32, per clock and multiprocessor
REMOTE = 32  # bytes per clock into a multiprocessor over the cluster's network (published: about half of shared memory)
L2 = 5.5e12  # bytes per second, all multiprocessors
L2_EACH = 64  # bytes per clock into one multiprocessor
HBM = {"H100": 3.0e12, "H200": 4.3e12}  # bytes per second: nine tenths of the data sheets' 3.35 and 4.8 TB/s

# Latencies in clocks, from published microbenchmarks of the H100 (Luo et al., arXiv:2402.13499).
L2_LATENCY, HBM_LATENCY, REMOTE_LATENCY, MMA_LATENCY = 263, 479, 180, 33
FMA_LATENCY = 4
CELL = 150  # partial sums, five exponentials in a row, packing: a chain of dependent instructions
# Estimates, in seconds.
CLUSTER_BARRIER, FLAG, BLOCK_BARRIER = 0.3e-6, 0.75e-6, 0.02e-6

SHAPES = [  # cell, dtype, N, H
    ("LSTM", torch.bfloat16, 64, 512),
    ("LSTM", torch.bfloat16, 16, 768),
    ("LSTM", torch.bfloat16, 64, 1024),
    ("LSTM", torch.bfloat16, 64, 1152),
    ("LSTM", torch.bfloat16, 256, 256),
    ("LSTM", torch.bfloat16, 1, 512),
    ("GRU", torch.bfloat16, 64, 512),
    ("LSTM", torch.float32, 64, 256),
    ("LSTM", torch.float32, 64, 448),
]


def loop_of(loops: dict, plan: dict, tier: str, cell: str, dtype: torch.dtype, backward: bool) -> tuple[dict, int]:
    """The measured loop that runs the plan, and its multiplications (per warp) in a step of depth.

    Of several variants, the one with the fewest steps in registers that has enough.
    """
    tiles = plan["sequences"] // 8
    # A step of depth is 32 columns, two HMMAs, in 16 bits and 4 columns, 32 FFMAs, in fp32.
    per_step = (1 if backward else {"LSTM": 4, "GRU": 3}[cell]) * tiles * (32 if dtype == torch.float32 else 2)
    kind = {"tier": tier, "pass": "backward" if backward else "forward", "cell": cell,
            "dtype": str(dtype).removeprefix("torch."), "tiles": tiles}  # fmt: skip
    found = [x for x in loops.values() if all(x[k] == v for k, v in kind.items())]
    found.sort(key=lambda x: x["kept"])
    enough = [x for x in found if x["kept"] / per_step >= plan["steps"] - plan["in_shared"]]
    return (enough or found[-1:])[0], per_step


def issued(loop: dict, plan: dict, per_step: int, state_bytes: int) -> tuple[float, float]:
    """Instructions of a warp in a step: in the k-loops, and elsewhere. per_step: multiplications per step of depth."""
    warps = plan["groups"] * plan["slices"]
    elements = math.ceil(plan["units"] * plan["sequences"] / (warps * 32))
    executed = loop["executed_one" if elements == 1 else "executed"]
    k_loop, kept = loop["instructions_k_loop"], loop["kept"] / per_step
    rest = executed - k_loop
    if loop["branches_k_loop"]:  # steps beyond the warp's own are skipped
        k_loop *= min(1, plan["steps"] / kept)
    inner = [x for x in loop["inner_loops"] if x["kind"] == "multiply"]
    rest -= sum(x["instructions"] for x in inner)
    if inner:
        main = max(inner, key=lambda x: x["multiplications"])
        k_loop += plan["in_shared"] * main["instructions"] * per_step / main["multiplications"]
    for x in loop["inner_loops"]:
        if x["copies"]:
            rounds = math.ceil(state_bytes / 16 / (warps * 32) / x["copies"])
            rest += (rounds - 1) * x["instructions"]
    return k_loop, rest


def step(loops, tier, cell, dtype, N, H, backward):
    """Seconds of one step on every chip and their components, or None if the tier cannot run the layer."""
    plan = simulator(tier).plan(cell, dtype, N, H, 1, backward)
    if plan is None:
        return None
    G, size, half = {"LSTM": 4, "GRU": 3}[cell], dtype.itemsize, dtype != torch.float32
    products, parts = (1, G) if backward else (G, 1)
    warps, n = plan["groups"] * plan["slices"], plan["sequences"]
    there = min(n, N)  # sequences whose state is exchanged
    depth = parts * -(-H // 16) * 16
    teams = -(-N // n)
    at_once = min(teams, MULTIPROCESSORS // plan["blocks"])
    rounds = -(-teams // at_once)
    loop, per_step = loop_of(loops, plan, tier, cell, dtype, backward)
    # Per multiprocessor: fragments that are not in registers, the state once per group of units, partial sums twice.
    fragments = plan["in_shared"] * (2 if half else 1) * products * warps
    shared = fragments * 512 + plan["groups"] * n * depth * size
    if not half:  # a warp's lanes all read the same 16 bytes: one clock of 128 bytes
        shared += plan["groups"] * n * depth * size * (128 // 16 - 1)
    shared += 2 * plan["slices"] * products * n * plan["groups"] * (16 if half else 32) * 4
    multiply_adds = products * plan["groups"] * (16 if half else 32) * depth * n
    arrives = there * depth * size  # of the state, at each multiprocessor
    # Memory traffic of all teams: forward reads x W_ih^T and writes h, c, gates; backward the reverse, and reads h.
    inputs = G * 4 if not backward else (2 + (4 + 2 if cell == "LSTM" else 4)) * size
    outputs = (1 + (5 if cell == "LSTM" else 4)) * size if not backward else (G + (cell == "GRU") + 1) * size
    memory = N * H * (inputs + outputs)
    k_loop, rest = issued(loop, plan, per_step, arrives)
    slots = CLOCK / math.ceil(
        warps / SCHEDULERS
    )  # instructions of a warp per second: the warps of a scheduler take turns
    chain = plan["steps"] * loop["chain"] / (loop["kept"] / per_step)
    fences = sum(count for opcode, count in loop["MEMBAR"].items() if "GPU" in opcode or "SYS" in opcode)
    barrier = FLAG + 3 * BLOCK_BARRIER
    if tier == "cluster":
        mbarrier = any(opcode.startswith("SYNCS") for opcode in loop["barriers"])
        barrier = REMOTE_LATENCY / CLOCK if mbarrier else CLUSTER_BARRIER
    seconds = {
        "shared": shared / SHARED / CLOCK,
        "multiply": multiply_adds / (MMA if half else FMA) / CLOCK,
        "issue": k_loop / slots,
        "chain": chain * (MMA_LATENCY if half else FMA_LATENCY) / CLOCK,
        "rest": max(rest / slots, CELL / CLOCK),
        "state": arrives / REMOTE / CLOCK
        if tier == "cluster"
        else max(arrives / L2_EACH / CLOCK, at_once * plan["blocks"] * arrives / L2),
        "fence": fences * L2_LATENCY / CLOCK,
        "barrier": BLOCK_BARRIER + barrier,
    }
    # The product is as slow as the slowest of what it takes; device memory overlaps with the barrier; the rest is one
    # after the other.
    product = max(seconds[x] for x in ("shared", "multiply", "issue", "chain"))
    # A few loads are only for sequences that begin or end.
    latency = HBM_LATENCY / CLOCK if 2 * loop["loads_waited_for"] > loop["loads_of_values"] else 0
    each = {}
    for chip, rate in HBM.items():
        seconds[chip] = latency + memory / rounds / rate
        waits = seconds["fence"] + max(seconds["barrier"], seconds[chip])
        each[chip] = rounds * (product + seconds["rest"] + seconds["state"] + waits)
    return {"plan": plan, "rounds": rounds, "seconds": seconds, "all": each}


def name_of(shape) -> str:
    cell, dtype, N, H = shape
    return f"{cell} {'fp32' if dtype == torch.float32 else 'bf16'}, N {N}, H {H}"


COLUMNS = ("shared", "multiply", "issue", "chain", "rest", "state", "fence", "barrier", *HBM)


def table(loops: dict) -> str:
    """Every shape, tier and pass."""
    titles = ["shared", "mma", "issue", "chain", "rest", "state", "fence", "barrier", *(f"memory {c}" for c in HBM)]
    head = ["layer", "tier, pass", "blocks x units, sequences", *titles, "rounds", *(f"**{c}**" for c in HBM)]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|" + "---:|" * (len(head) - 3)]
    unfit: dict[str, list[str]] = {}
    for shape in SHAPES:
        for tier in ("cluster", "grid"):
            for backward in (False, True):
                s, which = step(loops, tier, *shape, backward), "backward" if backward else "forward"
                if s is None:
                    unfit.setdefault(f"{tier}: {name_of(shape)}", []).append(which)
                    continue
                p = s["plan"]
                cells = [name_of(shape), f"{tier}, {which}", f"{p['blocks']} x {p['units']}, {p['sequences']}"]
                cells += [f"{1e6 * s['seconds'][x]:.2f}" for x in COLUMNS]
                cells += [str(s["rounds"]), *(f"**{1e6 * v:.1f}**" for v in s["all"].values())]
                lines.append(f"| {' | '.join(cells)} |")
    if unfit:
        layers = [f"{name}{'' if len(passes) == 2 else f' ({passes[0]})'}" for name, passes in unfit.items()]
        lines += ["", f"Does not fit: {'; '.join(layers)}."]
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """{marker in the page: its content}"""
    results = json.loads(RESULTS.read_text())
    label = "after" if "after" in results else "before"
    source = f'Instructions: "{label}" of results/sass.json (commit {results[label]["commit"]}).'
    return {
        "sass": readme_table(results),
        "floor": f"{source}\n\n{table(results[label]['loops'])}",
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floor", description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="write the tables to docs/benchmarks/gpu.md")
    args = parser.parse_args(argv)
    text = PAGE.read_text()
    for marker, content in tables().items():
        print(content, end="\n\n")
        text = replace_between(text, marker, content) if args.write else text
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
