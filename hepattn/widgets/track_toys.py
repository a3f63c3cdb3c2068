"""Explore how tracks are judged: split, merge and drop true tracks, lose hits in a filter, and watch every number."""

from collections.abc import Callable, Mapping
from functools import partial
from html import escape

import numpy as np
from numpy.typing import NDArray

from hepattn.data.sample import sample_event
from hepattn.data.schema import Event, Selection
from hepattn.data.toy_tracks import Damage, damage_tracks, toy_event, true_tracks
from hepattn.metrics.intervals import Fraction
from hepattn.metrics.trackml_score import pt_weights, trackml_score
from hepattn.metrics.tracks import FoundTracks, track_metrics
from hepattn.plotting import style
from hepattn.plotting.track_panels import NAMES, DetectorPanel, ToyPanels, by_verdict
from hepattn.plotting.tracks import HITS, legend_handles
from hepattn.widgets.base import Explorer, choice, slider

__all__ = ["TrackToyExplorer"]

ROWS, TRACK_ROWS = 9, 12
"""Particles and tracks that the picture has room for."""

SOFTEST = 0.5
"""GeV. The tracker that is damaged finds all particles above this pT (in the toy, all), wanted or not."""


class TrackToyExplorer(Explorer):
    """True tracks that are damaged, and what the definitions make of them.

    Left: nine particles as rows of hits (of a large event, neighbours in φ). Middle: the tracks that hold their hits,
    each with its verdicts. Right: all tracks of the event along the beam. Below: the numbers of the whole event. State:

    - `event`: a name;
    - `split`, `merge`, `drop`, `lost`: shares, see `hepattn.data.Damage`;
    - `sizes`: "all" or "kept", which hits of a particle its tracks are compared with;
    - `min_hits`: hits that a track needs to be judged;
    - `kind`: the definition that colours the right panel.

    Args:
        events: name -> event with truth, or what reads it when it is first looked at; left out, a toy and two samples
        selection: which particles should be found
        seed: of the damage
    """

    def __init__(
        self,
        events: Mapping[str, Event | Callable[[], Event]] | None = None,
        selection: Selection | None = None,
        seed: int = 0,
    ) -> None:
        self.events = dict(toys() if events is None else events)
        if not self.events:
            raise ValueError("there is no event to explore")
        self.selection = selection or Selection()
        self.seed = seed
        figure, (particles, tracks, detector) = style.canvas(3, width=5.6, height=5.4, ratios=[18.4, 25.2, 18.0])
        with style.context():
            self.rows = ToyPanels(particles, tracks, ROWS, TRACK_ROWS)
            self.detector = DetectorPanel(detector, "xy")
            figure.legend(handles=legend_handles(), loc="outside lower center", ncols=4)
            self.title = figure.suptitle("one\ntwo")
        controls = {
            "event": choice("event", list(self.events)),
            "split": slider("split", 0.2, 0.0, 1.0, 0.05),
            "merge": slider("merge", 0.0, 0.0, 1.0, 0.05),
            "drop": slider("drop", 0.0, 0.0, 1.0, 0.05),
            "lost": slider("hits lost by a filter", 0.0, 0.0, 0.9, 0.05),
            "sizes": choice("a particle's size", {words: name for name, words in HITS.items()}),
            "min_hits": slider("min. hits of a track", 3, 1, 6),
            "kind": choice("colours by", {words: name for name, words in NAMES.items()}, "double_majority"),
        }
        moving = [*self.rows.artists, *self.detector.artists, self.title]
        super().__init__(figure, controls, moving=moving)

    def shown(self) -> Event:
        """The event on show."""
        event = self.events[self.event]
        if not isinstance(event, Event):
            event = self.events[self.event] = event()
        return event

    def found(self) -> FoundTracks:
        """The damaged tracks of the present state."""
        event = self.shown()
        wanted = Selection(0.0, np.inf, 1) if event.source == "a toy" else Selection(SOFTEST, np.inf, 3)
        damage = Damage(self.split, self.merge, self.drop, self.lost, self.seed)
        tracks, kept = damage_tracks(event, true_tracks(event, wanted), damage)
        return FoundTracks.of(event, tracks, self.selection, kept)

    def update(self) -> str:
        """Moves all that is drawn; returns the table of numbers."""
        event, found = self.shown(), self.found()
        more = self.rows.show(found, self._rows(event, found), event.hits.s, min_hits=self.min_hits, sizes=self.sizes)
        self.detector.show(event, by_verdict(event, found, self.kind, self.min_hits, self.sizes))
        # other words: the ground of these axes is drawn anew
        self.detector.ax.set_title(f"{self.event}: {len(event.hits):,} hits", loc="left")
        here = f"; {more} more tracks on these particles have no room" if more else ""
        self.title.set_text(
            f"{len(found.tracks):,} tracks, coloured on the right by {NAMES[self.kind]}{here}\n"
            f"reconstructable: {self.selection}"
        )
        return self._table(event, found)

    def _rows(self, event: Event, found: FoundTracks) -> NDArray[np.intp]:
        """Particles with a row: all of a small event, else neighbours in phi around the hardest wanted one."""
        assert event.particles is not None
        if len(event.particles) <= ROWS:
            return np.arange(len(event.particles))
        chosen = np.flatnonzero(found.reconstructable)
        ranked = chosen[np.argsort(event.particles.phi[chosen], kind="stable")]
        middle = int(np.argmax(event.particles.pt[ranked])) if len(ranked) else 0
        begin = max(min(middle - ROWS // 2, len(ranked) - ROWS), 0)
        return ranked[begin : begin + ROWS]

    def _table(self, event: Event, found: FoundTracks) -> str:
        metrics = track_metrics([found], self.min_hits, self.sizes)
        nothing = "-"
        rows: list[tuple[str, Fraction | str, Fraction | str, Fraction | str]] = [
            (
                "efficiency: particles found / reconstructable",
                metrics.efficiency_perfect,
                metrics.efficiency,
                metrics.efficiency_lhc,
            ),
            ("fakes: tracks on no particle / tracks", nothing, metrics.fakes, metrics.fakes_lhc),
            ("duplicates: further tracks / tracks", nothing, metrics.duplicates, metrics.duplicates_lhc),
        ]
        head = "".join(f"<th>{words}</th>" for words in ("", *NAMES.values()))
        body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
        score = trackml_score(found.tracks, found.particle, pt_weights(event))
        return (
            f"<table border=1 cellpadding=4><tr>{head}</tr>{body}</table>"
            f"TrackML score (weights by pT): <b>{score:.3f}</b>; tracks below {self.min_hits} hits, not judged: "
            f"{escape(str(metrics.short))}. A particle's size is {HITS[self.sizes]} (in the score: all hits)."
        )


def toys() -> dict[str, Event | Callable[[], Event]]:
    """A toy of nine particles, and the first event without and with 40 collisions on top."""
    return {
        "toy": toy_event(9, seed=3),
        "mu = 0": partial(sample_event, "ttbar_mu0"),
        "mu = 40": partial(sample_event, "ttbar_mu40"),
    }
