"""The plots of bench_small.py: time over H and time over the number of threads, one line per library."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lstmkern import pictures
from lstmkern.bench import report

OURS = "lstmkern"
LIBRARIES = (OURS, "torch.nn", "onnxruntime", "JAX", "compiled cell")
LOOKS = dict(zip(LIBRARIES, pictures.SEVEN, strict=False))
STEPS = "100,8"  # T,N of the plot over H
THREADS = (
    ("LSTM", "1000,1,16,16,1"),
    ("LSTM", "100,8,32,32,1"),
    ("GRU", "200,2,64,64,1"),
    ("LSTM", "100,64,256,256,1"),
)
MODES = ((False, "inference"), (True, "training"))


def times(cases: Sequence[dict], over: str, library: str) -> list[tuple[int, float]]:
    """(x, milliseconds) of ``library``, where x is the field ``over``; ours is the median over its peers."""
    found: dict[int, list[float]] = {}
    for case in cases:
        if library in (OURS, case["peer"]):
            found.setdefault(case[over], []).append(case["ours_ms" if library == OURS else "peer_ms"])
    return [(x, statistics.median(values)) for x, values in sorted(found.items())]


def _lines(axes: Axes, cases: Sequence[dict], over: str, unit: float) -> None:
    for library in LIBRARIES:
        if found := times(cases, over, library):
            x, y = zip(*found, strict=True)
            width = 2.5 if library == OURS else 1.3
            axes.plot(x, [unit * ms for ms in y], label=library, linewidth=width, markersize=5, **LOOKS[library])
    pictures.sizes(axes, sorted({case[over] for case in cases}))
    axes.grid(alpha=0.3)


def _grid(columns: int) -> tuple[Figure, list[list[Axes]]]:
    figure = Figure(figsize=(3.7 * columns, 7.6), layout="constrained")
    return figure, figure.subplots(len(MODES), columns, squeeze=False, sharex=False)


def _finish(figure: Figure, title: str, about: dict, extra: Sequence[Line2D] = ()) -> Figure:
    named = {}
    for axes in figure.axes:
        pictures.plain_log(axes)
        named |= {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    handles = [named[library] for library in LIBRARIES if library in named]
    figure.legend(handles=[*handles, *extra], loc="outside lower center", ncols=3, fontsize="small", handlelength=3)
    figure.suptitle(f"{title}\n{report.machine_line(about).replace('; ', chr(10))}", fontsize="medium")
    figure.align_ylabels()
    return figure


def over_sizes(cases: Sequence[dict], about: dict) -> Figure | None:
    """The time of a call over H, for each cell (columns), inference and training (rows)."""
    mine = [
        {**c, "H": int(c["shape"].split(",")[3])}
        for c in cases
        if c["part"] == "sizes" and c["shape"].startswith(f"{STEPS},")
    ]
    cells = list(dict.fromkeys(c["cell"] for c in mine))
    if not mine:
        return None
    figure, grid = _grid(len(cells))
    T, N = STEPS.split(",")
    for row, (train, mode) in zip(grid, MODES, strict=True):
        for axes, cell in zip(row, cells, strict=True):
            _lines(axes, [c for c in mine if (c["cell"], c["train"]) == (cell, train)], "H", 1e3)
            axes.set(title=f"{cell}, {mode}", xlabel="H = I, units", ylabel="microseconds per call")
    return _finish(figure, f"Time of a call, T {T}, N {N}, fp32, 1 thread", about)


def over_threads(cases: Sequence[dict], about: dict) -> Figure | None:
    """The time of a call over the number of threads, for each shape (columns), inference and training (rows)."""
    mine = [c for c in cases if c["part"] == "threads" and (c["cell"], c["shape"]) in THREADS]
    chosen = [layer for layer in THREADS if layer in {(c["cell"], c["shape"]) for c in mine}]
    if not mine:
        return None
    figure, grid = _grid(len(chosen))
    for row, (train, mode) in zip(grid, MODES, strict=True):
        for axes, (cell, shape) in zip(row, chosen, strict=True):
            here = [c for c in cases if (c["cell"], c["shape"], c["train"]) == (cell, shape, train)]
            _lines(axes, [c for c in here if c["part"] == "threads"], "threads", 1)
            for library in LIBRARIES:
                loaded = times([c for c in here if c["part"] == "busy"], "threads", library)
                look = {**LOOKS[library], "linestyle": "none", "fillstyle": "none"}
                axes.plot([x for x, _ in loaded], [ms for _, ms in loaded], label="_busy", markersize=9, **look)
            T, N, inputs, H, _ = shape.split(",")
            axes.set(title=f"{cell} {T},{N},{inputs},{H}, {mode}", xlabel="threads", ylabel="milliseconds per call")
    busy = Line2D([], [], color="black", linestyle="none", fillstyle="none", marker="o", markersize=9)
    busy.set_label("large: one busy process per core")
    title = f"Time of a call over threads on {about['machine']['cores']} cores, fp32; shapes are T,N,I,H"
    return _finish(figure, title, about, [busy])


PICTURES = {"small-sizes.png": over_sizes, "small-threads.png": over_threads}


def plot(cases: Sequence[dict], about: dict, folder: Path) -> None:
    """Write the PICTURES whose parts are measured. about: see report.context."""
    for name, draw in PICTURES.items():
        if figure := draw(cases, about):
            pictures.save(figure, folder / name)
