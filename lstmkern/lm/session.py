"""A training session as the command line runs it: output directory, progress, Ctrl-C, checkpoints and reports."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import distributed
from .checkpoint import Checkpoint, restore_run, save_checkpoint
from .dataset import Dataset, load_dataset
from .errors import InputError, Interrupted
from .pretrained import MODEL, Pretrained, put_weights, save_encoder
from .report import EpochTable, TensorBoard, perplexity, write_metrics, write_plot
from .train import Config, Run, check_device, fit

CHECKPOINT = "checkpoint.pt"


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
        """Raise Interrupted if Ctrl-C was pressed, on any of several processes: all stop after the same batch."""
        if distributed.processes() > 1:
            self.requested = distributed.total(torch.tensor(int(self.requested))).item() > 0
        if self.requested:
            raise Interrupted


def train_session(
    console: Console,
    config: Config,
    kernels: Sequence[str],
    place: Callable[[], Path],
    resume: Checkpoint | None = None,
    pretrained: Pretrained | None = None,
    tensorboard: bool = False,
) -> tuple[list[Run], Path, Dataset]:
    """Train ``config`` on each of ``kernels`` in turn, showing progress on ``console``.

    ``place`` makes the directory for the results and returns it; everything the user gave is checked before it is
    called. ``pretrained`` is an encoder to start from. Of several processes all call this, and the first writes.
    Returns the finished runs, that directory, and what they were trained on.

    Raises:
        InputError: something the user gave cannot be used; nothing has been written.
        Interrupted: Ctrl-C; a checkpoint has been written.
    """
    check_device(config.device)
    with distributed.group(config.device, config.batch_size):
        return _train(console, config, kernels, place, resume, pretrained, tensorboard)


def _train(
    console: Console,
    config: Config,
    kernels: Sequence[str],
    place: Callable[[], Path],
    resume: Checkpoint | None,
    pretrained: Pretrained | None,
    tensorboard: bool,
) -> tuple[list[Run], Path, Dataset]:
    given = resume or pretrained
    data = load_dataset(config, given.vocab if given else None)
    if resume and (resume.fingerprint != data.fingerprint or resume.vocab != data.vocab):
        raise InputError(f"checkpoint {resume.path} was trained on another corpus than {data.source}")
    runs = [Run(config, len(data.vocab), data.train.steps(config.epochs), name) for name in kernels]
    for run in runs:
        if resume:
            restore_run(run, resume)
        elif pretrained:
            put_weights(run.model.encoder, data.vocab, pretrained)
    board = TensorBoard() if tensorboard else None
    out = place() if distributed.first() else Path()

    epoch = runs[0].epoch % config.epochs
    per_epoch, vocab = len(data.train.epoch(epoch)) + len(data.valid), data.vocab
    console.print(
        f"{config.name} on {' and '.join(kernels)}\n"
        f"{data.tokens:,} tokens, {len(vocab)} {vocab.unit}; {per_epoch - len(data.valid)} training and "
        f"{len(data.valid)} validation batches of {config.batch_size} x {config.seq_len}",
        soft_wrap=True,
    )
    if config.recipe.reads != "words":
        console.print(f"from {data.source}", soft_wrap=True)
    table = EpochTable(console, runs)
    table.header()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Redrawn from the loop, not from a thread of its own: on few cores that thread stalls the kernels' threads.
    bar = Progress(*columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal)
    task = bar.add_task(
        config.name,
        total=(data.train.steps(config.epochs) + config.epochs * len(data.valid)) * len(runs),
        completed=sum(data.train.steps(run.epoch) + run.epoch * len(data.valid) + run.batch for run in runs),
    )

    def save() -> None:
        save_checkpoint(out / CHECKPOINT, runs, vocab, data.fingerprint)
        if distributed.first():
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
        if board and distributed.first():
            board.write(out / "tensorboard", runs, epoch)

    with InterruptGuard() as guard, bar:
        try:
            fit(runs, data.train, data.valid, after_batch, after_epoch)
        except Interrupted:
            save()
            bar.stop()
            if distributed.first():
                print(
                    f"interrupted; continue with: python -m lstmkern train --resume {out / CHECKPOINT}",
                    file=sys.stderr,
                )
            raise
    save()
    if distributed.first():
        write_plot(out / "metrics.png", runs)
        if config.model == MODEL:
            save_encoder(out / "encoder.pt", runs[0].model, config, vocab)
    if data.unigram:
        reached = perplexity(runs[0].history[-1])
        console.print(
            f"perplexity {reached:.1f} on the documents held out; a unigram model has {data.unigram:.1f}, "
            f"{data.unigram / reached:.1f} times as much",
            soft_wrap=True,
        )
    return runs, out, data


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
