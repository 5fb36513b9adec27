"""The ladder: LMModel1 to LMModel7 trained as the fastai book trains them, one table and one plot."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .checkpoint import atomic_path
from .dataset import load_dataset
from .train import Config, Run, config_of, fit

# Accuracy of the book's models; LMModel5's varies from run to run, and the book's is the least to expect.
EXPECTED = {"lm1": 0.49, "lm2": 0.49, "lm3": 0.61, "lm4": 0.64, "lm5": 0.52, "lm6": 0.72, "lm7": 0.83}


def climb(console: Console, given: Config, place: Callable[[], Path]) -> Path:
    """Train every model with the book's learning rate and epochs; ``given`` has seed, epochs are the recipes'.

    Prints the table, writes ladder.csv and ladder.png into the directory that ``place`` makes, and returns it.
    """
    out, runs = place(), []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        for name in EXPECTED:
            config = replace(config_of(name), seed=given.seed)
            data = load_dataset(config)
            run = Run(config, len(data.vocab), data.train.steps(config.epochs))
            task = bar.add_task(name, total=config.epochs)
            fit([run], data.train, data.valid, after_epoch=lambda epoch, task=task: bar.advance(task))
            runs.append(run)
    console.print(_table(runs))
    _write(out / "ladder.csv", runs)
    _plot(out / "ladder.png", runs)
    return out


def _parameters(run: Run) -> int:
    return sum(parameter.numel() for parameter in run.model.parameters())


def _row(run: Run) -> dict[str, object]:
    return {
        "model": f"LMModel{run.config.model[2:]}",
        "accuracy": round(run.history[-1].accuracy, 4),
        "expected": EXPECTED[run.config.model],
        "parameters": _parameters(run),
        "epochs": run.epoch,
        "seconds": round(sum(result.seconds for result in run.history), 2),
    }


def _table(runs: list[Run]) -> Table:
    table = Table(
        title="the ladder on HUMAN_NUMBERS",
        caption="accuracy after the last epoch; expected: of the book's models",
        box=box.SIMPLE_HEAD,
    )
    rows = [_row(run) for run in runs]
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else f"{v}" for v in row.values()))
    return table


def _write(path: Path, runs: list[Run]) -> None:
    rows = [_row(run) for run in runs]
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _plot(path: Path, runs: list[Run]) -> None:
    from matplotlib.figure import Figure

    from .. import pictures

    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(pictures.SEVEN)
    for run in runs:
        epochs = [result.epoch + 1 for result in run.history]
        row = _row(run)
        label = f"{row['model']}: {row['accuracy']:.2f} (book {row['expected']:.2f})"
        (line,) = axes.plot(epochs, [result.accuracy for result in run.history], markersize=4, label=label)
        book = {"color": line.get_color(), "marker": line.get_marker(), "markersize": 11, "fillstyle": "none"}
        axes.plot(epochs[-1:], [row["expected"]] * bool(epochs), linestyle="none", **book)
    seeds = {run.config.seed for run in runs}
    seed = f"seed {seeds.pop()}" if len(seeds) == 1 else "each run the median of its seeds"
    axes.set_title(f"LMModel1 to 7 on HUMAN_NUMBERS, {runs[0].config.hidden} hidden units, {seed}")
    axes.set_ylabel("accuracy on the validation text")
    pictures.whole_epochs(axes, max(run.epoch for run in runs))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", title="accuracy after the last epoch\n(large open marker: the book's)")
    pictures.save(figure, path)
