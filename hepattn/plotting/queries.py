"""Draw how queries become tracks: queries on hits, costs of matching, masks after each layer, attention, and tracks."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hepattn.metrics.intervals import Fraction
from hepattn.metrics.tracks import track_metrics
from hepattn.models.track_losses import TrackWeights
from hepattn.plotting import style
from hepattn.plotting.attention_panels import TICKS
from hepattn.plotting.events import event
from hepattn.plotting.query_numbers import (
    AttentionShares,
    Decoding,
    Events,
    agreement,
    assigned,
    attention_shares,
    costs,
    found,
    innermost_chosen,
    window_share,
)
from hepattn.plotting.query_panels import (
    SHOWN,
    CostPanel,
    HitMapPanel,
    Part,
    cost_bar,
    cost_handles,
    map_bar,
    map_handles,
)
from hepattn.plotting.tracks import found_tracks

__all__ = [
    "attention_on_own",
    "of_layer",
    "query_attention",
    "query_costs",
    "query_hits",
    "query_masks",
    "query_tracks",
]


def query_hits(of: Decoding, reach: float = 200.0) -> Figure:
    """Draw which hits became queries: in φ and r, and along the beam in the inner part of the detector.

    Args:
        of: An event in a tracker.
        reach: How far the view along the beam goes, mm.

    Returns:
        The figure.
    """
    figure, axes = style.canvas(2, width=6.6, height=5.6, ratios=[1.35, 1.0])
    hits = of.event.hits
    all_x, all_y = hits.x[of.rows], hits.y[of.rows]
    places = [(hits.phi[of.rows], np.hypot(all_x, all_y)), (all_x, all_y)]
    true, rows = np.flatnonzero(of.innermost), of.place
    with style.context():
        for ax, (x, y) in zip(axes, places, strict=True):
            ax.scatter(x, y, 5, c=style.FAINT, linewidths=0)
            dots = ax.scatter(
                x[rows], y[rows], 34, c=of.first[rows], cmap=style.CONTINUOUS, vmin=0, vmax=1, linewidths=0
            )
            ax.scatter(x[true], y[true], 95, facecolors="none", edgecolors=style.VERMILLION, linewidths=1.4)
        around, along = axes
        around.set_yscale("log")
        around.set_yticks([30, 50, 100, 200, 500, 1000], ["30", "50", "100", "200", "500", "1000"])
        around.minorticks_off()
        around.set_xticks(*TICKS)
        around.set(xlabel="φ [rad]", ylabel="r [mm]", xlim=(-np.pi, np.pi))
        along.set(xlabel="x [mm]", ylabel="y [mm]", xlim=(-reach, reach), ylim=(-reach, reach))
        along.set_aspect("equal", adjustable="box")
        figure.colorbar(dots, ax=axes, label="probability of being the innermost hit", shrink=0.9, pad=0.012)
        looks = {"linestyle": "", "marker": "o"}
        handles = [
            Line2D([], [], color=style.FAINT, markersize=4, label="hit that went in", **looks),  # type: ignore[arg-type]
            Line2D([], [], color=style.BLUE, markersize=7, label="query", **looks),  # type: ignore[arg-type]
            Line2D([], [], mfc="none", mec=style.VERMILLION, ms=10, label="true innermost hit", **looks),  # type: ignore[arg-type]
        ]
        handles[1].set_color(dots.cmap(0.8))
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        chosen = innermost_chosen(of)
        figure.suptitle(
            f"{len(rows):,} of {len(of.rows):,} hits are queries, among them {chosen.passed} of the {chosen.total} "
            f"innermost hits of particles to find\nreconstructable: {of.selection}"
        )
    return figure


def query_costs(of: Decoding, layer: int = -1, weights: TrackWeights | None = None) -> Figure:
    """Draw what it costs to match each query to each particle, the assignment of least total cost, and own targets.

    Args:
        of: An event in a tracker.
        layer: 0: before the first, -1: after the last.
        weights: Of the parts of the cost; None: those of the loss.

    Returns:
        The figure.
    """
    figure, (ax,) = style.canvas(width=8.6, height=7.4)
    weights = TrackWeights() if weights is None else weights
    with style.context():
        panel = CostPanel(ax)
        cost = costs(of, layer, weights)
        panel.show(of, cost, assigned(cost))
        cost_bar(figure, panel.image, ax)
        figure.legend(handles=cost_handles(), loc="outside lower center", ncols=2)
        figure.suptitle(
            f"{of_layer(of, layer)}, cost = {weights.object:g} × object + {weights.focal:g} × focal + "
            f"{weights.dice:g} × dice\nof the queries with a target of their own "
            f"{_percent(agreement(of, layer, weights))} are matched to it"
        )
    return figure


def query_masks(of: Decoding, query: int | None = None, count: int = SHOWN) -> Figure:
    """Draw the masks of some queries before the first layer and after each, and the truth.

    Args:
        of: An event in a tracker.
        query: In the middle of those drawn; None: of all.
        count: How many queries, at most.

    Returns:
        The figure: a panel a layer, and one of the truth.
    """
    part = Part(of, len(of.place) // 2 if query is None else query, count)
    maps = {of_layer(of, layer): of.mask(layer) for layer in range(of.layers + 1)}
    return _maps(of, maps | {"truth: hits of the query's own target": of.truth.astype(np.float64)}, part, "mask")


def query_attention(
    decodings: Mapping[str, Decoding], layer: int = 1, head: int | None = None, *, query: int | None = None
) -> Figure:
    """Draw the attention of some queries to the hits that they see, in several decodings of one event.

    Args:
        decodings: Title -> decoding: as it is, without encodings, in another order ...
        layer: 1 ... L.
        head: One head, or None for the mean of all.
        query: In the middle of those drawn; None: of all.

    Returns:
        The figure: a panel a decoding.

    Raises:
        ValueError: There is no such layer.
    """
    figure, axes = _grid(len(decodings))
    with style.context():
        for ax, (title, of) in zip(axes, decodings.items(), strict=True):
            if not 1 <= layer <= of.layers:
                raise ValueError(f"layer lies in 1 ... {of.layers}, not {layer}")
            values = of.attention[layer - 1].rows(range(len(of.place)), head).double().numpy()
            panel = HitMapPanel(ax, title, LIMIT)
            panel.show(of, values, Part(of, len(of.place) // 2 if query is None else query))
        map_bar(figure, panel.image, axes, f"share of attention, layer {layer}")
        figure.legend(handles=map_handles(), loc="outside lower center", ncols=2)
    return figure


def attention_on_own(decodings: Mapping[str, Events]) -> Figure:
    """Draw how much attention goes to the hits of the query's own target, and how many of these its block sees.

    Args:
        decodings: Name -> decodings, of one event or several.

    Returns:
        The figure: shares of attention in each layer, on the left; hits inside windows, on the right.
    """
    events = {name: [one] if isinstance(one, Decoding) else list(one) for name, one in decodings.items()}
    figure, (left, right) = style.canvas(2, width=6.4, height=1.9 + 0.9 * len(events), ratios=[1.7, 1.0])
    layers = next(iter(events.values()))[0].layers
    with style.context():
        for row, some in enumerate(events.values()):
            for layer in range(1, layers + 1):
                y = row + 0.5 * ((layer - 0.5) / layers - 0.5)
                share = attention_shares(some, layer)
                ends = [100 * share.in_window, 100 * share.attention]
                left.plot(ends, [y, y], color=style.FAINT, linewidth=1.5, zorder=1)
                for name, marker, colour, _ in KINDS:
                    x, face = 100 * getattr(share, name), _face(name, colour)
                    left.plot(x, y, marker, color=colour, markersize=9, mfc=face, mew=1.5, clip_on=False)
                left.annotate(f"layer {layer}", (102, y), va="center", fontsize=10.5, annotation_clip=False)
            inside = window_share(some)
            low, high = (100 * end for end in inside.interval)
            right.plot([low, high], [row, row], color=style.BLUE, linewidth=2)
            right.plot(100 * inside.value, row, "s", color=style.BLUE, markersize=8)
            right.annotate(f"{100 * inside.value:.1f} %", (100 * inside.value, row - 0.18), ha="center", va="bottom")
        for ax in (left, right):
            ax.set_ylim(len(events) - 0.5, -0.5)
            ax.set_yticks(range(len(events)), list(events) if ax is left else [""] * len(events))
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="x", color=style.PAPER, linewidth=1.0)
        left.set_xlim(0, 100)
        right.set_xlim(0, 112)
        right.set_xticks([0, 25, 50, 75, 100])
        left.set_xlabel("attention on hits of the query's own target [%]")
        right.set_xlabel("these hits inside the block's window [%]\n(68.3 % intervals)")
        handles = [
            Line2D([], [], linestyle="", marker=marker, ms=9, color=colour, mfc=_face(name, colour), label=label)
            for name, marker, colour, label in KINDS
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
        figure.suptitle(f"mean over the queries with a target of their own; events: {max(map(len, events.values()))}")
    return figure


LIMIT = 0.2
"""Share of attention at which the colours of a map end: a query looks at ten hits or so."""

KINDS = (
    ("attention", "o", style.BLUE, "as the layer attends"),
    ("in_mask", "D", style.ORANGE, "all hits in the mask alike"),
    ("in_window", "|", style.BLACK, "all hits in the window alike: chance"),
)
"""Fields of `AttentionShares`: name, marker, colour, words."""


def _face(name: str, colour: str) -> str:
    """Filled, but for the diamond, that may lie upon the circle."""
    assert name in AttentionShares.__dataclass_fields__
    return "none" if name == "in_mask" else colour


def query_tracks(of: Decoding, layer: int = -1, mask_threshold: float = 0.5, object_threshold: float = 0.5) -> Figure:
    """Draw the particles to find and, beside them, the tracks that queries make after a layer, along the beam.

    Args:
        of: An event in a tracker.
        layer: 0: before the first, -1: after the last.
        mask_threshold: Probability above which a hit may lie on a track.
        object_threshold: Probability from which a query is a track.

    Returns:
        The figure.
    """
    tracks = found(of, layer, mask_threshold, object_threshold)
    figure, (true, made) = style.canvas(2, width=6.2, height=6.6)
    event(of.event, "particle", views=("xy",), selection=of.selection, ax=true)
    found_tracks(of.event, tracks, views=("xy",), ax=made)
    with style.context():
        true.set_title("the truth: particles to find, by colour")
        made.set_title(f"tracks of queries {of_layer(of, layer)}")
        true.set_aspect("equal", adjustable="box")
        true.set(xlim=made.get_xlim(), ylim=made.get_ylim())
        metrics = track_metrics([tracks])
        figure.suptitle(
            f"double majority: efficiency {_percent(metrics.efficiency)}, fakes {_percent(metrics.fakes)}\n"
            f"reconstructable: {of.selection}"
        )
    return figure


def of_layer(of: Decoding, layer: int) -> str:
    """A layer in words; 0: before the first, -1: after the last."""
    number = layer % (of.layers + 1)
    return f"after layer {number}" if number else "before the first layer"


def _maps(of: Decoding, maps: Mapping[str, np.ndarray], part: Part, what: str) -> Figure:
    figure, axes = _grid(len(maps))
    with style.context():
        for ax, (title, values) in zip(axes, maps.items(), strict=True):
            panel = HitMapPanel(ax, title)
            panel.show(of, values, part)
        map_bar(figure, panel.image, axes, f"{what}: probability that the hit is the query's")
        figure.legend(handles=map_handles(), loc="outside lower center", ncols=2)
    return figure


def _grid(count: int) -> tuple[Figure, list]:
    """Panels in rows of two, the last one alone if need be."""
    rows = (count + 1) // 2 if count > 1 else 1
    with style.context():
        figure = style.Figure(figsize=(14.0, 0.7 + 4.0 * rows), layout="constrained")
        axes = list(figure.subplots(rows, min(count, 2), squeeze=False).flat)
        for ax in axes[count:]:
            ax.set_axis_off()
    return figure, axes[:count]


def _percent(share: Fraction) -> str:
    return f"{100 * share.value:.1f} % ({share.passed} of {share.total})" if share.total else "- (0 of 0)"
