"""Counts of what is in an event, against slow and obvious ones."""

import csv
import gzip
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hepattn.plotting
from hepattn.data import sample_event
from hepattn.data.schema import Event, Selection
from hepattn.plotting.occupancy import LAYERS, compose, count

plotting: Any = hepattn.plotting  # its artists are looked into, which their type hints do not allow
DETECTORS = Path(__file__).resolve().parents[3] / "shared" / "trackml" / "detectors.csv.gz"


def slow(event: Event, selection: Selection) -> tuple[int, int, int, int]:
    """Reconstructable particles, hits on them, noise and all hits in the volumes, one by one."""
    assert event.particles is not None
    assert event.hits.particle is not None
    volumes = selection.volumes or tuple(np.unique(event.hits.volume_id))
    owners = [int(o) for o, v in zip(event.hits.particle, event.hits.volume_id, strict=True) if v in volumes]
    particles = hits = 0
    for row in range(len(event.particles)):
        n = owners.count(row)
        fast = event.particles.pt[row] > selection.pt_min and abs(event.particles.eta[row]) < selection.eta_max
        if fast and n >= selection.min_hits:
            particles += 1
            hits += n
    return particles, hits, owners.count(-1), len(owners)


def heights(patch: Any) -> np.ndarray:
    return np.asarray(patch.get_data().values)


@pytest.mark.parametrize("volumes", [None, (7, 8, 9), (17,)])
@pytest.mark.parametrize("name", ["small", "ttbar_mu0"])
def test_composition_counts_as_a_slow_loop_does(event, name, volumes):
    of: Any = event if name == "small" else sample_event(name)
    pt = of.particles.pt
    cuts = [0.0, 0.3, 0.9, float(pt[3]), float(pt.max()), 100.0]
    selection = Selection(eta_max=2.5, min_hits=2, volumes=volumes)
    found = compose(of, cuts, selection)
    for i, cut in enumerate(cuts):
        wanted = slow(of, replace(selection, pt_min=cut))
        assert (found.particles[i], found.hits[i], found.noise, found.total) == wanted


def test_a_cut_of_the_composition_is_that_of_the_selection(event):
    for cut in (0.3, 0.9, 2.0):
        selection = Selection(pt_min=cut)
        assert compose(event, [cut]).particles[0] == selection.particles(event).sum()
        assert compose(event, [cut]).hits[0] == selection.hits(event).sum()


def test_composition_draws_lines_intervals_and_noise(event):
    figure = plotting.composition({"one": event}, [0.2, 0.9, 3.0])
    number, fraction = figure.axes
    assert np.array_equal(number.lines[0].get_ydata(), [12, 6, np.nan], equal_nan=True)
    on, noise = fraction.lines
    assert np.allclose(on.get_ydata(), [72 / 82, 36 / 82, 0])
    assert noise.get_ydata()[0] == 10 / 82
    assert len(fraction.collections) == 1
    assert "|eta| < 4, >= 3 hits" in figure.get_suptitle()
    assert figure._repr_png_()


def test_hits_per_particle_is_a_histogram_of_counts(event):
    figure = plotting.hits_per_particle(event.keep(np.arange(82) >= 3), Selection(pt_min=0.9))
    owners = Counter(int(row) for row in event.hits.particle[3:] if row >= 0)
    wanted = Counter(owners.values())
    everyone, able, fast = (heights(patch) for patch in figure.axes[0].patches)
    assert everyone.tolist() == [wanted[n] for n in range(1, 7)] == [0, 0, 1, 0, 0, 11]
    assert able.tolist() == fast.tolist() == [0, 0, 1, 0, 0, 5]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["with at least one hit (12)", "reconstructable (6)", "with pT > 0.9 GeV (6)"]
    assert figure._repr_png_()


