"""Draw who looks at whom, weighted: maps of attention in φ, one hit's attention on the detector, and the seam at ±π."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from hepattn.plotting import style
from hepattn.plotting.attention_numbers import across, change, preference
from hepattn.plotting.attention_panels import (
    AnglePanel,
    DetectorPanel,
    MapPanel,
    change_bar,
    map_bar,
    mark_legend,
    same_rows,
)
from hepattn.plotting.attention_pattern import Pattern

__all__ = ["attention_maps", "attention_rows", "attention_seam"]


def attention_maps(
    patterns: Mapping[str, Pattern],
    head: int | None = 0,
    *,
    bins: int = 64,
    difference: bool = False,
    every: int = 1,
    centre: float = 0.0,
    half: float = math.pi,
    limit: float = 16,
) -> Figure:
    """Maps of attention between bins of φ, side by side; learned tokens in strips beyond, with their names.

    Args:
        patterns: Title -> pattern.
        head: One head, or None for the mean of all.
        bins: Bins of φ.
        difference: With two patterns a third panel: log2 of the second over the first, that is the difference of
            their colours; 0 = the same.
        every: Take every so many-th query (of each kind of token), for long events.
        centre: Middle of the range of φ, rad; a range may run across ±π.
        half: Half of that range, rad; π: the full turn.
        limit: Colours run from 1 / limit to limit, times attention to all keys alike that the mask allows.

    Returns:
        The figure: one panel a pattern, then the difference, then the colour bars.

    Raises:
        ValueError: No pattern, or a difference of another number than two.
    """
    if not patterns or (difference and len(patterns) != 2):
        raise ValueError(f"maps of one pattern or more, a difference of two: got {len(patterns)}")
    count = len(patterns) + difference
    figure, axes = style.canvas(count, width=4.5 if count < 4 else 3.3, height=4.5 if count < 4 else 4.0)
    with style.context():
        maps, panels, kinds, queries = [], [], [], []
        for ax, (title, pattern) in zip(axes, patterns.items(), strict=False):
            rows = pattern.sampled(every)
            maps.append(preference(pattern, bins, head, rows=rows, centre=centre, half=half))
            kinds.append(pattern.kinds)
            queries.append(pattern.rows_drawn)
            panels.append(MapPanel(ax, title, bins=bins, queries=pattern.rows_drawn, limit=limit))
        map_bar(figure, panels[0].image, axes[: len(patterns)])
        if difference:
            alike = kinds[0] == kinds[1]
            maps.append(change(*(one if alike else _hits_alone(one, bins, pattern) for one in maps)))
            kinds.append(kinds[0] if alike else ())
            queries.append(queries[0])
            title = "difference" if alike else "difference, hits alone"
            panels.append(MapPanel(axes[-1], title, bins=bins, queries=pattern.rows_drawn, change=True))
            change_bar(figure, panels[-1].image, axes[-1])
        for panel, values, of, asking in zip(panels, maps, kinds, queries, strict=True):
            panel.frame(centre, half, of, asking)
            panel.show(values)
        for panel, of in zip(panels[1:], kinds[1:], strict=True):
            if of == kinds[0] and same_rows(panel.queries, panels[0].queries):
                panel.bare()
    return figure


def attention_rows(
    patterns: Mapping[str, Pattern], row: int, head: int | None = 0, *, reach: float = math.pi
) -> Figure:
    """One query's attention under several patterns: lines on the detector, and against Δφ.

    Args:
        patterns: Title -> pattern, of the same event; at most seven.
        row: Position of the query in the first pattern's sequence, in φ order (`Pattern.nearest` finds one). Where
            patterns differ in learned tokens, each is asked for the same hit.
        head: One head, or None for the mean of all.
        reach: |Δφ| up to which the last panel goes, rad.

    Returns:
        The figure: one x-y panel a pattern, and the panel of Δφ.

    Raises:
        ValueError: There is no such query, or it is a learned token.
    """
    chosen = list(patterns.values())
    rows = [_same_query(chosen[0], pattern, row) for pattern in chosen]
    figure, axes = style.canvas(len(chosen) + 1, width=4.6, height=5.6, ratios=[1.0] * len(chosen) + [1.1])
    with style.context():
        for ax, (title, pattern), place in zip(axes, patterns.items(), rows, strict=False):
            DetectorPanel(ax, title).show(pattern, place, head)
        angles = AnglePanel(axes[-1], list(patterns), style.CYCLE[: len(chosen)], reach=reach)
        angles.show(chosen, rows, head)
        for ax in axes[1:-1]:
            ax.set_ylabel("")
        mark_legend(figure, own=bool(chosen[0].mine(row).any()))
        figure.suptitle(f"the query at φ = {chosen[0].query_phi[row]:.2f} rad, {chosen[0].is_hit.sum():,} hits")
    return figure


def attention_seam(
    patterns: Mapping[str, Pattern], head: int | None = None, *, reach: float = 0.5, bins: int = 20, width: float = 0.05
) -> Figure:
    """Attention of the queries just below φ = +π, on both sides of the seam: the axis runs on to π + reach.

    Args:
        patterns: Title -> pattern, of the same event.
        head: One head, or None for the mean of all.
        reach: Drawn on either side of the seam, rad.
        bins: Points of a curve.
        width: Queries in (π - width, π) are averaged, rad.

    Returns:
        The figure; one curve a pattern, 1 = attention to all keys alike.

    Raises:
        ValueError: No query lies there.
    """
    figure, (ax,) = style.canvas(width=8.5, height=4.2)
    edges = np.linspace(np.pi - reach, np.pi + reach, bins + 1)
    with style.context():
        for (title, pattern), colour in zip(patterns.items(), style.CYCLE, strict=False):
            near = np.flatnonzero(np.pi - pattern.query_phi < width)
            if not len(near):
                raise ValueError(f"no query of {title!r} lies within {width} rad below π")
            row = pattern.rows(torch.from_numpy(near), head).mean(dim=0).numpy()
            phi = np.where(pattern.key_phi < 0, pattern.key_phi + 2 * np.pi, pattern.key_phi)
            count = np.histogram(phi, edges)[0]
            found = np.histogram(phi, edges, weights=row)[0] * len(pattern.k)
            mean = np.where(count > 0, found / np.maximum(count, 1), np.nan)
            middle = (edges[1:] + edges[:-1]) / 2
            label = f"{title} ({across(pattern, head, width=width):.2f})"
            ax.plot(middle, mean, color=colour, marker="o", markersize=3.5, linewidth=1.5, label=label)
        ax.axvline(np.pi, color="black", linewidth=1, linestyle=":")
        ax.axhline(1, color=style.GREY, linewidth=1)
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(FuncFormatter(_plain))
        ax.set_xlabel("φ of the key [rad]; beyond the dotted line φ − 2π, next to −π")
        ax.set_ylabel("attention / uniform attention")
        ax.set_title(f"queries within {width} rad below φ = +π")
        figure.legend(loc="outside right upper", title="(across the seam\n / on this side)")
    return figure


def _hits_alone(values: NDArray[np.float64], bins: int, pattern: Pattern) -> NDArray[np.float64]:
    """A map without the rows and columns of learned tokens."""
    return values[:bins, :bins] if pattern.hits else values[:, :bins]


def _same_query(first: Pattern, pattern: Pattern, row: int) -> int:
    """Where the query at `row` of the first pattern stands in another of the same event."""
    if not 0 <= row < len(first.q):
        raise ValueError(f"query {row} is not one of the {len(first.q)} of {first.name!r}")
    if not first.hits:
        places = np.arange(len(pattern.q))
        place = row
    elif not first.is_hit[row]:
        raise ValueError(f"query {row} of {first.name!r} is a learned token, no hit: it has no place on the detector")
    else:
        places = np.flatnonzero(pattern.is_hit)
        place = int(first.is_hit[:row].sum())
    if place >= len(places):
        raise ValueError(f"query {place} is not one of the {len(places)} of {pattern.name!r}")
    return int(places[place])


def _plain(value: float, _: int) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
