"""The ladder: LMModel1 to LMModel7 trained as the fastai book trains them, one table and one plot."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from .checkpoint import atomic_path
from .dataset import load_dataset
from .progress import Bar, working
from .train import Run, config_of, fit

# Accuracy of the book's models. It depends on the seed, see SPREAD; of LMModel5 the book's is the least to expect.
EXPECTED = {"lm1": 0.49, "lm2": 0.49, "lm3": 0.61, "lm4": 0.64, "lm5": 0.52, "lm6": 0.72, "lm7": 0.83}
# LMModel6's lowest and highest accuracy with seeds 0 to 4, on our kernels and, from the same weights, on torch.nn.
SPREAD = {"lm6": ((0.57, 0.79), (0.57, 0.80))}


def climb(console: Console, seeds: Sequence[int], place: Callable[[], Path]) -> Path:
    """Train every model with the book's learning rate and epochs, once with each of ``seeds``.

    Prints the table of the runs with the median accuracy, writes ladder.csv and ladder.png into the directory that
    ``place`` makes, and returns it.

    Raises:
        Diverged: the loss of a model is nan or inf.
    """
    with working(console, "reading HUMAN_NUMBERS"):
        data = {name: load_dataset(config_of(name)) for name in EXPECTED}
    out, models = place(), []
    epochs = {name: config_of(name).epochs for name in EXPECTED}
    batches = sum(d.train.steps(epochs[name]) + epochs[name] * len(d.valid) for name, d in data.items())
    with Bar(console, "the ladder", batches * len(seeds)) as bar:
        for name, d in data.items():
            runs = []
            for seed in seeds:
                bar.name(f"{_title(name)}, seed {seed}")
                runs.append(Run(config_of(name, seed=seed), len(d.vocab), d.train.steps(epochs[name])))
                fit(runs[-1:], d.train, d.valid, bar.advance)
            models.append(sorted(runs, key=lambda run: run.history[-1].accuracy))
    rows = [_row(_median(runs)) | _others(runs) for runs in models]
    console.print(_table(rows, seeds))
    for runs in models:
        if note := _below_the_book(runs):
            console.print(note, soft_wrap=True)
    _write(out / "ladder.csv", rows)
    _plot(out / "ladder.png", [_median(runs) for runs in models])
    return out


def _median(runs: list[Run]) -> Run:
    """Of runs sorted by accuracy the one in the middle, of an even number the lower."""
    return runs[(len(runs) - 1) // 2]


def _others(runs: list[Run]) -> dict[str, object]:
    """The columns that several runs of a model, sorted by accuracy, have more."""
    if len(runs) == 1:
        return {}
    return {
        "seeds": len(runs),
        "lowest": round(runs[0].history[-1].accuracy, 4),
        "highest": round(runs[-1].history[-1].accuracy, 4),
    }


def _below_the_book(runs: list[Run]) -> str:
    """Why a model whose accuracy depends much on the seed is below the book; "" if it is not such a one."""
    run = _median(runs)
    name, missing = run.config.model, EXPECTED[run.config.model] - run.history[-1].accuracy
    if name not in SPREAD or missing < 0.02:
        return ""
    (low, high), (torch_low, torch_high) = SPREAD[name]
    which = f"at seed {run.config.seed}" if len(runs) == 1 else f"at the median of {len(runs)} seeds"
    advice = "; --seeds 3 shows a median" if len(runs) == 1 else ""
    return (
        f"{_title(name)} {which} is {missing:.2f} below the book: its accuracy depends on the seed.\n"
        f"Seeds 0 to 4 give {low:.2f} to {high:.2f}, with torch.nn {torch_low:.2f} to {torch_high:.2f}{advice}."
    )


def _title(name: str) -> str:
    return f"LMModel{name[2:]}"


def _parameters(run: Run) -> int:
    return sum(parameter.numel() for parameter in run.model.parameters())


def _row(run: Run) -> dict[str, object]:
    return {
        "model": _title(run.config.model),
        "accuracy": round(run.history[-1].accuracy, 4),
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
    figure.legend(loc="outside right upper", title="accuracy after the last epoch\n(large open marker: the book's)")
    pictures.save(figure, path)
