from itertools import islice

import numpy as np
import pytest
import torch

from hepattn.data import CLUSTER_FEATURES, DEFAULT_FEATURES, Selection
from hepattn.data.dataset import Augmentation, EventStream, HitDataset, collate, hit_batch, hit_inputs, turn

from .conftest import make_event

ALL = (*DEFAULT_FEATURES, *CLUSTER_FEATURES)
LOOSE = Selection(pt_min=0.5, eta_max=5.0)


def wrapped(angle):
    return np.angle(np.exp(1j * angle))


def test_inputs_are_features_and_coordinates():
    event = make_event()
    inputs = hit_inputs(event, ("x", "eta"))
    assert inputs.shape == (40, 6)
    assert inputs.dtype == torch.float32
    np.testing.assert_array_equal(inputs[:, 2], event.hits.phi)
    np.testing.assert_array_equal(inputs[:, 3], event.hits.eta)
    np.testing.assert_array_equal(inputs[:, 4], event.hits.r)
    np.testing.assert_array_equal(inputs[:, 5], event.hits.z)


def test_targets_against_a_loop():
    event = make_event(n_hits=200, n_particles=30)
    batch = hit_batch(event, ALL, LOOSE)
    assert event.particles is not None
    assert event.hits.particle is not None
    for i in range(200):
        p = int(event.hits.particle[i])
        good = p >= 0 and event.particles.pt[p] > 0.5 and abs(event.particles.eta[p]) < 5
        good = good and int((event.hits.particle == p).sum()) >= 3
        assert bool(batch.target[i]) == good
    assert batch.target.any()
    assert not batch.target.all()


def test_only_hits_of_the_selected_volumes_are_seen():
    event = make_event(n_hits=300, n_particles=30)
    pixels = Selection(pt_min=0.5, volumes=(7, 8, 9))
    batch = hit_batch(event, ALL, pixels)
    inside = np.isin(event.hits.volume_id, (7, 8, 9))
    np.testing.assert_array_equal(batch.row, np.flatnonzero(inside))
    np.testing.assert_array_equal(batch.target, pixels.hits(event)[inside])
    np.testing.assert_array_equal(batch.inputs.values, hit_inputs(event, ALL)[torch.from_numpy(inside)])


def test_without_truth_only_where_allowed():
    bare = make_event(truth=False, particles=False)
    with pytest.raises(ValueError, match="no particles"):
        hit_batch(bare, ALL, LOOSE)
    batch = hit_batch(bare, ALL, LOOSE, truth=False)
    assert not batch.target.any()
    assert len(batch.reconstructable.values) == 0
    with pytest.raises(ValueError, match="cluster"):
        hit_batch(make_event(clusters=False), ALL, LOOSE)


@pytest.mark.parametrize("mirror_y", [False, True])
@pytest.mark.parametrize("mirror_z", [False, True])
def test_turned_events_keep_what_physics_keeps(mirror_y, mirror_z):
    event = make_event(n_hits=300)
    other = turn(event, 2.5, mirror_y=mirror_y, mirror_z=mirror_z)
    sign_y, sign_z = (-1 if mirror_y else 1), (-1 if mirror_z else 1)
    a, b = event.hits, other.hits
    np.testing.assert_allclose(b.r, a.r, rtol=1e-5)
    np.testing.assert_array_equal(b.z, sign_z * a.z)
    np.testing.assert_allclose(wrapped(b.phi - sign_y * a.phi - 2.5), 0, atol=1e-5)
    p, q = event.particles, other.particles
    assert p is not None
    assert q is not None
    np.testing.assert_allclose(q.pt, p.pt, rtol=1e-5)
    np.testing.assert_allclose(q.eta, sign_z * p.eta, rtol=1e-4)
    np.testing.assert_array_equal(q.charge, sign_y * p.charge)
    np.testing.assert_array_equal(LOOSE.hits(other), LOOSE.hits(event))
    assert (b.volume_id == a.volume_id).all() == (not mirror_z)
    middle = np.repeat([8, 13, 17], 3)[np.searchsorted([7, 8, 9, 12, 13, 14, 16, 17, 18], a.volume_id)]
    np.testing.assert_array_equal(b.volume_id - middle, sign_z * (a.volume_id - middle))
    cap = ~np.isin(a.volume_id, (8, 13, 17))
    sign = np.where(cap, sign_z, 1)
    assert a.clusters is not None
    assert b.clusters is not None
    np.testing.assert_array_equal(b.clusters.eta_global, sign * a.clusters.eta_global)
    tilt = wrapped(b.clusters.phi_global - b.phi) - sign * wrapped(a.clusters.phi_global - a.phi)
    np.testing.assert_allclose(wrapped(tilt), 0, atol=1e-4)