def test_hits_are_counted_layer_by_layer(event):
    counts, lost = count(event)
    pairs = Counter(zip(event.hits.volume_id.tolist(), event.hits.layer_id.tolist(), strict=True))
    assert [pairs[layer.volume_id, layer.layer_id] for layer in LAYERS] == counts.tolist()
    assert lost == 0
    assert count(event, event.hits.particle < 0)[0].sum() == 10


@pytest.mark.parametrize("per", ["layer", "module", "cm2"])
def test_the_stack_adds_up_to_all_hits(event, per):
    figure = plotting.occupancy(event, per)
    stack = [patch for patch in figure.axes[0].patches if hasattr(patch, "get_data")]
    size = {"layer": 1, "module": [one.modules for one in LAYERS], "cm2": [one.area for one in LAYERS]}[per]
    assert np.allclose(heights(stack[-1]) * size, count(event)[0])
    assert np.allclose(heights(stack[0]) * size, count(event, Selection().hits(event))[0])
    assert figure._repr_png_()


def test_several_events_are_lines_with_gaps_where_nothing_is(event):
    figure = plotting.occupancy({"a": event, "b": event.keep(event.hits.volume_id == 8)}, "module")
    a, b = (heights(patch) for patch in figure.axes[0].patches if hasattr(patch, "get_data"))
    assert (np.isfinite(a).sum(), np.isfinite(b).sum()) == (7, 4)
    assert np.nansum(b * [layer.modules for layer in LAYERS]) == 48


def test_hits_of_another_detector_are_counted_in_the_title(event):
    volume = event.hits.volume_id.copy()
    volume[:5] = 99
    other = replace(event, hits=replace(event.hits, volume_id=volume))
    assert count(other)[1] == 5
    assert "5 hits on layers of another detector are not drawn" in plotting.occupancy(other).get_suptitle()
    assert "b: 5 hits" in plotting.occupancy({"a": event, "b": other}).get_suptitle()


def test_without_truth_hits_are_just_hits(event):
    blind = replace(event, hits=replace(event.hits, particle=None))
    labels = [text.get_text() for text in plotting.occupancy(blind).axes[0].get_legend().get_texts()]
    assert labels == ["hits, of which no truth is known (82)"]
    with pytest.raises(ValueError, match="event 7 has no truth"):
        plotting.composition(blind)
    with pytest.raises(ValueError, match="event 7 has no truth"):
        plotting.hits_per_particle(blind)


def test_refusals(event):
    with pytest.raises(ValueError, match="per is layer, module, cm2, got 'inch'"):
        plotting.occupancy(event, "inch")
    with pytest.raises(ValueError, match="no event"):
        plotting.occupancy({})
    with pytest.raises(ValueError, match="no event"):
        plotting.composition({})


def test_the_samples_lie_on_these_layers():
    event = sample_event("ttbar_mu200")
    counts, lost = count(event)
    assert lost == 0
    assert (counts > 0).all()
    for layer in LAYERS:
        of = event.hits.module_id[(event.hits.volume_id == layer.volume_id) & (event.hits.layer_id == layer.layer_id)]
        assert 0.7 * layer.modules < len(np.unique(of)) <= layer.modules  # nearly all are hit at this pile-up


@pytest.mark.skipif(not DETECTORS.is_file(), reason="TrackML's detectors.csv is not beside the checkout")
def test_modules_and_areas_are_those_of_trackml():
    modules: Counter[tuple[int, int]] = Counter()
    area: Counter[tuple[int, int]] = Counter()
    with gzip.open(DETECTORS, "rt") as file:
        for row in csv.DictReader(file):
            layer = int(row["volume_id"]), int(row["layer_id"])
            modules[layer] += 1
            width = float(row["module_minhu"]) + float(row["module_maxhu"])
            area[layer] += 2 * float(row["module_hv"]) * width / 100  # type: ignore[assignment]
    assert {(one.volume_id, one.layer_id): one.modules for one in LAYERS} == modules
    for one in LAYERS:
        assert np.isclose(one.area, area[one.volume_id, one.layer_id], rtol=1e-6)
