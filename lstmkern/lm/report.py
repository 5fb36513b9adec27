"""What a training session shows and leaves behind: the epoch table, the comparison table, metrics.csv, the plot."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import median

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from .checkpoint import atomic_path
from .errors import InputError
from .train import EpochResult, Run


class EpochTable:
    """The table a fastai user knows, one plain line per epoch, so that it reads the same in a terminal and in a log.

    A second run stands at the right of the first; one alone has its perplexity there. Lines are at most 76 characters
    wide.
    """

    def __init__(self, console: Console, runs: Sequence[Run]):
        self.console, self.runs = console, runs

    def header(self) -> None:
        """Print the head, and the epochs that a resumed session has already behind it."""
        left, right = "epoch  train_loss  valid_loss  accuracy   time", "valid_loss  accuracy   time"
        if len(self.runs) > 1:
            self._print(f"{self.runs[0].kernels:^{len(left)}} | {self.runs[1].kernels:^{len(right)}}")
            left += f" | {right}"
        else:
            left += "  perplexity"
        self._print(left)
        for epoch in range(min(run.epoch for run in self.runs)):
            self.row(epoch)

    def row(self, epoch: int) -> None:
        result = self.runs[0].history[epoch]
        line = f"{epoch:5d}  {result.train_loss:10.6f}  {_validation(result)}"
        for run in self.runs[1:]:
            line += f" | {_validation(run.history[epoch])}"
        if len(self.runs) == 1:
            line += f"  {perplexity(result):10.2f}"
        self._print(line)

    def _print(self, line: str) -> None:
        self.console.print(line.rstrip(), highlight=False, markup=False, soft_wrap=True)


def _validation(result: EpochResult) -> str:
    minutes, seconds = divmod(round(result.seconds), 60)
    return f"{result.valid_loss:10.6f}  {result.accuracy:8.6f}  {f'{minutes}:{seconds:02d}':>5}"


def perplexity(result: EpochResult) -> float:
    """exp of the validation's cross entropy per token."""
    return math.exp(min(result.valid_loss, 700.0))


def tokens_per_second(run: Run) -> float:
    """Median over the epochs of the tokens trained on per second; validation is not counted."""
    return median(result.tokens_per_s for result in run.history)


def speed_ratio(run: Run, peer: Run) -> float:
    """Median over the epochs of how many times as fast as ``peer`` ``run`` trained; epochs of both were interleaved."""
    pairs = zip(run.history, peer.history, strict=True)
    return median(ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs)


def comparison_table(pairs: Sequence[tuple[Run, Run]]) -> Table:
    """Final accuracy and speed of each (run, peer), with the ratio of their speeds."""
    first, second = pairs[0]
    table = Table(
        title=f"{first.kernels} beside {second.kernels}",
        caption=f"{first.device}, threads: {torch.get_num_threads()}; training speed, median of {first.epoch} epochs",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("model")
    for heading in ("accuracy", "tokens/s"):
        table.add_column(f"{heading}\n{first.kernels}", justify="right")
        table.add_column(f"{heading}\n{second.kernels}", justify="right")
    table.add_column("speed\nratio", justify="right")
    for run, peer in pairs:
        table.add_row(
            run.config.name,
            f"{run.history[-1].accuracy:.4f}",
            f"{peer.history[-1].accuracy:.4f}",
            f"{tokens_per_second(run):,.0f}",
            f"{tokens_per_second(peer):,.0f}",
            f"{speed_ratio(run, peer):.2f}x",
        )
    return table


def write_metrics(path: str | Path, runs: Sequence[Run]) -> None:
    """Write one line per run and finished epoch: whose kernels, then the fields of EpochResult."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["kernels", *(field.name for field in fields(EpochResult))])
        writer.writeheader()
        for run in runs:
            writer.writerows({"kernels": run.kernels, **asdict(result)} for result in run.history)


def write_plot(path: str | Path, runs: Sequence[Run]) -> None:
    """Draw the losses and the accuracy of ``runs`` over the epochs into a PNG file."""
    from matplotlib.figure import Figure  # takes most of a second to import

    figure = Figure(figsize=(10, 4), layout="constrained")
    config = runs[0].config
    figure.suptitle(f"{config.name}, {config.hidden} hidden, {config.layers} layers, seed {config.seed}")
    loss, accuracy = figure.subplots(1, 2)
    for run, style in zip(runs, ("-", "--"), strict=False):
        epochs = [result.epoch for result in run.history]
        loss.plot(epochs, [r.train_loss for r in run.history], "C0" + style, label=f"training, {run.kernels}")
        loss.plot(epochs, [r.valid_loss for r in run.history], "C1" + style, label=f"validation, {run.kernels}")
        accuracy.plot(epochs, [r.accuracy for r in run.history], "C2" + style, label=run.kernels)
    for axes, label in ((loss, "cross entropy per token"), (accuracy, "validation accuracy")):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


class TensorBoard:
    """Writes what an epoch gave as TensorBoard's event files.

    Raises:
        InputError: the tensorboard package is missing.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError:
            raise InputError("--tensorboard needs the tensorboard package: run `pip install tensorboard`") from None
        self._writer = SummaryWriter

    def write(self, folder: Path, runs: Sequence[Run], epoch: int) -> None:
        """Add the results of ``epoch`` to ``folder``, tagged with whose kernels and what."""
        with self._writer(folder) as writer:
            for run in runs:
                result = run.history[epoch]
                values = {**asdict(result), "perplexity": perplexity(result)}
                for name in ("train_loss", "valid_loss", "perplexity", "accuracy", "tokens_per_s"):
                    writer.add_scalar(f"{run.kernels}/{name}", values[name], epoch)
