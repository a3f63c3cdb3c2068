"""Draw what the heads of a trained filter look at, and what is lost without them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from hepattn.plotting import style
from hepattn.plotting.attention_panels import UnrolledPanel, mark_legend
from hepattn.plotting.attention_pattern import Pattern
from hepattn.plotting.head_numbers import own_of_hit

__all__ = ["HeadGrid", "draw_against_chance", "heads_against_chance", "heads_against_loss", "heads_on_hit"]

LOOKS: dict[str, dict[str, Any]] = {
    "chance [%]": {"label": "all alike", "marker": "|", "color": style.BLACK, "ms": 12, "mew": 2.0},
    "by distance [%]": {
        "label": "by distance alone",
        "marker": "o",
        "color": style.SKY,
        "mfc": "white",
        "ms": 8,
        "mew": 2,
    },
    "own particle [%]": {"label": "the head", "marker": "o", "color": style.BLUE, "ms": 9, "mew": 1},
}
"""Column of `head_table` -> how it is drawn."""

MARKERS = "osD^v<>pPX*h"
"""A layer's points, so that they can be told apart without their colour."""


class HeadGrid:
    """A share for each head as a grid: a row a layer, the first on top, a column a head; colours from 0 to 100 %."""

    def __init__(self, ax: Axes, layers: int, heads: int, title: str) -> None:
        self.ax = ax
        self.image = ax.imshow(np.zeros((layers, heads)), cmap=style.CONTINUOUS, vmin=0, vmax=100, aspect="auto")
        self.words = [
            [ax.text(head, layer, "", ha="center", va="center", fontsize=13) for head in range(heads)]
            for layer in range(layers)
        ]
        self.box = Rectangle((-0.5, -0.5), 1, 1, fill=False, edgecolor=style.VERMILLION, linewidth=4)
        ax.add_patch(self.box)
        self.moving = [self.image, *(text for row in self.words for text in row), self.box]
        """What `show` moves, the last on top."""
        ax.set_xticks(range(heads), [str(head + 1) for head in range(heads)])
        ax.set_yticks(range(layers), [str(layer + 1) for layer in range(layers)])
        ax.tick_params(length=0)
        ax.set_xlabel("head")
        ax.set_ylabel("layer")
        ax.set_title(title)
        ax.spines[:].set_visible(False)

    def show(self, shares: NDArray[np.floating[Any]], layer: int, head: int) -> None:
        """Shows shares (layers, heads) in percent, NaN as a dash, and a box around one head, counted from 0."""
        self.image.set_data(np.nan_to_num(shares))
        for row, values in zip(self.words, shares, strict=True):
            for text, value in zip(row, values, strict=True):
                text.set_text("–" if np.isnan(value) else f"{value:.0f} %")
                text.set_color("white" if np.nan_to_num(value) < 55 else "black")
        self.box.set_xy((head - 0.5, layer - 0.5))


def heads_on_hit(patterns: Sequence[Pattern], row: int, heads: Sequence[tuple[int, int]], *, count: int = 20) -> Figure:
    """What one hit looks at in some heads, unrolled along φ, with the true hits of its particle ringed.

    Args:
        patterns: of all layers, from `filter_patterns`
        row: position of the hit in φ order (`Pattern.nearest` finds one)
        heads: (layer, head), from 1 as in tables; a panel each
        count: lines, at most

    Returns:
        The figure; in a title the share of the hit's attention that goes to the other hits of its particle.
    """
    shares = own_of_hit(patterns, row)
    figure, axes = style.canvas(len(heads), width=15.5 / max(3, len(heads)), height=5.4)
    with style.context():
        for ax, (layer, head) in zip(axes, heads, strict=True):
            title = f"{layer}.{head}: {100 * shares[layer - 1, head - 1]:.0f} % on its particle"
            UnrolledPanel(ax, title).show(patterns[layer - 1], row, head - 1, count=count)
        for ax in axes[1:]:
            ax.set_ylabel("")
        mark_legend(figure, count=count)
    return figure


def heads_against_chance(table: pd.DataFrame) -> Figure:
    """Each head's share of attention on the own particle, beside that of chance and of distance alone.

    Args:
        table: from `hepattn.plotting.head_numbers.head_table`

    Returns:
        The figure: a row a head, the first layer on top. The line runs from what distance alone gives to the head.
    """
    figure, (ax,) = style.canvas(width=8.6, height=1.9 + 0.3 * len(table))
    with style.context():
        draw_against_chance(ax, table)
        ax.set_ylabel("layer.head")
        ax.set_xlabel("attention on the other hits of the own particle [%]")
        ax.grid(axis="x", color=style.PAPER)
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def draw_against_chance(ax: Axes, table: pd.DataFrame, *, scale: float = 1.0) -> None:
    """Draws the rows of `heads_against_chance`, its marks so many times as large."""
    names = [f"{layer}.{head}" for layer, head in table.index]
    rows = -np.arange(len(table)) - 0.6 * table.index.get_level_values("layer").to_numpy()
    ends = np.sort(table[["by distance [%]", "own particle [%]"]].to_numpy(), axis=1).T
    ax.hlines(rows, *ends, color=style.SKY, linewidth=3 * scale, zorder=1)
    for column, look in LOOKS.items():
        ax.plot(table[column], rows, linestyle="", **look | {name: scale * look[name] for name in ("ms", "mew")})
    ax.set_yticks(rows, names)
    ax.set_xlim(left=0)


def heads_against_loss(table: pd.DataFrame, silenced: pd.DataFrame, *, named: float = 1.5) -> Figure:
    """What a head looks at against what the filter does without it: a point a head.

    Args:
        table: from `hepattn.plotting.head_numbers.head_table`
        silenced: from `silenced_table`, of the same filter
        named: heads are named (layer.head) without which the filter has so many times its own wrong pairs, or more

    Returns:
        The figure. Up: 1 - AUC, the share of pairs of a target hit and another that are in the wrong order, on a
        logarithmic scale; its bar is the standard error of the loss. The dashed line is the whole filter.
    """
    whole = float(silenced["wrong order [%]"].iloc[0])
    figure, (ax,) = style.canvas(width=8.6, height=5.2)
    with style.context():
        layers = table.index.get_level_values("layer").unique()
        for index, layer in enumerate(layers):
            share, lost = table.loc[layer]["own particle [%]"], silenced.loc[layer]
            wrong, error = lost["wrong order [%]"], 100 * lost["error"].fillna(0.0)
            colour, marker = style.CYCLE[index % len(style.CYCLE)], MARKERS[index % len(MARKERS)]
            bars: dict[str, Any] = {"linestyle": "", "capsize": 3, "elinewidth": 1.2}
            ax.errorbar(share, wrong, error, marker=marker, color=colour, ms=8, label=f"layer {layer}", **bars)
            for head in share.index[wrong > named * whole]:
                place = (share[head], wrong[head])
                ax.annotate(f"{layer}.{head}", place, (9, -4), textcoords="offset points", color=colour)
        ax.axhline(whole, color=style.BLACK, linestyle="--", linewidth=1.0, label="nothing silenced")
        ax.set_yscale("log")
        ax.set_xlim(left=0)
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_xlabel("attention on the other hits of the own particle [%]")
        ax.set_ylabel("pairs in the wrong order without the head,\n1 − AUC [%]")
        figure.legend(loc="outside right upper")
    return figure
