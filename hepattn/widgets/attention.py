"""Turn encodings on and off, and see what a layer's attention does: maps in φ, one hit on the detector, numbers."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from hepattn.data.schema import Event, Selection
from hepattn.models.hit_filter import HitFilter
from hepattn.plotting import style
from hepattn.plotting.attention_numbers import Numbers, alike, change, measure, preference
from hepattn.plotting.attention_panels import (
    AFTER,
    BEFORE,
    AnglePanel,
    DetectorPanel,
    MapPanel,
    change_bar,
    map_bar,
    mark_legend,
)
from hepattn.plotting.attention_pattern import EncodedSide, Pattern, filter_patterns, layer_pattern, phi_encoding
from hepattn.plotting.gallery import outer_direction
from hepattn.widgets.base import Explorer, choice, slider

__all__ = ["AttentionExplorer"]

T = TypeVar("T")

ENCODINGS = {
    "none": "none",
    "sinusoidal": "sinusoidal",
    "HEPFormer's sinusoidal": "hepformer",
    "periodic": "periodic",
    "random Fourier": "fourier",
    "random Fourier, periodic": "periodic_fourier",
}
ALPHAS = (1.0, 4.0, 16.0, 64.0, 256.0, 1000.0)
BASES = (4.0, 16.0, 100.0, 256.0, 10_000.0)
SIDES = {"queries and keys": "both", "queries alone": "queries", "keys alone": "keys", "neither": "none"}

ITS_OWN = "its own"
"""Key of the filter that is shown for encodings with which none was trained."""

OWN = 0.0
"""Value of alpha and base that leaves an encoding its own."""

DPI = 72

KEPT = 48
"""Results of each kind that are kept for going back and forth."""

NUMBERS = ("other hits of its particle", "itself", "mean |Δφ| [rad]", "entropy [bit]")
"""Heads of the columns that `number_cells` fills."""

SAMPLED = 192
"""Queries over which the event's numbers are averaged."""


