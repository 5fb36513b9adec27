"""A picture of a file of results: `python -m benchmarks.gpu.plot benchmarks/results/gpu-bench.jsonl`.

Writes a PNG of the same name: microseconds per step of every implementation, LSTM, forward and backward, from the
file's last run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

from . import layers, records, tables

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402


def series(found: list[dict], dtype: str) -> dict[str, dict[str, float]]:
    """{who: {shape: microseconds per step}} of single dense layers in one direction."""
    who: dict[str, dict[str, float]] = {}
    for record in tables.of_kind(found, "bench"):
        work = record["work"]
        plain = not work["packed"] and work["layers"] == work["directions"] == 1
        if record["taken"] and record["backward"] and work["cell"] == "LSTM" and work["dtype"] == dtype and plain:
            shape = f"{work['T']},{work['N']},{work['H']}"
            for name, us in record["us_per_step"].items():
                if name in record.get("wrong", {}):
                    continue
                label = tables.SHORT.get(name, record["tier"] if name == "ours" else name)
                who.setdefault(label, {}).setdefault(shape, us)
    return who


def plot(found: list[dict], path: Path) -> None:
    figure, axes = pyplot.subplots(1, len(layers.DTYPES), figsize=(18, 5), sharey=True)
    for axis, dtype in zip(axes, layers.DTYPES, strict=True):
        who = series(found, dtype)
        shapes = list(dict.fromkeys(shape for times in who.values() for shape in times))
        for k, (name, times) in enumerate(who.items()):
            at = [i + 0.8 * k / len(who) for i, shape in enumerate(shapes) if shape in times]
            axis.bar(at, [times[shape] for shape in shapes if shape in times], 0.8 / len(who), label=name)
        axis.set_xticks(range(len(shapes)), shapes, rotation=45, ha="right")
        rehearsal = " (CPU REHEARSAL)" if any("rehearsal" in record for record in found) else ""
        axis.set_title(f"LSTM {dtype}, forward + backward, T,N,H{rehearsal}")
        if who:
            axis.legend()
    axes[0].set_ylabel("microseconds per step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    path = Path(sys.argv[1])
    found = records.read(path)
    if not found:
        sys.exit(f"no results in {path}")
    plot([record for record in found if record["run"] == found[-1]["run"]], path.with_suffix(".png"))
    print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
