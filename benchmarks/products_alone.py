"""A whole LSTM against its GEMMs alone: what torch.nn's LSTM and ours take, and what torch.mm takes for their products.

    python -m benchmarks.products_alone [--seconds 1.5] [--out benchmarks/results/products_alone.json]

The products are those of the layer, on operands that are ready: x W_ih^T for all steps in one call, h W_hh^T step by
step; in training also dgates W_hh step by step, and dgates W_ih and both weight gradients for all steps in one call
each. Results are written into the same memory every time. No cell is computed. One thread, fp32; each pair of functions
in turn. The floor is the roofline's (lstmkern/bench/roofline.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track

from lstmkern.bench import report
from lstmkern.bench.cases import GATES, Case, modules_for, step_of
from lstmkern.bench.measure import Pairs, quiet
from lstmkern.bench.roofline import Roofline

SHAPES = [(100, 32, H, H) for H in (64, 65, 80, 96, 112, 128)] + [(100, 32, 40, 130), (24, 128, 7, 100)]
SHAPES += [(10, 512, 32, 128), (100, 8, 64, 64), (100, 8, 128, 128)]


def products(case: Case) -> Callable[[], object]:
    """A function that computes the GEMMs of one call of ``case`` (one layer, one direction) with torch.mm."""
    T, N, H, columns = case.T, case.N, case.H, GATES[case.cell] * case.H
    x, h = torch.randn(T * N, case.I), torch.randn(T, N, H)
    w_ih, w_hh = torch.randn(case.I, columns), torch.randn(H, columns)
    gates, sums = torch.empty(T * N, columns), torch.empty(N, columns)
    if case.train:
        dgates, back_ih, back_hh = torch.randn(T, N, columns), w_ih.t().contiguous(), w_hh.t().contiguous()
        dh, dx = torch.empty(N, H), torch.empty(T * N, case.I)
        dw_ih, dw_hh = torch.empty(columns, case.I), torch.empty(columns, H)

    @torch.no_grad()
    def run() -> None:
        torch.mm(x, w_ih, out=gates)
        for state in h:
            torch.mm(state, w_hh, out=sums)
        if not case.train:
            return
        for step in dgates:
            torch.mm(step, back_hh, out=dh)
        rows = dgates.view(T * N, columns)
        torch.mm(rows, back_ih, out=dx)
        torch.mm(rows.t(), x, out=dw_ih)
        torch.mm(rows.t(), h.view(T * N, H), out=dw_hh)

    return run


def measure(case: Case, seconds: float) -> dict[str, float]:
    """Milliseconds of our layer, and torch.nn's time and that of the products alone divided by ours."""
    ours, theirs = modules_for(case)
    x = torch.randn(case.T, case.N, case.I)
    run = step_of(ours, x, case.train)
    whole = Pairs(run, step_of(theirs, x, case.train)).run(seconds).result()
    alone = Pairs(run, products(case)).run(seconds).result()
    return {"ours_ms": whole["ours_ms"], "torch.nn": whole["ratio"], "products": alone["ratio"]}


def document(about: dict) -> str:
    """Markdown, from the content of products_alone.json."""
    rows = [
        [
            r["shape"],
            "training" if r["train"] else "inference",
            f"{r['torch.nn']:.2f}",
            f"{r['products']:.2f}",
            f"{r['torch.nn'] / r['products']:.2f}",
            f"{r['floor_ms'] / r['ours_ms']:.0%}",
        ]
        for r in about["found"]
    ]
    heads = ["LSTM T,N,I,H", "", "torch.nn / ours", "products / ours", "torch.nn / products", "floor / ours"]
    return f"{report.machine_line(about)}, one thread; `{about['command']}`\n\n{report.markdown(heads, rows)}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each pair of functions")
    parser.add_argument("--out", type=Path, help="write the results to this file")
    args = parser.parse_args(argv)
    about, found = report.context(1), []
    with quiet(1):
        limits = Roofline.measure(1)
        cases = [Case("LSTM", *shape, train=train) for train in (False, True) for shape in SHAPES]
        for case in track(cases, description="cases"):
            line = {"shape": case.shape, "train": case.train, "floor_ms": 1e3 * limits.floor(case).seconds}
            found.append({**line, **measure(case, args.seconds)})
    print(document({**about, "found": found}))
    if args.out:
        report.write_json(args.out, about, found=found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
