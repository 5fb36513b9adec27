"""Tokens per second of forward and backward of every language model, on lstmkern and on torch.nn.

    python -m benchmarks.models [--threads 1] [--pairs 7] [--device cpu] [--out benchmarks/results/models.json]

The two runs of a pair follow each other in one process, and take turns in going first. The ratio is the median over the
pairs. Models without a recurrent layer run on lstmkern only, as there is nothing to compare. Prints Markdown.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

import lstmkern
from lstmkern.bench import report
from lstmkern.lm.throughput import Case, cases


def seconds(run, device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(case: Case, pairs: int, device: str = "cpu") -> dict:
    """Tokens per second of both, and the ratio of the two."""
    sides = [case.step(layers, device) for layers in ((lstmkern, torch.nn) if case.recurrent else (lstmkern,))]
    times: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    for pair in range(pairs):
        for k in sorted(range(len(sides)), reverse=pair % 2 == 1):
            times[k].append(seconds(sides[k], device))
    row = {"model": case.name, "lstmkern": round(case.tokens / statistics.median(times[0]))}
    if case.recurrent:
        row["torch.nn"] = round(case.tokens / statistics.median(times[1]))
        row["ratio"] = round(statistics.median(b / a for a, b in zip(*times, strict=True)), 2)
    return row


def markdown(rows: list[dict]) -> str:
    lines = ["| model | lstmkern, tokens/s | torch.nn, tokens/s | ratio |", "|---|---|---|---|"]
    for row in rows:
        peer = f"{row['torch.nn']:,} | {row['ratio']:.2f}" if "ratio" in row else "no recurrent layer |"
        lines.append(f"| {row['model']} | {row['lstmkern']:,} | {peer} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--pairs", type=int, default=7, help="pairs of runs per model (default: 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--models", nargs="*", help="only these")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    chosen = [case for case in cases() if not args.models or case.name in args.models]
    rows = []
    for case in chosen:
        rows.append(measure(case, args.pairs, args.device))
        print(rows[-1], file=sys.stderr, flush=True)
    print(markdown(rows))
    if args.out:
        device = {"device": torch.cuda.get_device_name() if args.device != "cpu" else "cpu"}
        unit = "tokens per second of forward and backward; ratio: median over the pairs"
        report.write_json(args.out, {**report.context(args.threads), **device}, unit=unit, rows=rows)


if __name__ == "__main__":
    main()
