"""How all figures look: colours that colour-blind readers tell apart, sizes, panels."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

# Okabe and Ito: Color Universal Design, 2008; black last.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":")
RAMP = "viridis"  # for maps and matrices
SETTINGS: Any = {"font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "svg.fonttype": "none"}


styled = rc_context(SETTINGS)  # a decorator of the functions that draw


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def dash(number: int) -> str:
    """A line style that changes when the colours begin again."""
    return DASHES[number // len(COLOURS) % len(DASHES)]


def marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]


def panels(rows: int, columns: int, width: float = 3.0, height: float = 2.2, **shared: Any) -> tuple[Figure, np.ndarray]:
    """A figure of `rows` x `columns` panels of `width` x `height` inches, and the panels as an array of that shape."""
    figure = Figure(figsize=(columns * width + 0.4, rows * height + 0.6), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def grid(count: int, widest: int = 4) -> tuple[int, int]:
    """Rows and columns for `count` panels."""
    columns = min(count, widest)
    return -(-count // columns), columns


def hide_rest(axes: np.ndarray, used: int) -> None:
    """Hides the panels after the first `used`."""
    for panel in axes.ravel()[used:]:
        panel.set_axis_off()


def legend_below(figure: Figure, panel: Any, entries: int) -> None:
    """One legend for all panels, below them."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(entries, 5), frameon=False)
