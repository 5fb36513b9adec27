"""A plot of a result file: `python -m benchmarks.gpu.plot benchmarks/results/gpu-bench.jsonl`.

Writes a PNG of the same name with the file's last run: microseconds per step of every implementation, LSTM, forward and
backward.
"""

from __future__ import annotations

import itertools
import sys
import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from lstmkern import pictures

from . import layers, records, tables


def series(found: list[dict], dtype: str) -> dict[str, dict[str, float]]:
    """{implementation: {shape: microseconds per step}} of single dense layers in one direction."""
    who: dict[str, dict[str, float]] = {}
    for record in tables.of_kind(found, "bench"):
        work = record["work"]
        plain = not work["packed"] and work["layers"] == work["directions"] == 1
        if record["taken"] and record["backward"] and work["cell"] == "LSTM" and work["dtype"] == dtype and plain:
            shape = f"{work['T']},{work['N']},{work['I']},{work['H']}"
            for name, us in record["us_per_step"].items():
                if name in record.get("wrong", {}):
                    continue
                label = tables.SHORT.get(name, record["tier"] if name == "ours" else name)
                who.setdefault(label, {}).setdefault(shape, us)
    return who


def figure_of(found: list[dict]) -> Figure:
    """A plot per dtype; in it a column per shape and a marker per implementation."""
    measured = {dtype: who for dtype in layers.DTYPES if (who := series(found, dtype))}
    names = list(dict.fromkeys(name for who in measured.values() for name in who))
    shapes = list(dict.fromkeys(shape for who in measured.values() for times in who.values() for shape in times))
    figure = Figure(figsize=(10, 2.5 + 2.8 * len(measured)), layout="constrained")
    figure.suptitle("\n".join(["LSTM, forward and backward, one dense layer", *map(_wrap, tables.machine(found))]))
    if not measured:
        return figure
    rows = figure.subplots(len(measured), sharex=True, sharey=True, squeeze=False)[:, 0]
    looks = dict(zip(names, itertools.cycle(pictures.SEVEN), strict=False))
    for axes, (dtype, who) in zip(rows, measured.items(), strict=True):
        for k, name in enumerate(names):
            times = who.get(name, {})
            at = [shapes.index(shape) + 0.7 * ((k + 0.5) / len(names) - 0.5) for shape in times]
            look = {**looks[name], "linestyle": "none"}
            axes.plot(at, list(times.values()), label=name, markersize=7, **look)
        axes.set_ylabel(f"{dtype}, microseconds per step")
        axes.set_xticks(range(len(shapes)), shapes, rotation=45, ha="right", rotation_mode="anchor")
        axes.grid(axis="y", alpha=0.3)
    pictures.plain_log(rows[0])
    rows[-1].set_xlabel("T, N, I, H")
    figure.legend(handles=rows[0].get_lines(), loc="outside lower center", ncols=7)
    return figure


def _wrap(line: str) -> str:
    return textwrap.fill(line, 110)


def main() -> None:
    path = Path(sys.argv[1])
    found = records.read(path)
    if not found:
        sys.exit(f"no results in {path}")
    last = [record for record in found if record["run"] == found[-1]["run"]]
    pictures.save(figure_of(last), path.with_suffix(".png"))
    print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
