"""Draw how tracks are judged: efficiency against pT and eta, toys as rows of hits, and found tracks in the detector."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from hepattn.data.schema import Event, Selection
from hepattn.metrics.track_matching import KINDS, Kind
from hepattn.metrics.tracks import FoundTracks, Quantity, Sizes, efficiency_against, track_metrics
from hepattn.plotting import style
from hepattn.plotting.events import View
from hepattn.plotting.track_panels import FAKE, FOUND, LETTERS, MISSED, NAMES, DetectorPanel, ToyPanels, by_verdict

MARKERS = dict(zip(KINDS, "sov", strict=True))
COLOURS = dict(zip(KINDS, (style.GREEN, style.BLUE, style.ORANGE), strict=True))
LABELS: dict[Quantity, str] = {"pt": "true pT [GeV]", "eta": "true η"}
HITS: dict[Sizes, str] = {"all": "all hits", "kept": "the hits that the tracker was given"}
"""What a particle's size is, in words."""


def track_efficiency(
    events: Sequence[FoundTracks],
    quantity: Quantity,
    edges: Sequence[float] | NDArray[np.float64],
    kinds: Sequence[Kind] = KINDS,
    *,
    min_hits: int = 3,
    sizes: Sizes = "all",
    selection: Selection | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw the efficiency of a tracker against pT or η of reconstructable particles, one colour a definition.

    Vertical bars are 68.3 % Clopper-Pearson intervals, horizontal ones the bins (points are moved apart a little, so
    that none is hidden); a bin without a particle is a gap.

    Args:
        events: Found tracks with truth.
        quantity: ``"pt"`` (on a logarithmic axis where the edges allow it) or ``"eta"``.
        edges: (b + 1,) rising; GeV for pT.
        kinds: Definitions of found.
        min_hits: Hits that a track needs.
        sizes: Which hits of a particle its tracks are compared with.
        selection: Which particles are reconstructable, to print on the figure.
        ax: Axes to draw in.

    Returns:
        The figure.

    Raises:
        ValueError: No definition, an unknown one, or an event doesn't know the quantity.
    """
    if not kinds:
        raise ValueError(f"kinds names at least one of {', '.join(KINDS)}")
    bins = np.asarray(edges, dtype=np.float64)
    fractions = {
        kind: efficiency_against(events, quantity, bins, kind, min_hits=min_hits, sizes=sizes) for kind in kinds
    }
    figure, (panel,) = style.canvas(1, width=7.8, height=4.8, ax=ax)
    logarithmic = quantity == "pt" and bins[0] > 0
    scale = np.log(bins) if logarithmic else bins
    with style.context():
        for i, (kind, shares) in enumerate(fractions.items()):
            middle = scale[:-1] + np.diff(scale) * (0.5 + 0.12 * (i - (len(kinds) - 1) / 2))
            x = np.exp(middle) if logarithmic else middle
            value = np.array([share.value for share in shares])
            low, high = np.array([share.interval for share in shares]).T
            total = sum(share.passed for share in shares), sum(share.total for share in shares)
            panel.errorbar(
                x,
                value,
                yerr=np.maximum([value - low, high - value], 0.0),
                xerr=[x - bins[:-1], bins[1:] - x],
                linestyle="",
                marker=MARKERS[kind],
                markersize=6,
                color=COLOURS[kind],
                elinewidth=1.4,
                label=f"{NAMES[kind]} ({total[0]:,} of {total[1]:,})",
            )
        if logarithmic:
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("")
            panel.set_xticks([tick for tick in (0.3, 0.5, 1, 2, 5, 10, 20, 50) if bins[0] <= tick <= bins[-1]])
        panel.set_xlim(bins[0], bins[-1])
        panel.set_ylim(0.0, 1.03)
        panel.set_xlabel(LABELS[quantity])
        panel.set_ylabel("efficiency (68.3 % intervals)")
        panel.grid(color=style.PAPER, linewidth=1.0)
        if ax is None:
            figure.legend(loc="outside lower center", ncols=3, columnspacing=1.4, handletextpad=0.4)
        else:
            panel.legend(loc="upper left", bbox_to_anchor=(0.0, -0.16))
        cut = f"reconstructable: {selection}\n" if selection is not None else ""
        panel.set_title(f"{cut}tracks of >= {min_hits} hits; a particle's size is {HITS[sizes]}", fontsize=12)
    return figure


def toy_matching(
    found: FoundTracks,
    particles: ArrayLike | None = None,
    along: ArrayLike | None = None,
    *,
    min_hits: int = 3,
    sizes: Sizes = "all",
) -> Figure:
    """Draw particles and tracks as rows of hits, and beside each track what every definition says of it.

    A square is a hit, in the colour and with the letter of its particle; grey: noise; open: lost by the filter. Tracks
    stand in the order of their majority particles. Circle: matched; cross: not.

    Args:
        found: Tracks with truth, of a small event.
        particles: Rows of particles to show, at most 16; left out, the first 16.
        along: (N,) by which hits are sorted in a row, such as ``event.hits.s``; left out, their order in the event.
        min_hits: Hits that a track needs to be found.
        sizes: Which hits of a particle its tracks are compared with.

    Returns:
        The figure; tracks without a hit on the particles shown are not in it.

    Raises:
        ValueError: More than 16 particles are asked for.
    """
    count = len(found.reconstructable)
    rows = np.arange(min(count, len(LETTERS))) if particles is None else np.asarray(particles, dtype=np.int64)
    if len(rows) > len(LETTERS):
        raise ValueError(f"a toy shows at most {len(LETTERS)} particles, not {len(rows)}")
    on = np.isin(np.asarray(found.particle)[found.tracks.hits], rows)
    tracks = len(np.unique(found.tracks.owner[on]))
    figure, (left, right) = style.canvas(
        2, width=6.6, height=1.5 + 0.31 * max(len(rows), tracks, 3), ratios=[18.4, 25.2]
    )
    with style.context():
        panels = ToyPanels(left, right, len(rows), max(tracks, 3))
        panels.show(found, rows, along, min_hits=min_hits, sizes=sizes)
        looks = [("on a particle", "s", style.BLUE, style.BLUE)]
        if (np.asarray(found.particle)[found.tracks.hits] < 0).any():
            looks.append(("noise", "s", style.FAINT, style.FAINT))
        if len(rows) < count:
            looks.append(("on another particle", "s", style.GREY, style.GREY))
        if found.kept is not None and not found.kept.all():
            looks.append(("lost by the filter", "s", "white", style.BLUE))
        looks += [("matched", "o", FOUND, FOUND), ("not matched", "x", FAKE, FAKE)]
        handles = [
            Line2D([], [], linestyle="", marker=marker, markersize=9, markerfacecolor=face, color=edge, label=label)
            for label, marker, face, edge in looks
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, columnspacing=1.4, handletextpad=0.2)
    return figure


def found_tracks(
    event: Event,
    found: FoundTracks,
    kind: Kind = "double_majority",
    views: Sequence[View] = ("xy", "rz"),
    *,
    min_hits: int = 3,
    sizes: Sizes = "all",
    selection: Selection | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Draw found tracks in the detector: matched ones, fakes, and the particles that were missed.

    Args:
        event: Whose tracks they are, whole.
        found: Tracks with truth.
        kind: Definition of found.
        views: As in :func:`hepattn.plotting.event`.
        min_hits: Hits that a track needs; shorter ones are not drawn.
        sizes: Which hits of a particle its tracks are compared with.
        selection: Which particles are reconstructable, to print on the figure.
        ax: Axes to draw in (one view only).

    Returns:
        The figure.

    Raises:
        ValueError: Tracks of another event, or an unknown definition.
    """
    if found.tracks.num_hits != len(event.hits):
        raise ValueError(f"the event has {len(event.hits)} hits, its tracks know {found.tracks.num_hits}")
    groups = by_verdict(event, found, kind, min_hits, sizes)
    ratios = [1.0 if view == "xy" else 1.25 for view in views]
    figure, axes = style.canvas(len(views), width=4.6 * sum(ratios) / len(views), height=5.4, ax=ax, ratios=ratios)
    with style.context():
        for view, panel in zip(views, axes, strict=True):
            DetectorPanel(panel, view).show(event, groups)
        handles = legend_handles([len(group) for group in groups])
        if ax is None:
            figure.legend(handles=handles, loc="outside lower center", ncols=4, columnspacing=1.4, handletextpad=0.4)
        else:
            ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, -0.14))
        metrics = track_metrics([found], min_hits, sizes)
        efficiency = {
            "double_majority": metrics.efficiency,
            "perfect": metrics.efficiency_perfect,
            "lhc": metrics.efficiency_lhc,
        }[kind]
        title = f"found by {NAMES[kind]}: efficiency {efficiency}"
        if selection is not None:
            title += f"\nreconstructable: {selection}"
        figure.suptitle(title) if ax is None else ax.set_title(title)
    return figure


def legend_handles(counts: Sequence[int] | None = None) -> list[Line2D]:
    """What the lines and dots of `DetectorPanel` mean, with how many there are: missed, matched, fakes."""
    names = ["particles missed", "tracks matched", "fake tracks"]
    if counts is not None:
        names = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True)]
    looks = zip(names, (MISSED, FOUND, FAKE), "xo^", strict=True)
    lines = [
        Line2D([], [], color=colour, marker=marker, markersize=6, linewidth=1.2, label=name)
        for name, colour, marker in looks
    ]
    lines[0].set_linestyle(":")
    lines[2].set_linestyle("--")
    return [lines[1], lines[2], lines[0], Line2D([], [], linestyle="", marker="o", color=style.FAINT, label="all hits")]
