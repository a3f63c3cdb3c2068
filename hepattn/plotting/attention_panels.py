"""Panels of attention: a map, one query on the detector, one query against Δφ, with their legends and colour bars.

Their artists are made once and moved, by figures and by explorers alike.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from typing_extensions import override

from hepattn.plotting import style
from hepattn.plotting.attention_numbers import STRONGEST, shares, strongest
from hepattn.plotting.attention_pattern import Pattern
from hepattn.plotting.attention_tokens import turn
from hepattn.sequence import Role

__all__ = [
    "AFTER",
    "BEFORE",
    "AnglePanel",
    "DetectorPanel",
    "MapPanel",
    "UnrolledPanel",
    "change_bar",
    "map_bar",
    "mark_legend",
    "same_rows",
]

REACHES = (400.0, 1100.0)
"""mm: how far a view along the beam goes; few steps, so that a moving picture keeps its scale."""

ANGLES = (0.02, 0.05, 0.1, 0.2, 0.5)
"""rad: the same to either side of a query."""

TICKS = ([-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi], ["−π", "−π/2", "0", "π/2", "π"])

NAME_SIZE = 9.5
"""Points: names of learned tokens beside a map."""

OWN, OTHER, BEFORE, AFTER = style.VERMILLION, style.SKY, style.GREY, style.BLUE


class MapPanel:
    """A map of attention between bins of φ, on a logarithmic scale around 1 = attention to all keys alike.

    Learned tokens stand in strips beyond the range of φ, a strip a kind, with their names at the axes.
    """

    def __init__(
        self,
        ax: Axes,
        title: str,
        *,
        bins: int = 64,
        queries: NDArray[np.floating[Any]] | None = None,
        limit: float = 16,
        change: bool = False,
    ) -> None:
        self.ax = ax
        self.bins = bins
        self.queries: NDArray[np.floating[Any]] | None = None
        self.kinds: tuple[Role, ...] = ()
        norm = Normalize(-4, 4) if change else LogNorm(1 / limit, limit)
        self.image = ax.imshow(
            np.full((bins, bins), np.nan),
            origin="lower",
            cmap="PuOr_r" if change else style.CONTINUOUS,
            norm=norm,
            interpolation="nearest",
            aspect="auto",
        )
        self.line = ax.axhline(0, color="black" if change else "white", linewidth=1.2, linestyle="--", visible=False)
        self.moving = [self.image, self.line]
        """What `show` moves, the last on top."""
        ax.set_facecolor(style.FAINT)
        ax.set_xlabel("φ of the key [rad]")
        ax.set_ylabel("φ of the query [rad]")
        ax.set_title(title)
        self.centre, self.half = math.nan, math.nan
        self.frame(0.0, math.pi, queries=queries)

    def frame(
        self,
        centre: float,
        half: float,
        kinds: Sequence[Role] = (),
        queries: NDArray[np.floating[Any]] | None = None,
    ) -> None:
        """The range of φ that the map covers; of queries of cross-attention always all, a row each.

        Args:
            centre: rad.
            half: rad.
            kinds: Of learned tokens, whose rows and columns follow those of φ in what is shown (`Pattern.kinds`).
            queries: (Nq,) rad, of cross-attention (`Pattern.rows_drawn`).
        """
        if (centre, half, tuple(kinds)) == (self.centre, self.half, self.kinds) and same_rows(queries, self.queries):
            return
        self.centre, self.half, self.kinds, self.queries = centre, half, tuple(kinds), queries
        low, high = centre - half, centre + half
        width, strips = (high - low) / self.bins, _strips(self.bins, len(kinds))
        right = high + width * len(strips)
        bottom, top = low, right
        if queries is not None:
            bottom, top = -0.5, len(queries) - 0.5
        self.image.set_extent((low, right, bottom, top))
        names = [kind.title for kind in kinds]
        middles = [high + width * (strips.index(i) + _thick(self.bins) / 2) for i in range(len(kinds))]
        for axis in (self.ax.xaxis, self.ax.yaxis):
            ticks, words = TICKS
            if axis is self.ax.yaxis and queries is not None:
                ticks, words = _rows(queries)
            elif half != math.pi:
                ticks = [round(centre + half * share, 2) for share in (-0.8, -0.4, 0, 0.4, 0.8)]
                words = [f"{tick:.2f}" for tick in ticks]
            if axis is self.ax.xaxis or queries is None:
                ticks, words = [*ticks, *middles], [*words, *names]
            axis.set_ticks(ticks, words)
        for word in [*self.ax.get_xticklabels(), *self.ax.get_yticklabels()]:
            word.set_fontsize(NAME_SIZE if word.get_text() in names else style.RC["xtick.labelsize"])
        for word in self.ax.get_xticklabels():
            word.set_rotation(90 if word.get_text() in names else 0)
        self.ax.set_xlim(low, right)
        self.ax.set_ylim(bottom, top)

    def bare(self) -> None:
        """Without the vertical axis' words: another map stands to the left."""
        self.ax.set_ylabel("")
        self.ax.tick_params(axis="y", labelleft=False)

    def show(self, values: NDArray[np.float64], title: str | None = None, at: float | None = None) -> None:
        """Shows a map, whose shape is that of `binned`; `at`: φ of a query that is marked by a line."""
        if self.kinds:
            values = _with_strips(values, self.bins, len(self.kinds), rows=self.queries is None)
        self.image.set_data(values)
        if title is not None:
            self.ax.set_title(title, loc="left")  # as by our style, which holds no more where an explorer moves
        self.line.set_visible(at is not None)
        if at is not None:
            up = at if self.queries is None else int(np.argmin(np.abs(turn(self.queries - at))))
            self.line.set_ydata([up, up])


