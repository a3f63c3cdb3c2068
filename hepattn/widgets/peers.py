"""Explore two finders of tracks side by side: move the cuts and see for whom each works, and what each misses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

import numpy as np
from numpy.typing import NDArray

from hepattn.bench.peers import Side, Wanted, found_by
from hepattn.data.schema import Event
from hepattn.data.tracks import Tracks
from hepattn.metrics.intervals import Fraction
from hepattn.metrics.peers import Peers, peer_edges
from hepattn.metrics.track_matching import KINDS, Kind
from hepattn.metrics.tracks import TrackMetrics, track_metrics
from hepattn.plotting import style
from hepattn.plotting.peers import EfficiencyPanel, group_handles, groups_of_hits, words
from hepattn.plotting.track_panels import NAMES, DetectorPanel
from hepattn.widgets.base import Explorer, choice, slider

__all__ = ["PeerExplorer"]

DRAWN = 150
"""Particles of a group that the detector shows, the hardest: more can't be told apart."""


class PeerExplorer(Explorer):
    """Two finders on the same events, with cuts on the particles that count.

    Left: the particles on which they don't agree, and those that neither found, along the beam (of each group at most
    `DRAWN`). Then the efficiency of each against pT and η. Below: the numbers of each. Tracks are found and matched
    once, before. State:

    - `event`: a number from 0;
    - `wanted`: the name of a `Wanted`: which particles count;
    - `pt_min`: GeV, instead of the cut of `wanted`;
    - `eta_max`: on |eta|, where it is tighter than that of `wanted`;
    - `kind`: the definition of found.

    Args:
        events: with truth
        sides: the two finders; their volumes decide by which hits each is judged
        tracks: name of a side -> its tracks of each event
        wanted: choices of particles that count; the first is shown first
        seconds: name of a side -> seconds that each event took it; left out, no times are told

    Raises:
        ValueError: no event, no choice of particles, or not two sides.
    """

    def __init__(
        self,
        events: Sequence[Event],
        sides: Sequence[Side],
        tracks: Mapping[str, Sequence[Tracks]],
        wanted: Sequence[Wanted],
        seconds: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        if not events or not wanted:
            raise ValueError("there is no event to explore" if not events else "say which particles count: wanted")
        self.events, self.sides, self.seconds = list(events), list(sides), dict(seconds or {})
        self.choices = {one.name: one for one in wanted}
        found = found_by(sides, events, tracks, wanted[0])
        single = [{name: [of[i]] for name, of in found.items()} for i in range(len(events))]
        self.peers: list[dict[Kind, Peers]] = [{kind: Peers.of(one, kind) for kind in KINDS} for one in single]
        self.metrics: list[list[TrackMetrics]] = [[track_metrics(of) for of in one.values()] for one in single]
        self._base: dict[tuple[int, Wanted], NDArray[np.bool_]] = {}

        names = [side.name for side in sides]
        figure, (detector, left, right) = style.canvas(3, width=5.2, height=5.4, ratios=[1.0, 1.1, 1.1])
        with style.context():
            self.detector = DetectorPanel(detector, "xy")
            self.against_pt, self.against_eta = EfficiencyPanel(left, "pt"), EfficiencyPanel(right, "eta")
            detector.set_title("on whom they don't agree", loc="left")
            left.set_title("against pT", loc="left")
            right.set_title("against η", loc="left")
            self.title = figure.suptitle("one\ntwo")
            handles = group_handles(names)
            figure.legend(handles=handles, loc="outside lower center", ncols=4)
        first = wanted[0].selection
        controls = {
            "event": choice("event", {f"{i}: {len(event.hits):,} hits": i for i, event in enumerate(events)}),
            "wanted": choice("who counts", list(self.choices)),
            "pt_min": slider("pT above [GeV]", float(first.pt_min), 0.5, 5.0, 0.1),
            "eta_max": slider("|η| below", 4.0, 0.5, 4.0, 0.1),
            "kind": choice("definition of found", {label: name for name, label in NAMES.items()}, "double_majority"),
        }
        moving = [*self.detector.artists, *self.against_pt.moving, *self.against_eta.moving, self.title]
        super().__init__(figure, controls, moving=moving)

    def counted(self) -> Wanted:
        """Which particles count now."""
        of = self.choices[self.wanted]
        cut = replace(
            of.selection, pt_min=round(float(self.pt_min), 3), eta_max=min(of.selection.eta_max, float(self.eta_max))
        )
        return replace(of, selection=cut)

    def shown(self) -> Peers:
        """What both found of the particles that count now."""
        of = self.peers[self.event][self.kind]
        return of.among(self._chosen(self.counted()))

    def _chosen(self, wanted: Wanted) -> NDArray[np.bool_]:
        """(p,) bool: the cuts on pT and eta are the moving ones, all else is decided once an event."""
        cut = wanted.selection
        loose = replace(wanted, selection=replace(cut, pt_min=0.0, eta_max=np.inf))
        key = (self.event, loose)
        if key not in self._base:
            self._base[key] = loose.particles(self.events[self.event])
        of = self.events[self.event].particles
        assert of is not None
        chosen: NDArray[np.bool_] = self._base[key] & (of.pt > cut.pt_min) & (np.abs(of.eta) < cut.eta_max)
        return chosen

    def update(self) -> str:
        """Moves lines, points and intervals; returns the numbers of each."""
        event, of, wanted = self.events[self.event], self.shown(), self.counted()
        self.detector.show(event, groups_of_hits(event, of, DRAWN))
        cut = wanted.selection
        self.against_pt.show(of, peer_edges("pt", cut.pt_min, cut.eta_max))
        self.against_eta.show(of, peer_edges("eta", cut.pt_min, cut.eta_max))
        number = f"{int(of.wanted.sum()):,} particles of event {self.event}"
        self.title.set_text(f"definition of found: {NAMES[self.kind]}; {number}\n{wanted}")
        return self._table(of)

    def _table(self, of: Peers) -> str:
        metrics = self.metrics[self.event]
        rows: dict[str, list[Fraction | str]] = {
            f"efficiency, {label}": [self.peers[self.event][kind].among(of.wanted).efficiency(side) for side in (0, 1)]
            for kind, label in NAMES.items()
        }
        rows["fakes, double majority (of all tracks)"] = [one.fakes for one in metrics]
        rows["duplicates, double majority (of all tracks)"] = [one.duplicates for one in metrics]
        if self.seconds:
            rows["seconds"] = [f"{self.seconds[name][self.event]:.1f}" for name in of.names]
        head = "".join(f"<th>{escape(name)}</th>" for name in ("", *of.names))
        body = "".join(
            f"<tr><td>{name}</td>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"
            for name, cells in rows.items()
        )
        who = "; ".join(f"{escape(name)}: {words(share)}" for name, share in of.shares().items())
        many = max(int(part.sum()) for name, part in of.groups().items() if name != "both") > DRAWN
        note = f"<br>In the detector: of each group the {DRAWN} particles of highest pT." if many else ""
        return f"<table border=1 cellpadding=4><tr>{head}</tr>{body}</table>who finds what: {who}{note}"
