"""Result files and tables: JSON with the machine, versions, commit and command of the run, and Markdown."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import __version__, _extension
from ..lm.checkpoint import atomic_path
from .roofline import cache_sizes, cores

# CPU flags of the instruction sets that may matter to a recurrent layer.
_FLAGS = [
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_fp16",
    "avx512_vnni", "amx_tile", "amx_bf16", "amx_fp16", "amx_int8", "asimd", "asimdhp", "sve", "bf16",
]  # fmt: skip


def cpu() -> dict[str, Any]:
    """{"cpu", "flags", "caches", "cores"}: the processor's name, vector instruction sets, cache sizes and cores."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(about.get("flags", about.get("Features", "")).split())
    return {
        "cpu": about.get("model name", platform.processor() or platform.machine()),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "caches": cache_sizes(),
        "cores": cores(),
    }


def commit() -> str | None:
    """The commit of the source tree that this package runs from; None if it is installed.

    "+" is appended if tracked files outside benchmarks/results have changes.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "csrc").is_dir():
        return None

    def git(*args: str) -> str:
        said = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True)
        return said.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)benchmarks/results")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def command() -> str:
    """The command line of this process, without this machine's paths."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return " ".join(["python -m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])
    script = os.path.basename(sys.argv[0])
    return " ".join([*([] if script == "lstmkern" else ["python"]), script, *sys.argv[1:]])


def context(threads: int | Sequence[int]) -> dict[str, Any]:
    """What every result file needs: machine, versions, commit, command, threads, date."""
    built = _extension.build_info()
    return {
        "command": command(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {**cpu(), "system": f"{platform.system()} {platform.machine()}"},
        "capability": _extension.cpu_capability(),
        "capability_bf16": _extension.cpu_capability(bf16=True),
        "threads": threads,
        "versions": {
            "lstmkern": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "compiler": built["compiler"],
        },
    }


def write_json(path: str | Path, about: dict[str, Any], **results: Any) -> None:
    """Write ``about`` (see context) and ``results`` to ``path``, all or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(_rounded({**about, **results}), indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Round floats to five digits. More digits are noise, and would change every line of a result file each time."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return value


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, all or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["| " + " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """Three digits: 0.987, 1.23, 12.3, 123."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def machine_line(about: dict[str, Any]) -> str:
    """One line about the machine of a result file."""
    machine, versions = about["machine"], about["versions"]
    caches = ", ".join(f"{level} {size // 1024} KiB" for level, size in machine["caches"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {about['capability']} ({caches}); torch {versions['torch']}, "
        f"lstmkern {versions['lstmkern']} at {about['commit'][:9] if about['commit'] else 'an installed package'}"
    )
