"""The output of a training session: epoch table, comparison table, metrics.csv, plot and TensorBoard files."""

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
from torch import nn

from .checkpoint import atomic_path
from .errors import InputError
from .train import EpochResult, Run


class EpochTable:
    """fastai's table of epochs, one plain line per epoch, which looks the same in a terminal and in a log file.

    On the right is the second run, or the perplexity if there is only one run. Lines have at most 76 characters.

    Args:
        console: where it is printed.
        runs: one or two runs.
    """

    def __init__(self, console: Console, runs: Sequence[Run]) -> None:
        self.console, self.runs = console, runs

    def header(self) -> None:
        """Print the head, and the rows of the epochs that a resumed session has already finished."""
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
        """Print the row of a finished epoch."""
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
    """exp of the cross entropy per token in validation."""
    return math.exp(min(result.valid_loss, 700.0))


def tokens_per_second(run: Run) -> float:
    """Training speed in tokens per second, the median over the epochs."""
    return median(result.tokens_per_s for result in run.history)


def counted(epochs: int) -> str:
    """A number of epochs in words, such as "1 epoch" or "2 epochs"."""
    return f"{epochs} epoch{'s' if epochs != 1 else ''}"


def speed_ratio(run: Run, peer: Run) -> float:
    """How many times as fast as ``peer`` ``run`` was, the median over pairs of epochs; their epochs alternated."""
    pairs = zip(run.history, peer.history, strict=True)
    return median(ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs)


def comparison_table(pairs: Sequence[tuple[Run, Run]]) -> Table:
    """Table of the final accuracy and the speed of each pair (run, peer), with the ratio of their speeds."""
    first, second = pairs[0]
    table = Table(
        title=f"{first.kernels} compared with {second.kernels}",
        caption=f"{first.device}, threads: {torch.get_num_threads()}; training speed, median of {counted(first.epoch)}",
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
    """Write a CSV file with a line per run and finished epoch: the kernels, then the fields of EpochResult."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["kernels", *(field.name for field in fields(EpochResult))])
        writer.writeheader()
        for run in runs:
            writer.writerows({"kernels": run.kernels, **asdict(result)} for result in run.history)


def _title(run: Run) -> str:
    """Title of a plot: the model, its recurrent layers, and how it is trained."""
    config, layers = run.config, [module for module in run.model.modules() if isinstance(module, nn.RNNBase)]
    if layers:
        count, kind = sum(layer.num_layers for layer in layers), layers[0].mode.split("_")[0]  # "RNN_TANH"
        widths = list(dict.fromkeys(layer.hidden_size for layer in layers))
        if len(widths) > 1:
            widths = [layer.hidden_size for layer in layers]
        what = f"{count} {kind} layer{'s' if count > 1 else ''} of {', '.join(map(str, widths))} units"
    else:
        what = f"recurrence written in Python, {config.hidden} units"
    return (
        f"{config.name}: {what}, seed {config.seed}\n"
        f"batches of {config.batch_size} x {config.seq_len} tokens, peak learning rate {config.lr:g}, {config.dtype}, "
        f"{run.device.type}, torch {torch.__version__}"
    )


def write_plot(path: str | Path, runs: Sequence[Run]) -> None:
    """Plot losses and accuracy of one or two runs over the epochs, into a PNG file."""
    from matplotlib.figure import Figure

    from .. import pictures

    # The second run's lines are thin, dashed and drawn over the first one's: both are visible where they coincide.
    styles = (
        {"linestyle": "-", "linewidth": 3, "marker": "o", "markersize": 6},
        {"linestyle": "--", "linewidth": 1.5, "marker": "D", "markersize": 4},
    )
    training, validation = (pictures.BLUE, pictures.LIGHT_BLUE), (pictures.ORANGE, "black")
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    figure.suptitle(_title(runs[0]), fontsize="medium")
    loss, accuracy = figure.subplots(1, 2)
    for k, (run, style) in enumerate(zip(runs, styles, strict=False)):
        epochs = [result.epoch + 1 for result in run.history]
        for axes, name, field, colours in (
            (loss, "training", "train_loss", training),
            (loss, "validation", "valid_loss", validation),
            (accuracy, "validation", "accuracy", validation),
        ):
            values = [getattr(result, field) for result in run.history]
            look = {"color": colours[k], "markeredgecolor": colours[0], **style}
            axes.plot(epochs, values, label=f"{name}, {run.kernels}", **look)
    for axes, label in ((loss, "cross entropy per token (nats)"), (accuracy, "accuracy on the validation text")):
        pictures.whole_epochs(axes, runs[0].epoch)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.legend(handles=loss.get_lines(), loc="outside lower center", ncols=4)
    pictures.save(figure, path)


class TensorBoard:
    """Writes the results of epochs as TensorBoard event files.

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
        """Add the results of an epoch to ``folder``, with tags such as "lstmkern/valid_loss"."""
        with self._writer(folder) as writer:
            for run in runs:
                result = run.history[epoch]
                values = {**asdict(result), "perplexity": perplexity(result)}
                for name in ("train_loss", "valid_loss", "perplexity", "accuracy", "tokens_per_s"):
                    writer.add_scalar(f"{run.kernels}/{name}", values[name], epoch)
