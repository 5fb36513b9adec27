"""What a terminal shows while a command works: a progress bar over batches, or a spinner."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.status import Status


def working(console: Console, what: str) -> Status:
    """A spinner with the label ``what``. It has a thread, so do not show it while kernels run."""
    return console.status(f"{what} ...")


class Bar:
    """A progress bar over batches, shown while the context is active.

    It is redrawn by ``advance``. A thread for redrawing would stall the kernels' threads on a machine with few cores.

    Args:
        console: where it is shown, if that is a terminal.
        name: its label.
        total: number of batches.
        completed: batches that are already done.
    """

    def __init__(self, console: Console, name: str, total: int, completed: int = 0) -> None:
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

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def name(self, name: str) -> None:
        """Change the label to ``name``."""
        self._bar.update(self._task, description=name, refresh=True)

    def advance(self) -> None:
        """Count one more batch; redraw at most four times per second."""
        self._bar.advance(self._task)
        if time.monotonic() > self._drawn + 0.25:
            self._bar.refresh()
            self._drawn = time.monotonic()
