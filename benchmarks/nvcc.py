"""nvcc and the disassembler: where they are, and the compiled device code of a file, kept in build/cubins."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUBINS = ROOT / "build" / "cubins"
DISASSEMBLER = ROOT / "build" / "disassembler"  # where `make build/disassembler/nvdisasm` puts it

FLAGS = ["-cubin", "-O3", "-std=c++17", "-Xptxas", "-v"]
ARCH = "sm_90a"


def find_nvcc() -> str | None:
    return find("nvcc")


def find_disassembler() -> str | None:
    """nvdisasm: on PATH, in the toolkit, or from the project's own rule."""
    return find("nvdisasm", DISASSEMBLER)


def find(tool: str, *more: Path) -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(home) / "bin" for home in homes if home] + list(more)
    return shutil.which(tool) or next((str(p / tool) for p in places if os.access(p / tool, os.X_OK)), None)


def version() -> str:
    """The release of nvcc, such as "13.0.88"."""
    text = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def command(source: Path, to: Path) -> list[str]:
    return [find_nvcc(), *FLAGS, "-gencode", f"arch=compute_{ARCH[3:]},code={ARCH}", str(source), "-o", str(to)]


def digest(source: Path) -> str:
    """Of all that the compiled code of ``source`` depends on."""
    csrc = source.resolve().parent.parent
    headers = sorted([*csrc.glob("*.h"), *csrc.glob("cuda/*.h")])
    hasher = hashlib.sha256(" ".join([version(), *command(Path(source.name), Path("to"))[1:]]).encode())
    for path in [source, *headers]:
        hasher.update(f"{path.name}\n".encode() + path.read_bytes())
    return hasher.hexdigest()[:16]


def compiled(source: Path) -> tuple[Path, str]:
    """(the cubin of a .cu file, what ptxas said of its kernels). Compiled once per content, whoever asks first."""
    CUBINS.mkdir(parents=True, exist_ok=True)
    cubin = CUBINS / f"{source.stem}-{digest(source)}.cubin"
    log = cubin.with_suffix(".txt")
    with open(cubin.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            run = subprocess.run(command(source, cubin), capture_output=True, text=True, check=False)
            if run.returncode:
                raise RuntimeError(f"nvcc cannot compile {source}:\n{run.stderr}")
            log.write_text(run.stderr)  # last: where it is, the cubin is complete
    return cubin, log.read_text()


def disassembled(cubin: Path) -> str:
    """The SASS of a cubin, with labels."""
    return subprocess.run([find_disassembler(), "-c", cubin], capture_output=True, text=True, check=True).stdout
