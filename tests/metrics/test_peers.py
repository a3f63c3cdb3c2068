"""Two finders on the same particles: counts by hand, and against the metrics of tracks."""

from dataclasses import replace

import numpy as np
import pytest

from hepattn.data import Damage, Selection, Tracks, damage_tracks, sample_event, true_tracks
from hepattn.metrics import FoundTracks, Fraction, Peers, efficiency_against, peer_edges, track_metrics
from hepattn.metrics.track_matching import KINDS


def by_hand() -> dict[str, list[FoundTracks]]:
    """Five particles of three hits, the last isn't wanted: both find 0; a finds 1 and 4; b finds 2; nobody 3."""
    particle = np.repeat(np.arange(5), 3)
    wanted = np.array([True, True, True, True, False])
    pt, eta = np.array([1.0, 2.0, 4.0, 40.0, 3.0]), np.array([-2.0, 0.0, 1.0, 2.0, 0.0])
    rows = {k: np.arange(3 * k, 3 * k + 3) for k in range(5)}
    found = {"a": [rows[0], rows[1], rows[4]], "b": [rows[0], rows[2]]}
    return {
        name: [FoundTracks(Tracks.from_hits(hits, 15), particle, wanted, pt=pt, eta=eta)]
        for name, hits in found.items()
    }


@pytest.fixture(scope="module")
def damaged() -> dict[str, list[FoundTracks]]:
    sides: dict[str, list[FoundTracks]] = {"one": [], "other": []}
    for index in range(3):
        event = sample_event(index=index)
        for seed, name in enumerate(sides):
            tracks, _ = damage_tracks(event, true_tracks(event), Damage(split=0.3, drop=0.2, seed=seed))
            sides[name].append(FoundTracks.of(event, tracks, Selection()))
    return sides


def test_who_finds_what_is_counted_among_wanted_particles():
    peers = Peers.of(by_hand())
    assert peers.names == ("a", "b")
    assert peers.shares() == {name: Fraction(1, 4) for name in ("both", "only a", "only b", "neither")}
    assert [np.flatnonzero(part).tolist() for part in peers.groups().values()] == [[0], [1], [2], [3]]
    assert [peers.efficiency(side) for side in (0, 1)] == [Fraction(2, 4), Fraction(2, 4)]
    other = peers.among(np.array([False, False, False, False, True]))
    assert [share.passed for share in other.shares().values()] == [0, 1, 0, 0]


def test_the_outer_bins_hold_what_lies_beyond():
    peers = Peers.of(by_hand())
    assert peers.efficiency_against(0, "pt", [1.5, 3.0, 10.0]) == [Fraction(2, 2), Fraction(0, 2)]
    assert peers.efficiency_against(1, "eta", [-1.0, 0.5, 1.5]) == [Fraction(1, 2), Fraction(1, 2)]
    nobody = peers.efficiency_against(1, "pt", [5.0, 6.0, 10.0])
    assert nobody == [Fraction(2, 3), Fraction(0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_side_agrees_with_its_own_metrics(damaged, kind):
    peers = Peers.of(damaged, kind)
    name = {"double_majority": "efficiency", "perfect": "efficiency_perfect", "lhc": "efficiency_lhc"}[kind]
    edges = peer_edges("eta", 0.9, 4.0)
    for side, found in enumerate(damaged.values()):
        assert peers.efficiency(side) == getattr(track_metrics(found), name)
        assert peers.efficiency_against(side, "eta", edges) == efficiency_against(found, "eta", edges, kind)
    shares = peers.shares()
    assert sum(share.passed for share in shares.values()) == peers.wanted.sum()
    assert shares["both"].passed + shares["only one"].passed == peers.efficiency(0).passed
    assert min(share.passed for share in shares.values()) > 0


def test_edges():
    edges = peer_edges("pt", 1.0, 2.5, 4)
    assert np.allclose(edges[[0, -1]], [1.0, 10.0])
    assert np.allclose(edges[1:] / edges[:-1], edges[1] / edges[0])
    assert np.isclose(peer_edges("pt", 5.0, 2.5)[-1], 20.0)
    assert np.allclose(peer_edges("eta", 1.0, 2.0, 4), [-2, -1, 0, 1, 2])


def test_refusals():
    found = by_hand()
    with pytest.raises(ValueError, match="two finders, not 1: a"):
        Peers.of({"a": found["a"]})
    with pytest.raises(ValueError, match="no event to compare"):
        Peers.of({"a": [], "b": []})
    with pytest.raises(ValueError, match="the same particles"):
        Peers.of({"a": found["a"], "b": [replace(found["b"][0], reconstructable=np.ones(5, dtype=bool))]})
    with pytest.raises(ValueError, match="pt and eta are needed"):
        Peers.of({"a": [replace(found["a"][0], pt=None)], "b": found["b"]})
    peers = Peers.of(found)
    with pytest.raises(ValueError, match=r"Peers\.found has the shape \(2, 3\), not \(2, 5\)"):
        peers.among(np.ones(3, dtype=bool))
    with pytest.raises(ValueError, match="two names"):
        replace(peers, names=("a", "a"))
    for quantity in ("phi", "hits"):
        with pytest.raises(ValueError, match="pt or eta"):
            peers.efficiency_against(0, quantity, [0, 1])  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="pt or eta"):
            peer_edges(quantity, 1.0, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bins need pt_min > 0"):
        peer_edges("pt", 0.0, 2.0)
    with pytest.raises(ValueError, match="a finite eta_max"):
        peer_edges("eta", 1.0, np.inf)
