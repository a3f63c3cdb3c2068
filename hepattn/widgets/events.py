"""Explore what is in an event: which hits lie on reconstructable particles as the pT cut and the volume change."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hepattn.data.sample import sample_event
from hepattn.data.schema import Event, Selection
from hepattn.metrics.intervals import Fraction
from hepattn.plotting import style
from hepattn.plotting.events import VIEWS
from hepattn.widgets.base import Explorer, choice, slider

VOLUMES: dict[str, tuple[int, ...] | None] = {
    "all": None,
    "pixels": (7, 8, 9),
    "short strips": (12, 13, 14),
    "long strips": (16, 17, 18),
}
"""What the control `volume` can say -> TrackML's volume ids."""

KINDS: tuple[tuple[str, str], ...] = (("noise", "#D6D6D6"), ("on another particle", "#A0A0A0"))
"""Hits that lie below those on reconstructable particles, lowest first."""

COLOURS = style.CYCLE[::-1]
"""Of reconstructable particles, in turns; black lies lowest, so that it hides no other in dense events."""


def samples() -> dict[str, Callable[[], Event]]:
    """The first event of each sample that the project ships, read when it is looked at."""
    return {f"mu = {mu}": partial(sample_event, f"ttbar_mu{mu}") for mu in (0, 40, 200)}


