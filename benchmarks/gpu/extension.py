"""Part: finds an extension that was built from these sources and loads: the local one, the carried one, or a new build.

    python -m benchmarks.gpu.extension            # exit code 0: it loads; 2: no GPU; 3: it has to be built
    python -m benchmarks.gpu.extension --build

The file is chosen before anything is imported. An extension in carry/ (build_for.py) is copied to lstmkern/ only if its
name fits this Python and its note names exactly these sources; the file that it replaces is kept under build/. A note,
build/gpu-extension.json, distinguishes a copied extension from one that was built here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from . import records, tools

NAME = "_C" + sysconfig.get_config_var("EXT_SUFFIX")  # the suffix names the Python version
NO_GPU, TO_BUILD = 2, 3


def note_of(root: Path) -> Path:
    return root / "build" / "gpu-extension.json"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_note(root: Path, origin: str) -> None:
    note_of(root).parent.mkdir(exist_ok=True)
    about = {"file": sha256(root / "lstmkern" / NAME), "sources": records.compiled_digest(), "from": origin}
    note_of(root).write_text(json.dumps(about) + "\n")


def noted(root: Path) -> dict:
    """The note about the extension in lstmkern/; empty if the note is about another file."""
    local, note = root / "lstmkern" / NAME, note_of(root)
    about = json.loads(note.read_text()) if note.exists() and local.exists() else {}
    return about if about and about["file"] == sha256(local) else {}


def fresh(root: Path) -> bool:
    """Whether lstmkern/'s extension has CUDA kernels and is built from these sources, as far as its files show."""
    local = root / "lstmkern" / NAME
    if not local.exists() or b".nv_fatbin" not in local.read_bytes():
        return False
    if about := noted(root):
        return about["sources"] == records.compiled_digest()
    sources = [path for path in [root / "setup.py", *(root / "csrc").rglob("*")] if path.is_file()]
    return all(path.stat().st_mtime <= local.stat().st_mtime for path in sources)


def place(root: Path) -> tuple[bool, str]:
    """Makes sure that lstmkern/ has an extension that may load. Returns (whether it has, the reason)."""
    local, carried, about = root / "lstmkern" / NAME, root / "carry" / NAME, root / "carry" / "about.json"
    if fresh(root):
        return True, f"lstmkern/{NAME} is built from these sources"
    if not carried.exists():
        return False, f"neither lstmkern/ nor carry/ has a {NAME} built from these sources"
    notes = json.loads(about.read_text()) if about.exists() else {}
    if notes.get(NAME, {}).get("sources") != records.compiled_digest():
        return False, f"carry/{NAME} is built from other sources; run `make gpu-build-for` again"
    if local.exists() and not noted(root):
        kept = root / "build" / "replaced" / NAME
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(local, kept)
    # A new file under the name: a running process may have mapped the old file.
    temporary = local.with_suffix(".new")
    shutil.copy2(carried, temporary)
    os.replace(temporary, local)
    write_note(root, "carry/")
    return True, f"carry/{NAME} is built from these sources"


def undo(root: Path) -> None:
    """Undoes what place() did, because the extension does not load."""
    local, kept = root / "lstmkern" / NAME, root / "build" / "replaced" / NAME
    if noted(root).get("from") == "carry/":
        local.unlink()
        note_of(root).unlink()
        if kept.exists():
            shutil.move(kept, local)


def load(root: Path, device: str) -> int:
    """Imports torch, then the extension. Returns the exit code of this part."""
    there = False
    if device == "cuda" and tools.gpus():
        there, reason = place(root)
        print(reason, flush=True)
    try:
        import torch
    except ImportError as error:
        print(f"torch does not load: {error}")
        return NO_GPU
    if device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no usable GPU; with DEVICE=cpu it is a rehearsal.")
        return NO_GPU
    if device == "cuda" and not there:
        there, reason = place(root)
        print(reason, flush=True)
        if not there:
            return TO_BUILD
    try:
        from lstmkern import _C
    except ImportError as error:
        print(f"lstmkern/{NAME} does not load: {error.__cause__ or error}")
        if device == "cuda":
            undo(root)
        return TO_BUILD
    print(f"{NAME} loads: {_C.build_info()}")
    return 0


def build(root: Path, device: str) -> int:
    """Compiles in place for the GPU of this machine; fails rather than build without CUDA kernels."""
    import torch

    told = {"LSTMKERN_CUDA": "1" if device == "cuda" else "0", "MAX_JOBS": str(len(os.sched_getaffinity(0)))}
    if device == "cuda" and "TORCH_CUDA_ARCH_LIST" not in os.environ:
        capability = torch.cuda.get_device_capability()
        told["TORCH_CUDA_ARCH_LIST"] = "9.0a" if capability == (9, 0) else "{}.{}".format(*capability)
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    code = subprocess.run(command, cwd=root, env={**os.environ, **told}).returncode
    if code == 0:
        write_note(root, "a build here")
    return code


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--build", action="store_true")
    options = parser.parse_args(arguments)
    return (build if options.build else load)(records.ROOT, options.device)


if __name__ == "__main__":
    sys.exit(main())
