"""The toy event lies on its helices; damage does what its shares say, and more of it does the same and more."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepattn.data import Damage, Selection, TrackParameters, damage_tracks, sample_event, toy_event, true_tracks

share = st.floats(0, 1)


def test_toy_hits_lie_on_helices_by_small_steps():
    event = toy_event(4, noise=3, seed=2)
    particles, particle = event.particles, event.hits.particle
    assert particles is not None
    assert particle is not None
    assert (particle == -1).sum() == 3
    for row in range(4):
        hits = np.flatnonzero(particle == row)
        assert 6 <= len(hits) <= 10
        x = y = z = 0.0
        px, py, pz = (float(getattr(particles, name)[row]) for name in ("px", "py", "pz"))
        turn = -0.299792458e-3 * 2.0 * int(particles.charge[row])
        step, at = 0.05 / math.hypot(px, py), 0
        while at < len(hits):
            a = turn * step / 2
            qx, qy = px - a * py, py + a * px
            x, y, z = x + qx * step, y + qy * step, z + pz * step
            px, py = px - 2 * a * qy, py + 2 * a * qx
            if math.hypot(x, y) >= event.hits.r[hits[at]]:
                there = event.hits.x[hits[at]], event.hits.y[hits[at]], event.hits.z[hits[at]]
                assert math.dist((x, y, z), there) < 0.5
                at += 1
    assert np.abs(TrackParameters.of(particles).d0).max() < 1e-4
    with pytest.raises(ValueError, match="particles >= 1"):
        toy_event(0)


def test_true_tracks_are_the_particles():
    event = sample_event("ttbar_mu0", 2)
    cut = Selection(volumes=(7, 8, 9))
    tracks = true_tracks(event, cut)
    assert event.hits.particle is not None
    rows = np.flatnonzero(cut.particles(event))
    assert len(tracks) == len(rows)
    for track, row in zip(tracks, rows, strict=True):
        assert set(track.hits) == set(np.flatnonzero((event.hits.particle == row) & cut.in_volumes(event.hits)))
    assert len(true_tracks(event)) == (event.hits_per_particle > 0).sum()


@settings(max_examples=40, deadline=None)
@given(share, share, share, share, st.integers(0, 3))
def test_every_track_is_pieces_of_one_or_two(split, merge, drop, lost, seed):
    event = toy_event(9, seed=seed)
    tracks, kept = damage_tracks(event, true_tracks(event), Damage(split, merge, drop, lost, seed))
    assert event.hits.particle is not None
    assert (tracks.lengths > 0).all()
    for track in tracks:
        assert kept[track.hits].all()
        assert 1 <= len(set(event.hits.particle[track.hits])) <= 2
    if not drop:
        assert np.array_equal(np.sort(tracks.hits), np.flatnonzero((event.hits.particle >= 0) & kept))


def test_whole_damage_by_hand():
    event = toy_event(8, seed=1)
    true = true_tracks(event)
    assert np.array_equal(damage_tracks(event, true, Damage())[0].labels(), true.labels())
    assert len(damage_tracks(event, true, Damage(drop=1))[0]) == 0
    assert len(damage_tracks(event, true, Damage(split=1))[0]) == 16
    assert len(damage_tracks(event, true, Damage(merge=1))[0]) == 4
    assert len(damage_tracks(event, true, Damage(lost=1))[0]) == 0
    halves, _ = damage_tracks(event, true, Damage(split=1))
    for inner, outer in zip(halves[:8], halves[8:], strict=True):
        assert event.hits.r[inner.hits].max() < event.hits.r[outer.hits].min()
    assert len(damage_tracks(toy_event(7), true_tracks(toy_event(7)), Damage(merge=1))[0]) == 4
    with pytest.raises(ValueError, match="its tracks know"):
        damage_tracks(toy_event(3), true, Damage())
    with pytest.raises(ValueError, match=r"Damage\.lost is a share"):
        Damage(lost=1.5)


@settings(max_examples=30, deadline=None)
@given(share, share, st.sampled_from(["split", "drop", "lost"]))
def test_more_damage_is_the_same_and_more(a, b, what):
    event = toy_event(9)
    little, much = ({what: value} for value in sorted((a, b)))
    before, kept_before = damage_tracks(event, true_tracks(event), Damage(**little))
    after, kept = damage_tracks(event, true_tracks(event), Damage(**much))
    assert not (kept & ~kept_before).any()
    sets = [set(track.hits) for track in before]
    assert all(any(set(track.hits) <= one for one in sets) for track in after)
