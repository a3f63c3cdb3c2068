"""A small event with everything that a figure must show: tracks, soft particles, noise, all volumes."""

import numpy as np
import pytest

from hepattn.data.schema import Event, Hits, Particles


@pytest.fixture
def event() -> Event:
    """Twelve particles with six hits each (half of them soft), and ten noise hits."""
    rng = np.random.default_rng(3)
    phi = rng.uniform(-np.pi, np.pi, 12)
    pt = np.where(np.arange(12) < 6, 2.0, 0.3)
    r = np.array([32.0, 72.0, 116.0, 172.0, 260.0, 820.0])
    volume = np.array([8, 8, 8, 8, 13, 17])
    owner = np.concatenate([np.repeat(np.arange(12), 6), np.full(10, -1)])
    angle = np.concatenate([np.repeat(phi, 6), rng.uniform(-np.pi, np.pi, 10)])
    radius = np.concatenate([np.tile(r, 12), rng.uniform(30.0, 1000.0, 10)])
    hits = Hits(
        x=radius * np.cos(angle),
        y=radius * np.sin(angle),
        z=radius * 0.4,
        volume_id=np.concatenate([np.tile(volume, 12), np.full(10, 7)]),
        layer_id=np.concatenate([np.tile([2, 4, 6, 8, 2, 2], 12), np.full(10, 2)]),
        module_id=np.ones(82, dtype=np.int32),
        particle=owner,
    )
    particles = Particles(
        px=pt * np.cos(phi),
        py=pt * np.sin(phi),
        pz=pt * 0.4,
        vx=np.zeros(12),
        vy=np.zeros(12),
        vz=np.zeros(12),
        charge=np.ones(12, dtype=np.int32),
        particle_id=np.arange(1, 13),
    )
    return Event(hits, particles, event_id=7, source="a test")
