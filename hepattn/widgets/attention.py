"""Turn encodings on and off, and see what a layer's attention does: maps in φ, one hit on the detector, numbers."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from hepattn.data.schema import Event
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
from hepattn.plotting.attention_pattern import Pattern, filter_patterns, layer_pattern, phi_encoding
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
OWN = 0.0
"""Value of alpha and base that leaves an encoding its own."""

DPI = 72

KEPT = 48
"""Results of each kind that are kept for going back and forth."""

SAMPLED = 192
"""Queries over which the event's numbers are averaged."""


class AttentionExplorer(Explorer):
    """Attention without and with an encoding of φ.

    Top: maps of attention between bins of φ, before, after, and the difference of their colours. Bottom: what the
    chosen query looks at after, on the detector, and before and after against Δφ. State, all to be set and read:

    - `event`: place in the list of events;
    - `layer`: "free" (one untrained layer, W_q and W_k random), "tied" (W_q = W_k), or "untrained 1", "trained 1" ...:
      a layer of the hit filters, which carry encodings of their own;
    - `head`: from 1;
    - `hit`: φ (rad) of the query; the nearest one is taken, around the full turn;
    - `encoding`, `alpha`, `base`: of the layers "free" and "tied"; alpha or base 0: the encoding's own;
    - `zoom`: half of the range of φ that the maps cover, around the query; π: the full turn.

    Args:
        events: One event, or a few to choose from.
        net: A trained hit filter, whose layers (and those of an untrained twin) may then be chosen.
        queries: None: hits look at hits. A number: so many queries at even φ look at the hits, untrained layers only.
        bins: Bins of φ of the maps.
        heads: Of the untrained layers.
        seed: Of all random weights.

    Raises:
        ValueError: No event.
    """

    def __init__(
        self,
        events: Event | Sequence[Event],
        net: HitFilter | None = None,
        *,
        queries: int | None = None,
        bins: int = 64,
        heads: int = 4,
        seed: int = 0,
    ) -> None:
        given = [events] if isinstance(events, Event) else list(events)
        if not given:
            raise ValueError("an explorer of attention needs an event")
        self.events, self.queries, self.bins, self.heads, self.seed = given, queries, bins, heads, seed
        self.nets = {} if net is None or queries is not None else {"untrained": _twin(net, seed), "trained": net}
        self.kept: dict[tuple[Any, ...], Any] = {}
        figure = self._figure()
        layers = {"W_q and W_k random": "free", "W_q = W_k, random": "tied"}
        for name, one in self.nets.items():
            layers |= {f"{name} filter, layer {i + 1}": f"{name} {i + 1}" for i in range(one.config.encoder.num_layers)}
            heads = min(heads, one.config.encoder.num_heads)
        super().__init__(
            figure,
            {
                "event": choice("event", {f"{e.event_id}: {len(e.hits):,} hits": i for i, e in enumerate(given)}, 0),
                "layer": choice("layer", layers, "tied"),
                "head": slider("head", 1, 1, heads),
                "encoding": choice("encoding of φ", ENCODINGS, "periodic"),
                "alpha": choice("α [1/rad]", {"its own": OWN, **{f"{a:g}": a for a in ALPHAS}}, OWN),
                "base": choice("base", {"its own": OWN, **{f"{b:g}": b for b in BASES}}, OWN),
                "hit": slider("query at φ [rad]", 1.0, -3.14, 3.14, 0.005),
                "zoom": choice("maps", {"full turn": math.pi, "± 0.6 rad": 0.6, "± 0.2 rad": 0.2}, math.pi),
            },
            moving=[
                *(artist for panel in self.maps for artist in panel.moving),
                *self.detector.moving,
                *self.angles.moving,
            ],
            dpi=DPI,
        )

    def patterns(self) -> tuple[Pattern, Pattern]:
        """Before and after, for the present state."""
        kind, _, place = self.layer.partition(" ")
        if kind in self.nets:
            both = [self._filter(kind, encoded) for encoded in (False, True)]
            return both[0][int(place) - 1], both[1][int(place) - 1]
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
        for panel, values in zip(self.maps, [*maps, change(*maps)], strict=True):
            panel.frame(centre, self.zoom, after.kinds)
            panel.show(values, at=at)
        self.detector.show(after, row, head)
        self.angles.show([before, after], [row, row], head)
        return self._table(before, after, row, head)

    def _figure(self) -> style.Figure:
        with style.context():
            figure = style.Figure(figsize=(14.5, 9.0), layout="constrained")
            top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[1, 1.08])[:, 0]
            axes = top.subplots(1, 3)
            self.maps = [
                MapPanel(ax, title, bins=self.bins, queries=self.queries, change=last)
                for ax, title, last in zip(
                    axes, ("before: no encoding", "after", "difference"), (False, False, True), strict=True
                )
            ]
            for panel in self.maps[1:]:
                panel.bare()
            map_bar(top, self.maps[0].image, axes[:2])
            change_bar(top, self.maps[2].image, axes[2])
            detector, angles = bottom.subplots(1, 2)
            self.detector = DetectorPanel(detector, "after: what the query looks at most")
            self.angles = AnglePanel(angles, ["before", "after"], [BEFORE, AFTER])
            mark_legend(bottom, own=self.queries is None)
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

    def _filter(self, kind: str, encoded: bool) -> list[Pattern]:
        event = self.events[self.event]
        make = partial(filter_patterns, self.nets[kind], event, encoded=encoded)
        return self._keep(("filter", self.event, kind, encoded), make)

    def _layer(self, encoding: str, alpha: float, base: float) -> Pattern:
        tied = self.layer == "tied"

        def make() -> Pattern:
            encode = phi_encoding(encoding, 64, alpha or None, base or None)
            return layer_pattern(
                self.events[self.event], encode, tied=tied, queries=self.queries, heads=self.heads, seed=self.seed
            )

        return self._keep(("layer", self.event, tied, encoding, alpha, base), make)

    def _map(self, pattern: Pattern, head: int, centre: float) -> NDArray[np.float64]:
        place = {"centre": centre, "half": self.zoom}

        def make() -> NDArray[np.float64]:
            chance = self._keep(
                ("chance", self.event, pattern.mask, centre, self.zoom), lambda: alike(pattern, self.bins, **place)
            )
            return preference(pattern, self.bins, head, chance=chance, **place)

        return self._keep(("map", pattern, head, centre, self.zoom), make)

    def _numbers(self, pattern: Pattern, head: int) -> Numbers:
        rows = torch.arange(0, len(pattern.q), max(1, len(pattern.q) // SAMPLED))
        return self._keep(("numbers", pattern, head), lambda: measure(pattern, head, rows=rows))

    def _table(self, before: Pattern, after: Pattern, row: int, head: int) -> str:
        uniform = self._keep(("uniform", self.event, before.mask), before.uniform)
        each = {"no encoding": (before, head), "with encoding": (after, head), "all keys alike": (uniform, 0)}
        lines = []
        for name, (pattern, at) in each.items():
            one, mean = measure(pattern, at, rows=[row]), self._numbers(pattern, at)
            cells = [f"<b>{name}</b>"]
            for of in (one, mean):
                cells += [_share(of.own), _share(of.itself), f"{of.distance:.2f}", f"{of.entropy:.1f}"]
            lines.append("<tr><td>" + "</td><td>".join(cells) + "</td></tr>")
        words = ["", *["other hits of its particle", "itself", "mean |Δφ| [rad]", "entropy [bit]"] * 2]
        head_row = "<tr><th>" + "</th><th>".join(words) + "</th></tr>"
        who = "hit" if after.hits else "query"
        groups = (
            f"<tr><th></th><th colspan=4>this {who}, φ = {after.query_phi[row]:.3f}</th>"
            f"<th colspan=4>mean over the event's queries</th></tr>"
        )
        among = f", {len(after.k):,} tokens" if after.kinds else ""
        note = f"{after.is_hit.sum():,} hits{among}: log₂ n = {math.log2(len(after.k)):.1f} bits."
        if self.layer not in {"free", "tied"}:
            note += (
                " The filter has encodings of its own (φ, η, r); encoding, α and base change nothing here. Before: "
                "their mean over the event in the place of each hit's."
            )
        return f"<table border=1 cellpadding=4>{groups}{head_row}{''.join(lines)}</table>{note}"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{100 * value:.2f} %"


def _twin(net: HitFilter, seed: int) -> HitFilter:
    """An untrained filter of the same sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HitFilter(net.config).eval()
