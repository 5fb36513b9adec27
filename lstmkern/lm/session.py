"""A training session as the command line runs it: output directory, progress, Ctrl-C, checkpoints and reports."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .checkpoint import Checkpoint, restore_run, save_checkpoint
from .data import InputError, load_corpus, make_batches
from .report import EpochTable, write_metrics, write_plot
from .train import Config, Run, check_device, fit

CHECKPOINT = "checkpoint.pt"


class Interrupted(Exception):
    """Ctrl-C at a moment where the training state is complete."""


class InterruptGuard:
    """Within this context the first Ctrl-C only sets ``requested``; a second one interrupts at once."""

    def __enter__(self) -> InterruptGuard:
        self.requested = False
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, *_) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        if self.requested:
            raise Interrupted


def train_session(
    console: Console,
    config: Config,
    kernels: Sequence[str],
    place: Callable[[], Path],
    resume: Checkpoint | None = None,
) -> tuple[list[Run], Path]:
    """Train ``config`` on each of ``kernels`` in turn, showing progress on ``console``.

    ``place`` makes the directory for the results and returns it; everything the user gave is checked before it is
    called. Returns the finished runs and that directory.

    Raises:
        InputError: something the user gave cannot be used; nothing has been written.
        Interrupted: Ctrl-C; a checkpoint has been written.
    """
    check_device(config.device)
    corpus = load_corpus(config.data)
    if resume and resume.fingerprint != corpus.fingerprint:
        raise InputError(
            f"checkpoint {resume.path} was trained on another corpus than {config.data or 'HUMAN_NUMBERS'}"
        )
    train, valid = (b.to(config.device) for b in make_batches(corpus.ids, config.batch_size, config.seq_len))
    runs = [Run(config, len(corpus.vocab), len(train), name) for name in kernels]
    if resume:
        for run in runs:
            restore_run(run, resume)
    out = place()

    console.print(
        f"{config.model}-{config.cell} on {' and '.join(kernels)}\n"
        f"{len(corpus.ids):,} tokens, {len(corpus.vocab)} words; {len(train)} training and {len(valid)} validation "
        f"batches of {config.batch_size} x {config.seq_len}",
        soft_wrap=True,
    )
    table = EpochTable(console, runs)
    table.header()
    per_epoch = len(train) + len(valid)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Redrawn from the loop, not from a thread of its own: on few cores that thread stalls the kernels' threads.
    bar = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    task = bar.add_task(
        f"{config.model}-{config.cell}",
        total=config.epochs * per_epoch * len(runs),
        completed=sum(run.epoch * per_epoch + run.batch for run in runs),
    )

    def save() -> None:
        save_checkpoint(out / CHECKPOINT, runs, corpus)
        write_metrics(out / "metrics.csv", runs)

    drawn = 0.0

    def after_batch() -> None:
        nonlocal drawn
        bar.advance(task)
        if time.monotonic() > drawn + 0.25:
            bar.refresh()
            drawn = time.monotonic()
        guard.check()

    def after_epoch(epoch: int) -> None:
        table.row(epoch)
        save()

    with InterruptGuard() as guard, bar:
        try:
            fit(runs, train, valid, after_batch, after_epoch)
        except Interrupted:
            save()
            bar.stop()
            print(
                f"interrupted; continue with: python -m lstmkern train --resume {out / CHECKPOINT}",
                file=sys.stderr,
            )
            raise
    save()
    write_plot(out / "metrics.png", runs)
    return runs, out


def output_directory(given: str | None, name: str, force: bool) -> Callable[[], Path]:
    """Check where results may go, and return the function that makes that directory.

    Without ``given`` that is runs/<name>-<n> with the next free number, otherwise ``given``, which must not hold
    anything yet unless ``force`` is set.
    """
    if given is None:
        return lambda: _next_free(Path("runs"), name)
    out = Path(given)
    try:
        if out.exists() and not out.is_dir():
            raise InputError(f"--out {out} is not a directory")
        if out.is_dir() and any(out.iterdir()) and not force:
            raise InputError(f"--out {out} already holds files: choose another directory, or --force to overwrite")
    except OSError as error:
        raise InputError(f"--out {out} cannot be used: {error.strerror}") from None
    return lambda: make_directory(out)


def _next_free(parent: Path, name: str) -> Path:
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return make_directory(parent / f"{name}-{number}")


def make_directory(out: Path) -> Path:
    """Make ``out`` and its parents, if it does not exist yet, and return it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the directory {out}: {error.strerror}") from None
    return out