class AttentionExplorer(Explorer):
    """Attention without and with an encoding of φ.

    Top: maps of attention between bins of φ, before, after, and the difference of their colours. Bottom: what the
    chosen query looks at after, on the detector, and before and after against Δφ. State, all to be set and read:

    - `event`: place in the list of events;
    - `layer`: "free" (one untrained layer, W_q and W_k random), "tied" (W_q = W_k), "untrained 1", "trained 1" ...: a
      layer of the hit filters, or the name of a pair of `patterns`;
    - `head`: from 1;
    - `hit`: φ (rad) of the query; the nearest one is taken, around the full turn. At first the outermost hit of the
      reconstructable particle with the most hits, whose lines are long;
    - `encoding`: of the layers "free" and "tied"; of the filters it chooses the one that was trained with it;
    - `alpha`, `base`: of the layers "free" and "tied"; 0: the encoding's own;
    - `sides`, where there are queries: what the encoding is added to, "both", "queries", "keys" or "none";
    - `zoom`: half of the range of φ that the maps cover, around the query; π: the full turn.

    Args:
        events: One event, or a few to choose from; may be left out where there are `patterns`.
        net: A trained hit filter, whose layers (and those of an untrained twin) may then be chosen.
        filters: Encoding -> a hit filter that was trained with it, shown in place of `net` where that encoding is
            chosen.
        queries: None: hits look at hits. A number: so many queries at even φ look at the hits, untrained layers only.
            Numbers: such queries at these φ (rad).
        patterns: Name -> patterns before and after something, of the same queries and keys: those of a mask decoder,
            for instance (`hepattn.plotting.attention_pattern.call_pattern`).
        bins: Bins of φ of the maps.
        heads: Of the untrained layers.
        seed: Of all random weights.

    Raises:
        ValueError: Neither event nor pattern, a pair of patterns of other queries or keys, or a filter for an encoding
            that the explorer does not know.
    """

    def __init__(
        self,
        events: Event | Sequence[Event] = (),
        net: HitFilter | None = None,
        *,
        filters: Mapping[str, HitFilter] | None = None,
        queries: int | ArrayLike | None = None,
        patterns: Mapping[str, tuple[Pattern, Pattern]] | None = None,
        bins: int = 64,
        heads: int = 4,
        seed: int = 0,
    ) -> None:
        given = [events] if isinstance(events, Event) else list(events)
        self.ready, trained = dict(patterns or {}), dict(filters or {})
        if not given and not self.ready:
            raise ValueError("an explorer of attention needs an event, or patterns")
        _check(self.ready, trained)
        self.events, self.queries, self.bins, self.heads, self.seed = given, queries, bins, heads, seed
        if net is not None:
            trained[ITS_OWN] = net
        self.trained = {} if queries is not None or not given else trained
        self.twins = {name: _twin(one, seed) for name, one in self.trained.items()}
        self.kept: dict[tuple[Any, ...], Any] = {}
        figure = self._figure()
        layers = {name: name for name in self.ready}
        if given:
            layers |= {"W_q and W_k random": "free", "W_q = W_k, random": "tied"}
        for kind in ("untrained", "trained"):
            depth = max((one.config.encoder.num_layers for one in self.trained.values()), default=0)
            layers |= {f"{kind} filter, layer {i + 1}": f"{kind} {i + 1}" for i in range(depth)}
        most = [one.config.encoder.num_heads for one in self.trained.values()]
        most += [one.heads for pair in self.ready.values() for one in pair]
        titles = {f"{one.event_id}: {len(one.hits):,} hits": i for i, one in enumerate(given)}
        controls = {
            "event": choice("event", titles or {"no event": 0}),
            "layer": choice("layer", layers, next(iter(self.ready), "tied")),
            "head": slider("head", 1, 1, min([heads, *most] if given else most)),
            "encoding": choice("encoding of φ", ENCODINGS, "periodic"),
            "sides": choice("added to", SIDES),
            "alpha": choice("α [1/rad]", {"its own": OWN, **{f"{a:g}": a for a in ALPHAS}}, OWN),
            "base": choice("base", {"its own": OWN, **{f"{b:g}": b for b in BASES}}, OWN),
            "hit": slider("query at φ [rad]", self._first(), -3.14, 3.14, 0.005),
            "zoom": choice("maps", {"full turn": math.pi, "± 0.6 rad": 0.6, "± 0.2 rad": 0.2}, math.pi),
        }
        missing = {"sides"} if queries is None else set()
        missing |= set() if given else {"event", "encoding", "sides", "alpha", "base"}
        super().__init__(
            figure,
            {name: control for name, control in controls.items() if name not in missing},
            moving=[
                *(artist for panel in self.maps for artist in panel.moving),
                *self.detector.moving,
                *self.angles.moving,
            ],
            dpi=DPI,
        )

    def patterns(self) -> tuple[Pattern, Pattern]:
        """Before and after, for the present state."""
        if self.layer in self.ready:
            return self.ready[self.layer]
        kind, _, place = self.layer.partition(" ")
        if kind in {"trained", "untrained"}:
            both = [self._filter(kind, encoded) for encoded in (False, True)]
            index = min(int(place), len(both[0])) - 1
            return both[0][index], both[1][index]
        before, after = (self._layer(*one) for one in (("none", OWN, OWN), (self.encoding, self.alpha, self.base)))
        return before, after

    def row(self) -> int:
        """Position of the chosen query in φ order."""
        return self.patterns()[1].nearest(self.hit)

    def update(self) -> str:
        """Moves the artists to the state; the numbers as a table."""
        before, after = self.patterns()
        row, head = after.nearest(self.hit), self.head - 1
        at = float(after.query_phi[row])
        centre = 0.0 if self.zoom == math.pi else at
        maps = [self._map(one, head, centre) for one in (before, after)]
        titles = ("before" if self.layer in self.ready else "before: no encoding", "after", "difference")
        for panel, values, title in zip(self.maps, [*maps, change(*maps)], titles, strict=True):
            panel.frame(centre, self.zoom, after.kinds, after.rows_drawn)
            panel.show(values, title, at=at)
        self.detector.show(after, row, head)
        self.angles.show([before, after], [row, row], head)
        return self._table(before, after, row, head)

    def _figure(self) -> style.Figure:
        with style.context():
            figure = style.Figure(figsize=(14.5, 9.0), layout="constrained")
            top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.08])[:, 0]
            axes = top.subplots(1, 3)
            self.maps = [
                MapPanel(ax, title, bins=self.bins, change=last)
                for ax, title, last in zip(axes, ("before", "after", "difference"), (False, False, True), strict=True)
            ]
            for panel in self.maps[1:]:
                panel.bare()
            map_bar(top, self.maps[0].image, axes[:2])
            change_bar(top, self.maps[2].image, axes[2])
            detector, angles = bottom.subplots(1, 2)
            self.detector = DetectorPanel(detector, "after: what the query looks at most")
            self.angles = AnglePanel(angles, ["before", "after"], [BEFORE, AFTER])
            known = any((one.query_particle >= 0).any() for pair in self.ready.values() for one in pair)
            mark_legend(bottom, own=known or (self.queries is None and bool(self.events)))
        return figure

    def _keep(self, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What `make` gave for this key; the oldest of a kind is forgotten."""
        if key not in self.kept:
            same = [one for one in self.kept if one[0] == key[0]]
            if len(same) >= KEPT:
                del self.kept[same[0]]
            self.kept[key] = make()
        found: T = self.kept[key]
        return found

    def _first(self) -> float:
        """φ of the query that is shown first."""
        if self.queries is not None or not self.events:
            return 1.0
        return outer_direction(self.events[0], Selection())

    def _name(self) -> str:
        """The key of the filter that the encoding chooses."""
        return self.encoding if self.encoding in self.trained or ITS_OWN not in self.trained else ITS_OWN

    def _filter(self, kind: str, encoded: bool) -> list[Pattern]:
        name = self._name()
        nets = self.trained if kind == "trained" else self.twins
        if name not in nets:
            raise ValueError(f"no filter was trained with this encoding; there is {', '.join(nets)}")
        make = partial(filter_patterns, nets[name], self.events[self.event], encoded=encoded)
        return self._keep(("filter", self.event, kind, name, encoded), make)

    def _layer(self, encoding: str, alpha: float, base: float) -> Pattern:
        tied = self.layer == "tied"
        sides: EncodedSide = "both" if self.queries is None else self.sides

        def make() -> Pattern:
            return layer_pattern(
                self.events[self.event],
                phi_encoding(encoding, 64, alpha or None, base or None),
                tied=tied,
                queries=self.queries,
                encoded=sides,
                heads=self.heads,
                seed=self.seed,
            )

        return self._keep(("layer", self.event, tied, encoding, alpha, base, sides), make)

    def _place(self, pattern: Pattern) -> tuple[Any, ...]:
        """What patterns share whose chances are alike: event and mask; a ready one has its own."""
        return (pattern,) if self.layer in self.ready else (self.event, pattern.mask)

    def _map(self, pattern: Pattern, head: int, centre: float) -> NDArray[np.float64]:
        place = {"centre": centre, "half": self.zoom}

        def make() -> NDArray[np.float64]:
            chance = self._keep(
                ("chance", *self._place(pattern), centre, self.zoom), lambda: alike(pattern, self.bins, **place)
            )
            return preference(pattern, self.bins, head, chance=chance, **place)

        return self._keep(("map", pattern, head, centre, self.zoom), make)

    def _numbers(self, pattern: Pattern, head: int) -> Numbers:
        rows = torch.arange(0, len(pattern.q), max(1, len(pattern.q) // SAMPLED))
        return self._keep(("numbers", pattern, head), lambda: measure(pattern, head, rows=rows))

    def _table(self, before: Pattern, after: Pattern, row: int, head: int) -> str:
        uniform = self._keep(("uniform", *self._place(before)), before.uniform)
        names = ("before", "after") if self.layer in self.ready else ("no encoding", "with encoding")
        each = {names[0]: (before, head), names[1]: (after, head), "all keys alike": (uniform, 0)}
        lines = []
        for name, (pattern, at) in each.items():
            one, mean = measure(pattern, at, rows=[row]), self._numbers(pattern, at)
            cells = [f"<b>{name}</b>"]
            for of in (one, mean):
                cells += number_cells(of)
            lines.append("<tr><td>" + "</td><td>".join(cells) + "</td></tr>")
        words = ["", *NUMBERS * 2]
        head_row = "<tr><th>" + "</th><th>".join(words) + "</th></tr>"
        who = "hit" if after.hits else "query"
        groups = (
            f"<tr><th></th><th colspan=4>this {who}, φ = {after.query_phi[row]:.3f}</th>"
            f"<th colspan=4>mean over the event's queries</th></tr>"
        )
        among = f", {len(after.k):,} tokens" if after.kinds else ""
        note = f"{after.is_hit.sum():,} hits{among}: log₂ n = {math.log2(len(after.k)):.1f} bits."
        if self.layer in self.ready:
            note += f" {html.escape(before.name)} and {html.escape(after.name)}."
        elif self.layer not in {"free", "tied"}:
            note += self._which_filter()
        return f"<table border=1 cellpadding=4>{groups}{head_row}{''.join(lines)}</table>{note}"

    def _which_filter(self) -> str:
        """The filter that is shown, in words."""
        name, depth = self._name(), int(self.layer.split()[1])
        config = self.trained[name].config
        words = {kind: title for title, kind in ENCODINGS.items()}
        own = f"encodings of its own ({config.encoding}{' and rotary' if config.rotary else ''})"
        how = own if name == ITS_OWN else f"the encoding: {words[name]}"
        last = config.encoder.num_layers
        note = f" The filter has {how}, of φ, η and r; α and base change nothing here"
        if name == ITS_OWN and len(self.trained) > 1:
            note += ", and there is none with the chosen encoding"
        note += f". It has {last} layers: this is the last" if depth > last else ""
        return f"{note}. Before: the mean of its encodings over the event in the place of each hit's."


def _check(ready: Mapping[str, tuple[Pattern, Pattern]], filters: Mapping[str, HitFilter]) -> None:
    """Raises ValueError where patterns of a pair don't fit each other, or a filter has no place among the controls."""
    for name, (before, after) in ready.items():
        alike = all(
            len(one) == len(other) and np.array_equal(one, other, equal_nan=True)
            for one, other in ((before.query_phi, after.query_phi), (before.key_phi, after.key_phi))
        )
        if not alike or before.heads != after.heads:
            raise ValueError(f"the patterns before and after of {name!r} have other queries, keys or heads")
    if unknown := sorted(set(filters) - set(ENCODINGS.values())):
        raise ValueError(f"filters are of the encodings {', '.join(ENCODINGS.values())}, not {', '.join(unknown)}")


def number_cells(of: Numbers) -> list[str]:
    """Cells under `NUMBERS`."""
    return [_share(of.own), _share(of.itself), f"{of.distance:.2f}", f"{of.entropy:.1f}"]


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f} %"


def _twin(net: HitFilter, seed: int) -> HitFilter:
    """An untrained filter of the same sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HitFilter(net.config).eval()
