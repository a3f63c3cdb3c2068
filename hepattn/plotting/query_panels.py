"""Panels of queries, whose artists are made once and moved: a map of queries and hits, and costs of matching."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from hepattn.plotting import style
from hepattn.plotting.query_numbers import Decoding

__all__ = ["SHOWN", "CostPanel", "HitMapPanel", "Part", "cost_bar", "cost_handles", "map_bar", "map_handles"]

SHOWN = 24
"""Queries of a map: more rows than this, with all hits that they see, are too small to be told apart."""

FINE = 450
"""Columns of a map that a panel has dots for."""

MATCHED, OWN, WINDOW = style.VERMILLION, style.BLACK, style.SKY


class Part:
    """The part of a map around one query: rows, and as columns all hits that these rows see, in φ order.

    Args:
        of: What is drawn.
        query: In the middle, if possible.
        count: Rows, at most.
    """

    def __init__(self, of: Decoding, query: int, count: int = SHOWN) -> None:
        begin = max(0, min(query - count // 2, len(of.place) - count))
        self.rows = np.arange(begin, min(begin + count, len(of.place)))
        seen = np.flatnonzero(of.sees[self.rows].any(axis=0))
        if len(seen):  # around the full turn: begin behind the widest gap
            gaps = np.diff(seen, append=seen[0] + len(of.rows))
            seen = np.roll(seen, -1 - int(gaps.argmax()))
        self.columns = seen
        self.where = np.full(len(of.rows), -1)
        self.where[seen] = np.arange(len(seen))

    def of(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """(rows, columns) of (Q, N)."""
        return values[np.ix_(self.rows, self.columns)]

    def windows(self, of: Decoding) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Outlines of the blocks' windows in this part, as one line with gaps (NaN)."""
        x: list[float] = []
        y: list[float] = []
        for block in np.unique(of.block[self.rows]):
            rows = self.rows[of.block[self.rows] == block] - self.rows[0]
            columns = np.sort(self.where[of.sees[self.rows[0] + rows[0]]])
            breaks = np.flatnonzero(np.diff(columns) > 1) + 1
            low, high = rows[0] - 0.5, rows[-1] + 0.5
            for run in np.split(columns, breaks):
                left, right = run[0] - 0.5, run[-1] + 0.5
                x += [left, right, right, left, left, np.nan]
                y += [low, low, high, high, low, np.nan]
        return np.array(x), np.array(y)


class HitMapPanel:
    """A map of queries (rows) and hits (columns), both in φ order: probabilities or shares of attention.

    Colours grow with the square root, so that a few per cent are seen; they end at `limit`. Sky-blue
    outlines: what each block of queries sees. A white dot: the hit that the query is. Dashed: the query asked for.
    """

    def __init__(self, ax: Axes, title: str = "", limit: float = 1.0) -> None:
        self.ax = ax
        blank = np.zeros((1, 1))
        self.image: AxesImage = ax.imshow(
            blank, cmap=style.CONTINUOUS, norm=PowerNorm(0.5, 0, limit), origin="lower", aspect="auto"
        )
        (self.outline,) = ax.plot([], [], color=WINDOW, linewidth=1.3)
        (self.stands,) = ax.plot([], [], linestyle="", marker="o", markersize=2.6, color="white", markeredgewidth=0)
        self.line = ax.axhline(0, color="white", linewidth=1, linestyle="--", visible=False)
        self.moving: list[Artist] = [self.image, self.outline, self.stands, self.line]
        """What `show` moves, the last on top."""
        ax.set_xlabel("hits that these queries see, in φ order")
        ax.set_ylabel("query, in φ order")
        ax.set_title(title)

    def show(self, of: Decoding, values: NDArray[np.floating], part: Part, query: int | None = None) -> None:
        """Shows a part of values (Q, N).

        Args:
            of: Whose queries they are.
            values: From 0 on.
            part: Which rows and columns.
            query: One that is marked by a line; None: none.
        """
        rows, columns = part.rows, part.columns
        low = float(rows[0]) if len(rows) else 0.0
        # nearest drops columns where there are more of them than dots, and the other blurs where there are fewer
        self.image.set_interpolation("nearest" if len(columns) <= FINE else "antialiased")
        self.image.set_data(part.of(values) if len(rows) and len(columns) else np.zeros((1, 1)))
        edges = (-0.5, max(len(columns), 1) - 0.5, low - 0.5, low + max(len(rows), 1) - 0.5)
        self.image.set_extent(edges)
        self.ax.set(xlim=edges[:2], ylim=edges[2:])
        x, y = part.windows(of)
        self.outline.set_data(x, y + low)
        at = part.where[of.place[rows]]
        self.stands.set_data(at[at >= 0], rows[at >= 0])
        self.line.set_visible(query is not None)
        if query is not None:
            self.line.set_ydata([query, query])


