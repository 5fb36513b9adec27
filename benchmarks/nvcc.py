"""Finds nvcc and the disassembler, and compiles a file's device code; the results are kept in build/cubins."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock  # a dependency of torch

ROOT = Path(__file__).resolve().parent.parent
CUBINS = ROOT / "build" / "cubins"
DISASSEMBLER = ROOT / "build" / "disassembler"  # where the Makefile puts it

ARCH = "sm_90a"
# Also compiles the host code, for its warnings; --keep keeps the cubin.
FLAGS = ["-c", "-O3", "-std=c++17", "-Werror", "all-warnings", "-Xcompiler", "-Wall", "-Xptxas", "-v", "--keep"]


def find(tool: str, *more: Path) -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(home) / "bin" for home in homes if home] + list(more)
    return shutil.which(tool) or next((str(p / tool) for p in places if os.access(p / tool, os.X_OK)), None)


def find_nvcc() -> str | None:
    return find("nvcc")


def find_disassembler() -> str | None:
    """nvdisasm: on PATH, in the toolkit, or where the Makefile puts it."""
    return find("nvdisasm", DISASSEMBLER)


def missing() -> str | None:
    """A sentence that says which of the two is missing, or None."""
    if find_nvcc() is None:
        return "nvcc is neither on PATH nor in CUDA_HOME"
    if find_disassembler() is None:
        return "nvdisasm is neither on PATH nor in CUDA_HOME; `make build/disassembler/nvdisasm` downloads it"
    return None


def version() -> str:
    """The release of nvcc, such as "13.0.88"."""
    text = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def target() -> list[str]:
    return ["-gencode", f"arch=compute_{ARCH[3:]},code={ARCH}"]


def digest(source: Path) -> str:
    """A digest of everything that the compiled code of ``source`` depends on."""
    csrc = source.resolve().parent.parent
    headers = sorted([*csrc.glob("*.h"), *csrc.glob("cells/*.h"), *csrc.glob("cuda/*.h")])
    hasher = hashlib.sha256(" ".join([version(), *FLAGS, *target()]).encode())
    for path in [source, *headers]:
        hasher.update(f"{path.name}\n".encode() + path.read_bytes())
    return hasher.hexdigest()[:16]


def compiled(source: Path) -> tuple[Path, str]:
    """The cubin of a file of csrc/cuda, and the output of ptxas. Compiled only if the sources have changed.

    Raises:
        RuntimeError: with nvcc's output, if the file does not compile without a warning.
    """
    CUBINS.mkdir(parents=True, exist_ok=True)
    cubin = CUBINS / f"{source.stem}-{digest(source)}.cubin"
    log = cubin.with_suffix(".txt")
    with FileLock(cubin.with_suffix(".lock")):
        if not log.exists():
            with tempfile.TemporaryDirectory(dir=CUBINS) as keep:
                command = [find_nvcc(), *FLAGS, "--keep-dir", keep, *target(), source, "-o", Path(keep) / "host.o"]
                run = subprocess.run(command, capture_output=True, text=True, check=False)
                if run.returncode:
                    raise RuntimeError(f"nvcc cannot compile {source}:\n{run.stderr}")
                (Path(keep) / f"{source.stem}.cubin").replace(cubin)
            log.write_text(run.stderr)  # last: if it exists, the cubin is complete
    return cubin, log.read_text()


def disassembled(cubin: Path) -> str:
    """The SASS of a cubin, with labels."""
    return subprocess.run([find_disassembler(), "-c", cubin], capture_output=True, text=True, check=True).stdout
