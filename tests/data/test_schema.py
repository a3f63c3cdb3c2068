"""The meaning of the derived quantities, of reconstructable, and of every refusal."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepattn.data import Event, Hits, Particles, Selection

from .conftest import make_event


def hits_at(x: Any, y: Any, z: Any, **extra: Any) -> Hits:
    ones = np.ones(len(x), dtype=np.int32)
    defaults: dict[str, Any] = {"volume_id": 8 * ones, "layer_id": 2 * ones, "module_id": ones}
    return Hits(x=np.asarray(x), y=np.asarray(y), z=np.asarray(z), **{**defaults, **extra})


def particles_with(px: Any, pz: Any, **extra: Any) -> Particles:
    n = len(px)
    zero = np.zeros(n)
    defaults: dict[str, Any] = {
        "py": zero,
        "vx": zero,
        "vy": zero,
        "vz": zero,
        "charge": np.ones(n, int),
        "particle_id": np.arange(1, n + 1),
    }
    return Particles(px=np.asarray(px, float), pz=np.asarray(pz, float), **{**defaults, **extra})


def test_coordinates_of_hits_by_hand() -> None:
    hits = hits_at([3.0, 0.0, -32.0], [4.0, 10.0, 0.0], [0.0, 10.0, 0.0])
    np.testing.assert_allclose(hits.r, [5, 10, 32])
    np.testing.assert_allclose(hits.s, [5, np.sqrt(200), 32], rtol=1e-6)
    np.testing.assert_allclose(hits.phi, [np.arctan2(4, 3), np.pi / 2, np.pi], rtol=1e-6)
    np.testing.assert_allclose(hits.theta, [np.pi / 2, np.pi / 4, np.pi / 2], rtol=1e-6)
    np.testing.assert_allclose(hits.eta, [0, -np.log(np.tan(np.pi / 8)), 0], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(hits.u, [3 / 25, 0, -1 / 32], rtol=1e-6)
    np.testing.assert_allclose(hits.v, [4 / 25, 1 / 10, 0], rtol=1e-6)
    assert all(getattr(hits, name).dtype == np.float32 for name in ("r", "s", "phi", "theta", "eta", "u", "v"))


def test_hits_on_the_beam_axis_stay_finite() -> None:
    hits = hits_at([0.0, 1e-30, 0.0], [0.0, 0.0, -0.0], [0.0, 1500.0, -1500.0])
    for name in ("r", "s", "phi", "theta", "eta", "u", "v"):
        assert np.isfinite(getattr(hits, name)).all(), name
    assert hits.eta[1] == -hits.eta[2] > 10


def test_particles_momentum() -> None:
    particles = particles_with([3.0, 0.0], [4.0, 1.0])
    np.testing.assert_allclose(particles.pt, [3, 0])
    np.testing.assert_allclose(particles.p, [5, 1])
    assert np.isfinite(particles.eta).all()
    np.testing.assert_allclose(particles.eta[0], np.arcsinh(4 / 3), rtol=1e-6)


def test_particle_ids_stay_exact() -> None:
    large = np.array([2**60 + 1, 2**53 + 1])
    assert particles_with([1.0, 1.0], [0.0, 0.0], particle_id=large).particle_id.tolist() == large.tolist()
    with pytest.raises(ValueError, match="never pass through floats"):
        particles_with([1.0, 1.0], [0.0, 0.0], particle_id=large.astype(float))


def test_selection_by_hand() -> None:
    # particle:      0: good     1: soft     2: forward     3: two pixel hits and a strip hit    4: nothing
    particles = particles_with([1.0, 0.5, -1.0, 1.0, 5.0], [0.0, 0.0, 1000.0, 0.0, 0.0])
    particle = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, -1, -1, -1, -1])
    volume = np.array([8, 8, 8, 8, 8, 8, 7, 7, 7, 8, 8, 13, 8, 8, 8, 8])
    n = len(particle)
    event = Event(hits_at(np.ones(n), np.ones(n), np.ones(n), particle=particle, volume_id=volume), particles)

    everywhere = Selection(pt_min=0.9)
    assert everywhere.particles(event).tolist() == [True, False, False, True, False]
    assert everywhere.hits(event).tolist() == [p in {0, 3} for p in particle]

    pixels = Selection(pt_min=0.9, volumes=(7, 8, 9))
    assert pixels.particles(event).tolist() == [True, False, False, False, False]
    assert pixels.hits(event).tolist() == [p == 0 for p in particle]

    two = Selection(pt_min=0.9, volumes=(7, 8, 9), min_hits=2)
    assert two.hits(event).tolist() == [(p in {0, 3}) and v == 8 for p, v in zip(particle, volume, strict=True)]
    assert event.hits_per_particle.tolist() == [3, 3, 3, 3, 0]

    assert str(pixels) == "pT > 0.9 GeV, |eta| < 4, >= 3 hits, volumes 7 8 9"
    assert str(Selection(eta_max=np.inf)) == "pT > 0.9 GeV, >= 3 hits, all volumes"


@given(
    seed=st.integers(0, 2**31), volumes=st.sets(st.sampled_from([7, 8, 9, 13]), min_size=1), min_hits=st.integers(0, 5)
)
def test_selection_against_a_slow_loop(seed: int, volumes: set[int], min_hits: int) -> None:
    event = make_event(60, 8, seed=seed)
    selection = Selection(pt_min=0.7, eta_max=2.0, min_hits=min_hits, volumes=tuple(volumes))
    hits, particles = event.hits, event.particles
    assert particles is not None
    assert hits.particle is not None
    good = []
    for row in range(len(particles)):
        count = sum(int(p == row and v in volumes) for p, v in zip(hits.particle, hits.volume_id, strict=True))
        px, py, pz = (float(getattr(particles, name)[row]) for name in ("px", "py", "pz"))
        pt = math.hypot(px, py)
        good.append(pt > 0.7 and abs(math.asinh(pz / pt)) < 2.0 and count >= min_hits)
    assert selection.particles(event).tolist() == good
    target = [p >= 0 and good[p] and v in volumes for p, v in zip(hits.particle, hits.volume_id, strict=True)]
    assert selection.hits(event).tolist() == target


def test_backward_particles_are_cut_like_forward_ones() -> None:
    particles = particles_with([1.0, 1.0], [1000.0, -1000.0])
    hits = hits_at(np.ones(6), np.ones(6), np.ones(6), particle=np.array([0, 0, 0, 1, 1, 1]))
    assert not Selection().particles(Event(hits, particles)).any()


def test_the_most_inclusive_selection_never_takes_noise() -> None:
    event = make_event(200, 3)
    selection = Selection(pt_min=0, eta_max=np.inf, min_hits=0)
    assert selection.particles(event).all()
    assert event.hits.particle is not None
    np.testing.assert_array_equal(selection.hits(event), event.hits.particle >= 0)


def test_selection_without_particles_or_with_none() -> None:
    with pytest.raises(ValueError, match="has no particles"):
        Selection().hits(make_event(particles=False))
    empty = make_event(5, 0)
    assert Selection().hits(empty).tolist() == [False] * 5


def test_keep_leaves_the_denominator() -> None:
    event = make_event(100, 5)
    kept = event.keep(event.hits.r > 400)
    assert kept.particles is event.particles
    assert kept.truth is not None
    assert kept.hits.clusters is not None
    assert len(kept.hits) == len(kept.truth) == len(kept.hits.clusters) == (event.hits.r > 400).sum()
    assert kept.event_id == event.event_id


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(2)}, "Hits.y has 2 values where 3 are needed"),
        ({"x": np.array([1, np.nan, 2])}, "Hits.x is not finite at index 1"),
        ({"x": np.array([1, 1e300, 2])}, "Hits.x is not finite at index 1"),
        ({"x": np.zeros((3, 1))}, "one dimension"),
        ({"x": np.array(["a", "b", "c"])}, "holds numbers"),
        ({"volume_id": np.array([1, 2, 2**40])}, "outside the range"),
        ({"layer_id": np.array([1.0, 2.0, 3.0])}, "holds integers"),
        ({"particle": np.array([-2, 0, 0])}, "must be -1"),
        ({"clusters": make_event(4).hits.clusters}, "describes 4 hits"),
    ],
)
def test_wrong_hits_are_refused_in_one_sentence(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"x": np.zeros(3), "y": np.zeros(3), "z": np.zeros(3)}
    with pytest.raises(ValueError, match=message):
        hits_at(**{**good, **change})


def test_hits_must_point_to_particles() -> None:
    hits = hits_at([1.0], [1.0], [1.0], particle=np.array([2]))
    with pytest.raises(ValueError, match="row 2 of 2 particles"):
        Event(hits, particles_with([1.0, 1.0], [1.0, 1.0]))


@pytest.mark.parametrize("bad", [{"volumes": ()}, {"pt_min": -1}, {"eta_max": 0}, {"pt_min": float("nan")}])
def test_senseless_selections_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Selection"):
        Selection(**bad)
