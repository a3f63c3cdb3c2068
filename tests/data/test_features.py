"""Features are what they say, scaled to order one, float32 and finite."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hepattn.data import CLUSTER_FEATURES, DEFAULT_FEATURES, FEATURES, Hits, hit_features, read_trackml

from .conftest import make_event


def test_by_hand() -> None:
    one = np.ones(1, dtype=np.int32)
    hits = Hits(np.array([30.0]), np.array([40.0]), np.array([120.0]), one, one, one)
    got = dict(zip(DEFAULT_FEATURES, hit_features(hits)[0].tolist(), strict=True))
    want = {
        "x": 30 / 500,
        "y": 40 / 500,
        "z": 120 / 1000,
        "r": 50 / 500,
        "s": 130 / 1000,
        "phi": np.arctan2(40, 30) / np.pi,
        "eta": -np.log(np.tan(np.arctan2(50, 120) / 2)) / 2,
        "theta": np.arctan2(50, 120) / np.pi,
        "u": 30 / 2500 / 0.01,
        "v": 40 / 2500 / 0.01,
    }
    assert got == pytest.approx(want, rel=1e-6)


def test_order_dtype_and_registry() -> None:
    event = make_event(30)
    every = hit_features(event, tuple(FEATURES))
    assert every.shape == (30, len(FEATURES))
    assert every.dtype == torch.float32
    assert torch.isfinite(every).all()
    two = hit_features(event, ["size_v", "x"])
    names = list(FEATURES)
    torch.testing.assert_close(two, every[:, [names.index("size_v"), names.index("x")]])
    assert set(DEFAULT_FEATURES) | set(CLUSTER_FEATURES) <= set(FEATURES)
    for feature in FEATURES.values():
        assert feature.unit
        assert feature.text
        assert feature.scale > 0


def test_no_hits_and_no_names() -> None:
    assert hit_features(make_event(0)).shape == (0, len(DEFAULT_FEATURES))
    assert hit_features(make_event(4), []).shape == (4, 0)


def test_hits_on_the_beam_axis_and_cells_without_charge() -> None:
    event = make_event(3)
    assert event.hits.clusters is not None
    event.hits.x[:] = [0, 1e-20, -0.0]
    event.hits.y[:] = 0
    event.hits.clusters.charge[:] = [0, -1, 1e-30]
    assert torch.isfinite(hit_features(event, tuple(FEATURES))).all()


def test_refusals() -> None:
    bare = make_event(5, clusters=False)
    with pytest.raises(
        ValueError, match=r"size_u, log_charge need cluster shapes, and the hits of made up .* have none"
    ):
        hit_features(bare, ["x", "size_u", "log_charge"])
    with pytest.raises(ValueError, match="no feature px: there are x, y"):
        hit_features(bare, ["x", "px"])


def test_real_events(trackml: Path) -> None:
    full = hit_features(read_trackml(trackml, 1), tuple(FEATURES))
    assert torch.isfinite(full).all()
    assert full.abs().max() < 10
    bare = hit_features(read_trackml(trackml, 1003))
    assert torch.isfinite(bare).all()
    assert bare.abs().max() < 10
    # phi keeps every distinct value that float32 has
    assert bare[:, DEFAULT_FEATURES.index("phi")].unique().numel() > 90_000
