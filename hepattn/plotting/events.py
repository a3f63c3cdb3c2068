"""Draw an event: its hits in the detector, coloured by what a reader asks for. Lengths in mm, angles in rad."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from hepattn.data.schema import Event, Hits, Selection
from hepattn.masks import Mask
from hepattn.masks.base import Place
from hepattn.plotting import style
from hepattn.plotting.masks import name

View = Literal["xy", "rz", "etaphi"]
Colouring = Literal["particle", "volume", "layer", "noise"]

VIEWS: dict[str, tuple[str, str, Callable[[Hits], NDArray[Any]], Callable[[Hits], NDArray[Any]]]] = {
    "xy": ("x [mm]", "y [mm]", lambda hits: hits.x, lambda hits: hits.y),
    "rz": ("z [mm]", "r [mm]", lambda hits: hits.z, lambda hits: hits.r),
    "etaphi": ("η", "φ [rad]", lambda hits: hits.eta, lambda hits: hits.phi),
}
"""Name of a view -> labels and coordinates of its two axes."""

VOLUMES: dict[int, tuple[str, str]] = {
    7: ("7 pixel end-cap −z", "#56B4E9"),
    8: ("8 pixel barrel", "#0072B2"),
    9: ("9 pixel end-cap +z", "#9AD0F0"),
    12: ("12 short strip end-cap −z", "#F0B429"),
    13: ("13 short strip barrel", "#B87A00"),
    14: ("14 short strip end-cap +z", "#F5D58A"),
    16: ("16 long strip end-cap −z", "#9A9A9A"),
    17: ("17 long strip barrel", "#333333"),
    18: ("18 long strip end-cap +z", "#C8C8C8"),
}
"""TrackML's volumes: blue pixels, amber short strips, grey long strips; the barrel darkest, +z palest."""

SMALLEST = {"X": 9.0, "*": 90.0}
"""Smallest area (points^2) of markers that single hits out: in an event of 100,000 hits they must still be seen."""


@dataclass(frozen=True)
class Group:
    """Hits that are drawn alike. ``index``: which hits; ``colour``: one, or one a hit; ``label`` None: no legend."""

    index: NDArray[np.int64]
    colour: Any
    label: str | None = None
    marker: str = "o"
    scale: float = 1.0
    alpha: float = 1.0


def event(
    event: Event,
    colour_by: Colouring | ArrayLike = "particle",
    views: Sequence[View] = ("xy", "rz", "etaphi"),
    selection: Selection | None = None,
    *,
    label: str = "value",
    ax: Axes | None = None,
) -> Figure:
    """Draw the hits of an event, one panel a view.

    Args:
        event: What to draw.
        colour_by: ``"particle"`` (neighbours in φ differ; the same colour comes back on other particles),
            ``"volume"``, ``"layer"`` (layer id inside a volume), ``"noise"``, or an array (n_hits,): bool is drawn in
            two colours, numbers on a colour bar.
        views: Any of ``"xy"`` (along the beam), ``"rz"`` (from the side) and ``"etaphi"``.
        selection: Which particles are reconstructable: with ``colour_by="particle"`` all other hits are drawn faint,
            and the selection is printed on the figure.
        label: What an array holds, with its unit, for the colour bar.
        ax: Axes to draw in (one view only).

    Returns:
        The figure; ``figure.axes[i]`` is the panel of view i.

    Raises:
        ValueError: An unknown view or colouring, an array of the wrong length, or truth asked for that is not there.
    """
    groups, bar = _colouring(event, colour_by, selection)
    figure = _draw(event, groups, views, ax=ax)
    panels = [ax] if ax is not None else figure.axes[: len(views)]
    with style.context():
        if bar is not None:
            text = "layer id" if isinstance(colour_by, str) else label
            figure.colorbar(bar, ax=panels, label=text, shrink=0.9, pad=0.01)
        _title(figure, ax, event, selection)
    return figure


