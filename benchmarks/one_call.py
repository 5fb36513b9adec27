"""Where the time of one call goes: one step of one sequence, fp32, for layers and cells.

    python -m benchmarks.one_call [--before earlier.json] [--out benchmarks/results/one_call.json]

Each level of a call is timed by itself, from the module's ``__call__`` down to C++; the difference of two levels is
what the upper one adds. A layer of one unit shows what C++ takes besides the arithmetic. Then each layer and
onnxruntime take turns (benchmarks/peers.py). A training step is compared with what autograd takes for a Function that
computes nothing (benchmarks/training_parts.py). With --before, an earlier result file of the same machine is compared.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import lstmkern
from lstmkern import _extension
from lstmkern.autograd import record
from lstmkern.bench import measure, report
from lstmkern.bench.cases import Case
from lstmkern.bench.measure import Pairs, quiet

from . import training_parts
from .peers import Unavailable, onnx_runtime, run_jax_inline

CELLS = ("LSTM", "GRU", "RNN")
SIZES = (64, 128, 256, 512)
TRAINED = [(cell, H) for H in (16, 64, 128) for cell in CELLS]
BLOCKS, SECONDS = 60, 1e-3  # timed blocks, and the length of one
THREADS = (1, 2)


def microseconds(f: Callable[[], object]) -> float:
    """Microseconds of a call: the lowest decile of the blocks, as whatever disturbs a call makes it longer."""
    f()
    start = measure.now()
    calls = 0
    while measure.now() - start < 10 * SECONDS:
        f()
        calls += 1
    calls = max(calls // 10, 1)
    times = []
    for _ in range(BLOCKS):
        start = measure.now()
        for _ in range(calls):
            f()
        times.append((measure.now() - start) / calls * 1e6)
    return statistics.quantiles(times, n=10, method="inclusive")[0]


def levels(cell: str, H: int) -> dict[str, float]:
    """Microseconds of each level of a call of the layer ``cell`` with H inputs and units, and of the cell's module."""
    module, x = getattr(lstmkern, cell)(H, H).eval(), torch.randn(1, 1, H)
    one_step, row = getattr(lstmkern, f"{cell}Cell")(H, H).eval(), torch.randn(1, H)
    forward = module.forward
    times = {
        "call": microseconds(lambda: module(x)),
        "forward": microseconds(lambda: forward(x)),
        "cell module": microseconds(lambda: one_step(row)),
    }
    times["C++"] = microseconds(lambda: _extension.run_module(module, x, None, None, None, False, record))
    return times


def against_onnxruntime(cell: str, H: int, threads: int) -> dict[str, float]:
    """What Pairs.result() says of our layer and onnxruntime's; a ratio above 1 means that ours is faster."""
    theirs_module = getattr(nn, cell)(H, H)
    ours = getattr(lstmkern, cell)(H, H).eval()
    ours.load_state_dict(theirs_module.state_dict())
    x = torch.randn(1, 1, H)
    run, values = onnx_runtime(Case(cell, 1, 1, H, H), theirs_module, x, threads)
    torch.testing.assert_close(values(), ours(x)[0], rtol=1e-4, atol=1e-5)
    return Pairs(lambda: ours(x), run, block=1e-3).run(0.5).result()


def document(about: dict) -> str:
    """Markdown, from the content of one_call.json."""
    before = {(r["cell"], r["H"]): r for r in about.get("before", [])}
    rows = []
    for r in about["levels"]:
        if r["H"] == 1:
            continue
        fixed = next(o for o in about["levels"] if (o["cell"], o["H"]) == (r["cell"], 1))
        parts = ["-"] * 4
        if "C++" in r:
            split = (r["call"] - r["forward"], r["forward"] - r["C++"], fixed["C++"], r["C++"] - fixed["C++"])
            parts = [f"{value:.2f}" for value in split]
        old = before.get((r["cell"], r["H"]), {})
        rows.append(
            [
                f"{r['cell']} {r['H']}",
                *(f"{old[k]:.2f}" if k in old else "-" for k in ("call", "cell module")),
                f"{r['call']:.2f}",
                f"{r['cell module']:.2f}",
                *parts,
            ]
        )
    head = ["us", "before", "its cell", "now", "its cell", "`__call__`", "`forward`", "C++, 1 unit", "arithmetic"]
    text = f"{report.machine_line(about)}, one thread; `{about['command']}`\n\n{report.markdown(head, rows)}"
    if before:
        text += f"\n\nBefore: {about['before_commit']}."
    text += f"\n\nAn empty module's call takes {about['identity']:.2f} us, torch.empty {about['empty']:.2f}."
    columns = (about["training"], about.get("training_before", []), about["jax"])
    text += f"\n\nTraining:\n\n{report.markdown(*training_parts.table(*columns))}"
    if about.get("onnxruntime"):
        rows = [
            [f"{r['cell']} {r['H']}", str(r["threads"]), *(f"{r[k]:.2f}" for k in ("ratio", "ratio_low", "ratio_high"))]
            for r in about["onnxruntime"]
        ]
        heads = ["onnxruntime's time / ours", "threads", "median", "low quartile", "high quartile"]
        text += f"\n\n{report.markdown(heads, rows)}"
    return text


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="result file of an earlier version on this machine")
    parser.add_argument("--out", type=Path, help="write the results to this file")
    args = parser.parse_args(argv)
    about = report.context(list(THREADS))
    found: dict = {"levels": [], "training": [], "onnxruntime": [], "jax": []}
    with torch.no_grad(), quiet(1):
        identity, x = nn.Identity(), torch.randn(1, 1, 64)
        found["identity"] = microseconds(lambda: identity(x))
        found["empty"] = microseconds(lambda: torch.empty(1, 1, 64))
        for H in (1, *SIZES):
            found["levels"] += [{"cell": cell, "H": H, **levels(cell, H)} for cell in CELLS]
    with quiet(1):
        found["training"] = [{"cell": cell, "H": H, **training_parts.parts(cell, H)} for cell, H in TRAINED]
    for threads in THREADS:
        with torch.no_grad(), quiet(threads):
            for cell in CELLS:
                for H in SIZES:
                    try:
                        result = against_onnxruntime(cell, H, threads)
                    except Unavailable as reason:
                        print(f"no onnxruntime: {reason}", file=sys.stderr)
                        break
                    found["onnxruntime"].append({"cell": cell, "H": H, "threads": threads, **result})
    run_jax_inline()
    with quiet(1):
        for cell, H in TRAINED:
            try:
                found["jax"].append({"cell": cell, "H": H, **training_parts.against_jax(cell, H)})
            except Unavailable as reason:
                print(f"no JAX: {reason}", file=sys.stderr)
                break
    if args.before:
        earlier = json.loads(args.before.read_text())
        found |= {"before": earlier["levels"], "before_commit": earlier["commit"]}
        found["training_before"] = earlier.get("training", [])
    print(document({**about, **found}))
    if args.out:
        report.write_json(args.out, about, **found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
