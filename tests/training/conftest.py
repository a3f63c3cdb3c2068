"""A folder of made-up events that a filter can learn, and a configuration small enough for seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hepattn.data import Event, Hits, Particles, write_parquet
from hepattn.models.encoder_config import EncoderConfig
from hepattn.models.hit_filter import HitFilter


def toy_event(number: int, particles: int = 12, *, truth: bool = True) -> Event:
    """Straight tracks of six layers; every other particle is stiff, and small |z| of its hits tells."""
    rng = np.random.default_rng(number)
    layers = np.arange(1, 7) * 100.0
    phi = rng.uniform(-np.pi, np.pi, particles)
    stiff = np.arange(particles) % 2 == 0
    r, p = np.tile(layers, particles), np.repeat(np.arange(particles), 6)
    z = rng.normal(0, np.where(stiff, 100.0, 800.0)[p])
    volume = np.where(r < 350, 8, 13).astype(np.int32)
    hits = Hits(
        (r * np.cos(phi[p])).astype(np.float32),
        (r * np.sin(phi[p])).astype(np.float32),
        z.astype(np.float32),
        volume,
        (r / 50).astype(np.int32),
        p.astype(np.int32),
        particle=p.astype(np.int32) if truth else None,
    )
    pt, zero = np.where(stiff, 2.0, 0.3), np.zeros(particles, dtype=np.float32)
    px, py = (pt * np.cos(phi)).astype(np.float32), (pt * np.sin(phi)).astype(np.float32)
    rows = Particles(px, py, zero, zero, zero, zero, np.ones(particles, dtype=np.int32), np.arange(particles) + 1)
    return Event(hits, rows if truth else None, event_id=number, source="toy")


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_parquet(folder / "toy", [toy_event(i) for i in range(10)])
    return folder


@pytest.fixture
def toy_config(toy_folder, tmp_path) -> Path:
    """A file for `--config`."""
    config = {
        "seed_everything": 3,
        "model": {
            "network": {
                "features": ["x", "y", "z", "r"],
                "window": 8,
                "encoder": {"dim": 16, "num_layers": 2, "num_heads": 2},
            },
            "optimiser": {"learning_rate": 5e-3, "warmup_steps": 2},
        },
        "data": {"path": str(toy_folder), "validation": 2, "test": 2},
        "trainer": {
            "max_steps": 6,
            "val_check_interval": 3,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "accelerator": "cpu",
            "devices": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(tmp_path / "run"),
        },
    }
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="session")
def toy_filter(tmp_path_factory) -> Path:
    """A filter of random weights, whose scores lie around 1/2, as a file."""
    torch.manual_seed(4)
    encoder = EncoderConfig(8, 1, 2)
    return HitFilter(features=("x", "y", "z"), window=8, encoder=encoder).save(
        tmp_path_factory.mktemp("w") / "f.safetensors"
    )


@pytest.fixture
def toy_tracking(toy_config, toy_filter) -> Path:
    """A file for `--config` of a tracker; the filter keeps a little more than half of the hits."""
    config = yaml.safe_load(toy_config.read_text())
    config["model"]["network"] |= {
        "pt_min": 0.9,
        "decoder": {"num_layers": 1, "num_heads": 2, "block": 4, "window": 24},
        "filter": str(toy_filter),
        "filter_threshold": 0.28,
    }
    toy_config.write_text(yaml.safe_dump(config))
    return toy_config
