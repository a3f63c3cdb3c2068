"""The two sides of `hepattn.bench.tracks` for a notebook: the Kalman filter as a side, and tracks with their truth."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hepattn.bench.tracks import Side, Wanted
from hepattn.data.schema import Event, Selection
from hepattn.data.simulation.kalman import KalmanConfig, kalman_tracks
from hepattn.data.simulation.packages import require
from hepattn.data.tracks import Tracks
from hepattn.metrics.tracks import FoundTracks

__all__ = ["found_by", "kalman_side"]


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
    """The tracks of each side with the truth to judge them by, as `hepattn.bench.tracks.judge` judges them.

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