class CostPanel:
    """Costs of matching: queries (rows) and particles (columns), in φ order, with the assignment and own targets."""

    def __init__(self, ax: Axes, title: str = "") -> None:
        self.ax = ax
        self.image: AxesImage = ax.imshow(
            np.zeros((1, 1)), cmap=style.CONTINUOUS + "_r", norm=Normalize(0, 1), origin="lower", aspect="auto"
        )
        (self.own,) = ax.plot([], [], linestyle="", marker="x", markersize=4.5, color=OWN, markeredgewidth=1.1)
        (self.matched,) = ax.plot(
            [], [], linestyle="", marker="o", markersize=8, mfc="none", mec=MATCHED, markeredgewidth=1.5
        )
        self.line = ax.axhline(0, color=style.BLACK, linewidth=1, linestyle="--", visible=False)
        self.moving: list[Artist] = [self.image, self.own, self.matched, self.line]
        """What `show` moves, the last on top."""
        ax.set_xlabel("particle to find, in φ order")
        ax.set_ylabel("query, in φ order")
        ax.set_title(title)

    def show(self, of: Decoding, cost: Tensor, given: NDArray[np.int64], query: int | None = None) -> None:
        """Shows costs (Q, M); colours run over those of the pairs whose particle lies inside the query's window.

        Beyond it costs jump: each hit of the particle that the query does not see is one that its mask misses for sure.

        Args:
            of: Whose queries they are.
            cost: From `hepattn.plotting.query_numbers.costs`.
            given: (Q,) the assignment, from `assigned`.
            query: One that is marked by a line.
        """
        values = cost.numpy()
        filled = values if values.size else np.zeros((1, 1))
        self.image.set_data(filled)
        unseen = (~of.sees).astype(np.float32) @ of.on.astype(np.float32).T  # hits, whole numbers
        inside = filled[unseen == 0] if values.size else filled
        low, high = float(inside.min(initial=filled.max())), float(inside.max(initial=filled.min()))
        self.image.set_clim(low, high if high > low else low + 1.0)
        rows, columns = values.shape
        edges = (-0.5, max(columns, 1) - 0.5, -0.5, max(rows, 1) - 0.5)
        self.image.set_extent(edges)
        self.ax.set(xlim=edges[:2], ylim=edges[2:])
        for line, target in ((self.matched, given), (self.own, of.own)):
            has = np.flatnonzero(target >= 0)
            line.set_data(target[has], has)
        self.line.set_visible(query is not None)
        if query is not None:
            self.line.set_ydata([query, query])


def map_handles() -> list[Line2D]:
    """The marks of `HitMapPanel`."""
    window = Line2D([], [], color=WINDOW, linewidth=2, label="window of hits that a block of queries sees")
    stands = Line2D([], [], linestyle="", marker="o", markersize=5, color="white", label="the hit that the query is")
    stands.set_markeredgecolor(style.BLACK)
    return [window, stands]


def cost_handles() -> list[Line2D]:
    """The marks of `CostPanel`."""
    matched = Line2D([], [], linestyle="", marker="o", markersize=9, mfc="none", mec=MATCHED, mew=1.5)
    own = Line2D([], [], linestyle="", marker="x", markersize=6, color=OWN, mew=1.5)
    matched.set_label("assignment of least cost")
    own.set_label("the query's own target")
    return [matched, own]


def map_bar(figure: Figure, image: AxesImage, axes: list[Axes], label: str) -> None:
    """The colour bar of `HitMapPanel`."""
    limit = image.get_clim()[1] or 1.0
    ticks = [0.0, *(limit * share for share in (0.01, 0.1, 0.25, 0.5, 1.0))]
    bar = figure.colorbar(image, ax=axes, label=label, pad=0.012, extend="neither" if limit == 1.0 else "max")
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])


def cost_bar(figure: Figure, image: AxesImage, ax: Axes) -> None:
    """The colour bar of `CostPanel`."""
    figure.colorbar(image, ax=ax, label="cost of the pair (lower fits better)", pad=0.012, extend="max")