def test_turning_leaves_the_event_alone_and_undoes():
    event = make_event()
    x = event.hits.x.copy()
    back = turn(turn(event, 1.0, mirror_z=True), -1.0, mirror_z=True)
    np.testing.assert_array_equal(event.hits.x, x)
    np.testing.assert_allclose(back.hits.x, x, atol=1e-3)
    np.testing.assert_array_equal(back.hits.volume_id, event.hits.volume_id)


def test_augmentation_is_a_function_of_seed_pass_and_event():
    events = [make_event(seed=i) for i in range(3)]
    data = HitDataset(events, ALL, LOOSE, Augmentation(), seed=5)
    again = HitDataset(events, ALL, LOOSE, Augmentation(), seed=5)
    first = data[4, 1].inputs.values
    assert torch.equal(first, again[4, 1].inputs.values)
    assert torch.equal(first, data[4, 1].inputs.values)
    assert not torch.equal(first, data[5, 1].inputs.values)
    assert not torch.equal(first, HitDataset(events, ALL, LOOSE, Augmentation(), seed=6)[4, 1].inputs.values)
    plain = HitDataset(events, ALL, LOOSE)
    assert torch.equal(plain[1].inputs.values, plain[9, 1].inputs.values)
    assert torch.equal(data[4, 1].target, plain[1].target)


def test_switches_of_the_augmentation():
    event = make_event()
    still = Augmentation(rotate=False, mirror_y=False, mirror_z=False)(event, np.random.default_rng(0))
    np.testing.assert_array_equal(still.hits.x, event.hits.x)
    turned = Augmentation(rotate=True, mirror_y=False, mirror_z=False)(event, np.random.default_rng(0))
    np.testing.assert_array_equal(turned.hits.z, event.hits.z)
    assert (turned.hits.x != event.hits.x).any()


def test_collate_puts_events_after_one_another():
    parts = [hit_batch(make_event(n_hits=n, seed=n), ALL, LOOSE) for n in (7, 1, 30)]
    batch = collate(parts)
    assert batch.inputs.lengths.tolist() == [7, 1, 30]
    assert batch.event_ids == (7, 1, 30)
    for part, values in zip(parts, batch.inputs.split(), strict=True):
        assert torch.equal(part.inputs.values, values)
    assert torch.equal(batch.target, torch.cat([p.target for p in parts]))
    assert batch.reconstructable.lengths.tolist() == [6, 6, 6]
    assert batch.to("cpu").row.tolist() == [*range(7), 0, *range(30)]
    with pytest.raises(ValueError, match="at least one"):
        collate([])


@pytest.mark.parametrize(("events", "size"), [(5, 1), (5, 2), (3, 7), (1, 1)])
def test_stream_gives_each_event_once_a_pass(events, size):
    stream = EventStream(events, size, seed=3)
    keys = [key for batch in islice(stream, 6 * events) for key in batch]
    for number in range(5):
        assert [key[0] for key in keys[number * events : (number + 1) * events]] == [number] * events
        assert sorted(key[1] for key in keys[number * events : (number + 1) * events]) == list(range(events))
    assert len(stream) == -(-events // size)


def test_stream_goes_on_where_it_is_told():
    whole = list(islice(EventStream(5, 2, seed=1), 20))
    late = EventStream(5, 2, seed=1)
    late.start = 7
    assert list(islice(late, 13)) == whole[7:]
    assert list(islice(EventStream(5, 2, seed=2), 20)) != whole
    with pytest.raises(ValueError, match="at least one event"):
        EventStream(0)
