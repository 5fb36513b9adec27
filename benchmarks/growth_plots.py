"""The plots of growth.py: time and memory of a layer over T, N, H and threads, ours and torch.nn's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks import memory
from lstmkern import pictures
from lstmkern.bench import report

LOOK = {
    "LSTM": {"color": pictures.BLUE, "marker": "o", "linewidth": 2.2},
    "GRU": {"color": pictures.DARK_ORANGE, "marker": "s", "linewidth": 1.3},
}
# The dashes of the second line begin where those of the first end, so that both are visible where lines coincide.
DASHES = {"LSTM": (0, (4, 4)), "GRU": (4, (4, 4))}
NAMES = {"T": "T, time steps", "N": "N, batch size", "H": "H = I, units", "threads": "threads"}


@dataclass(frozen=True)
class Panel:
    """A column of plots. lines: (label, dashed, whether of training, function from a result to its value or None)."""

    title: str
    ylabel: str
    lines: Sequence[tuple[str, bool, bool, Callable[[dict], float | None]]]
    scale: Callable[[Axes], None]


def _microseconds(key: str) -> Callable[[dict], float]:
    def value(result: dict) -> float:
        T, N = map(int, result["shape"].split(",")[:2])
        return 1e3 * result[key] / (T * N)

    return value


def _mebibytes(who: str, what: str) -> Callable[[dict], float | None]:
    return lambda result: (result.get("memory", {}).get(who, {}).get(what) or 0) / 2**20 or None


def _ratio_axis(axes: Axes) -> None:
    axes.set_ylim(0, 1.05 * max(1, axes.dataLim.y1))
    axes.axhline(1, color="black", linewidth=0.8)


def _share_axis(axes: Axes) -> None:
    axes.set_ylim(0, max(1, 1.05 * axes.dataLim.y1))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _pair(ours: Callable, theirs: Callable) -> list[tuple]:
    return [("lstmkern", False, True, ours), ("torch.nn", True, True, theirs)]


_MODES = (("training", False, True), ("inference", True, False))


@dataclass(frozen=True)
class Picture:
    """A file. needs: the key that a result must have. threads: the same for all points, or None if it varies."""

    title: str
    needs: str
    threads: int | None
    panels: Sequence[Panel]


PICTURES = {
    "growth-time.png": Picture(
        "Time",
        "ratio",
        None,
        [
            Panel(
                "training, time per token",
                "microseconds",
                _pair(_microseconds("ours_ms"), _microseconds("peer_ms")),
                pictures.plain_log,
            ),
            Panel(
                "speed relative to torch.nn",
                "time of torch.nn / time of lstmkern",
                [(*mode, lambda result: result["ratio"]) for mode in _MODES],
                _ratio_axis,
            ),
            Panel(
                "share of the roofline",
                "share of the machine's limit",
                [(*mode, lambda result: result["share"]) for mode in _MODES],
                _share_axis,
            ),
        ],
    ),
    "growth-memory.png": Picture(
        "Memory",
        "memory",
        memory.THREADS,
        [
            Panel(
                f"training, {title}",
                "MiB",
                _pair(_mebibytes("ours", key), _mebibytes("torch", key)),
                pictures.plain_log,
            )
            for key, title in (("peak", "peak of a step"), ("saved", "kept for backward"))
        ],
    ),
}


def fixed(results: Sequence[dict]) -> str:
    """The sizes that are the same in all ``results``: "N 16, I = H = 128, 2 threads"."""
    shapes = {name: set() for name in ("T", "N", "I", "H", "layers")}
    for result in results:
        for name, value in zip(shapes, result["shape"].split(","), strict=True):
            shapes[name].add(int(value))
    one = {name: values.pop() for name, values in shapes.items() if len(values) == 1}
    threads = {result["threads"] for result in results}
    parts = [f"{name} {one[name]}" for name in ("T", "N") if name in one]
    if "H" in one:
        parts.append(f"I = H = {one['H']}" if one.get("I") == one["H"] else f"I {one['I']}, H {one['H']}")
    if len(threads) == 1:
        count = threads.pop()
        parts.append(f"{count} thread{'s' if count > 1 else ''}")
    return ", ".join(parts)


def _draw(axes: Axes, results: Sequence[dict], size: str, panel: Panel) -> None:
    for label, dashed, train, value in panel.lines:
        for cell, look in LOOK.items():
            found = [(r["value"], value(r)) for r in results if (r["cell"], r["train"]) == (cell, train)]
            found = [(x, y) for x, y in found if y is not None]
            style = {"linestyle": DASHES[cell], "fillstyle": "none"} if dashed else {}
            if found:
                axes.plot(*zip(*found, strict=True), label=f"{cell}, {label}", markersize=5, **look, **style)
    pictures.sizes(axes, sorted({r["value"] for r in results}))
    panel.scale(axes)
    axes.set(xlabel=f"{NAMES[size]} ({fixed(results)})", ylabel=panel.ylabel)
    axes.grid(alpha=0.3)


def figures(results: Sequence[dict], about: dict) -> dict[str, Figure]:
    """{file name: figure}. growth-time.png has time per token, ratio and share of the roofline; growth-memory.png has
    peak and saved bytes.

    One row per size that varies, one column per quantity. A figure without results is left out.
    """
    found = {}
    for name, picture in PICTURES.items():
        mine = [{**r, "threads": picture.threads or r["threads"]} for r in results if picture.needs in r]
        varied = list(dict.fromkeys(r["size"] for r in mine))
        if not varied:
            continue
        panels = picture.panels
        figure = Figure(figsize=(4.2 * len(panels), 3.2 * len(varied) + 1.5), layout="constrained")
        grid = figure.subplots(len(varied), len(panels), squeeze=False)
        for row, size in zip(grid, varied, strict=True):
            for axes, panel in zip(row, panels, strict=True):
                _draw(axes, [r for r in mine if r["size"] == size], size, panel)
        for axes, panel in zip(grid[0], panels, strict=True):
            above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.02)}
            axes.legend(title=panel.title, ncols=2, fontsize="small", handlelength=3, **above)
        dtypes = " and ".join(dict.fromkeys(r["dtype"] for r in mine))
        machine = report.machine_line(about).replace("; ", "\n")
        figure.suptitle(f"{picture.title} of one layer, {dtypes}, as one size varies\n{machine}", fontsize="medium")
        figure.align_ylabels()
        found[name] = figure
    return found


def plot(results: Sequence[dict], about: dict, folder: Path) -> None:
    """Write the ``figures``. about: see report.context."""
    for name, figure in figures(results, about).items():
        pictures.save(figure, folder / name)
