"""Matching, efficiencies, fakes and duplicates against loops over sets; and by hand on damaged true tracks."""

import math
from fractions import Fraction as Exact
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from hepattn.data import Event, Selection, Tracks, sample_event
from hepattn.metrics import FoundTracks, Fraction, efficiency_against, match_tracks, track_metrics
from hepattn.metrics.track_matching import KINDS, Kind
from hepattn.metrics.tracks import Quantity
from tests.metrics.toy_tracks import Toy, judged, toys

NONE = Fraction(0, 0)


def found(toy: Toy, **more: Any) -> FoundTracks:
    return FoundTracks(
        toy.found,
        np.array(toy.particle, dtype=int),
        np.array(toy.wanted, dtype=bool),
        np.array(toy.kept, dtype=bool),
        **more,
    )


@settings(max_examples=150, deadline=None)
@given(toys())
def test_matches_against_sets(toy):
    particles = toy.owned()
    matches = match_tracks(toy.found, np.array(toy.particle, dtype=int), toy.count)
    assert matches.sizes.tolist() == [len(one) for one in particles]
    for i, track in enumerate(map(set, toy.tracks)):
        shared = [len(track & one) for one in particles]
        most = max(shared, default=0)
        assert matches.shared[i] == most
        assert matches.size[i] == len(track)
        assert matches.majority[i] == (shared.index(most) if most else -1)
        if track:
            assert matches.purity[i] == pytest.approx(most / len(track))
        else:
            assert math.isnan(matches.purity[i])
        if most:
            assert matches.completeness[i] == pytest.approx(most / len(particles[shared.index(most)]))
        else:
            assert math.isnan(matches.completeness[i])
        for kind, row in judged(track, particles).items():
            assert matches.verdict(kind)[i] == (row >= 0), kind
            if row >= 0:
                assert matches.majority[i] == row


@settings(max_examples=150, deadline=None)
@given(toys())
@pytest.mark.parametrize("sizes", ["all", "kept"])
@pytest.mark.parametrize("min_hits", [1, 3])
def test_metrics_against_sets(sizes, min_hits, toy):
    particles = toy.owned(kept=sizes == "kept")
    got = track_metrics([found(toy), found(toy)], min_hits, sizes)
    tracks = [set(track) for track in toy.tracks if len(track) >= min_hits]
    matched = [judged(track, particles) for track in tracks]
    assert got.short == Fraction(2 * (len(toy.tracks) - len(tracks)), 2 * len(toy.tracks))
    numbers: list[tuple[Kind, Fraction, Fraction, Fraction]] = [
        ("double_majority", got.efficiency, got.fakes, got.duplicates),
        ("perfect", got.efficiency_perfect, NONE, NONE),
        ("lhc", got.efficiency_lhc, got.fakes_lhc, got.duplicates_lhc),
    ]
    for kind, efficiency, fakes, duplicates in numbers:
        rows = [one[kind] for one in matched]
        hit = [row for row in range(toy.count) if toy.wanted[row] and row in rows]
        assert efficiency == Fraction(2 * len(hit), 2 * sum(toy.wanted))
        if kind != "perfect":
            assert fakes == Fraction(2 * rows.count(-1), 2 * len(rows))
            good = [row for row in rows if row >= 0]
            assert duplicates == Fraction(2 * (len(good) - len(set(good))), 2 * len(rows))


@settings(max_examples=60, deadline=None)
@given(toys(shared=False))
def test_where_no_hit_is_shared_double_majority_knows_no_duplicates(toy):
    assert track_metrics([found(toy)], 1).duplicates.passed == 0


def verdicts(tracks: list[list[int]], particle: list[int], row: int = 0) -> str:
    matches = match_tracks(Tracks.from_hits(tracks, len(particle)), np.array(particle))
    return "".join(kind[0] for kind in KINDS if matches.verdict(kind)[row])


