"""Explore what a window over ordered hits holds: pairs and whole particles of an event, and one hit's own view."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import ipywidgets
import numpy as np
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hepattn.data.ordering import hit_order, ordered_owner
from hepattn.data.schema import Event, Selection
from hepattn.metrics.attention import pair_recall, particle_spread, whole_particles
from hepattn.metrics.intervals import Fraction
from hepattn.plotting import style
from hepattn.plotting.events import VIEWS
from hepattn.plotting.ordering import NAMES, WINDOWS
from hepattn.plotting.windows import window_axis
from hepattn.widgets.base import Explorer, choice, slider
from hepattn.widgets.events import samples

__all__ = ["WindowExplorer"]

SHOWN = {
    "median spread": "median",
    "widest spread": "widest",
    "lowest pT": "softest",
    "across φ = ±π": "seam",
}
"""Words -> which reconstructable particle is looked at; spread is in φ order, around the turn."""

GROUPS: tuple[tuple[str, str, str, float], ...] = (
    ("in the window", style.SKY, "o", 2.0),
    ("same particle, in the window", style.BLUE, "o", 7.0),
    ("same particle, not in the window", style.VERMILLION, "X", 8.5),
    ("the hit that looks", style.ORANGE, "*", 17.0),
)
"""What is marked on the event: words, colour, marker, size in points; the last lies on top."""

KEPT = 64
"""Results that are kept for going back and forth."""


class WindowExplorer(Explorer):
    """Pairs of hits on one particle that a window holds, and what one hit sees through it.

    Left: the share of pairs held with a wrapped (solid) and an open window (dashed) and of particles held whole, the
    chosen window marked. Middle and right: the event, with the particle and the window of the hit that looks. State:

    - `event`: a name;
    - `order`: of the hits, one of `hepattn.data.ORDERS` ("random" with seed 0);
    - `window`: w, as `Window(w)`;
    - `wrap`: True closes the window over the ends of the sequence;
    - `pt_min`: GeV, the cut of the particles that are meant;
    - `particle`: a value of `SHOWN`;
    - `hit`: which of its hits looks, from 0 (innermost) to 1 (outermost).

    Args:
        events: name -> event with truth, or what reads it when it is first looked at; left out, one of each sample
        selection: the cuts other than pT, and where the pT slider starts
    """

    def __init__(
        self,
        events: Mapping[str, Event | Callable[[], Event]] | None = None,
        selection: Selection | None = None,
    ) -> None:
        self.events = dict(samples() if events is None else events)
        if not self.events:
            raise ValueError("there is no event to explore")
        self.selection = selection or Selection()
        self.kept: dict[tuple[Any, ...], Any] = {}
        self._shown = ""
        figure, (curve, *displays) = style.canvas(3, width=4.5, height=5.2, ratios=[1.1, 0.9, 1.1])
        self.displays = dict(zip(("xy", "etaphi"), displays, strict=True))
        with style.context():
            window_axis(curve, WINDOWS)
            curve.set_ylabel("share held")
            lines = {
                "pairs": ("pairs, wrapped", style.BLUE, "-"),
                "open": ("pairs, not wrapped", style.BLUE, "--"),
                "whole": ("whole particles, wrapped", style.GREEN, "-"),
                "whole open": ("whole particles, not wrapped", style.GREEN, "--"),
            }
            self.curves: dict[str, Line2D] = {
                name: curve.plot(WINDOWS, np.full(len(WINDOWS), np.nan), color=colour, linestyle=dash, label=label)[0]
                for name, (label, colour, dash) in lines.items()
            }
            self.at = curve.axvline(WINDOWS[0], color=style.BLACK, linewidth=1, linestyle=":")
            (self.marks,) = curve.plot([], [], "o", color=style.BLACK, markersize=8, fillstyle="none")
            self.ground: dict[str, Line2D] = {}
            self.groups: dict[str, list[Line2D]] = {}
            for name, ax in self.displays.items():
                across, up, *_ = VIEWS[name]
                ax.set(xlabel=across, ylabel=up)
                (self.ground[name],) = ax.plot([], [], "o", color=style.FAINT, markeredgewidth=0)
                self.groups[name] = [
                    ax.plot([], [], marker, color=colour, markersize=size, markeredgewidth=0)[0]
                    for _, colour, marker, size in GROUPS
                ]
            self.displays["xy"].set_aspect("equal", adjustable="box")
            self.displays["etaphi"].set(ylim=(-np.pi - 0.1, np.pi + 0.1), yticks=[-np.pi, 0, np.pi])
            self.displays["etaphi"].set_yticklabels(["−π", "0", "π"])
            handles = [Line2D([], [], color=style.FAINT, marker="o", linestyle="", label="all other hits")]
            handles += [
                Line2D([], [], color=colour, marker=marker, linestyle="", markersize=max(6, min(size, 12)), label=label)
                for label, colour, marker, size in GROUPS
            ]
            figure.legend(handles=[*self.curves.values(), *handles], loc="outside lower center", ncols=5)
            self.title = figure.suptitle("one")
        sizes = sorted({*WINDOWS, *(3 * size // 2 for size in WINDOWS[:-1])})
        options = [(f"{size:,}", size) for size in sizes]
        plain = {"description_width": "initial"}
        controls = {
            "event": choice("event", list(self.events)),
            "order": choice("order", {label: name for name, label in NAMES.items()}),
            "window": ipywidgets.SelectionSlider(options=options, value=128, description="window w", style=plain),
            "wrap": ipywidgets.Checkbox(value=True, description="wrap", indent=False),
            "pt_min": slider("pT cut [GeV]", float(self.selection.pt_min), 0.3, 3.0, 0.1),
            "particle": choice("particle", SHOWN),
            "hit": slider("hit, inner to outer", 0.5, 0.0, 1.0, 0.05),
        }
        moving = [*self.curves.values(), self.at, self.marks, self.title]
        super().__init__(figure, controls, moving=[*moving, *(one for dots in self.groups.values() for one in dots)])

    def cuts(self) -> Selection:
        """Which particles are meant in the present state."""
        return replace(self.selection, pt_min=float(self.pt_min))

    def shown(self) -> Event:
        """The event on show, all of its hits on the ground of the displays."""
        event = self.events[self.event]
        if not isinstance(event, Event):
            event = self.events[self.event] = event()
        if self._shown != self.event:
            self._shown = self.event
            hits = event.hits
            for name, line in self.ground.items():
                line.set_data(VIEWS[name][2](hits), VIEWS[name][3](hits))
                line.set_markersize(float(np.clip(np.sqrt(12_000 / max(len(hits), 1)), 0.5, 2.0)))
            r, eta = 1.03 * hits.r.max(initial=1.0), 1.05 * np.abs(hits.eta).max(initial=1.0)
            self.displays["xy"].set(xlim=(-r, r), ylim=(-r, r))
            self.displays["etaphi"].set_xlim(-eta, eta)
            for ax in self.displays.values():
                # other words: the ground of these axes is drawn anew
                ax.set_title(f"{self.event}, {len(hits):,} hits", loc="left")
        return event

    def place(self) -> NDArray[np.int64]:
        """(n_hits,) the order on show: hit `place()[t]` stands at place t."""
        return self._keep(("place", self.event, self.order), lambda: hit_order(self.shown().hits, self.order))

    def owner(self) -> NDArray[np.int64]:
        """(n_hits,) particle at each place, -1 where it is none that is meant."""
        key = ("owner", self.event, self.order, self.pt_min)
        return self._keep(key, lambda: ordered_owner(self.shown(), self.place(), self.cuts()))

    def recall(self) -> dict[str, list[Fraction]]:
        """Name of a curve -> what each of `WINDOWS` holds."""

        def count() -> dict[str, list[Fraction]]:
            owner = self.owner()
            return {
                "pairs": pair_recall(owner, WINDOWS),
                "open": pair_recall(owner, WINDOWS, wrap=False),
                "whole": whole_particles(owner, WINDOWS),
                "whole open": whole_particles(owner, WINDOWS, wrap=False),
            }

        return self._keep(("recall", self.event, self.order, self.pt_min), count)

    def looks(self) -> int | None:
        """The hit that looks: its index in the event; None where no particle is meant."""
        event, row = self.shown(), self._particle()
        if row is None:
            return None
        along = np.flatnonzero(self.cuts().in_volumes(event.hits) & (event.hits.particle == row))
        along = along[np.argsort(event.hits.s[along], kind="stable")]
        return int(along[round(float(self.hit) * (len(along) - 1))])

    def seen(self) -> NDArray[np.bool_]:
        """(n_hits,) bool, in the event's own order: what that hit may attend to."""
        place, query, half = self.place(), self.looks(), self.window // 2
        n = len(place)
        if query is None:
            return np.zeros(n, dtype=np.bool_)
        distance = np.abs(np.arange(n) - int(np.flatnonzero(place == query)[0]))
        if self.wrap:
            distance = np.minimum(distance, n - distance)
        inside = np.zeros(n, dtype=np.bool_)
        inside[place[distance <= half]] = True
        return inside

    def update(self) -> str:
        """Moves curves and marked hits; returns the numbers."""
        event, recall = self.shown(), self.recall()
        for name, line in self.curves.items():
            line.set_ydata([one.value for one in recall[name]])
            line.set_alpha(1.0 if name.endswith("open") != self.wrap else 0.4)
        pairs, whole = (
            count(self.owner(), [self.window], wrap=self.wrap)[0] for count in (pair_recall, whole_particles)
        )
        self.at.set_xdata([self.window, self.window])
        self.marks.set_data([self.window] * 2, [pairs.value, whole.value])
        query, seen = self.looks(), self.seen()
        own = np.zeros(len(seen), dtype=np.bool_)
        if query is not None:
            assert event.hits.particle is not None
            own = event.hits.particle == event.hits.particle[query]
            own[query] = False
        at = np.zeros(len(seen), dtype=np.bool_)
        at[query if query is not None else []] = True
        for name, lines in self.groups.items():
            x, y = self.ground[name].get_data()
            for line, group in zip(lines, (seen & ~own & ~at, seen & own, own & ~seen, at), strict=True):
                line.set_data(np.asarray(x)[group], np.asarray(y)[group])
        self.title.set_text(f"hits in {NAMES[self.order]} order; {self.cuts()}")
        held = f"pairs held: {_counted(pairs)}; particles held whole: {whole}, with a 68.3 % interval."
        if query is None:
            return f"{held}<br>No such particle: another cut or another choice shows one."
        assert event.particles is not None
        pt = event.particles.pt[self._particle()]
        mine = Fraction(int((seen & own).sum()), int(own.sum()))
        return (
            f"{held}<br>The hit that looks: φ = {event.hits.phi[query]:.3f} rad, on a particle of pT {pt:.2f} GeV; "
            f"its window holds {_counted(mine)} of the particle's other hits."
        )

    def _particle(self) -> int | None:
        """Row of the particle that is looked at."""

        def find() -> int | None:
            event, cuts = self.shown(), self.cuts()
            place = hit_order(event.hits)
            owner = ordered_owner(event, place, cuts)
            rows = np.unique(owner[owner >= 0])
            spread = particle_spread(owner)
            if self.particle == "seam":
                rows = rows[particle_spread(owner, wrap=False) > len(owner) // 2]
                return int(rows[0]) if len(rows) else None
            if not len(rows):
                return None
            if self.particle == "softest":
                assert event.particles is not None
                return int(rows[event.particles.pt[rows].argmin()])
            by = np.argsort(spread, kind="stable")
            return int(rows[by[len(by) // 2 if self.particle == "median" else -1]])

        return self._keep(("particle", self.event, self.pt_min, self.particle), find)

    def _keep(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make` gave for this key; the oldest is forgotten."""
        if key not in self.kept:
            made = make()
            if len(self.kept) >= KEPT:
                del self.kept[next(iter(self.kept))]
            self.kept[key] = made
        return self.kept[key]


def _counted(share: Fraction) -> str:
    return f"{share.passed:,} of {share.total:,}" + (f" ({share.value:.1%})" if share.total else "")
