"""What a step of the resident CUDA tiers should cost, on paper: `python -m benchmarks.floor` prints README.md's table.

The plan of a layer (blocks, units, sequences, what lies in registers and in shared memory) is the real one, asked of
csrc/cuda/resident.h through the simulator; the rates below are data-sheet or published figures, not measurements.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from simt.simulator import simulator  # noqa: E402

CLOCK = 1.755e9  # of an H100 or H200 SXM under load, Hz
SHARED = 128  # bytes per clock and multiprocessor
MMA = 1024  # 16-bit multiply-adds per clock and multiprocessor through mma.sync: half of what wgmma reaches
FMA = 128  # fp32, per clock and multiprocessor
REMOTE = 32  # bytes per clock into a multiprocessor over the cluster's network (published: about half of shared memory)
L2 = 5.5e12  # bytes per second, all multiprocessors
L2_EACH = 64  # bytes per clock into one multiprocessor
HBM = 4.8e12  # bytes per second, H200
CLUSTER_BARRIER, FLAG, BLOCK_BARRIER = 0.3e-6, 0.75e-6, 0.02e-6  # seconds
CELL = 0.08e-6  # loads of the partial sums, five exponentials in a row, the packing: about 150 clocks

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


def step(tier, cell, dtype, N, H, backward):
    """Bytes and seconds of one step, or None where the tier does not take the layer."""
    plan = simulator(tier).plan(cell, dtype, N, H, 1, backward)
    if plan is None:
        return None
    G, size, half = {"LSTM": 4, "GRU": 3}[cell], dtype.itemsize, dtype != torch.float32
    products, parts = (1, G) if backward else (G, 1)
    warps, n = plan["groups"] * plan["slices"], plan["sequences"]
    depth = parts * -(-H // 16) * 16
    teams = -(-N // n)
    at_once = min(teams, 132 // plan["blocks"])
    rounds = -(-teams // at_once)
    # Per multiprocessor: fragments that are not in registers, the state once per group of units, partial sums twice.
    shared = plan["in_shared"] * products * warps * 512 + plan["groups"] * n * depth * size
    if not half:  # a warp's lanes all read the same 16 bytes: one clock of 128 bytes
        shared += plan["groups"] * n * depth * size * (128 // 16 - 1)
    shared += 2 * plan["slices"] * products * n * plan["groups"] * (16 if half else 32) * 4
    multiply_adds = products * plan["groups"] * (16 if half else 32) * depth * n
    arrives = n * depth * size  # of the state, at each multiprocessor
    # From and to memory, all teams: forward x W_ih^T in, h, c and gates out; backward the reverse, and h once more.
    inputs = G * 4 if not backward else (2 + (4 + 2 if cell == "LSTM" else 4)) * size
    outputs = (1 + (5 if cell == "LSTM" else 4)) * size if not backward else (G + (cell == "GRU") + 1) * size
    memory = N * H * (inputs + outputs)
    seconds = {
        "shared": shared / SHARED / CLOCK,
        "multiply": multiply_adds / (MMA if half else FMA) / CLOCK,
        "state": arrives / REMOTE / CLOCK
        if tier == "cluster"
        else max(arrives / L2_EACH / CLOCK, at_once * plan["blocks"] * arrives / L2),
        "memory": memory / rounds / HBM,
        "wait": BLOCK_BARRIER + CELL + (CLUSTER_BARRIER if tier == "cluster" else FLAG + 3 * BLOCK_BARRIER),
    }
    # Shared memory and arithmetic overlap, and so does device memory with the wait; the rest is one after the other.
    each = max(seconds["shared"], seconds["multiply"]) + seconds["state"] + max(seconds["wait"], seconds["memory"])
    return {"plan": plan, "rounds": rounds, "shared": shared, "state": arrives, "memory": memory, "seconds": seconds,
            "all": rounds * each}  # fmt: skip


def main():
    print(
        "| shape | tier | pass | blocks x units, sequences | shared memory, KB | state in, KB | device memory, KB |",
        end="",
    )
    print(" shared / multiply / state / memory / wait, us | launches or rounds | us per step |")
    print("|" + "---|" * 10)
    for cell, dtype, N, H in SHAPES:
        for tier in ("cluster", "grid"):
            for backward in (False, True):
                s = step(tier, cell, dtype, N, H, backward)
                name = f"{cell} {str(dtype).removeprefix('torch.')} N {N} H {H}"
                what = f"| {name} | {tier} | {'backward' if backward else 'forward'} |"
                if s is None:
                    print(what, "does not fit" + " |" * 7)
                    continue
                p, parts = s["plan"], " / ".join(f"{1e6 * v:.2f}" for v in s["seconds"].values())
                print(what, f"{p['blocks']} x {p['units']}, {p['sequences']} | {s['shared'] / 1e3:.0f} |", end=" ")
                print(f"{s['state'] / 1e3:.0f} | {s['memory'] / 1e3:.0f} | {parts} | {s['rounds']} |", end=" ")
                print(f"{1e6 * s['all']:.1f} |")


if __name__ == "__main__":
    main()
