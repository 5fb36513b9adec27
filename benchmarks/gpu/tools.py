"""The programs that surround a GPU: nvidia-smi, nvcc, compute-sanitizer, ncu. Needs no torch.

tests/test_gpu_device.py runs every line with stand-ins for the programs. Nothing here changes a setting of the card:
ncu is told to leave its clocks alone.
"""

from __future__ import annotations

import csv
import ctypes
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

REFUSALS = [  # what the tools say where the driver or the machine does not let them in
    "Device not supported", "device is not supported", "error 999", "ERR_NVGPUCTRPERM", "LibraryNotLoaded",
    "Failed to initialize the profiler", "not supported on this", "Unable to find injection library",
]  # fmt: skip
REPORTS = (  # how a report of compute-sanitizer begins
    "Invalid", "Error:", "Warning:", "Barrier", "Potential", "Race", "Uninitialized", "Program hit",
    "Target application", "ERROR SUMMARY", "RACECHECK SUMMARY",
)  # fmt: skip
PATIENCE = 10  # seconds for a question to a program
ERRORS = 9  # compute-sanitizer's exit code for what it found
SECTIONS = ["SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "SchedulerStats", "LaunchStats", "Occupancy"]
METRICS = [  # of the table; the file has all
    "Duration", "Elapsed Cycles", "SM Frequency", "Compute (SM) Throughput", "Memory Throughput", "DRAM Throughput",
    "L2 Cache Throughput", "L1/TEX Cache Throughput", "Executed Ipc Active", "Issue Slots Busy", "No Eligible",
    "Warp Cycles Per Issued Instruction", "Registers Per Thread", "Achieved Occupancy", "Grid Size", "Block Size",
]  # fmt: skip


def ask(*command: str) -> str:
    """What a program says, or why it says nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not to be had ({type(error).__name__})"
    return (done.stdout.strip() or done.stderr.strip()).replace("\n", " | ")


def gpus() -> int:
    """How many GPUs the driver knows; 0 also where there is no driver that can be asked."""
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0)
        return count.value if driver.cuInit(0) == driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
    except (OSError, AttributeError):
        return 0


QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,memory.used"
FACTS = {
    "nvidia-smi": functools.partial(ask, "nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"),
    "nvcc": lambda: ask("nvcc", "--version").rpartition(" | ")[2],
    "compiler": lambda: ask("c++", "--version").partition(" | ")[0],
    "glibc": lambda: " ".join(os.confstr("CS_GNU_LIBC_VERSION").split()),
    "kernel": functools.partial(ask, "uname", "-sr"),
    "compute-sanitizer": lambda: ask("compute-sanitizer", "--version").rpartition(" | ")[2],
    "ncu": lambda: ask("ncu", "--version").rpartition(" | ")[2],
}


def sanitizer(tool: str, program: list[str], port: int) -> list[str] | None:
    """The command that runs `program` under compute-sanitizer, our kernels alone; None where there is none.

    Tools that run side by side need ports of their own. launch-timeout: torch takes longer than the usual 10 seconds to
    reach its first CUDA call. API errors are not asked for: torch tries what it may not have.
    """
    if not shutil.which("compute-sanitizer"):
        return None
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(ERRORS), "--print-limit", "20"]
    command += ["--launch-timeout", "0", "--port", str(port), "--report-api-errors", "no"]
    # The option that names kernels has had several names.
    known = ask("compute-sanitizer", "--help")
    option = next((o for o in ("--kernel-name", "--kernel-regex", "--filter") if o in known), None)
    return command + ([option, "kernel_substring=lstmkern"] if option else []) + program


def ncu(kernel: str, skip: int, count: int, file: Path, program: list[str]) -> list[str] | None:
    """The command that profiles `count` launches of a kernel after the first `skip`; None where there is no ncu."""
    if not shutil.which("ncu"):
        return None
    command = ["ncu", "--clock-control", "none", "--target-processes", "all", "--kernel-name", f"regex:{kernel}"]
    command += ["--launch-skip", str(skip), "--launch-count", str(count), "--csv", "--page", "details"]
    command += [word for section in SECTIONS for word in ("--section", section)]
    return [*command, "--force-overwrite", "--log-file", str(file), *program]


def stream(command: list[str], environment: dict | None = None) -> tuple[int, list[str]]:
    """Runs a command and shows each of its lines at once; its exit code and its lines."""
    lines = []
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env={**os.environ, **(environment or {})}, **options) as process:
        for line in process.stdout:
            lines.append(line.rstrip())
            print(lines[-1], flush=True)
    return process.returncode, lines


def refused(lines: list[str]) -> str | None:
    """The line with which a tool says that it is not let in."""
    return next((line for line in lines if any(words in line for words in REFUSALS)), None)


def sanitizer_errors(lines: list[str]) -> list[str]:
    """What compute-sanitizer found: the first line of each report, and its summary."""
    said = [line.lstrip("= ") for line in lines if line.startswith("=====")]
    return [line for line in said if line.startswith(REPORTS)]


def lines_of(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines() if file.exists() else []


def counters(file: Path) -> Iterator[dict]:
    """{"kernel", "metrics": {name: (value, unit)}} of each launch in what ncu wrote."""
    lines = lines_of(file)
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    launches: dict[str, dict] = {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"], "metrics": {}})
        if row.get("Metric Name"):
            launch["metrics"][row["Metric Name"]] = (row["Metric Value"], row["Metric Unit"])
    yield from launches.values()
