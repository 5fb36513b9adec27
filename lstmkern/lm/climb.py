"""The ladder: LMModel1 to LMModel7 trained as the fastai book trains them, one table and one plot."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from .checkpoint import atomic_path
from .dataset import Dataset, load_dataset
from .progress import Bar, working
from .train import Run, config_of, fit

# Accuracy after the last epoch in fastbook chapter 12. It depends on the seed.
EXPECTED = {"lm1": 0.49, "lm2": 0.49, "lm3": 0.61, "lm4": 0.64, "lm5": 0.52, "lm6": 0.72, "lm7": 0.83}
NOTABLE = 0.02  # a model whose accuracy is this much below fastbook's is mentioned below the table


def climb(console: Console, seeds: Sequence[int], make_directory: Callable[[], Path]) -> Path:
    """Train LMModel1 to LMModel7 with fastbook's learning rates and epochs, once with each seed.

    Prints a table with each model's median accuracy, and writes ladder.csv and ladder.png.

    Args:
        console: where the table and a progress bar are printed.
        seeds: seeds of the weights and of dropout.
        make_directory: makes the directory for the results and returns it.

    Returns:
        The directory of the results.

    Raises:
        Diverged: the loss of a model is nan or inf.
    """
    with working(console, "reading HUMAN_NUMBERS"):
        data = {name: load_dataset(config_of(name)) for name in EXPECTED}
    directory = make_directory()
    with Bar(console, "the ladder", sum(map(_batches, data, data.values())) * len(seeds)) as bar:
        models = [_train(name, data[name], seeds, bar) for name in EXPECTED]
    rows = [_row(_median(runs)) | _range(runs) for runs in models]
    console.print(_table(rows, seeds))
    if note := _below_the_book(models):
        console.print(note, soft_wrap=True)
    _write(directory / "ladder.csv", rows)
    _plot(directory / "ladder.png", [_median(runs) for runs in models])
    return directory


def _batches(name: str, data: Dataset) -> int:
    """Training and validation batches of one run of the model ``name``."""
    epochs = config_of(name).epochs
    return data.train.steps(epochs) + epochs * len(data.valid)


def _train(name: str, data: Dataset, seeds: Sequence[int], bar: Bar) -> list[Run]:
    """Finished runs of one model, one per seed, in the order of their accuracy."""
    runs = []
    for seed in seeds:
        bar.name(f"{_title(name)}, seed {seed}")
        config = config_of(name, seed=seed)
        runs.append(Run(config, len(data.vocab), data.train.steps(config.epochs)))
        fit(runs[-1:], data.train, data.valid, bar.advance)
    return sorted(runs, key=_accuracy)


def _accuracy(run: Run) -> float:
    return run.history[-1].accuracy


def _median(runs: list[Run]) -> Run:
    """The middle one of runs sorted by accuracy; of an even number the lower of the two in the middle."""
    return runs[(len(runs) - 1) // 2]


def _range(runs: list[Run]) -> dict[str, object]:
    """Additional columns for several runs of a model, sorted by accuracy."""
    if len(runs) == 1:
        return {}
    return {"seeds": len(runs), "lowest": round(_accuracy(runs[0]), 4), "highest": round(_accuracy(runs[-1]), 4)}


def _below_the_book(models: list[list[Run]]) -> str:
    """A note about the models whose median accuracy is clearly below fastbook's; empty if there is none."""
    medians = [_median(runs) for runs in models]
    missing = {run.config.model: EXPECTED[run.config.model] - _accuracy(run) for run in medians}
    below = [f"{_title(name)} by {amount:.2f}" for name, amount in missing.items() if amount >= NOTABLE]
    if not below:
        return ""
    if len(models[0]) == 1:
        advice = "Accuracy depends on the seed: --seeds 5 shows the median and the range."
    else:
        advice = "The columns lowest and highest show how much accuracy depends on the seed."
    return f"Below fastbook: {', '.join(below)}. {advice}"


def _title(name: str) -> str:
    return f"LMModel{name[2:]}"


def _parameters(run: Run) -> int:
    return sum(parameter.numel() for parameter in run.model.parameters())


def _row(run: Run) -> dict[str, object]:
    return {
        "model": _title(run.config.model),
        "accuracy": round(_accuracy(run), 4),
        "book": EXPECTED[run.config.model],
        "parameters": _parameters(run),
        "epochs": run.epoch,
        "seconds": round(sum(result.seconds for result in run.history), 2),
    }


def _table(rows: list[dict[str, object]], seeds: Sequence[int]) -> Table:
    of = f"seed {seeds[0]}" if len(seeds) == 1 else f"median of seeds {seeds[0]} to {seeds[-1]}"
    table = Table(
        title="the ladder on HUMAN_NUMBERS",
        caption=f"accuracy after the last epoch, {of}; book: fastbook chapter 12",
        box=box.SIMPLE_HEAD,
    )
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in rows:
        table.add_row(*(f"{v:,}" if isinstance(v, int) else f"{v}" for v in row.values()))
    return table


def _write(path: Path, rows: list[dict[str, object]]) -> None:
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
        label = f"{row['model']}: {row['accuracy']:.2f} (book {row['book']:.2f})"
        (line,) = axes.plot(epochs, [result.accuracy for result in run.history], markersize=4, label=label)
        book = {"color": line.get_color(), "marker": line.get_marker(), "markersize": 11, "fillstyle": "none"}
        axes.plot(epochs[-1:], [row["book"]] * bool(epochs), linestyle="none", **book)
    seeds = {run.config.seed for run in runs}
    seed = f"seed {seeds.pop()}" if len(seeds) == 1 else "each run the median of its seeds"
    axes.set_title(f"LMModel1 to 7 on HUMAN_NUMBERS, {runs[0].config.hidden} hidden units, {seed}")
    axes.set_ylabel("accuracy on the validation text")
    pictures.whole_epochs(axes, max(run.epoch for run in runs))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", title="accuracy after the last epoch\n(large open marker: fastbook's)")
    pictures.save(figure, path)
