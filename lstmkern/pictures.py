"""What all plots share: colours, line styles, axes of whole epochs, plain numbers on logarithmic axes, saving.

Import this module only in functions that draw: matplotlib is an optional dependency and takes most of a second to
import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.style
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .lm.checkpoint import atomic_path

# Colours that colour-blind readers can tell apart: two shades of blue and two of orange, for related lines.
_TABLEAU = matplotlib.style.library["tableau-colorblind10"]["axes.prop_cycle"].by_key()["color"]
BLUE, ORANGE, DARK_ORANGE, LIGHT_BLUE = (_TABLEAU[k] for k in (0, 1, 5, 7))
# For seven lines in one plot, the colours of Okabe and Ito. Every other line is dashed and each has another marker, so
# that both of two coinciding lines are visible.
SEVEN = (
    cycler(color=["#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"])
    + cycler(marker=["o", "s", "^", "D", "v", "P", "X"])
    + cycler(linestyle=["-", "--", "-", "--", "-", "--", "-"])
)


def whole_epochs(axes: Axes, epochs: int) -> None:
    """Label the x axis with the epochs 1 to ``epochs``: all of them, or every n-th if there are many."""
    axes.xaxis.set_major_locator(FixedLocator(range(1, epochs + 1), nbins=15 if epochs <= 15 else 8))
    axes.set_xlabel("epochs trained")


def sizes(axes: Axes, values: Sequence[int]) -> None:
    """Make the x axis logarithmic, with a tick at each of ``values``, as plain numbers."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, map(str, values))
    axes.xaxis.set_minor_locator(NullLocator())


def plain_log(axes: Axes) -> None:
    """Make the y axis logarithmic, labelled 1, 2, 5, 10, ..., and 3 and 7 where it is short. Call it after plotting."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 30 * low else (1, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def save(figure: Figure, path: str | Path) -> None:
    """Write ``figure`` to the PNG file ``path``, all or nothing."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
