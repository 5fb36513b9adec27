"""verify, bench and info: the commands that say whether the kernels are right, how fast they are, what is installed."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from .. import _extension, disable
from ..bench import goals, roofline
from ..bench.cases import DTYPES
from ..lm.errors import InputError
from ..verify import verify
from . import options
from .libraries import make_console


def add_commands(commands: options.Commands) -> None:
    """Add verify, bench and info to the command line."""
    options.add_command(
        commands,
        "verify",
        run_verify,
        "Check every kernel on this machine.",
        "On the CPU, and on the GPU if there is one: gradcheck in fp64, and results and gradients compared with "
        "torch.nn. The exit code is 1 if a check fails.",
    )
    _add_bench(commands)
    options.add_command(
        commands,
        "info",
        run_info,
        "Show versions, how the kernels were built, and what they run on.",
        "Please include this in a bug report.",
    )


def _add_bench(commands: options.Commands) -> None:
    parser = options.add_command(
        commands,
        "bench",
        run_bench,
        "Measure how fast the kernels are, compared with torch.nn and with the limits of this machine.",
        "The limits are a roofline: the highest arithmetic rate and memory bandwidth that this machine reaches.",
        ["--quick", "--cell GRU --dtype fp32 --shape 64,16,256,256 --threads 1"],
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"measure for {goals.QUICK_SECONDS} seconds instead of {goals.FULL_SECONDS}",
    )
    parser.add_argument(
        "--seconds",
        type=options.seconds,
        metavar="S",
        help=f"start no new measurement after S seconds (default: {goals.FULL_SECONDS})",
    )
    parser.add_argument(
        "--threads",
        type=options.count,
        nargs="+",
        dest="counts",
        metavar="N",
        help="numbers of CPU threads to measure with (default: 1, and one per core)",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=tuple(DTYPES),
        default=["fp32", "bf16"],
        help="types of input and weights (default: fp32 bf16)",
    )
    parser.add_argument(
        "--cell",
        nargs="+",
        choices=("LSTM", "GRU", "RNN"),
        default=["LSTM", "GRU"],
        help="types of recurrent layers (default: LSTM GRU)",
    )
    parser.add_argument(
        "--shape",
        type=options.value(goals.parse_shape, lambda sizes: True, "a shape T,N,I,H[,layers]"),
        nargs="+",
        metavar="T,N,I,H,LAYERS",
        help="sizes to measure: time steps, batch size, input size, hidden size and, if not 1, layers (default: the "
        "sizes for which there are goals)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="also write goals.json and goals.md to this directory (default: no files)"
    )


def run_verify(args: argparse.Namespace) -> int:
    """Run ``verify`` and return the exit code."""
    return 0 if verify() else 1


def run_bench(args: argparse.Namespace) -> int:
    """Run ``bench`` and return the exit code."""
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
    """Run ``info`` and return the exit code."""
    built = _extension.build_info()
    cpus, asked = _extension.CPUS, torch.get_num_threads()
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
        "CPUs": f"{cpus['found']} ({cpus['from']})",
        "threads": f"{min(asked, cpus['threads'])}" + (f" (torch: {asked})" if asked > cpus["threads"] else ""),
    }
    if disable.DISABLED:
        rows[disable.VARIABLE] = "1: modules run torch.nn's own code where a call uses nothing beyond it"
    for name, value in rows.items():
        print(f"{name:<28}{value}")
    if note := _extension.other_torch(built["torch"], torch.__version__):
        print(note)
    return 0
