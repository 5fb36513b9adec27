"""The directory of a session's results, and what is said about it if the session ends early."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from . import distributed
from .errors import Failed, InputError, Interrupted


class output_directory:
    """The directory of a session's results, and what is reported about it when the session ends early.

    ``make()`` makes the directory. Use the object as a context manager around the session: when it ends, the lock is
    released and directories that were made here and are empty are removed. Ctrl-C and a failed write end as one
    sentence that says which files were kept. If torchrun started several processes, only the first one writes.

    Args:
        given: the directory that the user named, or None for ``runs/<name>-<n>`` with the next free number n.
        name: name of the session, used if ``given`` is None.
        force: write into ``given`` even if it already holds files.

    Raises:
        InputError: ``given`` cannot be used.
    """

    def __init__(self, given: str | Path | None, name: str, force: bool = False) -> None:
        self.given, self.name, self.force = None if given is None else Path(given), name, force
        self.path: Path | None = None
        self._made: list[Path] = []  # directories that did not exist before
        self._used: list[Path] = []  # the directory and its subdirectories that hold results
        self._before: dict[Path, int] = {}  # what these held before the session, with its modification time
        self._unlock: Callable[[], object] = lambda: None
        if self.given is not None:
            self._check(self.given)

    def make(self) -> Path:
        """Make the directory, lock it for this process, and return its path. Calling this again changes nothing.

        Raises:
            InputError: the directory cannot be made, or another session uses it.
        """
        if not distributed.first():
            return Path()
        if self.path is None:
            self.path = self._next_free() if self.given is None else self.given
            self._make(self.path)
            self._lock(self.path)
            if self.given is not None:
                self._check(self.given)  # another session may have written since the first check
            self._use(self.path)
        return self.path

    def subdirectory(self, name: str) -> Path:
        """Make the directory ``name`` inside the directory of the results, and return its path.

        Raises:
            InputError: it cannot be made; see ``make``.
        """
        path = self.make() / name
        if distributed.first():
            self._make(path)
            self._use(path)
        return path

    def _check(self, directory: Path) -> None:
        try:
            if directory.exists() and not directory.is_dir():
                raise InputError(f"--out {directory} is not a directory")
            if not self.force and directory.is_dir() and any(directory.iterdir()):
                raise InputError(
                    f"--out {directory} already holds files: choose another directory, or --force to overwrite"
                )
        except OSError as error:
            raise InputError(f"--out {directory} cannot be used: {error.strerror}") from None

    def _next_free(self) -> Path:
        number = 1
        while True:
            path = Path("runs") / f"{self.name}-{number}"
            try:
                self._make(path.parent)
                path.mkdir(parents=True)  # fails if it exists: only one of two sessions that start at once succeeds
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

    def _lock(self, path: Path) -> None:
        """Lock the directory for this process, if the operating system has such locks."""
        try:
            import fcntl
        except ImportError:
            return
        descriptor = os.open(path, os.O_RDONLY)
        self._unlock = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another session is writing into {path}: choose another directory") from None
        except OSError:
            pass  # a file system without locks

    def _use(self, path: Path) -> None:
        self._used.append(path)
        self._before |= _entries(path)

    def kept(self) -> str:
        """What the session has written so far, as the end of a sentence: "runs/lm7-1 holds checkpoint.pt"."""
        found = {path: changed for used in self._used for path, changed in _entries(used).items()}
        written = [path for path, changed in found.items() if self._before.get(path) != changed]
        names = sorted(str(path.relative_to(self._used[0])) for path in written if path not in self._used)
        if names:
            return f"{self.path} holds {', '.join(names)}"
        return f"{self.path} is as it was" if self._before else "nothing was kept"

    def __enter__(self) -> output_directory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        kept = self.kept()
        self._unlock()
        for path in reversed(self._made):
            with suppress(OSError):  # it is not empty
                path.rmdir()
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"interrupted; {kept}") from None
        if isinstance(error, Failed):
            raise type(error)(f"{error}; {kept}") from None
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise Failed(f"{explained(error)}; {kept}") from None


def _entries(directory: Path) -> dict[Path, int]:
    """The files and directories in ``directory``, hidden ones left out, with their modification time in ns.

    Only this level is read: a directory that the user names may hold any number of files further down.
    """
    found = directory.iterdir() if directory.is_dir() else ()
    return {path: path.lstat().st_mtime_ns for path in found if not path.name.startswith(".")}


def explained(error: OSError) -> str:
    """A sentence such as "cannot write runs/x-1/metrics.csv: No space left on device"."""
    reason = error.strerror or str(error)
    return f"cannot write {error.filename}: {reason}" if error.filename else reason
