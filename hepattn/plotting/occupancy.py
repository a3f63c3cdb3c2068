"""What an event is made of: hits a particle, hits a layer, and how both change with what counts as reconstructable."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from hepattn.data.schema import Event, Particles, Selection
from hepattn.metrics.intervals import clopper_pearson
from hepattn.plotting import style
from hepattn.plotting.events import VOLUMES

Unit = Literal["layer", "module", "cm2"]

_UNITS: dict[str, str] = {
    "layer": "hits a layer",
    "module": "hits a module, mean of the layer",
    "cm2": "hits a cm² of sensor, mean of the layer",
}
_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of TrackML's detector. ``area``: of all its sensors, cm²; neighbours overlap, and each counts."""

    volume_id: int
    layer_id: int
    modules: int
    area: float


def _layers() -> tuple[Layer, ...]:
    """Barrel sensors are rectangles, all alike; those of a disc are not, and their areas are summed."""
    found: list[Layer] = []
    barrels = {
        8: (1.68 * 7.2, (224, 448, 728, 1092)),
        13: (4.8 * 10.8, (840, 1176, 1638, 2142)),
        17: (4.8 * 10.8, (2520, 3192)),
    }
    discs = {7: (7, 108, 1306.368), 12: (6, 170, 15105.168), 16: (6, 98, 19614.816)}
    discs |= {9: discs[7], 14: discs[12], 18: discs[16]}
    for volume in VOLUMES:
        if volume in barrels:
            sensor, numbers = barrels[volume]
            found += [Layer(volume, 2 * i, modules, modules * sensor) for i, modules in enumerate(numbers, start=1)]
        else:
            count, modules, area = discs[volume]
            found += [Layer(volume, 2 * i, modules, area) for i in range(1, count + 1)]
    return tuple(found)


LAYERS = _layers()
"""TrackML's 48 layers, by volume and layer id: a barrel's from the beam outwards, discs from -z to +z."""


@dataclass(frozen=True, slots=True)
class Composition:
    """What an event is made of as the pT cut moves; hits are those in the selection's volumes."""

    pt_min: NDArray[np.float64]
    """(n_cuts,) GeV, as in :class:`~hepattn.data.schema.Selection`."""
    particles: NDArray[np.int64]
    """(n_cuts,) reconstructable particles."""
    hits: NDArray[np.int64]
    """(n_cuts,) hits on them."""
    noise: int
    """Hits on no particle: the same at every cut."""
    total: int
    """All hits."""


def compose(event: Event, cuts: ArrayLike, selection: Selection | None = None) -> Composition:
    """Count reconstructable particles and the hits on them at each pT cut.

    Args:
        event: With truth.
        cuts: (n_cuts,) GeV; they take the place of the selection's own cut.
        selection: The other cuts.

    Raises:
        ValueError: The event has no particles, or its hits have no truth.
    """
    selection = selection or Selection()
    particles, owner = _truth(event)
    values = np.asarray(cuts, dtype=np.float64)
    inside = selection.in_volumes(event.hits)
    loosest = Selection(0.0, selection.eta_max, selection.min_hits, selection.volumes)
    pt = particles.pt
    able = np.flatnonzero(loosest.particles(event))
    order = able[np.argsort(pt[able], kind="stable")]
    nhits = np.bincount(owner[inside & (owner >= 0)], minlength=len(pt))[order]
    above = np.searchsorted(pt[order], values.astype(pt.dtype), side="right")  # as float32, as Selection compares
    left = np.concatenate([np.cumsum(nhits[::-1])[::-1], [0]])
    return Composition(
        pt_min=values,
        particles=(len(order) - above).astype(np.int64),
        hits=left[above].astype(np.int64),
        noise=int((inside & (owner < 0)).sum()),
        total=int(inside.sum()),
    )