def attended(
    event: Event, mask: Mask, query: int, views: Sequence[View] = ("xy", "rz"), *, ax: Axes | None = None
) -> Figure:
    """Draw what one hit may attend to, on the detector: what a mask over hits in φ order means in space.

    Args:
        event: What to draw.
        mask: Over the hits of the event in φ order, as the models see them.
        query: Which hit looks: its index in the event's own order.
        views: As in :func:`event`.
        ax: Axes to draw in (one view only).

    Returns:
        The figure; ``figure.axes[i]`` is the panel of view i.

    Raises:
        ValueError: There is no such hit.
    """
    n = len(event.hits)
    if not 0 <= query < n:
        raise ValueError(f"query {query} is not one of the event's {n} hits")
    order = np.argsort(event.hits.phi, kind="stable")
    position = int(np.flatnonzero(order == query)[0])
    row = mask.allowed(torch.tensor(position), torch.arange(n), Place(n, n)).expand(n)
    seen = np.zeros(n, dtype=bool)
    seen[order] = row.numpy()
    particle = None if event.hits.particle is None else int(event.hits.particle[query])
    same = np.zeros(n, dtype=bool) if particle is None or particle < 0 else event.hits.particle == particle
    groups = [
        _group(~seen, style.FAINT, "not seen", alpha=0.5),
        _group(seen, style.SKY, "seen"),
        _group(seen & same, style.BLUE, "seen, same particle", scale=4.0),
        _group(~seen & same, style.VERMILLION, "same particle, not seen", scale=4.0, marker="X"),
        Group(np.array([query]), style.ORANGE, "the hit that looks", marker="*", scale=25.0),
    ]
    figure = _draw(event, groups, views, ax=ax)
    with style.context():
        title = f"{name(mask)} over {n:,} hits in φ order"
        figure.suptitle(title) if ax is None else ax.set_title(title)
    return figure


def _group(chosen: NDArray[np.bool_], colour: Any, label: str | None = None, **options: Any) -> Group:
    """Hits chosen by a bool array, with their number in the legend."""
    index = np.flatnonzero(chosen)
    return Group(index, colour, None if label is None else f"{label} ({len(index):,})", **options)


def _draw(event: Event, groups: Sequence[Group], views: Sequence[View], *, ax: Axes | None = None) -> Figure:
    """One panel a view, every group in order (the first lies lowest), one legend under the panels."""
    unknown = [view for view in views if view not in VIEWS]
    if unknown or not views:
        raise ValueError(f"views are {', '.join(VIEWS)}; got {', '.join(map(repr, unknown)) or 'none'}")
    n = max(len(event.hits), 1)
    size = float(np.clip(350 / np.sqrt(n), 1.3, 10.0))
    ratios = [1.0 if view == "xy" else 1.25 for view in views]
    figure, axes = style.canvas(len(views), width=4.6 * sum(ratios) / len(views), height=5.2, ax=ax, ratios=ratios)
    groups = [group for group in groups if len(group.index)]
    with style.context():
        for view, panel in zip(views, axes, strict=True):
            across, up, horizontal, vertical = VIEWS[view]
            a, b = horizontal(event.hits), vertical(event.hits)
            for group in groups:
                panel.scatter(
                    a[group.index],
                    b[group.index],
                    s=max(size * group.scale, SMALLEST.get(group.marker, 0.0)),
                    c=group.colour if isinstance(group.colour, str) else None,
                    facecolors=None if isinstance(group.colour, str) else group.colour,
                    marker=group.marker,
                    alpha=group.alpha,
                    linewidths=0,
                    rasterized=True,
                    label=group.label,
                )
            panel.set_xlabel(across)
            panel.set_ylabel(up)
            if view == "xy":
                panel.set_aspect("equal", adjustable="box" if ax is None else "datalim")  # theirs keeps its size
            if view == "etaphi":
                panel.set_yticks([-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi], ["−π", "−π/2", "0", "π/2", "π"])
        _legend(figure, axes, groups, inside=ax is not None)
    return figure