class EventExplorer(Explorer):
    """An event along the beam, from the side and unrolled; reconstructable particles in colours that take turns.

    State: `event` (a name), `pt_min` (GeV), `volume` (a key of `VOLUMES`). Every hit in the chosen volumes is drawn,
    in dense events with smaller dots. Reconstructable is decided with the hits in the chosen volumes.

    Args:
        events: name -> event, or what reads it when it is first looked at; left out, one of each sample
        selection: the cuts other than pT and volume, and where the pT slider starts
        pt_max: GeV, end of the slider
    """

    def __init__(
        self,
        events: Mapping[str, Event | Callable[[], Event]] | None = None,
        selection: Selection | None = None,
        *,
        pt_max: float = 3.0,
    ) -> None:
        self.events = dict(samples() if events is None else events)
        if not self.events:
            raise ValueError("there is no event to explore")
        self.selection = selection or Selection()
        self.points: dict[str, NDArray[Any]] = {}
        """Name of a view -> (2, n_hits) coordinates of the event on show."""
        self._shown = ""
        figure, panels = style.canvas(3, width=3.9, height=4.6, ratios=[1.0, 1.15, 1.15])
        self.panels: dict[str, Axes] = dict(zip(VIEWS, panels, strict=True))
        colours = [*(colour for _, colour in KINDS), *COLOURS]
        self.dots: dict[str, list[Line2D]] = {}
        """Name of a view -> its artists: noise, other particles, then one each of `COLOURS`."""
        with style.context():
            for name, panel in self.panels.items():
                across, up, *_ = VIEWS[name]
                panel.set_xlabel(across)
                panel.set_ylabel(up)
                panel.locator_params(nbins=5)
                self.dots[name] = [
                    panel.plot([], [], linestyle="", marker="o", markeredgewidth=0, color=colour)[0]
                    for colour in colours
                ]
            self.panels["xy"].set_aspect("equal", adjustable="box")
            self.panels["etaphi"].set_yticks([-np.pi, 0, np.pi], ["−π", "0", "π"])
            self.panels["etaphi"].set_ylim(-np.pi - 0.1, np.pi + 0.1)
            self.title = figure.suptitle("one\ntwo")
            handles = [
                Line2D([], [], linestyle="", marker="o", markersize=7, color=colour, label=label)
                for label, colour in (*KINDS, ("on a reconstructable particle, colours in turn", style.BLUE))
            ]
            self.legend = figure.legend(handles=handles, loc="outside lower center", ncols=3)
        controls = {
            "event": choice("event", list(self.events)),
            "pt_min": slider("pT cut [GeV]", float(self.selection.pt_min), 0.0, pt_max, 0.1),
            "volume": choice("volume", list(VOLUMES)),
        }
        moving = [line for dots in self.dots.values() for line in dots]
        super().__init__(figure, controls, moving=[*moving, self.title])

    def shown(self) -> Event:
        """The event on show."""
        event = self.events[self.event]
        if not isinstance(event, Event):
            event = self.events[self.event] = event()
        if self._shown != self.event:
            self.points = {
                name: np.stack([across(event.hits), up(event.hits)]) for name, (_, _, across, up) in VIEWS.items()
            }
            self._shown = self.event
        return event

    def cuts(self) -> Selection:
        """What reconstructable means in the present state."""
        return replace(self.selection, pt_min=float(self.pt_min), volumes=VOLUMES[self.volume])

    def update(self) -> str:
        """Moves every dot; returns the table of counts."""
        event, cuts = self.shown(), self.cuts()
        inside = cuts.in_volumes(event.hits)
        known = event.particles is not None and event.hits.particle is not None
        chosen = cuts.particles(event) if known else np.zeros(0, dtype=np.bool_)
        groups = _groups(event, inside, chosen) if known else [inside & False, inside, *[inside & False] * len(COLOURS)]
        drawn = int(inside.sum())
        size = float(np.clip(np.sqrt(30_000 / max(drawn, 1)), 1.1, 2.5))
        for name, dots in self.dots.items():
            for i, (line, group) in enumerate(zip(dots, groups, strict=True)):
                line.set_data(*self.points[name][:, group])
                line.set_markersize(size * (0.8 if i < len(KINDS) else 1.3))
        if drawn:
            self._limits(inside)
        words, grey = KINDS[1][0] if known else "truth not known", self.legend.get_texts()[1]
        if grey.get_text() != words:
            grey.set_text(words)
            self.canvas.forget()
        what = "all volumes" if self.volume == "all" else self.volume
        self.title.set_text(
            f"{self.event}: all {drawn:,} hits in {what}\nreconstructable: {cuts}"
            if known
            else f"{self.event}: all {drawn:,} hits in {what}\nno truth: which hits lie on which particle is not known"
        )
        if not known:
            return _table({"hits in the chosen volumes": f"{drawn:,} of {len(inside):,}"})
        noise, _, *wanted = (len(group) for group in groups)
        assert event.hits.particle is not None
        left = np.bincount(event.hits.particle[inside] + 1)[1:]
        return _table(
            {
                "hits in the chosen volumes": f"{drawn:,} of {len(inside):,}",
                "particles with a hit there": f"{np.count_nonzero(left):,}",
                f"reconstructable ({cuts})": f"{chosen.sum():,}",
                "hits on them": str(Fraction(sum(wanted), drawn)),
                "noise": str(Fraction(noise, drawn)),
            }
        )

    def _limits(self, inside: NDArray[np.bool_]) -> None:
        """Axes that hold the hits on show, in round numbers so that they keep still from event to event."""
        z, r = (_round(np.abs(row[inside]).max(), 50.0) for row in self.points["rz"])
        eta = _round(np.abs(self.points["etaphi"][0, inside]).max(), 0.5)
        self.panels["xy"].set(xlim=(-r, r), ylim=(-r, r))
        self.panels["rz"].set(xlim=(-z, z), ylim=(0.0, r))
        self.panels["etaphi"].set_xlim(-eta, eta)


def _round(value: float, step: float) -> float:
    return float(np.ceil(1.02 * value / step) * step)


def _groups(event: Event, inside: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Indices of the hits of each artist: noise, other particles, and one a colour; hits elsewhere: none's."""
    assert event.particles is not None
    assert event.hits.particle is not None
    # neighbours in phi, among those that are coloured, get different colours; 0: noise, which is the last row
    group = np.ones(len(chosen) + 1, dtype=np.int8)
    group[-1] = 0
    ranked = np.flatnonzero(chosen)[np.argsort(event.particles.phi[chosen], kind="stable")]
    group[ranked] = len(KINDS) + np.arange(len(ranked)) % len(COLOURS)
    of_hit = np.where(inside, group[event.hits.particle], -1)
    return [np.flatnonzero(of_hit == i) for i in range(len(KINDS) + len(COLOURS))]


def _table(rows: Mapping[str, str]) -> str:
    """What stands below the picture."""
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td style='padding-left: 1em'>{escape(value)}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>Fractions of the hits in the chosen volumes, with 68.3 % intervals."