def hits_per_particle(event: Event, selection: Selection | None = None, *, ax: Axes | None = None) -> Figure:
    """Draw how many hits the particles of an event left.

    Args:
        event: With truth.
        selection: Which particles are reconstructable; printed on the figure.
        ax: Axes to draw in.

    Returns:
        The figure, numbers of particles on a logarithmic axis. Particles without a hit are not in it.

    Raises:
        ValueError: The event has no particles, or its hits have no truth.
    """
    selection = selection or Selection()
    particles, _ = _truth(event)
    nhits = event.hits_per_particle
    some = nhits > 0
    chosen = selection.particles(event)
    fast = some & (particles.pt > selection.pt_min)
    kinds: list[tuple[str, NDArray[np.bool_], str, Any]] = [
        ("with at least one hit", some, style.GREY, "-"),
        ("reconstructable", chosen, style.BLUE, "-"),
        (f"with pT > {selection.pt_min:g} GeV", fast, style.ORANGE, (0, (2, 2))),
    ]
    figure, (panel,) = style.canvas(1, width=8.0, height=5.0, ax=ax)
    edges = np.arange(0.5, max(int(nhits.max(initial=1)), 1) + 1.5)
    with style.context():
        for name, which, colour, line in kinds:
            counts, _ = np.histogram(nhits[which], edges)
            label = f"{name} ({which.sum():,})"
            panel.stairs(counts, edges, color=colour, linestyle=line, linewidth=2, label=label)
        panel.set_yscale("symlog", linthresh=1.0)
        panel.set_ylim(bottom=0.0)
        panel.set_xlim(edges[0], edges[-1])
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("hits on the particle")
        panel.set_ylabel("particles")
        _legend_above(panel, columns=1)
        _title(figure, panel, ax, f"{_name(event)}\nreconstructable: {selection}")
    return figure


def occupancy(
    events: Event | Mapping[str, Event],
    per: Unit = "layer",
    selection: Selection | None = None,
    *,
    ax: Axes | None = None,
) -> Figure:
    """Draw how full the layers of the detector are.

    Args:
        events: One event, whose hits are stacked by what they lie on; or several with their names, a line each on a
            logarithmic axis.
        per: ``"layer"``; ``"module"`` and ``"cm2"`` divide by the modules and the sensor area of the layer. Those are
            means: near the beam there is more.
        selection: Which particles are reconstructable; printed on the figure of one event.
        ax: Axes to draw in.

    Returns:
        The figure; hits on a layer that TrackML's detector lacks are counted in its title.

    Raises:
        ValueError: An unknown unit, or no event.
    """
    if per not in _UNITS:
        raise ValueError(f"per is {', '.join(_UNITS)}, got {per!r}")
    if not isinstance(events, Event) and not events:
        raise ValueError("there is no event to draw")
    size = np.array([{"layer": 1.0, "module": layer.modules, "cm2": layer.area}[per] for layer in LAYERS])
    figure, (panel,) = style.canvas(1, width=12.0, height=4.8, ax=ax)
    edges = np.arange(len(LAYERS) + 1) - 0.5
    with style.context():
        _volumes(panel)
        if isinstance(events, Event):
            selection = selection or Selection()
            below = np.zeros(len(LAYERS))
            for name, which, colour in _kinds(events, selection):
                counts, _ = count(events, which)
                top = below + counts / size
                label = f"{name} ({which.sum():,})"
                panel.stairs(top, edges, baseline=below, fill=True, color=colour, label=label)
                below = top
            panel.set_ylim(bottom=0.0)
            lost = {events.source: count(events)[1]}
            title = _name(events)
            if events.hits.particle is not None and events.particles is not None:
                title += f"\nreconstructable: {selection}"
        else:
            lost = {}
            for i, (name, event) in enumerate(events.items()):
                counts, lost[name] = count(event)
                colour, line = style.CYCLE[i % len(style.CYCLE)], _LINES[i % len(_LINES)]
                label = f"{name} ({len(event.hits):,} hits)"
                values = np.where(counts > 0, counts / size, np.nan)  # a gap, as a logarithm has no zero
                panel.stairs(values, edges, baseline=None, color=colour, linestyle=line, linewidth=2, label=label)
            panel.set_yscale("log")
            panel.grid(axis="y", color="#D8D8D8", linewidth=0.8)
            title = "" if not any(lost.values()) else "hits of layers"
        for name, number in lost.items():
            if number:
                title += f"\n{name}: {number:,} hits on layers of another detector are not drawn"
        panel.set_ylabel(_UNITS[per])
        _legend_above(panel)
        _title(figure, panel, ax, title)
    return figure


def count(event: Event, chosen: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.int64], int]:
    """Count hits in the layers of TrackML's detector.

    Args:
        event: Whose hits.
        chosen: (n_hits,) bool, True = counted; left out, all.

    Returns:
        (48,) hits in each of `LAYERS`, and how many lie in none of them.
    """
    hits = event.hits if chosen is None else event.hits.take(chosen)
    place = {(layer.volume_id, layer.layer_id): i for i, layer in enumerate(LAYERS)}
    pairs, numbers = np.unique(np.stack([hits.volume_id, hits.layer_id]), axis=1, return_counts=True)
    counts = np.zeros(len(LAYERS), dtype=np.int64)
    lost = 0
    for volume, layer, number in zip(*pairs, numbers, strict=True):
        row = place.get((int(volume), int(layer)))
        if row is None:
            lost += int(number)
        else:
            counts[row] = number
    return counts, lost


