"""The classical peer: hits on modules by arrays alone, tracks of whole events where ACTS is there."""

import importlib
from dataclasses import fields, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hepattn.data import Event, Hits, Selection, read_trackml, sample_event, simulate, toy_event
from hepattn.data.simulation.detector import Modules, modules
from hepattn.data.simulation.kalman import STAGES, KalmanConfig, KalmanResult, kalman_tracks
from hepattn.data.simulation.measurements import measure
from hepattn.data.simulation.packages import available
from hepattn.data.tracks import TrackParameters
from hepattn.metrics.tracks import FoundTracks, TrackMetrics, track_metrics

needs_acts = pytest.mark.skipif(find_spec("acts") is None, reason="pyacts is missing (the extra sim)")
needs_packages = pytest.mark.skipif(not available(), reason="pyacts or pythia8mc is missing (the extra sim)")

PROMPT = 2.0
"""mm from the beam axis."""


def found_in(event: Event, result: KalmanResult, pt_min: float = 1.0) -> FoundTracks:
    """With prompt particles of pT > pt_min, |eta| < 2.5, >= 7 hits as those to be found."""
    particles = event.particles
    assert particles is not None
    prompt = np.hypot(particles.vx, particles.vy) < PROMPT
    found = FoundTracks.of(event, result.tracks, Selection(pt_min, 2.5, 7))
    return replace(found, reconstructable=found.reconstructable & prompt)


def judged(event: Event, result: KalmanResult) -> TrackMetrics:
    return track_metrics([found_in(event, result)])


# -- arrays ---------------------------------------------------------------------------------------


def test_a_configuration_checks_its_numbers():
    assert KalmanConfig(max_holes=0, max_shared=0, pt_min=1).max_holes == 0
    for name in (item.name for item in fields(KalmanConfig)):
        negative: dict[str, Any] = {name: -1}
        with pytest.raises(ValueError, match=f"{name} must be .* got -1"):
            KalmanConfig(**negative)
        words: dict[str, Any] = {name: "few"}
        with pytest.raises(TypeError, match=f"{name} must be a .*number, got 'few'"):
            KalmanConfig(**words)
    with pytest.raises(ValueError, match="pt_min must be more than 0 and finite, got nan"):
        KalmanConfig(pt_min=float("nan"))
    with pytest.raises(TypeError, match=r"max_holes must be a whole number, got 1\.5"):
        KalmanConfig(max_holes=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"min_measurements must be at least 3, .* got 2"):
        KalmanConfig(min_measurements=2)
    with pytest.raises(ValueError, match=r"chi2_outlier must not be below chi2_measurement .* got 10 below 15"):
        KalmanConfig(chi2_outlier=10)


def test_a_missing_package_is_named(monkeypatch):
    def nothing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", nothing)
    with pytest.raises(ImportError, match=r"needs the package pyacts, .*pip install hepattn\[sim\]"):
        kalman_tracks(toy_event())


def three_modules() -> Modules:
    """Two squares of 20 mm in the plane z = 600, 5 mm between them, and a turned trapezoid behind the first."""
    turned = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])
    return Modules(
        volume_id=np.array([7, 7, 12], dtype=np.int32),
        layer_id=np.array([2, 2, 4], dtype=np.int32),
        module_id=np.array([1, 2, 1], dtype=np.int32),
        centre=np.array([[50.0, 0, 600], [75, 0, 600], [50, 0, 602]]),
        rotation=np.array([np.eye(3), np.eye(3), turned], dtype=float),
        half_u_low=np.array([10.0, 10, 4]),
        half_u_high=np.array([10.0, 10, 10]),
        half_v=np.array([10.0, 10, 10]),
    )


def test_hits_find_their_module():
    rows = [
        # x, y, z, volume, layer, module
        (50, 1, 602, 12, 4, 1),  # u = y, v = -(x - 50)
        (53, -2, 600, 7, 2, 1),
        (78, 4, 600, 7, 2, 1),  # the ids name the other module
        (78, 4, 600, 7, 2, 99),  # or none
        (62.5, 0, 600, 7, 2, 1),  # in the gap
        (50, 0, 600.2, 7, 2, 1),  # off the plane
        (58, 7, 602, 12, 4, 1),  # beyond the narrow end of the trapezoid
        (42, 7, 602, 12, 4, 1),  # inside its wide end
        (50, 0, 600, 7, 6, 1),  # there is no such layer
    ]
    x, y, z, volume, layer, module = np.array(rows).T
    ids: dict[str, Any] = {"volume_id": volume, "layer_id": layer, "module_id": module}
    ids = {name: values.astype(int) for name, values in ids.items()}
    found = measure(Hits(x=x, y=y, z=z, **ids), three_modules())
    assert found.hit.tolist() == [1, 2, 3, 0, 7]
    assert found.module.tolist() == [0, 1, 1, 2, 2]
    np.testing.assert_allclose(found.u, [3, 3, 3, 1, 7], atol=1e-4)
    np.testing.assert_allclose(found.v, [-2, 4, 4, 0, 8], atol=1e-4)
    np.testing.assert_allclose(found.sigma_u, np.array([0.05, 0.05, 0.05, 0.08, 0.08]) / np.sqrt(12))
    np.testing.assert_allclose(found.sigma_v, np.array([0.05625, 0.05625, 0.05625, 1.2, 1.2]) / np.sqrt(12))
    assert len(measure(Hits(x=x, y=y, z=z, **ids).take(np.zeros(9, dtype=bool)), three_modules())) == 0


# -- whole events ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def event() -> Event:
    """Without pile-up and noise, from a file."""
    return sample_event("ttbar_mu0", 0)


