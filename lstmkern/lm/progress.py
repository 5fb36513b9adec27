"""What a terminal shows while a command works: a bar for batches, a spinner for what cannot be counted."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status


def working(console: Console, what: str) -> Status:
    """A spinner labelled ``what``. It runs in its own thread: do not use it while kernels run."""
    return console.status(f"{what} ...")


class Bar:
    """A progress bar of ``total`` batches, drawn from the start of ``with`` on, and gone afterwards.

    Redrawn from the loop, not from a thread of its own: on few cores that thread stalls the kernels' threads.
    """

    def __init__(self, console: Console, name: str, total: int, completed: int = 0):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(
            *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
        )
        self._task = self._bar.add_task(name, total=total, completed=completed)
        self._drawn = 0.0

    def __enter__(self) -> Bar:
        self._bar.start()
        self._bar.refresh()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def name(self, name: str) -> None:
        """Set the bar's label to ``name``."""
        self._bar.update(self._task, description=name, refresh=True)

    def advance(self) -> None:
        """One more batch is done."""
        self._bar.advance(self._task)
        if time.monotonic() > self._drawn + 0.25:
            self._bar.refresh()
            self._drawn = time.monotonic()
