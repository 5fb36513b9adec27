"""A training session as the command line runs it: output directory, progress, Ctrl-C, checkpoints and reports."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from . import distributed
from .checkpoint import CHECKPOINT, Checkpoint, restore_run, save_checkpoint
from .dataset import Dataset, load_dataset
from .errors import InputError, Interrupted
from .output import output_directory as output_directory  # for the commands
from .pretrained import ENCODER_FILE, MODEL, Pretrained, put_weights, save_encoder
from .progress import Bar, working
from .report import EpochTable, TensorBoard, counted, perplexity, write_metrics, write_plot
from .train import Config, Run, check_device, fit


class InterruptGuard:
    """Within this context the first Ctrl-C only sets ``requested``; a second one interrupts at once.

    Before the first ``check()`` there is nothing to keep, and the first Ctrl-C too interrupts at once: torch.compile
    may take minutes for the first batch.
    """

    def __enter__(self) -> InterruptGuard:
        self.requested = False
        self._previous = signal.signal(signal.SIGINT, self._handle)
        self._checked = distributed.processes() > 1  # all processes stop after the same batch, also after the first
        return self

    def _handle(self, *_) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)
        if not self._checked:
            raise KeyboardInterrupt
        if sys.stderr.isatty():
            print("stopping after this batch (Ctrl-C once more: at once)", file=sys.stderr)

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        """Raise Interrupted if Ctrl-C was pressed, on any of several processes: all stop after the same batch."""
        self._checked = True
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
    choose_epochs: bool = False,
) -> tuple[list[Run], Path, Dataset]:
    """Train ``config`` on each of ``kernels`` in turn, showing progress on ``console``.

    ``place`` makes the directory for the results and returns it; everything the user gave is checked before it is
    called. ``resume`` is a checkpoint to go on from: with more epochs in ``config`` than it was made with, those that
    are left have a schedule of their own. ``pretrained`` is an encoder to start from. ``choose_epochs``: a text that is
    too small for the epochs of ``config`` gets more. Of several processes all call this, and the first writes.
    Returns the finished runs, that directory, and what they were trained on.

    Raises:
        InputError: something the user gave cannot be used; nothing has been written.
        Interrupted: Ctrl-C; a checkpoint has been written, unless the message says otherwise.
        KeyboardInterrupt: Ctrl-C before the first batch, or a second one; nothing was written since the last epoch.
        Diverged: a loss is nan or inf; the checkpoint of the epoch before is as it was.
    """
    check_device(config.device)
    with distributed.group(config.device, config.batch_size):
        return _train(console, config, kernels, place, resume, pretrained, tensorboard, choose_epochs)


def _train(
    console: Console,
    config: Config,
    kernels: Sequence[str],
    place: Callable[[], Path],
    resume: Checkpoint | None,
    pretrained: Pretrained | None,
    tensorboard: bool,
    choose_epochs: bool,
) -> tuple[list[Run], Path, Dataset]:
    given = resume or pretrained
    with working(console, "reading the text") as status:
        data = load_dataset(config, given.vocab if given else None, status.update)
    if choose_epochs:
        config, chosen = enough_epochs(config, data)
    if resume and (resume.fingerprint != data.fingerprint or resume.vocab != data.vocab):
        raise InputError(f"checkpoint {resume.path} was trained on another corpus than {data.source}")
    runs = [Run(config, len(data.vocab), data.train.steps(config.epochs), name) for name in kernels]
    for run in runs:
        if resume:
            restore_run(run, resume)
            if config.epochs > resume.config.epochs:
                run.new_cycle(data.train.steps(config.epochs) - data.train.steps(run.epoch) - run.batch)
        elif pretrained:
            put_weights(run.model.encoder, data.vocab, pretrained)
    board = TensorBoard() if tensorboard else None
    out = place()

    epoch = runs[0].epoch % config.epochs
    per_epoch, vocab = len(data.train.epoch(epoch)) + len(data.valid), data.vocab
    if resume and all(run.epoch >= config.epochs for run in runs):
        console.print(
            f"nothing was left to do: this training ended after {counted(config.epochs)}, a larger --epochs trains on",
            soft_wrap=True,
        )
    console.print(
        f"{config.name} on {' and '.join(kernels)}\n"
        f"{data.tokens:,} {vocab.unit}, vocabulary of {len(vocab):,}\n{per_epoch - len(data.valid)} training and "
        f"{len(data.valid)} validation batches of {config.batch_size} sequences x {config.seq_len} tokens",
        soft_wrap=True,
    )
    if config.recipe.reads != "words":
        console.print(f"from {data.source}", soft_wrap=True)
    if choose_epochs and chosen:
        console.print(chosen, soft_wrap=True)
    if resume and config.epochs > resume.config.epochs:
        first, last = min(run.epoch for run in runs), config.epochs - 1
        which = f"epochs {first} to {last}" if first < last else f"epoch {last}"
        console.print(f"training {which} with a new one-cycle schedule, warm-up included", soft_wrap=True)
    table = EpochTable(console, runs)
    table.header()
    bar = Bar(
        console,
        config.name,
        total=(data.train.steps(config.epochs) + config.epochs * len(data.valid)) * len(runs),
        completed=sum(data.train.steps(run.epoch) + run.epoch * len(data.valid) + run.batch for run in runs),
    )

    def save() -> None:
        save_checkpoint(out / CHECKPOINT, runs, vocab, data.fingerprint)
        if distributed.first():
            write_metrics(out / "metrics.csv", runs)

    def after_batch() -> None:
        bar.advance()
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
            if distributed.total(torch.tensor(sum(not run.finite() for run in runs))).item():
                raise Interrupted(
                    f"interrupted in epoch {runs[0].epoch}, which is not kept: its loss is nan or inf, so that the "
                    "training has diverged; train again with a lower --lr"
                ) from None
            save()
            raise Interrupted(
                f"interrupted; continue with: python -m lstmkern train --resume {out / CHECKPOINT}"
            ) from None
    save()
    if distributed.first():
        write_plot(out / "metrics.png", runs)
        if config.model == MODEL:
            save_encoder(out / ENCODER_FILE, runs[0].model, config, vocab)
    if data.unigram:
        console.print(against_unigram(perplexity(runs[0].history[-1]), data.unigram), soft_wrap=True)
    return runs, out, data


def against_unigram(reached: float, unigram: float) -> str:
    """A sentence that compares a model's perplexity with the unigram model's; lower is better."""
    start = f"perplexity {reached:.1f} on the documents held out; a unigram model has {unigram:.1f}"
    if reached < unigram:
        return f"{start}, {unigram / reached:.1f} times as much"
    return f"{start}, so this model is worse than counting tokens: it needs more text, or more --epochs"


def enough_epochs(config: Config, data: Dataset) -> tuple[Config, str]:
    """``config`` with as many epochs as its model needs on ``data``, and a sentence that says why if they are more."""
    least, usual = config.recipe.least_steps, config.epochs
    per_epoch = len(data.train.epoch(0))
    if usual * per_epoch >= least:
        return config, ""
    epochs = math.ceil(least / per_epoch)
    why = (
        f"the text is small: {epochs} epochs instead of {usual}, so that the optimizer makes {epochs * per_epoch:,} "
        f"steps and not {usual * per_epoch:,}, too few to learn words; --epochs changes that"
    )
    return replace(config, epochs=epochs), why
