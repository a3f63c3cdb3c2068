"""The run of a side over events."""

import pytest

from hepattn.bench.peers import Side, Wanted, judge
from hepattn.bench.tracks import run
from hepattn.data import sample_event
from hepattn.data.schema import Event, Selection
from hepattn.data.tracks import Tracks


def truth(event: Event) -> Tracks:
    assert event.hits.particle is not None
    return Tracks.from_labels(event.hits.particle)


@pytest.mark.parametrize("prompt", [False, True])
def test_true_tracks_are_found_whole_and_only_wanted_particles_count(prompt):
    event = sample_event(index=3)
    wanted = Wanted("wanted", Selection(1.0, 2.5, 7), prompt)
    side = Side("truth", truth, Selection(1.0, 2.5, 7))
    found, milliseconds = run(side, [event, event], rounds=2)
    assert milliseconds > 0
    judged = judge(side, [event, event], found, wanted)
    number = 2 * int(wanted.particles(event).sum())
    assert (judged.efficiency_perfect.passed, judged.efficiency_perfect.total) == (number, number)
    assert judged.fakes.passed == 0
