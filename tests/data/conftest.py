"""Small made-up events, and the folder of real ones."""

from pathlib import Path

import numpy as np
import pytest

from hepattn.data import Clusters, Event, Hits, Particles, Truth

TRACKML = Path(__file__).resolve().parents[2].parent / "shared" / "trackml"


@pytest.fixture
def trackml() -> Path:
    if not TRACKML.is_dir():
        pytest.skip("no real TrackML files in ../shared/trackml")
    return TRACKML


def make_event(
    n_hits: int = 40,
    n_particles: int = 6,
    *,
    seed: int = 0,
    clusters: bool = True,
    truth: bool = True,
    particles: bool = True,
    hit_id: bool = True,
) -> Event:
    """An event of random numbers of sensible size."""
    rng = np.random.default_rng(seed)

    def normal(scale: float, n: int = n_hits) -> np.ndarray:
        return rng.normal(0, scale, n).astype(np.float32)

    return Event(
        hits=Hits(
            x=normal(400),
            y=normal(400),
            z=normal(1000),
            volume_id=rng.choice([7, 8, 9, 12, 13, 14, 16, 17, 18], n_hits),
            layer_id=rng.integers(1, 8, n_hits) * 2,
            module_id=rng.integers(1, 3000, n_hits),
            particle=rng.integers(-1, n_particles, n_hits),
            hit_id=np.arange(n_hits) + 1 if hit_id else None,
            clusters=Clusters(
                size_u=rng.integers(1, 9, n_hits),
                size_v=rng.integers(1, 9, n_hits),
                charge=rng.exponential(0.3, n_hits),
                eta_local=normal(1),
                phi_local=normal(1),
                eta_global=normal(1),
                phi_global=normal(1),
                cells=rng.integers(1, 30, n_hits),
            )
            if clusters
            else None,
        ),
        particles=Particles(
            px=normal(1, n_particles),
            py=normal(1, n_particles),
            pz=normal(3, n_particles),
            vx=normal(0.015, n_particles),
            vy=normal(0.015, n_particles),
            vz=normal(5.5, n_particles),
            charge=rng.choice([-1, 1], n_particles),
            particle_id=rng.integers(2**52, 2**60, n_particles),
            pdg=rng.choice([-211, 211, 13], n_particles),
        )
        if particles
        else None,
        event_id=seed,
        source=f"made up with seed {seed}",
        truth=Truth(*(normal(s) for s in (400, 400, 1000, 1, 1, 3, 1e-5))) if truth else None,
    )
