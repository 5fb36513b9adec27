"""verify, bench and info: the commands that tell what is installed, whether it is right and how fast it is here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from .. import _extension, disable
from ..bench import goals, roofline
from ..bench.cases import DTYPES
from ..lm.errors import InputError
from ..verify import verify
from . import options
from .libraries import make_console


def add_commands(commands: Any) -> None:
    options.add_command(
        commands,
        "verify",
        run_verify,
        "Check every kernel on every device present: gradcheck, and parity with torch.nn.",
    )
    bench = options.add_command(
        commands,
        "bench",
        run_bench,
        "Compare the kernels' speed with torch.nn's and with the roofline of this machine.",
    )
    bench.add_argument(
        "--quick",
        action="store_true",
        help=f"measure for {goals.QUICK_SECONDS} seconds instead of {goals.FULL_SECONDS}",
    )
    bench.add_argument("--seconds", type=options.seconds, help="stop taking new measurements after this long")
    bench.add_argument(
        "--threads",
        type=options.count,
        nargs="+",
        dest="counts",
        metavar="N",
        help="CPU threads (default: 1, and every core)",
    )
    bench.add_argument(
        "--dtype",
        nargs="+",
        choices=tuple(DTYPES),
        default=["fp32", "bf16"],
        help="types of input and weights (default: fp32 bf16)",
    )
    bench.add_argument(
        "--cell",
        nargs="+",
        choices=("LSTM", "GRU", "RNN"),
        default=["LSTM", "GRU"],
        help="kinds of layers (default: LSTM GRU)",
    )
    bench.add_argument(
        "--shape",
        type=options.value(goals.parse_shape, lambda sizes: True, "a shape T,N,I,H[,layers]"),
        nargs="+",
        metavar="T,N,I,H,LAYERS",
        help="sizes of the layers (default: those of the goals; in fp32 and bf16 no other sizes have goals)",
    )
    bench.add_argument("--out", metavar="DIR", help="write goals.json and goals.md there")
    options.add_command(
        commands, "info", run_info, "Show versions, the instruction set in use, CUDA architectures and GPUs."
    )


def run_verify(args: argparse.Namespace) -> int:
    return 0 if verify() else 1


def run_bench(args: argparse.Namespace) -> int:
    console = make_console(args)
    most = roofline.cores()
    if args.counts and max(args.counts) > most:
        raise InputError(f"--threads {max(args.counts)}: this process may use {most} core{'s' if most > 1 else ''}")
    seconds = args.seconds or (goals.QUICK_SECONDS if args.quick else goals.FULL_SECONDS)
    out = None if args.out is None else Path(args.out)
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is not a directory")
    counts = sorted(set(args.counts or (1, most)))
    return goals.main(console, args.shape, args.cell, args.dtype, counts, seconds, out)


def run_info(args: argparse.Namespace) -> int:
    built = _extension.build_info()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    reason = "" if torch.version.cuda or torch.version.hip else ": torch is a CPU build"
    rows = {
        "lstmkern": built["version"],
        "built for": f"torch {built['torch']}, Python {built['python']}",
        "CPU instruction sets built": ", ".join(built["capabilities"]),
        "compiler": built["compiler"],
        "OpenMP": "yes" if built["openmp"] else "no",
        "CPU instruction set in use": f"{_extension.cpu_capability()}, for bf16 {_extension.cpu_capability(bf16=True)}",
        "CUDA kernels": f"built with CUDA {built['cuda']}" if built["cuda"] else f"not built{reason}",
        "CUDA architectures": ", ".join(built["cuda_archs"]) or "none",
        "GPU": ", ".join(gpus) or "none seen",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if disable.DISABLED:
        rows[disable.VARIABLE] = "1: modules run torch.nn's own code where a call uses nothing beyond it"
    for name, value in rows.items():
        print(f"{name:<28}{value}")
    if note := _extension.other_torch(built["torch"], torch.__version__):
        print(note)
    return 0
