"""What a real token costs in a ragged batch, against a dense one: lstmkern packed, lengths=, torch packed.

    python -m benchmarks.varlen [--out benchmarks/results/varlen.json]

Lengths are uniform in 10..T. Each case runs interleaved with the dense one; the figure is the median over the pairs of
(seconds per real token, ragged) / (seconds per token, dense lstmkern).
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.utils.rnn import pack_padded_sequence

import lstmkern


def seconds(f) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measure(cell: str, T: int, N: int, H: int, train: bool, pairs: int) -> dict[str, float]:
    torch.manual_seed(0)
    x = torch.randn(T, N, H, requires_grad=train)
    lengths = torch.randint(10, T + 1, (N,))
    lengths[0] = T
    packed = pack_padded_sequence(x.detach(), lengths, enforce_sorted=False)
    packed.data.requires_grad_(train)
    ours, theirs = getattr(lstmkern, cell)(H, H), getattr(torch.nn, cell)(H, H)
    theirs.load_state_dict(ours.state_dict())

    def run(module, *args, **kwargs):
        with torch.set_grad_enabled(train):
            output = module(*args, **kwargs)[0]
            if train:
                (output.data if hasattr(output, "batch_sizes") else output).sum().backward()

    cases = {
        "lstmkern, lengths=": lambda: run(ours, x, lengths=lengths),
        "lstmkern, packed": lambda: run(ours, packed),
        "torch, packed": lambda: run(theirs, packed),
    }
    dense_tokens, real_tokens, result = T * N, int(lengths.sum()), {}
    for name, case in cases.items():
        case()
        ratios = []
        for _ in range(pairs):
            dense = seconds(lambda: run(ours, x)) / dense_tokens
            ratios.append(seconds(case) / real_tokens / dense)
        result[name] = round(statistics.median(ratios), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for cell in ("LSTM", "GRU"):
        for T, N, H in ((100, 64, 128), (100, 32, 256)):
            for train in (False, True):
                row = {"cell": cell, "T": T, "N": N, "H": H, "train": train}
                row.update(measure(cell, T, N, H, train, args.pairs))
                print(row, flush=True)
                rows.append(row)
    if args.out:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
        meta = {
            "command": " ".join(["python -m benchmarks.varlen", *sys.argv[1:]]),
            "unit": "seconds per real token over seconds per token of a dense batch on lstmkern",
            "machine": f"{cpu_name()}, {args.threads} threads, {lstmkern._extension.cpu_capability()}",
            "versions": {
                "torch": torch.__version__,
                "lstmkern": lstmkern.__version__,
                "python": platform.python_version(),
            },
            "commit": commit,
        }
        args.out.write_text(json.dumps({**meta, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
