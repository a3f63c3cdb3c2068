"""What a model may know of a hit: named numbers, scaled to order one, float32.

Each feature is its physical value divided by a constant with the same unit. Nothing here is ever float16: 57k
hits evenly spaced in phi have only about 11.6k distinct values there, and large ones overflow.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hepattn.data.schema import Clusters, Event, Hits

Array = npt.NDArray[Any]

CHARGE_FLOOR = 1e-3
"""Charges below this (in the units of the source) count as this in `log_charge`, so that it stays finite."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A named number of a hit: `function(hits) / scale`."""

    function: Callable[[Hits], Array]
    """Hits -> (n_hits,) values in `unit`."""
    scale: float
    """In `unit`; the feature that a model sees is the value divided by this."""
    unit: str
    text: str
    """What it is, in words."""
    clusters: bool = False
    """True = needs cluster shapes."""

    def __call__(self, hits: Hits) -> Array:
        """(n_hits,) float32, scaled."""
        return (self.function(hits) / self.scale).astype(np.float32)


def _clusters(hits: Hits) -> Clusters:
    assert hits.clusters is not None
    return hits.clusters


def _cell_count(hits: Hits) -> Array:
    clusters = _clusters(hits)
    if clusters.cells is None:
        raise ValueError(
            "feature cells needs the number of cells of each hit, and this source knows only their extents"
        )
    return np.log(np.maximum(clusters.cells, 1))


def _log_charge(hits: Hits) -> Array:
    return np.log(np.maximum(_clusters(hits).charge, CHARGE_FLOOR))


FEATURES: dict[str, Feature] = {
    "x": Feature(lambda hits: hits.x, 500.0, "mm", "x"),
    "y": Feature(lambda hits: hits.y, 500.0, "mm", "y"),
    "z": Feature(lambda hits: hits.z, 1000.0, "mm", "z, along the beam"),
    "r": Feature(lambda hits: hits.r, 500.0, "mm", "distance from the beam axis"),
    "s": Feature(lambda hits: hits.s, 1000.0, "mm", "distance from the origin"),
    "phi": Feature(lambda hits: hits.phi, pi, "rad", "azimuth in [-pi, pi]; jumps there, see the periodic encodings"),
    "eta": Feature(lambda hits: hits.eta, 2.0, "1", "pseudorapidity"),
    "theta": Feature(lambda hits: hits.theta, pi, "rad", "polar angle"),
    "u": Feature(lambda hits: hits.u, 0.01, "1/mm", "conformal x / (x^2 + y^2)"),
    "v": Feature(lambda hits: hits.v, 0.01, "1/mm", "conformal y / (x^2 + y^2)"),
    "cells": Feature(_cell_count, 1.0, "1", "natural log of the number of cells", clusters=True),
    "size_u": Feature(
        lambda hits: _clusters(hits).size_u, 4.0, "cells", "extent of the cluster along u", clusters=True
    ),
    "size_v": Feature(
        lambda hits: _clusters(hits).size_v, 4.0, "cells", "extent of the cluster along v", clusters=True
    ),
    "log_charge": Feature(_log_charge, 1.0, "1", "natural log of the summed charge", clusters=True),
    "eta_local": Feature(
        lambda hits: _clusters(hits).eta_local, 1.0, "1", "direction about the module's normal", clusters=True
    ),
    "phi_local": Feature(
        lambda hits: _clusters(hits).phi_local, 1.0, "rad", "direction in the module's plane", clusters=True
    ),
    "eta_global": Feature(
        lambda hits: _clusters(hits).eta_global, 2.0, "1", "direction about the beam axis", clusters=True
    ),
    "phi_global": Feature(
        lambda hits: _clusters(hits).phi_global, pi, "rad", "direction about the beam axis", clusters=True
    ),
}
"""Name -> feature. Angles of clusters are defined at `hepattn.data.trackml.cluster_angles`."""

DEFAULT_FEATURES: tuple[str, ...] = ("x", "y", "z", "r", "s", "phi", "eta", "theta", "u", "v")
"""What every source has: positions only."""

CLUSTER_FEATURES: tuple[str, ...] = (
    "size_u",
    "size_v",
    "log_charge",
    "eta_local",
    "phi_local",
    "eta_global",
    "phi_global",
)
"""What sources with cluster shapes have besides."""


def hit_features(event: Event | Hits, names: Sequence[str] = DEFAULT_FEATURES) -> Tensor:
    """Features of every hit.

    Args:
        event: an event, or its hits.
        names: keys of `FEATURES`, in the order of the columns.

    Returns:
        (n_hits, len(names)) float32, each column divided by its scale; finite.

    Raises:
        ValueError: a name is not in `FEATURES`, or needs cluster shapes that the event doesn't have.
    """
    hits = event.hits if isinstance(event, Event) else event
    check_features(names)
    if hits.clusters is None:
        needing = [name for name in names if FEATURES[name].clusters]
        if needing:
            source = f" of {event.source}" if isinstance(event, Event) and event.source else ""
            raise ValueError(
                f"{_listed(needing)} need cluster shapes, and the hits{source} have none"
                " (TrackML files need cells and detectors.csv)"
            )
    columns = np.empty((len(hits), len(names)), dtype=np.float32)
    for column, name in enumerate(names):
        columns[:, column] = FEATURES[name](hits)
    return torch.from_numpy(columns)


def check_features(names: Iterable[str]) -> None:
    """Raise a ValueError that names the features that don't exist, and those that do."""
    unknown = [name for name in names if name not in FEATURES]
    if unknown:
        raise ValueError(f"no feature {_listed(unknown)}: there are {', '.join(FEATURES)}")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
