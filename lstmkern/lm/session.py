"""A training session of the command line: progress, Ctrl-C, checkpoints and reports."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
from rich.console import Console

from . import distributed
from .checkpoint import CHECKPOINT, Checkpoint, restore_run, save_checkpoint
from .dataset import Dataset, load_dataset
from .errors import InputError, Interrupted
from .pretrained import ENCODER_FILE, MODEL, Pretrained, load_encoder_weights, save_encoder
from .progress import Bar, working
from .report import EpochTable, TensorBoard, counted, perplexity, write_metrics, write_plot
from .train import Config, Run, check_device, fit


class InterruptGuard:
    """Within this context the first Ctrl-C only sets ``requested``; a second one interrupts immediately.

    Before the first ``check()`` there is nothing to keep, so the first Ctrl-C interrupts immediately too: torch.compile
    may need minutes for the first batch.
    """

    def __enter__(self) -> InterruptGuard:
        self.requested = False
        self._previous = signal.signal(signal.SIGINT, self._handle)
        self._checked = distributed.processes() > 1  # several processes must always stop after the same batch
        return self

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self._previous)
        if not self._checked:
            raise KeyboardInterrupt
        if sys.stderr.isatty():
            print("stopping after this batch (press Ctrl-C again to stop immediately)", file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def check(self) -> None:
        """Raise Interrupted if Ctrl-C was pressed, on any process, so that all stop after the same batch."""
        self._checked = True
        if distributed.processes() > 1:
            self.requested = distributed.total(torch.tensor(int(self.requested))).item() > 0
        if self.requested:
            raise Interrupted


def train_session(
    console: Console,
    config: Config,
    kernels: Sequence[str],
    make_directory: Callable[[], Path],
    resume: Checkpoint | None = None,
    pretrained: Pretrained | None = None,
    tensorboard: bool = False,
    choose_epochs: bool = False,
) -> tuple[list[Run], Path, Dataset]:
    """Train one model on each of several kernels, alternating epoch by epoch, and write the results.

    Everything the user gave is checked before a directory is made. If torchrun started several processes, all of them
    call this function and the first one writes.

    Args:
        console: where progress and the epoch table are printed.
        config: the model and how it is trained.
        kernels: whose recurrent layers to use, ``OURS``, ``PEER`` or both; one run each.
        make_directory: makes the directory for the results and returns it.
        resume: checkpoint to continue from. If ``config`` has more epochs than the checkpoint was made with, the
            remaining epochs get a new one-cycle schedule.
        pretrained: encoder to start from (AWD-LSTM).
        tensorboard: also write TensorBoard event files.
        choose_epochs: train for more epochs than ``config`` says if the text is too small for those.

    Returns:
        The finished runs, the directory of the results, and the data set.

    Raises:
        InputError: something the user gave cannot be used; nothing has been written.
        Interrupted: Ctrl-C; a checkpoint has been written, unless the message says otherwise.
        KeyboardInterrupt: Ctrl-C before the first batch, or a second Ctrl-C; nothing was written since the last epoch.
        Diverged: a loss is nan or inf; the checkpoint of the epoch before is unchanged.
    """
    check_device(config.device)
    with distributed.group(config.device, config.batch_size):
        data = _read_data(console, config, resume, pretrained)
        why_more = ""
        if choose_epochs:
            config, why_more = enough_epochs(config, data)
        runs = [_make_run(config, name, data, resume, pretrained) for name in kernels]
        board = TensorBoard() if tensorboard else None
        session = _Session(console, config, runs, data, make_directory(), board)
        session.introduce(resume, why_more)
        session.train()
        session.finish()
        return runs, session.directory, data


def _read_data(console: Console, config: Config, resume: Checkpoint | None, pretrained: Pretrained | None) -> Dataset:
    """The data set of ``config``, with the vocabulary of the checkpoint or encoder that the training starts from."""
    given = resume or pretrained
    with working(console, "reading the text") as status:
        data = load_dataset(config, given.vocab if given else None, status.update)
    if resume and (resume.fingerprint != data.fingerprint or resume.vocab != data.vocab):
        raise InputError(f"checkpoint {resume.path} was trained on another corpus than {data.source}")
    return data


def _make_run(
    config: Config, kernels: str, data: Dataset, resume: Checkpoint | None, pretrained: Pretrained | None
) -> Run:
    """A run with new weights, with those of the encoder ``pretrained``, or in the state that ``resume`` holds."""
    steps = data.train.steps(config.epochs)
    run = Run(config, len(data.vocab), steps, kernels)
    if resume:
        restore_run(run, resume)
        if config.epochs > resume.config.epochs:
            run.new_cycle(steps - data.train.steps(run.epoch) - run.batch)
    elif pretrained:
        load_encoder_weights(run.model.encoder, data.vocab, pretrained)
    return run


class _Session:
    """The runs of a session, their data, and the directory of the results: introduce, train and finish, in this order.

    Args:
        board: writes TensorBoard event files, or None.
    """

    def __init__(
        self,
        console: Console,
        config: Config,
        runs: list[Run],
        data: Dataset,
        directory: Path,
        board: TensorBoard | None,
    ) -> None:
        self.console, self.config, self.runs, self.data = console, config, runs, data
        self.directory, self.board = directory, board
        self.table = EpochTable(console, runs)

    def introduce(self, resume: Checkpoint | None, why_more: str) -> None:
        """Print what is trained on what; ``why_more`` is a sentence about additional epochs, or empty."""
        config, data, runs = self.config, self.data, self.runs
        if resume and all(run.epoch >= config.epochs for run in runs):
            self._print(
                f"nothing was left to do: this training ended after {counted(config.epochs)}, a larger --epochs "
                "trains on"
            )
        batches = len(data.train.epoch(runs[0].epoch % config.epochs))
        self._print(f"{config.name} on {' and '.join(run.kernels for run in runs)}")
        self._print(f"{data.tokens:,} {data.vocab.unit}, vocabulary of {len(data.vocab):,}")
        self._print(
            f"{batches} training and {len(data.valid)} validation batches of {config.batch_size} sequences x "
            f"{config.seq_len} tokens"
        )
        if config.recipe.reads != "words":
            self._print(f"from {data.source}")
        if why_more:
            self._print(why_more)
        if resume and config.epochs > resume.config.epochs:
            first, last = min(run.epoch for run in runs), config.epochs - 1
            which = f"epochs {first} to {last}" if first < last else f"epoch {last}"
            self._print(f"training {which} with a new one-cycle schedule, warm-up included")

    def train(self) -> None:
        """Train all runs to their last epoch with a row of the table and a checkpoint per epoch."""
        self.table.header()
        with InterruptGuard() as guard, self._bar() as bar:

            def after_batch() -> None:
                bar.advance()
                guard.check()

            try:
                fit(self.runs, self.data.train, self.data.valid, after_batch, self._after_epoch)
            except Interrupted:
                self._keep_interrupted()
        self._save()

    def finish(self) -> None:
        """Write the plot and the encoder, and compare the perplexity with that of a unigram model."""
        run, data = self.runs[0], self.data
        if distributed.first():
            write_plot(self.directory / "metrics.png", self.runs)
            if self.config.model == MODEL:
                save_encoder(self.directory / ENCODER_FILE, run.model, self.config, data.vocab)
        if data.unigram:
            self._print(against_unigram(perplexity(run.history[-1]), data.unigram))

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def _bar(self) -> Bar:
        def batches(epochs: int) -> int:
            return self.data.train.steps(epochs) + epochs * len(self.data.valid)

        return Bar(
            self.console,
            self.config.name,
            total=batches(self.config.epochs) * len(self.runs),
            completed=sum(batches(run.epoch) + run.batch for run in self.runs),
        )

    def _after_epoch(self, epoch: int) -> None:
        self.table.row(epoch)
        self._save()
        if self.board and distributed.first():
            self.board.write(self.directory / "tensorboard", self.runs, epoch)

    def _save(self) -> None:
        save_checkpoint(self.directory / CHECKPOINT, self.runs, self.data.vocab, self.data.fingerprint)
        if distributed.first():
            write_metrics(self.directory / "metrics.csv", self.runs)

    def _keep_interrupted(self) -> NoReturn:
        """After Ctrl-C: write a checkpoint, unless the training has diverged, and say how to continue."""
        diverged = torch.tensor(sum(not run.finite() for run in self.runs))
        if distributed.total(diverged).item():
            raise Interrupted(
                f"interrupted in epoch {self.runs[0].epoch}, which is not kept: its loss is nan or inf, so that the "
                "training has diverged; train again with a lower --lr"
            ) from None
        self._save()
        raise Interrupted(
            f"interrupted; continue with: python -m lstmkern train --resume {self.directory / CHECKPOINT}"
        ) from None


def against_unigram(reached: float, unigram: float) -> str:
    """A sentence that compares a model's perplexity with that of a unigram model; lower is better."""
    start = f"perplexity {reached:.1f} on the documents held out; a unigram model has {unigram:.1f}"
    if reached < unigram:
        return f"{start}, {unigram / reached:.1f} times as much"
    return f"{start}, so this model is worse than counting tokens: it needs more text, or more --epochs"


def enough_epochs(config: Config, data: Dataset) -> tuple[Config, str]:
    """Increase the number of epochs if the text is too small for the model to learn words.

    Args:
        config: the configuration.
        data: the data set.

    Returns:
        The configuration to use, and a sentence that says why it has more epochs; empty if it is unchanged.
    """
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
