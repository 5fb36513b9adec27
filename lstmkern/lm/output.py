"""The directory of a session's results: who may write into it, and what is kept when the session ends early."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from pathlib import Path

from . import distributed
from .errors import Failed, InputError, Interrupted


class output_directory:
    """A directory for results, which calling this makes; ``with`` says what it holds if the session ends early.

    Without ``given`` that is runs/<name>-<n> with the next free number, otherwise ``given``, which must not hold
    anything yet unless ``force`` is set. Of several processes the first one makes it. On leaving ``with``, directories
    that were made here and are empty disappear, and Ctrl-C and a failed write become one sentence.

    Raises:
        InputError: ``given`` cannot be used; in the call: the directory cannot be made, or another session uses it.
    """

    def __init__(self, given: str | Path | None, name: str, force: bool = False):
        self.given, self.name, self.force = None if given is None else Path(given), name, force
        self.path: Path | None = None
        self._made: list[Path] = []
        self._before: dict[Path, int] = {}
        if given is not None:
            self._check()

    def _check(self) -> None:
        out = self.given
        try:
            if out.exists() and not out.is_dir():
                raise InputError(f"--out {out} is not a directory")
            if out.is_dir() and any(out.iterdir()) and not self.force:
                raise InputError(f"--out {out} already holds files: choose another directory, or --force to overwrite")
        except OSError as error:
            raise InputError(f"--out {out} cannot be used: {error.strerror}") from None

    def __call__(self) -> Path:
        if not distributed.first():
            return Path()
        if self.path is None:
            self.path = self._next_free() if self.given is None else self.given
            self._make(self.path)
            self._claim()
            if self.given is not None:
                self._check()  # another session may have written since
            self._before = self._files()
        return self.path

    def directory(self, name: str) -> Path:
        """Make the directory ``name`` in this one and return it."""
        path = self() / name
        if distributed.first():
            self._make(path)
        return path

    def _next_free(self) -> Path:
        number = 1
        while True:
            path = Path("runs") / f"{self.name}-{number}"
            try:
                self._make(path.parent)
                path.mkdir(parents=True)  # fails if it exists: of two sessions that start at once, one gets it
                self._made.append(path)
                return path
            except FileExistsError:
                number += 1
            except OSError as error:
                raise InputError(f"cannot make the directory {path}: {error.strerror}") from None

    def _make(self, path: Path) -> None:
        missing = [p for p in (path, *path.parents) if not p.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the directory {path}: {error.strerror}") from None
        self._made += reversed(missing)

    def _claim(self) -> None:
        """Lock the directory for this process, where the system has such locks."""
        try:
            import fcntl
        except ImportError:
            return
        descriptor = os.open(self.path, os.O_RDONLY)
        self._unlock = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another session is writing into {self.path}: choose another directory") from None
        except OSError:
            pass  # a file system without locks

    def _files(self) -> dict[Path, int]:
        if self.path is None:
            return {}
        files = (path for path in sorted(self.path.rglob("*")) if path.is_file() and not path.name.startswith("."))
        return {path.relative_to(self.path): path.stat().st_mtime_ns for path in files}

    def kept(self) -> str:
        """What the session has written so far, as the end of a sentence."""
        files = [str(path) for path, changed in self._files().items() if self._before.get(path) != changed]
        if files:
            return f"{self.path} holds {', '.join(files)}"
        return f"{self.path} is as it was" if self._before else "nothing was kept"

    def __enter__(self) -> output_directory:
        return self

    def __exit__(self, kind, error, _) -> None:
        kept = self.kept()
        if hasattr(self, "_unlock"):
            self._unlock()
        for path in reversed(self._made):
            with suppress(OSError):  # it holds something
                path.rmdir()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"interrupted; {kept}") from None
        if isinstance(error, Failed):
            raise type(error)(f"{error}; {kept}") from None
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise Failed(f"{explained(error)}; {kept}") from None


def explained(error: OSError) -> str:
    """What went wrong, with the file if that is known: "cannot write runs/x-1/metrics.csv: No space left on device"."""
    reason = error.strerror or str(error)
    return f"cannot write {error.filename}: {reason}" if error.filename else reason
