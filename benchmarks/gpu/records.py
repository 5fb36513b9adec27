"""The result file of a command: one JSON object per line, written by every process as soon as it is known.

Every process begins with a record of kind "header" (machine, versions, commit, extension). Every record names its run,
part and process, so that it can be joined with that header. A line is one write() to a file opened for appending, so
processes that run side by side cannot mix their lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PART = "LSTMKERN_GPU_PART"  # set by __main__.py for the processes that it starts


def folder(device: str) -> Path:
    """Where results go: $OUT, else benchmarks/results. Results of a rehearsal on the CPU have a folder of their own."""
    default = ROOT / ("benchmarks/results" if device == "cuda" else "build/gpu-rehearsal")
    return Path(os.environ.get("OUT") or default).absolute()


def digest(*patterns: str) -> str:
    """A digest of the files that match. It identifies the sources of a result where there is no git."""
    found = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}):
        found.update(f"{path.relative_to(ROOT)}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def compiled_digest() -> str:
    """A digest of the files that the extension is compiled from."""
    return digest("csrc/**/*", "setup.py")


def commit() -> str | None:
    """HEAD ("+" if there are changes), else LSTMKERN_COMMIT, else the commit of a carried extension of these sources.

    A copy of the tree on another machine has no git.
    """
    git = ["git", "-C", str(ROOT)]
    try:
        if not (ROOT / ".git").exists():
            raise OSError("no checkout")
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":(exclude)benchmarks/results"])
        return head + ("+" if changed.returncode else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("LSTMKERN_COMMIT") or carried_commit()


def carried() -> dict:
    """The notes that build_for.py wrote about the extensions in carry/, by file name."""
    note = ROOT / "carry" / "about.json"
    notes = json.loads(note.read_text()) if note.exists() else {}
    return {name: about for name, about in notes.items() if (note.parent / name).exists()}


def carried_commit() -> str | None:
    """The commit of a carried extension from the same compiled sources. The Python files may be of another commit, so
    the text says that it comes from carry/."""
    same = [about for about in carried().values() if about["sources"] == compiled_digest() and about.get("commit")]
    return f"{same[0]['commit']} (of carry/about.json)" if same else None


def rounded(value):
    """Rounds floats to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


class Records:
    """Appends the records of one part of a run."""

    def __init__(self, path: Path | str, run: str, part: str, device: str):
        self.path, self.run, self.part, self.device = Path(path), run, part, device
        self.path.parent.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of_this_process(cls, part: str, device: str) -> Records:
        """The records that the command told this process to write; a process that was started by hand has a run of its
        own."""
        told = command_settings()
        path = told.get("path") or folder(device) / "gpu-by-hand.jsonl"
        return cls(path, told.get("run") or new_run(), told.get("part") or part, device)

    def environment(self, part: str, until: float | None) -> dict:
        """The environment variables for a process that writes records of this run. until: a time (time.time()) after
        which it starts nothing new."""
        return {PART: json.dumps({"path": str(self.path), "run": self.run, "part": part, "until": until})}

    def write(self, kind: str, **values) -> dict:
        record = {"run": self.run, "part": self.part, "process": os.getpid(), "kind": kind}
        if self.device != "cuda":
            record["rehearsal"] = "a rehearsal on the CPU: nothing was measured on a GPU"
        record = rounded({**record, **values})
        line = (json.dumps(record, default=str) + "\n").encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)
        return record


def command_settings() -> dict:
    """{"path", "run", "part", "until"} from the command; empty in a process that was started by hand."""
    return json.loads(os.environ.get(PART, "{}"))


def seconds_left() -> float:
    """The seconds that this process has left."""
    until = command_settings().get("until")
    return float("inf") if until is None else until - time.time()


def new_run() -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}-{os.getpid()}"


def read(path: Path | str, run: str | None = None) -> list[dict]:
    """The records of a run (all runs if None). Skips a line that a killed process left incomplete."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if run in (None, record.get("run")):
            found.append(record)
    return found
