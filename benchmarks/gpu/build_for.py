"""Builds the complete extension, with CUDA kernels, for another Python and torch: `make gpu-build-for`.

    python -m benchmarks.gpu.build_for --python python3.12 --torch torch==2.11.0

It saves the build on a machine whose GPU time is expensive. It needs the CUDA toolkit (nvcc) of that torch's CUDA
version, but no GPU. The environment is kept under build/extension/. The stripped extension goes to carry/, with a note
about its sources (about.json), and has a maximum size. `make gpu-first` uses it if it loads.

    python -m benchmarks.gpu.build_for --check

Run this before starting that machine: exit code 1 if carry/ was not built from the current sources.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from . import records

LIMIT = 60 * 2**20  # most bytes in carry/
NEEDS = ["setuptools>=70", "wheel", "ninja", "pybind11", "numpy"]

# Run by the other Python, in the folder with the new extension: a test of its CPU layers.
TRIAL = """
import json, platform
import torch
import lstmkern
from lstmkern import _C
info = _C.build_info()
assert info["cuda"] == torch.version.cuda and info["cuda_archs"], info
for cell in (lstmkern.LSTM, lstmkern.GRU):
    for dtype in (torch.float32, torch.bfloat16):
        layer = cell(5, 17, bidirectional=True, dtype=dtype)
        x = torch.randn(4, 3, 5, dtype=dtype, requires_grad=True)
        peer = getattr(torch.nn, cell.__name__)(5, 17, bidirectional=True, dtype=dtype)
        peer.load_state_dict(layer.state_dict())
        out = layer(x)[0]
        out.sum().backward()
        torch.testing.assert_close(out, peer(x)[0], rtol=0.02, atol=0.02)
        assert x.grad.isfinite().all()
for key in ("CUDA", "CPU"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key("lstmkern::layer_forward", key), key
print(json.dumps({"torch": torch.__version__, "python": platform.python_version(), "built": info}))
"""


def fail(sentence: str) -> None:
    sys.exit(f"gpu-build-for: {sentence}")


def interpreter(name: str) -> str:
    """The path of a Python that was named as on a command line and that can make environments."""
    found = shutil.which(os.path.expanduser(name))
    if found is None:
        fail(f"There is no Python {name!r}; set PY to a name on PATH or the path of an interpreter.")
    asked = [found, "-c", "import sysconfig; print(sysconfig.get_paths()['include'])"]
    said = subprocess.run(asked, capture_output=True, text=True)
    if said.returncode or not Path(said.stdout.strip(), "Python.h").is_file():
        fail(f"{found} has no Python.h: install its headers.")
    return found


def environment_for(python: str, torch: str) -> Path:
    """The Python of an environment under build/ with that torch."""
    name = re.sub(r"[^\w.]+", "-", f"{Path(python).name}-{torch}")
    folder = records.ROOT / "build" / "extension" / name
    inner = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
        subprocess.run([inner, "-m", "pip", "install", "--quiet", torch, *NEEDS], check=True)
        (folder / ".ready").touch()
    return inner


def compile_in_copy(python: Path, archs: str) -> Path:
    """The extension, compiled in a copy of the sources.

    An extension for another torch must not be in lstmkern/. The copy is kept, so that ninja can tell what has changed.
    """
    copy = python.parent.parent / "source"
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("csrc", "lstmkern", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        source, target = records.ROOT / name, copy / name
        if source.is_dir():
            for gone in [p for p in target.rglob("*") if p.is_file() and not (source / p.relative_to(target)).exists()]:
                gone.unlink()
            shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    told = {"TORCH_CUDA_ARCH_LIST": archs, "LSTMKERN_CUDA": "1"}
    told["PATH"] = f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # its ninja
    told["MAX_JOBS"] = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    command = [python, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(command, cwd=copy, env={**os.environ, **told}, check=True)
    (library,) = (copy / "lstmkern").glob("_C*.so")
    subprocess.run(["strip", library], check=True)
    return library


def needed_glibc(library: Path) -> str:
    """The newest GLIBC version that the library requires."""
    versions = set(re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes()))
    return "{}.{}".format(*max((int(a), int(b)) for a, b in versions)) if versions else "unknown"


def carry(library: Path, about: dict, limit: int = LIMIT) -> Path:
    """Copies the extension to carry/ with a note about it, unless carry/ would become too large."""
    folder = records.ROOT / "carry"
    folder.mkdir(exist_ok=True)
    others = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and p.name != library.name)
    size = others + library.stat().st_size
    if size > limit:
        fail(f"{folder.name}/ would have {size / 2**20:.1f} MiB, more than the limit of {limit / 2**20:.0f}.")
    shutil.copy2(library, folder / library.name)
    notes = {**records.carried(), library.name: about}
    (folder / "about.json").write_text(json.dumps(notes, indent=1) + "\n")
    return folder / library.name


def check() -> None:
    """Checks whether carry/ was built from the current sources; run it before starting a machine."""
    notes, now = records.carried(), records.compiled_digest()
    if not notes:
        fail("carry/ has no extension; run `make gpu-build-for` first.")
    old = [name for name, about in notes.items() if about["sources"] != now]
    if old:
        fail(f"carry/{old[0]} is not built from these sources; run `make gpu-build-for` again, or remove it.")
    for name, about in notes.items():
        print(f"carry/{name} is built from these sources; Python {about.get('python')}, torch {about.get('torch')}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default="", help="the other machine's Python: a name on PATH or a path here")
    parser.add_argument("--torch", default="", help="the torch that pip installs, for example torch==2.11.0")
    parser.add_argument("--archs", default=os.environ.get("TORCH_CUDA_ARCH_LIST") or "9.0a")
    parser.add_argument("--check", action="store_true", help="only check whether carry/ is built from these sources")
    options = parser.parse_args(arguments)
    if options.check:
        check()
        return
    if not re.match(r"torch\b", options.torch):
        fail(f"TORCH must be what pip installs, for example torch==2.11.0, got {options.torch!r}.")
    if not shutil.which("nvcc") and not os.environ.get("CUDA_HOME"):
        fail("There is no nvcc; install the CUDA toolkit for that torch's CUDA version, or set CUDA_HOME.")
    start = time.monotonic()
    python = environment_for(interpreter(options.python), options.torch)
    ready = time.monotonic()
    print(f"environment: {ready - start:.0f} s", flush=True)
    sources, commit = records.compiled_digest(), records.commit()
    library = compile_in_copy(python, options.archs)
    built = time.monotonic()
    print(f"compiled for {options.archs}: {built - ready:.0f} s, {library.stat().st_size / 2**20:.1f} MiB", flush=True)
    trial = [python, "-c", TRIAL]
    said = subprocess.run(trial, cwd=library.parent.parent, stdout=subprocess.PIPE, text=True, check=True).stdout
    about = {"sources": sources, "commit": commit, "glibc": needed_glibc(library), **json.loads(said)}
    path = carry(library, about)
    print(f"loads and runs on the CPU under Python {about['python']}, torch {about['torch']}; GLIBC {about['glibc']}")
    print(f"{path.relative_to(records.ROOT)}: {path.stat().st_size / 2**20:.1f} MiB")
    python = Path(options.python).name
    print(f"on the machine with the GPU: LSTMKERN_COMMIT={commit or 'unknown'} make gpu-first PYTHON={python}")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        fail(f"{Path(str(error.cmd[0])).name} {' '.join(map(str, error.cmd[1:4]))} ended with {error.returncode}.")
