"""The NVIDIA programs: nvidia-smi, nvcc, compute-sanitizer, ncu. Does not need torch.

tests/test_gpu_device.py runs every line with stand-ins for the programs. Nothing here changes a setting of the GPU; ncu
runs with an option that leaves its clocks unchanged.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import functools
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

REFUSALS = [  # what the tools print if the driver or the machine denies access
    "Device not supported", "device is not supported", "error 999", "ERR_NVGPUCTRPERM", "LibraryNotLoaded",
    "Failed to initialize the profiler", "not supported on this", "Unable to find injection library",
]  # fmt: skip
REPORTS = (  # the beginnings of compute-sanitizer's reports
    "Invalid", "Error:", "Warning:", "Barrier", "Potential", "Race", "Uninitialized", "Program hit",
    "Target application", "ERROR SUMMARY", "RACECHECK SUMMARY",
)  # fmt: skip
TIMEOUT = 3  # seconds for a program to answer
ERRORS = 9  # compute-sanitizer's exit code if it found errors
SECTIONS = ["SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "SchedulerStats", "LaunchStats", "Occupancy"]
METRICS = [  # shown in the table; the file has all
    "Duration", "Elapsed Cycles", "SM Frequency", "Compute (SM) Throughput", "Memory Throughput", "DRAM Throughput",
    "L2 Cache Throughput", "L1/TEX Cache Throughput", "Executed Ipc Active", "Issue Slots Busy", "No Eligible",
    "Warp Cycles Per Issued Instruction", "Registers Per Thread", "Achieved Occupancy", "Grid Size", "Block Size",
]  # fmt: skip


def ask(*command: str) -> str:
    """What a program prints, or why it prints nothing."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    except OSError as error:
        return f"not to be had ({type(error).__name__})"
    try:
        said, complained = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        process.kill()  # without waiting: a process that is stuck in the driver does not end
        return f"not to be had ({type(error).__name__})"
    return (said.strip() or complained.strip()).replace("\n", " | ")


def gpus() -> int:
    """How many GPUs the driver knows; 0 if there is no driver."""
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
    """The command that runs `program` under compute-sanitizer, for our kernels alone; None if it is not installed.

    Tools that run side by side need different ports. launch-timeout: torch takes longer than the default of 10 seconds
    to reach its first CUDA call. API errors are not reported, because torch makes calls that may fail.
    """
    if not shutil.which("compute-sanitizer"):
        return None
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(ERRORS), "--print-limit", "20"]
    command += ["--launch-timeout", "0", "--port", str(port), "--report-api-errors", "no"]
    # The option that selects kernels has had several names.
    known = ask("compute-sanitizer", "--help")
    option = next((o for o in ("--kernel-name", "--kernel-regex", "--filter") if o in known), None)
    return command + ([option, "kernel_substring=lstmkern"] if option else []) + program


def ncu(kernels: str, file: Path, program: list[str]) -> list[str] | None:
    """The command that profiles the kernel launches between cudaProfilerStart and cudaProfilerStop; None if ncu is not
    installed. ncu's rules are off: they only comment on the counters."""
    if not shutil.which("ncu"):
        return None
    command = ["ncu", "--clock-control", "none", "--target-processes", "all", "--kernel-name", f"regex:{kernels}"]
    command += ["--profile-from-start", "off", "--apply-rules", "no", "--csv", "--page", "details"]
    command += [word for section in SECTIONS for word in ("--section", section)]
    return [*command, "--force-overwrite", "--log-file", str(file), *program]


def kill(process: int) -> None:
    """Ends a process and those that it has started. Each such process leads a process group, so ending the group ends
    all of them."""
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                kill(int(child))
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def stream(
    command: list[str],
    environment: dict | None = None,
    seconds: float = float("inf"),
    seen: Callable[[str], object] = lambda line: None,
) -> tuple[int | None, list[str]]:
    """Runs a command, shows its lines as they come and calls seen() with each. Returns its exit code and lines; the
    code is None if it was ended after `seconds`."""
    lines, until = [], time.monotonic() + seconds
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, **options)

    def read() -> None:
        for line in process.stdout:
            lines.append(line.rstrip())
            print(lines[-1], flush=True)
            seen(lines[-1])

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        code = process.wait(None if seconds == float("inf") else max(0.0, seconds))
    except subprocess.TimeoutExpired:
        kill(process.pid)
        code = None
    reader.join(None if seconds == float("inf") else max(1.0, until - time.monotonic()))
    return code, list(lines)


def refused(lines: list[str]) -> str | None:
    """The line in which a tool says that it has no permission, or None."""
    return next((line for line in lines if any(words in line for words in REFUSALS)), None)


def sanitizer_errors(lines: list[str]) -> list[str]:
    """What compute-sanitizer found: the first line of each report, and its summary."""
    said = [line.lstrip("= ") for line in lines if line.startswith("=====")]
    return [line for line in said if line.startswith(REPORTS)]


def lines_of(file: Path) -> list[str]:
    return file.read_text(errors="replace").splitlines() if file.exists() else []


def counters(file: Path) -> Iterator[dict]:
    """{"kernel", "metrics": {name: (value, unit)}} of each launch in the file that ncu wrote."""
    lines = lines_of(file)
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    launches: dict[str, dict] = {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"], "metrics": {}})
        if row.get("Metric Name"):
            launch["metrics"][row["Metric Name"]] = (row["Metric Value"], row["Metric Unit"])
    yield from launches.values()
