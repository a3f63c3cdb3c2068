"""Who counts in the comparison of trackers, and how a side is judged."""

import numpy as np
import pytest

from hepattn.bench.tracks import PROMPT, Side, Wanted, judge, run
from hepattn.data import sample_event
from hepattn.data.schema import Event, Selection
from hepattn.data.tracks import Tracks


@pytest.fixture(scope="module")
def event() -> Event:
    return sample_event(index=3)


def truth(event: Event) -> Tracks:
    assert event.hits.particle is not None
    return Tracks.from_labels(event.hits.particle)


def test_prompt_particles_are_made_near_the_beam(event):
    selection = Selection(1.0, 2.5, 7)
    every, near = Wanted("a", selection, prompt=False), Wanted("b", selection, prompt=True)
    assert np.array_equal(every.particles(event), selection.particles(event))
    made = np.hypot(event.particles.vx, event.particles.vy)
    assert np.array_equal(near.particles(event), selection.particles(event) & (made < PROMPT))
    assert 0 < near.particles(event).sum() < every.particles(event).sum()
    assert str(near).endswith(", prompt")


@pytest.mark.parametrize("prompt", [False, True])
def test_true_tracks_are_found_whole_and_only_wanted_particles_count(event, prompt):
    wanted = Wanted("wanted", Selection(1.0, 2.5, 7), prompt)
    side = Side("truth", truth, Selection(1.0, 2.5, 7))
    found, milliseconds = run(side, [event, event], rounds=2)
    assert milliseconds > 0
    judged = judge(side, [event, event], found, wanted)
    number = 2 * int(wanted.particles(event).sum())
    assert (judged.efficiency_perfect.passed, judged.efficiency_perfect.total) == (number, number)
    assert judged.fakes.passed == 0


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
