"""The file of a command's results: one JSON object a line, written as soon as it is known, by every process.

Every process begins with a record of kind "header" (machine, versions, commit, extension); every record names its run,
its part and its process, so that it can be joined with that header. A line is one write() to a file opened for
appending: processes that run side by side do not tear each other's lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PART = "LSTMKERN_GPU_PART"  # what __main__.py tells the processes that it starts


def folder(device: str) -> Path:
    """Where results go: $OUT, else benchmarks/results; those of a rehearsal on the CPU never among the real ones."""
    default = ROOT / ("benchmarks/results" if device == "cuda" else "build/gpu-rehearsal")
    return Path(os.environ.get("OUT") or default).absolute()


def digest(*patterns: str) -> str:
    """Of the files that match: says which sources results are from where there is no git."""
    found = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}):
        found.update(f"{path.relative_to(ROOT)}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def compiled_digest() -> str:
    """Of what the extension is compiled from."""
    return digest("csrc/**/*", "setup.py")


def commit() -> str | None:
    """HEAD ("+" with changes), else what LSTMKERN_COMMIT says, else that of a carried extension of these sources: a
    copy of the tree on another machine has no git."""
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
    """What build_for.py has noted of the extensions in carry/, by their names."""
    note = ROOT / "carry" / "about.json"
    notes = json.loads(note.read_text()) if note.exists() else {}
    return {name: about for name, about in notes.items() if (note.parent / name).exists()}


def carried_commit() -> str | None:
    """Of the same compiled sources; the Python files may be of another commit, so it says where it is from."""
    same = [about for about in carried().values() if about["sources"] == compiled_digest() and about.get("commit")]
    return f"{same[0]['commit']} (of carry/about.json)" if same else None


def rounded(value):
    """Floats to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


class Records:
    """Appends to one part's lines of a run."""

    def __init__(self, path: Path | str, run: str, part: str, device: str):
        self.path, self.run, self.part, self.device = Path(path), run, part, device
        self.path.parent.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of_this_process(cls, part: str, device: str) -> Records:
        """Where the command that started this process wants its results; by hand: a run of its own."""
        told = told_by_command()
        path = told.get("path") or folder(device) / "gpu-by-hand.jsonl"
        return cls(path, told.get("run") or new_run(), told.get("part") or part, device)

    def environment(self, part: str, until: float | None) -> dict:
        """For a process that is to write this run's records. until: it starts nothing new after that (time.time())."""
        return {PART: json.dumps({"path": str(self.path), "run": self.run, "part": part, "until": until})}

    def write(self, kind: str, **values) -> dict:
        record = {"run": self.run, "part": self.part, "process": os.getpid(), "kind": kind}
        if self.device != "cuda":
            record["rehearsal"] = "on the CPU: nothing here was measured on a GPU"
        record = rounded({**record, **values})
        line = (json.dumps(record, default=str) + "\n").encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)
        return record


def told_by_command() -> dict:
    """{"path", "run", "part", "until"}, or nothing in a process that was started by hand."""
    return json.loads(os.environ.get(PART, "{}"))


def seconds_left() -> float:
    """Of this process's own time."""
    until = told_by_command().get("until")
    return float("inf") if until is None else until - time.time()


def new_run() -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}-{os.getpid()}"


def read(path: Path | str, run: str | None = None) -> list[dict]:
    """The records of a run (all runs if None); a line that a killed process left unfinished is passed over."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if run in (None, record.get("run")):
            found.append(record)
    return found