def _legend(figure: Figure, axes: Sequence[Axes], groups: Sequence[Group], *, inside: bool) -> None:
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=group.marker,
            markersize=12 if group.marker == "*" else 7,
            color=group.colour if isinstance(group.colour, str) else style.BLUE,
            alpha=max(group.alpha, 0.6),
            label=group.label,
        )
        for group in groups
        if group.label is not None
    ]
    if not handles:
        return
    if inside:
        axes[0].legend(handles=handles, loc="upper left", bbox_to_anchor=(0.0, -0.14))
    else:
        columns = min(len(handles), 2 * len(axes), 5)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.4, handletextpad=0.2)


def _title(figure: Figure, ax: Axes | None, event: Event, selection: Selection | None) -> None:
    source = f" ({event.source})" if event.source else ""
    title = f"event {event.event_id}{source}, {len(event.hits):,} hits"
    if selection is not None:
        title += f"\nreconstructable: {selection}"
    if ax is None:
        figure.suptitle(title)
    else:
        ax.set_title(title)


def _colouring(
    event: Event, colour_by: Colouring | ArrayLike, selection: Selection | None
) -> tuple[list[Group], ScalarMappable | None]:
    hits = event.hits
    if not isinstance(colour_by, str):
        return _by_value(np.asarray(colour_by), len(hits))
    if colour_by == "layer":
        return _by_value(hits.layer_id, len(hits))
    if colour_by == "volume":
        return _by_volume(hits), None
    if colour_by not in {"particle", "noise"}:
        raise ValueError(f"colour_by is particle, volume, layer, noise or an array, got {colour_by!r}")
    if hits.particle is None:
        raise ValueError(f"colour_by={colour_by!r} needs truth, and this event has none: try 'volume' or 'layer'")
    noise = _group(hits.particle < 0, style.FAINT, "noise", alpha=0.45, scale=0.6)
    if colour_by == "noise":
        return [noise, _group(hits.particle >= 0, style.BLUE, "on a particle")], None
    return [noise, *_by_particle(event, selection)], None


def _by_value(values: NDArray[Any], n: int) -> tuple[list[Group], ScalarMappable | None]:
    if values.shape != (n,):
        raise ValueError(f"colour_by is one value a hit, shape ({n},), got shape {values.shape}")
    if values.dtype == np.bool_:
        return [_group(~values, style.FAINT, "False", alpha=0.6), _group(values, style.BLUE, "True")], None
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    bar = ScalarMappable(Normalize(low, high if high > low else low + 1.0), style.CONTINUOUS)
    order = np.argsort(values, kind="stable")  # the highest on top
    order = order[np.isfinite(values[order])]
    return [
        _group(~np.isfinite(values), style.FAINT, "no value", alpha=0.6),
        Group(order, bar.to_rgba(values[order])),
    ], bar


def _by_volume(hits: Hits) -> list[Group]:
    known = [_group(hits.volume_id == volume, colour, label) for volume, (label, colour) in VOLUMES.items()]
    return [_group(~np.isin(hits.volume_id, list(VOLUMES)), style.PURPLE, "another volume"), *known]


def _by_particle(event: Event, selection: Selection | None) -> list[Group]:
    if event.particles is None or event.hits.particle is None:
        raise ValueError("colour_by='particle' needs the event's particles, and it has none")
    owner = event.hits.particle
    chosen = np.ones(len(event.particles), bool) if selection is None else np.asarray(selection.particles(event))
    # neighbours in phi, among those that are coloured, get different colours
    turn = np.empty(len(chosen), dtype=np.int64)
    turn[np.lexsort((event.particles.phi, ~chosen))] = np.arange(len(chosen))
    palette = np.array(style.CYCLE)
    real = owner >= 0
    lit = real.copy()
    lit[real] = chosen[owner[real]]
    index = np.flatnonzero(lit)
    kind, scale = ("particle", 1.0) if selection is None else ("reconstructable particle", 1.6)
    groups = [_group(real & ~lit, style.GREY, "other particle", alpha=0.35, scale=0.7)]
    if len(index):
        colours = palette[turn[owner[index]] % len(palette)]
        count = len(np.unique(owner[index]))
        plural = "" if count == 1 else "s"
        text = f"{count:,} {kind}{plural} ({len(index):,}), colours in turn"
        groups.append(Group(index, list(colours), text, scale=scale))
    return groups