def composition(
    events: Event | Mapping[str, Event],
    cuts: ArrayLike | None = None,
    selection: Selection | None = None,
) -> Figure:
    """Draw how many particles are reconstructable, and how many hits lie on them, as the pT cut moves.

    Args:
        events: With truth; one, or several with their names.
        cuts: GeV; left out, 0.2 to 3 in steps of 0.05.
        selection: The cuts other than pT; printed on the figure.

    Returns:
        The figure, two panels. Bands are 68.3 % Clopper-Pearson intervals; noise is the same at every cut.

    Raises:
        ValueError: No event, or one without truth.
    """
    selection = selection or Selection()
    named = {f"event {events.event_id}": events} if isinstance(events, Event) else dict(events)
    if not named:
        raise ValueError("there is no event to draw")
    values = np.arange(0.2, 3.001, 0.05) if cuts is None else np.sort(np.asarray(cuts, dtype=np.float64))
    figure, (number, fraction) = style.canvas(2, width=5.6, height=5.0)
    with style.context():
        for i, (name, event) in enumerate(named.items()):
            made = compose(event, values, selection)
            colour, line = style.CYCLE[i % len(style.CYCLE)], _LINES[i % len(_LINES)]
            number.plot(values, np.where(made.particles > 0, made.particles, np.nan), line, color=colour, label=name)
            low, high = clopper_pearson(made.hits, np.full(len(values), made.total))
            share = made.hits / made.total if made.total else np.full(len(values), np.nan)
            fraction.plot(values, share, line, color=colour, label=f"{name}: on them, of {made.total:,}")
            fraction.fill_between(values, low, high, color=colour, alpha=0.25, linewidth=0)
            if made.noise:
                fraction.axhline(
                    made.noise / made.total,
                    color=colour,
                    linewidth=1.0,
                    label=f"{name}: noise ({made.noise:,})",
                )
        number.set_yscale("log")
        number.set_ylabel("reconstructable particles")
        fraction.set_ylim(0.0, 1.0)
        fraction.set_ylabel("fraction of hits (68.3 % intervals)")
        for panel in (number, fraction):
            panel.set_xlim(values[0], values[-1])
            panel.set_xlabel("pT cut [GeV]")
            panel.grid(color="#D8D8D8", linewidth=0.8)
        number.legend()
        fraction.legend()
        others = str(selection).partition(", ")[2]
        figure.suptitle(f"reconstructable: pT > cut, {others}")
    return figure


def _kinds(event: Event, selection: Selection) -> list[tuple[str, NDArray[np.bool_], str]]:
    """Name, which hits and colour of what hits lie on; without truth all are just hits."""
    owner = event.hits.particle
    if owner is None or event.particles is None:
        return [("hits, of which no truth is known", np.ones(len(event.hits), dtype=bool), style.GREY)]
    wanted = selection.hits(event)
    return [
        ("on a reconstructable particle", wanted, style.BLUE),
        ("on another particle", ~wanted & (owner >= 0), style.SKY),
        ("noise", owner < 0, style.FAINT),
    ]


def _volumes(panel: Axes) -> None:
    """Name the volumes below the layers, on grounds that alternate."""
    volume = np.array([layer.volume_id for layer in LAYERS])
    centres, names = [], []
    for i, (number, (name, _)) in enumerate(VOLUMES.items()):
        places = np.flatnonzero(volume == number)
        if i % 2 == 0:
            panel.axvspan(places[0] - 0.5, places[-1] + 0.5, color=style.PAPER, zorder=0, linewidth=0)
        centres.append(float(places.mean()))
        names.append(name.replace(" strip", "\nstrip").replace(" end-cap", "\nend-cap").replace(" barrel", "\nbarrel"))
    panel.set_xticks(centres, names)
    panel.tick_params(axis="x", length=0, labelsize=9.5)
    panel.set_xlim(-0.5, len(LAYERS) - 0.5)
    panel.set_xlabel("layers of a volume, from the beam outwards (barrel) or along z (end-caps)")


def _truth(event: Event) -> tuple[Particles, NDArray[np.int32]]:
    """Particles, and the row of each hit's in them."""
    if event.particles is None or event.hits.particle is None:
        raise ValueError(f"event {event.event_id} has no truth: which hits lie on which particle is not known")
    return event.particles, event.hits.particle


def _name(event: Event) -> str:
    source = f" ({event.source})" if event.source else ""
    return f"event {event.event_id}{source}, {len(event.hits):,} hits"


def _title(figure: Figure, panel: Axes, ax: Axes | None, text: str) -> None:
    if ax is None:
        figure.suptitle(text)
    else:
        panel.set_title(text)


def _legend_above(panel: Axes, columns: int = 3) -> None:
    panel.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, borderaxespad=0.3)
