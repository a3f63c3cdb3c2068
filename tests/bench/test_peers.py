"""Who counts in the comparison of trackers, and how a side is judged."""

from importlib.util import find_spec

import numpy as np
import pytest

from hepattn.bench.peers import PROMPT, Side, Wanted, found_by, judge, kalman_side
from hepattn.data import sample_event
from hepattn.data.schema import Event, Selection
from hepattn.data.simulation.kalman import KalmanConfig
from hepattn.data.tracks import Tracks
from hepattn.metrics.tracks import track_metrics


def pixels(event: Event) -> Tracks:
    """True tracks of the hits in the pixels."""
    assert event.hits.particle is not None
    return Tracks.from_labels(np.where(np.isin(event.hits.volume_id, (7, 8, 9)), event.hits.particle, -1))


@pytest.fixture(scope="module")
def event() -> Event:
    return sample_event(index=3)


def test_prompt_particles_are_made_near_the_beam(event):
    selection = Selection(1.0, 2.5, 7)
    every, near = Wanted("a", selection, prompt=False), Wanted("b", selection, prompt=True)
    assert np.array_equal(every.particles(event), selection.particles(event))
    made = np.hypot(event.particles.vx, event.particles.vy)
    assert np.array_equal(near.particles(event), selection.particles(event) & (made < PROMPT))
    assert 0 < near.particles(event).sum() < every.particles(event).sum()
    assert str(near).endswith(", prompt")


def test_a_side_is_judged_by_the_hits_that_it_may_use(event):
    """Tracks that lack the strips are whole for a side that sees pixels alone, and lose most hits for another."""
    pixels = Selection(1.0, 2.5, 3, volumes=(7, 8, 9))
    inside = pixels.in_volumes(event.hits)
    labels = np.where(inside, event.hits.particle, -1)
    wanted = Wanted("wanted", Selection(1.0, 2.5, 7), prompt=True)
    for selection, whole in ((pixels, True), (Selection(1.0, 2.5, 7), False)):
        side = Side("pixels", lambda _: Tracks.from_labels(labels), selection)
        judged = judge(side, [event], [side.find(event)], wanted)
        assert (judged.efficiency_perfect.value > 0.95) == whole


def test_found_tracks_are_those_that_judge_counts():
    events = [sample_event(index=index) for index in (1, 2)]
    wanted = Wanted("wanted", Selection(1.0, 2.5, 7), prompt=True)
    sides = [Side(name, pixels, Selection(1.0, 2.5, 3, of)) for name, of in (("own", (7, 8, 9)), ("all", None))]
    tracks = {side.name: [side.find(event) for event in events] for side in sides}
    found = found_by(sides, events, tracks, wanted)
    for side in sides:
        assert str(track_metrics(found[side.name])) == str(judge(side, events, tracks[side.name], wanted))
        for event, one in zip(events, found[side.name], strict=True):
            assert np.array_equal(one.reconstructable, wanted.particles(event))
    assert track_metrics(found["own"]).efficiency_perfect.value > track_metrics(found["all"]).efficiency_perfect.value


@pytest.mark.skipif(find_spec("acts") is None, reason="pyacts is missing (the extra sim)")
def test_the_kalman_filter_is_a_side_that_may_use_all_hits(event):
    side = kalman_side("few", KalmanConfig(pt_min=1.0))
    assert side.name == "few"
    assert side.selection.volumes is None
    assert judge(side, [event], [side.find(event)], Wanted("", Selection(1.2, 2.5, 7), True)).efficiency.value > 0.9


def test_a_missing_package_is_named_at_once(monkeypatch):
    def missing(module: str) -> None:
        raise ImportError(f"needs {module}")

    monkeypatch.setattr("hepattn.bench.peers.require", missing)
    with pytest.raises(ImportError, match="needs acts"):
        kalman_side()
