"""One look for every figure: a palette that colour-blind readers can tell apart, sizes that a projector shows.

Nothing here touches matplotlib's global state: figures are made without pyplot, and the settings hold only while a
figure is built or drawn. Palette: Okabe and Ito, "Color Universal Design" (2008), https://jfly.uni-koeln.de/color/;
continuous values are drawn in cividis (Nunez, Anderton, Renslow, 2018, doi:10.1371/journal.pone.0199239).
"""

import io
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure as MatplotlibFigure

BLUE = "#0072B2"
ORANGE = "#E69F00"
GREEN = "#009E73"
VERMILLION = "#D55E00"
SKY = "#56B4E9"
PURPLE = "#CC79A7"
YELLOW = "#F0E442"
BLACK = "#000000"
GREY = "#8A8A8A"
FAINT = "#C9C9C9"
PAPER = "#F2F2F2"

CYCLE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Colours of things without an order (particles, kernels), most different first; yellow is too pale for small dots."""

CONTINUOUS = "cividis"
"""Colour map of things with an order (layers, scores)."""

RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.grid": False,
    "axes.labelsize": 13,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.facecolor": "white",
    "figure.titlesize": 14,
    "font.family": "sans-serif",
    "font.size": 12,
    "legend.fontsize": 11.5,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "savefig.facecolor": "white",
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
}


def context() -> AbstractContextManager[None]:
    """The settings of this package's figures, for a ``with`` block; what was set before is back afterwards."""
    return mpl.rc_context(RC)


class Figure(MatplotlibFigure):
    """A matplotlib figure that a notebook shows by itself: no pyplot, so none is left open and none is shown twice."""

    def draw(self, renderer: RendererBase) -> None:
        """Draw in this package's style (ticks are made while drawing, and read the settings then)."""
        with context():
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def canvas(
    columns: int = 1,
    *,
    width: float = 5.0,
    height: float = 4.6,
    ax: Axes | None = None,
    ratios: list[float] | None = None,
) -> tuple[MatplotlibFigure, list[Axes]]:
    """A figure and its axes side by side, or the caller's ``ax`` and the figure that it is in.

    Args:
        columns: How many axes.
        width: Of one panel, in inches.
        height: Of the figure, in inches.
        ax: Axes to draw in, where the caller has some; only a single panel can be drawn there.
        ratios: Relative widths of the panels.

    Raises:
        ValueError: ``ax`` was given and there are several panels.
    """
    if ax is not None:
        if columns != 1:
            raise ValueError(f"ax= takes one panel, and this figure has {columns}: leave ax out or ask for one view")
        return ax.figure.figure, [ax]  # type: ignore[union-attr]  # of a subfigure too, the figure at the root
    with context():
        figure = Figure(figsize=(width * columns, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False, gridspec_kw={"width_ratios": ratios} if ratios else None)
    return figure, list(axes[0])
