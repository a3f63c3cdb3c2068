"""The challenge's score against its definition in loops, and by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hepattn.data import Selection, Tracks, sample_event
from hepattn.metrics import pt_weights, trackml_score, trackml_weights
from tests.data.conftest import make_event
from tests.metrics.toy_tracks import toys


def reference(tracks: list[list[int]], particle: list[int], weight: list[float]) -> float:
    """As the challenge tells it: noise is one more particle, of weight zero."""
    score = 0.0
    for track in tracks:
        owners = [particle[hit] for hit in track]
        for owner in set(owners):
            if owners.count(owner) > 0.5 * len(track) and owners.count(owner) > 0.5 * particle.count(owner):
                score += sum(weight[hit] for hit in track if particle[hit] == owner)
    return score / sum(weight)


@settings(max_examples=150, deadline=None)
@given(toys(shared=False), st.integers(0, 10))
def test_score_against_loops(toy, seed):
    rng = np.random.default_rng(seed)
    weight = np.where(np.array(toy.particle, dtype=int) >= 0, rng.random(len(toy.particle)), 0.0)
    if not weight.sum():
        with pytest.raises(ValueError, match="not all zero"):
            trackml_score(toy.found, np.array(toy.particle, dtype=int), weight)
        return
    got = trackml_score(toy.found, np.array(toy.particle, dtype=int), weight)
    assert got == pytest.approx(reference(toy.tracks, toy.particle, weight.tolist()))


def test_score_by_hand():
    particle = np.array([0, 0, 0, 0, 1, 1, 1, 1, -1])
    weight = np.array([0.2, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.0])
    whole = Tracks.from_labels(particle)
    assert trackml_score(whole, particle, weight) == pytest.approx(1.0)
    # a track of two hits is half of its particle: nothing; three and a hit of noise: their weight
    assert trackml_score(Tracks.from_hits([[0, 3]], 9), particle, weight) == 0.0
    assert trackml_score(Tracks.from_hits([[0, 1, 3, 8]], 9), particle, 7 * weight) == pytest.approx(0.5)
    # hits of another particle on a good track score nothing
    assert trackml_score(Tracks.from_hits([[0, 1, 3, 4]], 9), particle, weight) == pytest.approx(0.5)


def test_score_refuses():
    particle = np.array([0, 0, 0, 0])
    two = Tracks.from_hits([[0, 1, 2], [1, 2, 3]], 4)
    with pytest.raises(ValueError, match="lies on 2 tracks"):
        trackml_score(two, particle, np.ones(4))
    one = Tracks.from_labels([0, 0, 0, 0])
    for weight in (np.zeros(4), np.array([1, 1, 1, -1]), np.array([1, 1, 1, np.nan])):
        with pytest.raises(ValueError, match="finite, >= 0"):
            trackml_score(one, particle, weight)
    with pytest.raises(ValueError, match="each of the event's 4 hits"):
        trackml_score(one, particle, np.ones(3))


def test_weights_of_the_source():
    event = make_event()
    assert event.truth is not None
    assert np.array_equal(trackml_weights(event), event.truth.weight)
    with pytest.raises(ValueError, match="pt_weights"):
        trackml_weights(make_event(truth=False))


def test_pt_weights_against_a_loop():
    event = sample_event("ttbar_mu0", 5)
    particles, particle = event.particles, event.hits.particle
    assert particles is not None
    assert particle is not None
    want = np.zeros(len(particle))
    for row, pt in enumerate(particles.pt.tolist()):
        hits = np.flatnonzero(particle == row)
        if len(hits) > 3:
            want[hits] = (0.2 + 0.8 * (min(max(pt, 0.5), 3.0) - 0.5) / 2.5) / len(hits)
    got = pt_weights(event)
    assert np.allclose(got, want / want.sum())
    assert got.sum() == pytest.approx(1.0)
    assert trackml_score(Tracks.from_labels(particle), particle, got) == pytest.approx(1.0)
    hard = np.where(Selection().hits(event), particle, -1)
    assert trackml_score(Tracks.from_labels(hard), particle, got) == pytest.approx(
        want[hard >= 0].sum() / want.sum(), abs=0.02
    )
    few = replace(event, hits=event.hits.take(np.flatnonzero(particle == -1)))
    with pytest.raises(ValueError, match="has 4 hits"):
        pt_weights(few)