def test_limits_are_exclusive():
    # p: perfect, d: double majority, l: LHC
    owner = [0] * 8 + [1] * 8
    assert verdicts([[*range(8)]], owner) == "pdl"
    assert verdicts([[*range(7)]], owner) == "dl"
    assert verdicts([[*range(8), 8]], owner) == "dl"
    assert verdicts([[*range(6), 8, 9]], owner) == "d"  # exactly 3/4 of the track
    assert verdicts([[*range(4)]], owner) == "l"  # exactly half of the particle
    assert verdicts([[*range(8), *range(8, 16)]], owner) == ""  # exactly half of the track, a tie
    assert verdicts([[*range(5), *range(8, 13)]], owner) == ""


def test_a_tie_goes_to_the_lowest_row_and_noise_is_no_particle():
    matches = match_tracks(
        Tracks.from_hits([[3, 2, 1, 0], [4, 5, 6, 0], [4, 5]], 7), np.array([2, 2, 1, 1, -1, -1, -1])
    )
    assert matches.majority.tolist() == [1, 2, -1]
    assert matches.shared.tolist() == [2, 1, 0]
    assert matches.sizes.tolist() == [0, 2, 2]
    assert matches.purity.tolist() == [0.5, 0.25, 0.0]


def test_what_a_filter_loses_stays_in_the_denominator():
    # particle 0: 4 of 10 hits are left, all on its track; particle 1: none is left
    owner = np.array([0] * 10 + [1] * 5)
    kept = np.arange(15) < 4
    event = FoundTracks(Tracks.from_hits([[0, 1, 2, 3]], 15), owner, np.array([True, True]), kept)
    whole, given_to_it = track_metrics([event]), track_metrics([event], sizes="kept")
    assert whole.efficiency == Fraction(0, 2)
    assert whole.fakes == Fraction(1, 1)
    assert given_to_it.efficiency == given_to_it.efficiency_perfect == Fraction(1, 2)
    assert given_to_it.fakes == Fraction(0, 1)
    assert whole.efficiency_lhc == given_to_it.efficiency_lhc == Fraction(1, 2)
    assert "tracker was given" in str(given_to_it)
    assert "(0 of 2)" in str(whole)


def test_any_particle_saves_a_track_from_being_a_fake_but_is_not_in_the_efficiency():
    event = FoundTracks(Tracks.from_hits([[0, 1, 2]], 6), np.array([0, 0, 0, 1, 1, 1]), np.array([False, True]))
    got = track_metrics([event])
    assert got.fakes == Fraction(0, 1)
    assert got.efficiency == Fraction(0, 1)


@pytest.fixture(scope="module")
def event() -> Event:
    return sample_event("ttbar_mu0", 3)


def test_damaged_true_tracks_of_a_real_event(event):
    """Some true tracks split into halves, some merged in pairs, some dropped: every number is known beforehand."""
    cut, particle = Selection(pt_min=0.6, min_hits=6), event.hits.particle
    assert particle is not None
    wanted = np.flatnonzero(cut.particles(event))
    true = [np.flatnonzero(particle == row) for row in wanted]
    assert len(true) > 30
    split, merged, dropped, whole = true[:6], true[6:12], true[12:17], true[17:]
    tracks: list[list[int]] = [list(hits) for hits in whole]
    for hits in split:  # the larger piece is 2/3
        tracks += [list(hits[: math.ceil(2 * len(hits) / 3)]), list(hits[math.ceil(2 * len(hits) / 3) :])]
    for a, b in zip(merged[::2], merged[1::2], strict=True):
        tracks.append([*a, *b])
    got = track_metrics([FoundTracks.of(event, Tracks.from_hits(tracks, len(event.hits)), cut)], min_hits=1)
    n = len(true)
    biggest = [max(len(a), len(b)) / (len(a) + len(b)) for a, b in zip(merged[::2], merged[1::2], strict=True)]
    saved, pure = sum(share > 0.5 for share in biggest), sum(share > 0.75 for share in biggest)
    assert got.efficiency == Fraction(len(whole) + 6 + saved, n)
    assert got.efficiency_perfect == Fraction(len(whole), n)
    assert got.efficiency_lhc == Fraction(len(whole) + 6 + pure, n)
    assert got.fakes == Fraction(6 + 3 - saved, len(tracks))
    assert got.duplicates == Fraction(0, len(tracks))
    assert got.fakes_lhc == Fraction(3 - pure, len(tracks))
    assert got.duplicates_lhc == Fraction(6, len(tracks))
    assert len(dropped) == n - len(whole) - 12
    one = track_metrics([FoundTracks.of(event, Tracks.from_labels(particle), Selection())])
    assert one.efficiency_perfect.value == one.efficiency.value == one.efficiency_lhc.value == 1