class DetectorPanel:
    """One query's attention in the x-y plane: lines to the hits that it looks at most, its own particle ringed.

    Learned tokens have no place there: what they get is written in a corner.
    """

    words = ("x [mm]", "y [mm]")
    """Of the axes."""
    aspect: Literal["equal", "auto"] = "equal"
    """Of the two."""

    def __init__(self, ax: Axes, title: str) -> None:
        self.ax = ax
        self.hits = ax.scatter([], [], s=3, c=style.FAINT, linewidths=0, rasterized=True)
        self.lines = LineCollection([], zorder=2)
        ax.add_collection(self.lines)
        self.rings = ax.scatter([], [], s=55, facecolors="none", edgecolors=style.BLACK, linewidths=1.1, zorder=3)
        self.star = ax.scatter([], [], s=150, c=style.ORANGE, marker="*", edgecolors="black", linewidths=0.6, zorder=4)
        self.note = ax.text(0.02, 0.98, "", transform=ax.transAxes, va="top", fontsize=11, zorder=5)
        self.note.set_bbox({"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 2})
        self.moving = [self.hits, self.lines, self.rings, self.star, self.note]
        """What `show` moves, the last on top."""
        ax.set_xlabel(self.words[0])
        ax.set_ylabel(self.words[1])
        ax.set_title(title)
        ax.set_aspect(self.aspect, adjustable="box")
        ax.locator_params(nbins=6)

    def places(self, pattern: Pattern, row: int) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
        """Of the keys (Nk, 2), and of the query (2,)."""
        return pattern.key_xy, pattern.query_xy[row]

    def frame(self, shown: NDArray[np.floating[Any]]) -> None:
        """Makes the axes hold some places (n, 2)."""
        needed = 1.05 * float(np.abs(shown).max())
        reach = next((one for one in REACHES if one >= needed), needed)
        self.ax.set_xlim(-reach, reach)
        self.ax.set_ylim(-reach, reach)

    def show(
        self, pattern: Pattern, row: int, head: int | None, title: str | None = None, *, count: int = STRONGEST
    ) -> None:
        """Shows the attention of query `row`, a line to each of its `count` strongest keys that are hits.

        Raises:
            ValueError: the query is a learned token.
        """
        if np.isnan(pattern.query_xy[row]).any():
            raise ValueError(f"query {row} is a learned token and has no place on the detector: choose a hit")
        found = strongest(pattern, row, count, head, only_hits=True)
        weights, keys = (one.numpy()[::-1] for one in found)  # the strongest on top
        self.note.set_text(share_words(shares(pattern, head, rows=[row])))
        drawn = (weights > 0) & (keys != row if pattern.hits else True)  # a window may hold fewer
        weights, keys = weights[drawn], keys[drawn]
        mine = pattern.mine(row)
        at, star = self.places(pattern, row)
        self.hits.set_offsets(at[pattern.is_hit])
        self.rings.set_offsets(at[mine])
        self.star.set_offsets(star)
        self.lines.set_segments(list(np.stack([np.broadcast_to(star, (len(keys), 2)), at[keys]], axis=1)))
        share = weights / max(float(weights.max(initial=0.0)), 1e-30)
        colours = np.where(mine[keys, None], to_rgba(OWN), to_rgba(OTHER))
        colours[:, 3] = 0.35 + 0.65 * share
        self.lines.set_color(list(colours))
        self.lines.set_linewidth(list(0.7 + 2.3 * share))
        self.frame(np.concatenate([at[keys[share > 0.1]], at[mine], star[None]]))
        if title is not None:
            self.ax.set_title(title)


class UnrolledPanel(DetectorPanel):
    """The same with φ along the axis: tracks that point away from the beam stand upright, and lines lie apart."""

    words = ("Δφ to the query [rad]", "distance from the beam [mm]")
    aspect = "auto"

    @override
    def places(self, pattern: Pattern, row: int) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
        apart = turn(pattern.key_phi - pattern.query_phi[row])
        keys = np.stack([apart, np.hypot(*pattern.key_xy.T)], axis=1)
        return keys, np.array([0.0, np.hypot(*pattern.query_xy[row])])

    @override
    def frame(self, shown: NDArray[np.floating[Any]]) -> None:
        across, away = 1.1 * np.abs(shown).max(axis=0)
        across = next((one for one in ANGLES if one >= across), math.pi)
        away = next((one for one in REACHES if one >= away), away)
        self.ax.set_xlim(-across, across)
        self.ax.set_ylim(0, away)


class AnglePanel:
    """Attention of one query against Δφ = φ(key) - φ(query), a step curve a pattern, over the share of keys there."""

    def __init__(
        self, ax: Axes, labels: Sequence[str], colours: Sequence[str], *, bins: int = 48, reach: float = math.pi
    ) -> None:
        self.ax = ax
        self.edges = np.linspace(-reach, reach, bins + 1)
        blank = np.full(bins, 1e-9)
        self.keys = ax.stairs(blank, self.edges, fill=True, color=style.FAINT, label="share of the keys")
        self.curves = [
            ax.stairs(blank, self.edges, baseline=None, color=colour, linewidth=1.6, label=label)
            for label, colour in zip(labels, colours, strict=True)
        ]
        self.moving = [self.keys, *self.curves]
        """What `show` moves, the last on top."""
        ax.set_yscale("log")
        ax.set_ylim(1e-3, 12)
        ax.set_yticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
        ax.minorticks_off()
        ax.set_xlim(-reach, reach)
        if reach == math.pi:
            ax.set_xticks(*TICKS)
        ax.set_xlabel("Δφ = φ(key) − φ(query) [rad]")
        ax.set_ylabel(f"share of attention, bins of {2 * reach / bins:.2g} rad")
        ax.legend(loc="upper left", handlelength=1.2, ncols=2, columnspacing=1.0)

    def show(self, patterns: Sequence[Pattern], rows: Sequence[int], head: int | None) -> None:
        """Shows the attention of one query of each pattern."""
        for curve, pattern, row in zip(self.curves, patterns, rows, strict=True):
            delta = turn(pattern.key_phi - pattern.query_phi[row])
            values = np.histogram(delta, self.edges, weights=pattern.rows([row], head)[0].numpy())[0]
            curve.set_data(np.maximum(values, 1e-9))
            self.keys.set_data(np.maximum(np.histogram(delta, self.edges)[0] / len(delta), 1e-9))


def mark_legend(figure: Figure, *, own: bool = True, count: int | None = STRONGEST) -> None:
    """The marks of `DetectorPanel` under a figure; `own`: queries have particles; `count` lines, None: it varies."""
    many = "" if count is None else f"{count} "
    handles = [
        Line2D([], [], linestyle="", marker="*", markersize=13, color=style.ORANGE, label="the query"),
        Line2D([], [], color=OTHER, label=f"its {many}strongest hits; wide and dark: more attention"),
    ]
    if own:
        handles[1:1] = [
            Line2D(
                [], [], linestyle="", marker="o", markersize=8, mfc="none", mec="black", label="hit of its particle"
            ),
            Line2D([], [], color=OWN, label="to its own particle"),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)


def share_words(found: dict[Role, float]) -> str:
    """Shares of attention in words: "registers 12 %, CLS 3 %"."""
    words = {kind: kind.title if kind is Role.CLS else f"{kind.title}s" for kind in found}
    return ", ".join(f"{words[kind]} {100 * share:.{0 if share >= 0.01 else 2}f} %" for kind, share in found.items())


def same_rows(queries: NDArray[np.floating[Any]] | None, others: NDArray[np.floating[Any]] | None) -> bool:
    """Whether two maps have the same rows (`Pattern.rows_drawn`)."""
    if queries is None or others is None:
        return queries is others
    return np.array_equal(queries, others)


def _rows(queries: NDArray[np.floating[Any]]) -> tuple[list[float], list[str]]:
    """Where a map with a row for each query has ticks, and φ there; multiples of π / 2 where queries are even."""
    count = len(queries)
    if count > 3 and np.allclose(queries, -np.pi + 2 * np.pi * np.arange(count) / count):
        return [count * share for share in (0, 0.25, 0.5, 0.75)], TICKS[1][:4]
    places = sorted({round(place) for place in np.linspace(0, count - 1, min(count, 8))})
    return [float(place) for place in places], [f"{queries[place]:.2f}" for place in places]


def _thick(bins: int) -> int:
    """Bins of φ that are as wide as a strip."""
    return max(1, bins // 16)


def _strips(bins: int, kinds: int) -> list[int]:
    """What stands beyond the bins of φ, in their width: for each kind a gap (-1) and its strip; none without kinds."""
    strips = [one for kind in range(kinds) for one in [-1, *[kind] * _thick(bins)]]
    return [*[-1] * (_thick(bins) // 2), *strips] if kinds else []


def _with_strips(values: NDArray[np.float64], bins: int, kinds: int, *, rows: bool) -> NDArray[np.float64]:
    """The map with wide strips for learned tokens, and gaps (NaN) before them."""
    index = np.array([*range(bins), *[bins + kind if kind >= 0 else -1 for kind in _strips(bins, kinds)]])
    wide = np.where(index >= 0, values[:, index], np.nan)
    return np.where(index[:, None] >= 0, wide[index], np.nan) if rows else wide


def map_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes]) -> None:
    """The colour bar of maps."""
    bar = figure.colorbar(image, ax=list(axes), label="attention / uniform attention", shrink=0.9, pad=0.015)
    power = round(math.log2(image.get_clim()[1] or 16) / 2)
    ticks = [2.0 ** (power * i) for i in (-2, -1, 0, 1, 2)]
    bar.set_ticks(ticks, labels=[f"{tick:g}" if tick >= 1 else f"1/{1 / tick:g}" for tick in ticks])
    bar.minorticks_off()


def change_bar(figure: Figure, image: AxesImage, ax: Axes) -> None:
    """The colour bar of a difference."""
    figure.colorbar(image, ax=ax, label="log₂(after / before)", shrink=0.9, pad=0.03, ticks=[-4, -2, 0, 2, 4])
