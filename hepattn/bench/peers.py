"""Who finds tracks, which particles count, and how each side is judged: for `hepattn.bench.tracks` and notebooks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hepattn.data.schema import BoolArray, Event, Selection
from hepattn.data.simulation.kalman import KalmanConfig, kalman_tracks
from hepattn.data.simulation.packages import require
from hepattn.data.tracks import Tracks
from hepattn.metrics.tracks import FoundTracks, TrackMetrics, track_metrics

__all__ = ["PROMPT", "Finder", "Side", "Wanted", "found_by", "judge", "kalman_side"]

PROMPT = 2.0
"""mm from the beam axis: a particle made nearer is prompt."""

Finder = Callable[[Event], Tracks]


@dataclass(frozen=True)
class Side:
    """Who finds tracks, in which volumes, and how fast."""

    name: str
    find: Finder
    selection: Selection
    """Its volumes decide which hits count."""


@dataclass(frozen=True)
class Wanted:
    """Particles that count: selected, and where asked for made near the beam."""

    name: str
    selection: Selection
    prompt: bool

    def particles(self, event: Event) -> BoolArray:
        """(p,) bool, True = counts."""
        assert event.particles is not None
        near = np.hypot(event.particles.vx, event.particles.vy) < PROMPT
        return self.selection.particles(event) & (near | (not self.prompt))

    def __str__(self) -> str:
        return f"{self.name}: {self.selection}{', prompt' if self.prompt else ''}"


def kalman_side(name: str = "Kalman filter", config: KalmanConfig | None = None) -> Side:
    """ACTS's Kalman filter as a side: it may use all hits, and runs on one core.

    Args:
        name: of the side
        config: left out, the defaults

    Raises:
        ImportError: pyacts is missing.
    """
    require("acts")
    settings = config or KalmanConfig()

    def find(event: Event) -> Tracks:
        return kalman_tracks(event, settings).tracks

    return Side(name, find, Selection(settings.pt_min, settings.eta_max, settings.min_measurements))


def found_by(
    sides: Sequence[Side], events: Sequence[Event], tracks: Mapping[str, Sequence[Tracks]], wanted: Wanted
) -> dict[str, list[FoundTracks]]:
    """The tracks of each side with the truth to judge them by.

    Args:
        sides: who found them; the volumes of a side's selection decide which hits count
        events: with truth
        tracks: name of a side -> its tracks of each event
        wanted: particles that count, the same for all sides

    Returns:
        name of a side -> one an event, `reconstructable` = wanted
    """
    return {
        side.name: [
            replace(FoundTracks.of(event, found, side.selection), reconstructable=wanted.particles(event))
            for event, found in zip(events, tracks[side.name], strict=True)
        ]
        for side in sides
    }


def judge(side: Side, events: Sequence[Event], found: Sequence[Tracks], wanted: Wanted) -> TrackMetrics:
    """Metrics of one side's tracks over events, for the particles that are wanted, by the hits that it may use."""
    return track_metrics(found_by([side], events, {side.name: found}, wanted)[side.name])