def test_efficiency_in_bins_against_a_loop(event):
    cut, particle = Selection(pt_min=0.5), event.hits.particle
    assert particle is not None
    assert event.particles is not None
    labels = np.where(np.random.default_rng(1).random(len(particle)) < 0.3, -1, particle)
    judge = FoundTracks.of(event, Tracks.from_labels(labels), cut)
    wanted = np.flatnonzero(cut.particles(event))
    owned = [set(np.flatnonzero(particle == row).tolist()) for row in range(len(event.particles))]
    on = {judged(set(track.hits.tolist()), owned)["double_majority"] for track in judge.tracks if len(track) >= 3}
    bins: dict[Quantity, list[float]] = {"pt": [0.5, 1.0, 2.0, 5.0, 1e4, 2e4], "eta": [-4.0, -1.0, 0.0, 1.0, 4.0]}
    for quantity, edges in bins.items():
        values = getattr(event.particles, quantity)
        got = efficiency_against([judge, judge], quantity, edges)
        for one, low, high in zip(got, edges, edges[1:], strict=False):
            rows = [row for row in wanted if low <= values[row] < high]
            assert one == Fraction(2 * sum(row in on for row in rows), 2 * len(rows))
    empty = efficiency_against([judge], "pt", [1e4, 2e4])[0]
    assert math.isnan(empty.value)
    assert math.isnan(empty.interval[0])
    assert 0 < Exact(got[1].passed, got[1].total) < 1
    perfect = efficiency_against([judge], "eta", [-4, 4], "perfect")[0]
    assert perfect == track_metrics([judge]).efficiency_perfect
    assert efficiency_against([], "pt", [0, 1]) == [NONE]


def test_selected_volumes(event):
    pixels = Selection(pt_min=0.9, volumes=(7, 8, 9))
    particle = event.hits.particle
    assert particle is not None
    inside = pixels.in_volumes(event.hits)
    tracks = Tracks.from_labels(np.where(inside, particle, -1))
    got = track_metrics([FoundTracks.of(event, tracks, pixels, kept=inside)])
    assert got.efficiency_perfect.passed == got.efficiency_perfect.total > 10
    with pytest.raises(ValueError, match="outside the selected volumes"):
        FoundTracks.of(event, Tracks.from_labels(particle), pixels)


def test_refusals():
    tracks = Tracks.from_labels([0, 0, 1])
    owner = np.array([0, 0, 1])
    wrong: list[tuple[Any, str]] = [
        ((tracks, owner[:2]), "each of the event's 3 hits before any filter"),
        ((tracks, owner, 1), "particle lies in -1 ... 0, got 0 to 1"),
        ((tracks, owner - 2), "particle lies"),
        ((tracks, owner, 2, np.array([True, True])), "counted is"),
        ((tracks, owner, 2, np.array([1, 1, 1])), "counted is"),
        ((tracks, owner, 2, np.array([True, True, False])), "isn't counted"),
    ]
    for arguments, words in wrong:
        with pytest.raises(ValueError, match=words):
            match_tracks(*arguments)
    with pytest.raises(ValueError, match="kind is one of perfect"):
        match_tracks(tracks, owner).verdict("half")  # type: ignore[arg-type]
    event = FoundTracks(tracks, owner, np.array([True, True]))
    with pytest.raises(ValueError, match="which hits were given"):
        track_metrics([event], sizes="kept")
    with pytest.raises(ValueError, match="all or kept"):
        track_metrics([event], sizes="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"FoundTracks\.pt is needed"):
        efficiency_against([event], "pt", [0, 1])
    with pytest.raises(ValueError, match="pt or eta"):
        efficiency_against([event], "phi", [0, 1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"FoundTracks\.kept"):
        FoundTracks(tracks, owner, np.array([True, True]), np.ones(2, dtype=bool))
    with pytest.raises(ValueError, match=r"FoundTracks\.eta"):
        FoundTracks(tracks, owner, np.array([True, True]), eta=np.ones(3))