@pytest.fixture(scope="module")
def result(event) -> KalmanResult:
    return kalman_tracks(event)


@needs_acts
def test_tracks_of_a_light_event(event, result):
    metrics = judged(event, result)
    assert metrics.efficiency.total > 30
    assert metrics.efficiency.value > 0.9
    assert metrics.efficiency_perfect.value > 0.8
    assert metrics.fakes.value < 0.05
    tracks = result.tracks
    assert tracks.num_hits == len(event.hits)
    assert tracks.lengths.min() >= 7
    assert result.unplaced == 0
    assert result.seeds >= result.candidates >= len(tracks)
    assert tuple(result.seconds) == STAGES
    assert min(result.seconds.values()) >= 0
    assert f"{len(tracks)} tracks of {result.candidates}" in str(result)
    # each hit once a track (which `Tracks` checks), at most two of a track on others too, from the inside out
    times = np.bincount(tracks.hits, minlength=tracks.num_hits)
    assert max((times[track.hits] > 1).sum() for track in tracks) <= 2
    assert np.mean([(np.diff(event.hits.s[track.hits]) > 0).all() for track in tracks]) > 0.9


@needs_acts
def test_parameters_are_near_the_truth(event, result):
    found = found_in(event, result)
    matches = found.matches()
    good = matches.double_majority & found.reconstructable[np.maximum(matches.majority, 0)]
    truth = TrackParameters.of(event.particles).take(matches.majority[good])
    estimate = result.tracks.take(good).parameters
    assert estimate is not None
    np.testing.assert_array_equal(estimate.charge, truth.charge)
    assert np.median(np.abs(estimate.pt / truth.pt - 1)) < 0.03
    for name, close in (("eta", 0.003), ("phi", 0.003), ("d0", 0.1), ("z0", 0.15)):
        assert np.median(np.abs(getattr(estimate, name) - getattr(truth, name))) < close, name


@needs_acts
def test_d0_has_the_sign_of_the_truth():
    # prompt d0 are smaller than their errors: particles from decays show the sign (electrons radiate: not they)
    pairs = []
    for index in range(8):
        event = sample_event("ttbar_mu0", index)
        result = kalman_tracks(event)
        matches = FoundTracks.of(event, result.tracks, Selection(0.5, 2.5, 7)).matches()
        assert event.particles is not None
        assert event.particles.pdg is not None
        good = matches.double_majority & (np.abs(event.particles.pdg[matches.majority]) != 11)
        assert result.tracks.parameters is not None
        truth = TrackParameters.of(event.particles).d0[matches.majority[good]]
        pairs.append(np.stack([truth, result.tracks.parameters.d0[good]]))
    truth, estimate = np.concatenate(pairs, axis=1)
    far = np.abs(truth) > 0.5
    assert far.sum() >= 5
    assert (np.sign(truth[far]) == np.sign(estimate[far])).all()


@needs_acts
def test_the_same_hits_give_the_same_tracks(event, result):
    def as_sets(tracks, row):
        return {frozenset(row[track.hits].tolist()) for track in tracks}

    again = kalman_tracks(event)
    np.testing.assert_array_equal(again.tracks.hits, result.tracks.hits)
    assert again.tracks.parameters is not None
    np.testing.assert_array_equal(again.tracks.parameters.pt, result.tracks.parameters.pt)
    order = np.random.default_rng(0).permutation(len(event.hits))
    shuffled = kalman_tracks(event.keep(order))
    assert as_sets(shuffled.tracks, order) == as_sets(result.tracks, np.arange(len(order)))


@needs_acts
def test_hits_that_a_filter_kept(event, result):
    kept = event.hits.particle % 2 == 0
    thinned = kalman_tracks(event.keep(kept))
    tracks = thinned.tracks.in_event(kept)
    assert tracks.num_hits == len(event.hits)
    assert kept[tracks.hits].all()
    assert 0.3 < len(tracks) / len(result.tracks) < 0.7
    nothing = kalman_tracks(event.keep(np.zeros(len(event.hits), dtype=bool)))
    assert len(nothing.tracks) == 0
    assert nothing.tracks.parameters is not None


@needs_acts
def test_an_event_of_another_detector_is_refused():
    with pytest.raises(ValueError, match="lie on no module of the simulator's detector"):
        kalman_tracks(toy_event())


@needs_packages
def test_noise_and_losses_are_there():
    event = simulate(events=1, pileup=0, seed=11, workers=1)[0]
    assert event.hits.particle is not None
    assert (event.hits.particle < 0).mean() > 0.7
    metrics = judged(event, kalman_tracks(event, KalmanConfig(seeds_per_space_point=3)))
    assert metrics.efficiency.value > 0.9
    assert metrics.fakes.value < 0.05


@needs_acts
def test_a_real_event(trackml):
    event = read_trackml(trackml, 1)
    found = measure(event.hits, modules())
    assert len(found) == len(event.hits)
    # the module that TrackML names is the one that was found, under whatever number
    names = ["volume_id", "layer_id", "module_id"]
    described = pd.read_csv(trackml / "detectors.csv.gz").set_index(names)[["cx", "cy", "cz"]]
    hits = event.hits.take(found.hit)
    centre = described.loc[pd.MultiIndex.from_arrays([getattr(hits, name) for name in names])].to_numpy()
    np.testing.assert_allclose(modules().centre[found.module], centre, atol=0.01)
    # its collisions spread over +-140 mm; its field isn't constant
    metrics = judged(event, kalman_tracks(event, KalmanConfig(collision_region=250.0)))
    assert metrics.efficiency.value > 0.9
    assert metrics.fakes.value < 0.05
