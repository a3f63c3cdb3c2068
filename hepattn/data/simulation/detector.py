"""The detector: ACTS's generic tracker (the geometry of TrackML), a table of its modules, and how they are read out."""

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hepattn.data.simulation.packages import require

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Readout:
    """Cells of a sensor; mm. Cell edges count from -half_u and -half_v in the frame of the module."""

    pitch_u: float
    pitch_v: float
    half_u: float
    half_v: float
    thickness: float
    digital: bool
    """True: a cell says only yes or no (strips). False: it says how much charge (pixels)."""


# Thicknesses as cluster sizes and charges of TrackML's events show them: the end-caps' are twice the barrels'.
PIXEL_BARREL = Readout(0.05, 0.05625, 8.4, 36.0, 0.15, digital=False)
PIXEL_ENDCAP = Readout(0.05, 0.05625, 8.4, 36.0, 0.30, digital=False)
SHORT_BARREL = Readout(0.08, 1.2, 24.0, 54.0, 0.25, digital=True)
SHORT_ENDCAP = Readout(0.08, 1.2, 40.0, 78.0, 0.50, digital=True)
LONG_BARREL = Readout(0.12, 10.8, 24.0, 54.0, 0.35, digital=True)
LONG_ENDCAP = Readout(0.12, 10.4, 72.0, 78.0, 0.70, digital=True)

READOUT = {
    7: PIXEL_ENDCAP,
    8: PIXEL_BARREL,
    9: PIXEL_ENDCAP,
    12: SHORT_ENDCAP,
    13: SHORT_BARREL,
    14: SHORT_ENDCAP,
    16: LONG_ENDCAP,
    17: LONG_BARREL,
    18: LONG_ENDCAP,
}
"""Volume id -> cells."""

DIGITAL = tuple(volume for volume, readout in READOUT.items() if readout.digital)
"""Volumes of strips."""

NOMINAL_THICKNESS = {
    **dict.fromkeys((7, 8, 9), 0.3),
    **dict.fromkeys((12, 13, 14), 0.5),
    **dict.fromkeys((16, 17, 18), 0.7),
}
"""Volume id -> thickness in TrackML's `detectors.csv`, mm: angles of clusters are computed with it, there and here."""


@dataclass(frozen=True, slots=True)
class Modules:
    """All modules, sorted by (volume, layer, module); mm."""

    volume_id: npt.NDArray[np.int32]
    layer_id: npt.NDArray[np.int32]
    module_id: npt.NDArray[np.int32]
    centre: FloatArray
    """(n, 3)"""
    rotation: FloatArray
    """(n, 3, 3), local (u, v, w) -> global (x, y, z)."""
    half_u_low: FloatArray
    """(n,) half width in u at v = -half_v; trapezoids are wider or narrower at the other end."""
    half_u_high: FloatArray
    half_v: FloatArray

    def __len__(self) -> int:
        return len(self.volume_id)

    def find(
        self, volume_id: npt.NDArray[np.int32], layer_id: npt.NDArray[np.int32], module_id: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int64]:
        """(n,) rows of the modules with these ids."""
        return np.searchsorted(
            _key(self.volume_id, self.layer_id, self.module_id), _key(volume_id, layer_id, module_id)
        )


def _key(
    volume_id: npt.NDArray[np.int32], layer_id: npt.NDArray[np.int32], module_id: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    return (volume_id.astype(np.int64) << 40) | (layer_id.astype(np.int64) << 24) | module_id.astype(np.int64)


@cache
def detector() -> Any:
    """ACTS's generic detector, built once a process (about a second)."""
    acts = require("acts")
    examples = require("acts.examples")
    config = examples.GenericDetector.Config()
    config.logLevel = acts.logging.WARNING
    return examples.GenericDetector(config)


@cache
def modules() -> Modules:
    """The table of the 18,728 modules."""
    acts = require("acts")
    context = acts.GeometryContext.dangerouslyDefaultConstruct()
    surfaces = detector().trackingGeometry().geoIdSurfaceMap()
    rows = []
    for geometry_id in surfaces:
        if not geometry_id.sensitive:
            continue
        surface = surfaces[geometry_id]
        bounds = list(surface.bounds.values())
        if "Trapezoid" in type(surface.bounds).__name__:  # half u at -v, half u at +v, half v, angle
            low, high, half_v = bounds[:3]
        else:  # rectangle: -half u, -half v, half u, half v
            low, high, half_v = bounds[2], bounds[2], bounds[3]
        turn = surface.localToGlobalTransform(context).rotation
        rotation = [[turn[i, j] for j in range(3)] for i in range(3)]
        centre = surface.center(context)
        ids = (geometry_id.volume, geometry_id.layer, geometry_id.sensitive)
        rows.append((ids, (centre[0], centre[1], centre[2]), rotation, low, high, half_v))
    rows.sort(key=lambda row: row[0])
    ids, centres, rotations, lows, highs, halves = zip(*rows, strict=True)
    table = np.array(ids, dtype=np.int32)
    return Modules(
        volume_id=table[:, 0],
        layer_id=table[:, 1],
        module_id=table[:, 2],
        centre=np.array(centres),
        rotation=np.array(rotations),
        half_u_low=np.array(lows),
        half_u_high=np.array(highs),
        half_v=np.array(halves),
    )


def digitisation() -> Any:
    """ACTS's digitisation configuration, built from `READOUT` (ACTS reads it only from a file)."""
    entries = [
        {
            "volume": volume,
            "value": {
                "geometric": {
                    "digital": readout.digital,
                    "indices": [0, 1],
                    "segmentation": {
                        "binningdata": [
                            _axis("binX", readout.half_u, readout.pitch_u),
                            _axis("binY", readout.half_v, readout.pitch_v),
                        ]
                    },
                    "thickness": readout.thickness,
                    "threshold": 0.0,
                }
            },
        }
        for volume, readout in READOUT.items()
    ]
    header = {"format-version": 0, "value-identifier": "digitization-configuration"}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "digitisation.json"
        path.write_text(json.dumps({"acts-geometry-hierarchy-map": header, "entries": entries}), encoding="utf-8")
        return require("acts.examples.json").readDigiConfigFromJson(str(path))


def _axis(name: str, half: float, pitch: float) -> dict[str, object]:
    bins = round(2 * half / pitch)
    return {"bins": bins, "min": -half, "max": half, "option": "open", "type": "equidistant", "value": name}
