"""One event from collisions to arrays: Pythia -> Fatras -> digitisation in ACTS (C++), then losses and noise on arrays.

Nothing loops over hits in Python except three attributes of the clusters, which ACTS gives in no other way: positions,
ids and truth come as Arrow tables that ACTS fills.
"""

from collections.abc import Iterable
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from hepattn.data.schema import Clusters, Event, Hits, Particles
from hepattn.data.simulation.detector import (
    DIGITAL,
    NOMINAL_THICKNESS,
    READOUT,
    Modules,
    detector,
    digitisation,
    modules,
)
from hepattn.data.simulation.generator import Collisions
from hepattn.data.simulation.packages import require
from hepattn.data.simulation.realism import fluctuating, noise, snap, surviving
from hepattn.data.simulation.recipe import Recipe
from hepattn.data.trackml import cluster_angles

Array = npt.NDArray[Any]

PARTICLE_ID_STEP = 1 << 24
"""`Particles.particle_id` is collision * PARTICLE_ID_STEP + number: the collisions count from 1, the hard one first."""

CHARGE_STEP = 2.0**-8
"""Pixels measure charge in these steps (mm of path)."""

LAST_EVENT = 1 << 40


class EventSimulator:
    """Simulates event `index` of a recipe. Building one takes seconds (geometry 1 s, Pythia with pile-up 7 s): keep it.

    An event depends on the recipe and its index alone, whatever was simulated before.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.collisions = Collisions(recipe)
        self.modules = modules()
        self._reader = _reader(self.collisions)
        self._tables = _collector()
        self._algorithms = [*_algorithms(recipe), self._tables]

    def simulate(self, index: int) -> Event:
        """Event number `index` >= 0.

        Raises:
            RuntimeError: Pythia or ACTS failed.
        """
        acts = require("acts")
        examples = require("acts.examples")
        # ACTS keys its random numbers by the event's number: one run of one event, with its own number.
        sequencer = examples.Sequencer(
            events=1, skip=index, numThreads=1, logLevel=acts.logging.WARNING, trackFpes=False
        )
        sequencer.addReader(self._reader)
        for algorithm in self._algorithms:
            sequencer.addAlgorithm(algorithm)
        sequencer.run()
        return assemble(index, self.recipe, self.modules, **self._tables.take())


def _reader(collisions: Collisions) -> Any:
    """The collisions as an ACTS reader. (ACTS's classes exist only where ACTS does: ours derive inside functions.)"""
    acts = require("acts")
    examples = require("acts.examples")

    class Reader(examples.IReader):  # type: ignore[name-defined]
        def __init__(self) -> None:
            examples.IReader.__init__(self, "Collisions", acts.logging.WARNING)
            self.out = examples.WriteDataHandle(self, examples.SimParticleContainer, "OutputParticles")
            self.out.initialize("particles_generated")

        def availableEvents(self) -> tuple[int, int]:  # noqa: N802
            return (0, LAST_EVENT)

        def read(self, context: Any) -> Any:
            container = examples.SimParticleContainer()
            collisions.fill(context.eventNumber, container)
            self.out(context, container)
            return examples.ProcessCode.SUCCESS

    return Reader()


def _algorithms(recipe: Recipe) -> list[Any]:
    """Fatras, digitisation, and the two that turn hits and particles into Arrow tables."""
    acts = require("acts")
    examples = require("acts.examples")
    arrow = require("acts.examples.arrow")
    level = acts.logging.ERROR
    geometry = detector().trackingGeometry()
    random = examples.RandomNumbers(seed=recipe.acts_seed())
    fatras = examples.FatrasSimulation(
        level=acts.logging.FATAL,  # about one particle an event curls for too many steps, and is dropped
        inputParticles="particles_generated",
        outputParticles="particles_simulated",
        outputSimHits="simhits",
        randomNumbers=random,
        trackingGeometry=geometry,
        magneticField=acts.ConstantBField(acts.Vector3(0, 0, recipe.field * acts.UnitConstants.T)),
        generateHitsOnSensitive=True,
        emScattering=True,
        emEnergyLossIonisation=True,
        emEnergyLossRadiation=True,
        emPhotonConversion=True,
        pMin=recipe.momentum_stop * acts.UnitConstants.GeV,  # ACTS would stop at 0.5 GeV
    )
    config = examples.DigitizationAlgorithm.Config(
        digitizationConfigs=digitisation(),
        surfaceByIdentifier=geometry.geoIdSurfaceMap(),
        randomNumbers=random,
        inputSimHits="simhits",
        outputMeasurements="measurements",
        outputClusters="clusters",
        outputMeasurementParticlesMap="measurement_particles_map",
        outputMeasurementSimHitsMap="measurement_simhits_map",
        outputParticleMeasurementsMap="particle_measurements_map",
        outputSimHitMeasurementsMap="simhit_measurements_map",
        doMerge=True,
    )
    hits = arrow.ArrowSimHitOutputConverter(
        level=level,
        inputSimHits="simhits",
        inputClusters="clusters",
        inputSimHitMeasurementsMap="simhit_measurements_map",
        inputParticles="particles_simulated",
        outputTable="table_hits",
        detectorResolver=arrow.makeVolumeIdDetectorResolver({}, 0),
    )
    particles = arrow.ArrowParticleOutputConverter(
        level=level, inputParticles="particles_simulated", outputTable="table_particles"
    )
    return [fatras, examples.DigitizationAlgorithm(config, level), hits, particles]


def _collector() -> Any:
    """The last algorithm: brings the tables and the clusters of one event into numpy."""
    acts = require("acts")
    examples = require("acts.examples")
    pyarrow = require("pyarrow")
    arrow_table = require("acts.arrow").ArrowTable

    class Tables(examples.IAlgorithm):  # type: ignore[name-defined]
        def __init__(self) -> None:
            examples.IAlgorithm.__init__(self, "Tables", acts.logging.WARNING)
            self.handles: dict[str, Any] = {}
            self.taken: dict[str, dict[str, Array]] | None = None
            for name, kind in (
                ("table_hits", arrow_table),
                ("table_particles", arrow_table),
                ("clusters", examples.ClusterContainer),
                ("measurement_simhits_map", examples.MeasurementSimHitsMap),
            ):
                self.handles[name] = examples.ReadDataHandle(self, kind, name)
                self.handles[name].initialize(name)

        def execute(self, context: Any) -> Any:
            store = context.eventStore
            clusters = list(self.handles["clusters"](store))
            pairs = np.fromiter(chain.from_iterable(self.handles["measurement_simhits_map"](store)), np.int64)
            pairs = pairs.reshape(-1, 2)
            extents = np.fromiter(chain.from_iterable(map(attrgetter("sizeLoc0", "sizeLoc1"), clusters)), np.int32)
            extents = extents.reshape(-1, 2)
            self.taken = {
                "crossings": columns(pyarrow.table(self.handles["table_hits"](store))),
                "particles": columns(pyarrow.table(self.handles["table_particles"](store))),
                "clusters": {
                    "measurement": pairs[:, 0],
                    "crossing": pairs[:, 1],
                    "size_u": extents[:, 0],
                    "size_v": extents[:, 1],
                    "charge": np.fromiter(map(examples.Cluster.sumActivations, clusters), np.float64, len(clusters)),
                },
            }
            return examples.ProcessCode.SUCCESS

        def take(self) -> dict[str, dict[str, Array]]:
            taken, self.taken = self.taken, None
            if taken is None:
                raise RuntimeError("ACTS ended without an event")
            return taken

    return Tables()


def columns(table: Any) -> dict[str, Array]:
    """The columns of an Arrow table of one row whose cells are lists (one event), copied into numpy."""
    return {name: np.array(table.column(name)[0].values.to_numpy(zero_copy_only=False)) for name in table.column_names}


def assemble(
    index: int,
    recipe: Recipe,
    table: Modules,
    crossings: dict[str, Array],
    particles: dict[str, Array],
    clusters: dict[str, Array],
) -> Event:
    """The event from ACTS's tables: losses, noise, and only the particles that have a hit left.

    A cluster that several crossings share belongs to the first of them (in ACTS's order) that is not lost.

    Args:
        index: number of the event.
        recipe: what to simulate.
        table: all modules.
        crossings: columns of module crossings in ACTS's hit schema; `particle_id` is the row of the particle.
        particles: columns in ACTS's particle schema.
        clusters: `measurement`, `crossing` (n_pairs,) which crossing contributes to which measurement; `size_u`,
            `size_v`, `charge` (n_measurements,).
    """
    owner = crossings["particle_id"].astype(np.int64)
    pdg = particles["pdg_id"].astype(np.int64)
    alive = np.ones(len(owner), dtype=np.bool_)
    if recipe.losses:
        time = crossings["time"].astype(np.float64)
        alive = surviving(owner, time, pdg, recipe.loss_per_hit, recipe.rng(index, 1))
    kept = alive[clusters["crossing"]]
    measurement, first = np.unique(clusters["measurement"][kept], return_index=True)
    crossing = clusters["crossing"][kept][first]

    ids = [crossings[name][crossing].astype(np.int32) for name in ("volume_id", "layer_id", "surface_id")]
    place = [crossings[name][crossing].astype(np.float64) for name in ("x", "y", "z")]
    shape = [clusters[name][measurement] for name in ("size_u", "size_v", "charge")]
    row = table.find(ids[0], ids[1], ids[2])
    place = list(to_cells(table, row, np.stack(place, axis=1), shape[0], shape[1]).T)
    particle = owner[crossing]
    if recipe.noise:
        extra = noise(table, recipe.noise_per_module, recipe.rng(index, 2))
        row = np.concatenate([row, extra.module])
        place = _joined(place, (extra.x, extra.y, extra.z))
        shape = _joined(shape, (extra.size_u, extra.size_v, extra.charge))
        particle = np.concatenate([particle, np.full(len(extra.module), -1)])

    shape[2] = fluctuating(shape[2], shape[0] + shape[1] - 1, recipe.cell_spread, recipe.rng(index, 3))

    # Order by module, then along x: nothing in the order tells noise from particles.
    order = np.lexsort((place[0], row))
    row, particle = row[order], particle[order]
    x, y, z = (values[order] for values in place)
    size_u, size_v, charge = (values[order] for values in shape)
    # Strips say yes or no, as in TrackML: their charge is a number of cells (ACTS still sums the path).
    strips = np.isin(table.volume_id[row], DIGITAL)
    charge = np.where(strips, size_u + size_v - 1, np.round(charge / CHARGE_STEP) * CHARGE_STEP)

    with_hit = np.unique(particle[particle >= 0])
    renumbered = np.full(len(pdg) + 1, -1, dtype=np.int32)
    renumbered[with_hit] = np.arange(len(with_hit))
    hits = Hits(
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        z=z.astype(np.float32),
        volume_id=table.volume_id[row],
        layer_id=table.layer_id[row],
        module_id=table.module_id[row],
        particle=renumbered[particle],
        clusters=shapes(table, row, size_u, size_v, charge),
    )
    origin = particles["vertex_primary"][with_hit].astype(np.int64)
    return Event(
        hits=hits,
        particles=Particles(
            **{name: particles[name][with_hit].astype(np.float32) for name in ("px", "py", "pz", "vx", "vy", "vz")},
            charge=np.round(particles["charge"][with_hit]).astype(np.int32),
            particle_id=origin * PARTICLE_ID_STEP + with_hit + 1,
            pdg=pdg[with_hit].astype(np.int32),
        ),
        event_id=index,
        source=describe(recipe),
    )


def _joined(first: Iterable[Array], second: Iterable[Array]) -> list[Array]:
    return [np.concatenate(pair) for pair in zip(first, second, strict=True)]


def describe(recipe: Recipe) -> str:
    """The recipe in a few words, for figures."""
    hard = "" if recipe.hard == "none" else f"{recipe.hard}, "
    return f"simulated: {hard}pile-up {recipe.pileup:g}, {'with' if recipe.noise else 'no'} noise, seed {recipe.seed}"


def to_cells(table: Modules, row: Array, place: Array, size_u: Array, size_v: Array) -> Array:
    """Places with those in strips moved to the nearest one that a cluster of so many cells can have without charges.

    (ACTS weighs cells with the path inside them, also in strips.)

    Args:
        table: all modules.
        row: (n,) row of each hit's module.
        place: (n, 3) mm.
        size_u: (n,) extent in cells.
        size_v: (n,) extent in cells.
    """
    strips = np.flatnonzero(np.isin(table.volume_id[row], DIGITAL))
    of = row[strips]
    pitch_u, pitch_v = (per_volume(name)[table.volume_id[of]] for name in ("pitch_u", "pitch_v"))
    axes = table.rotation[of]
    away = place[strips] - table.centre[of]
    u = np.einsum("ni,ni->n", away, axes[:, :, 0])
    v = np.einsum("ni,ni->n", away, axes[:, :, 1])
    du = snap(u, size_u[strips], pitch_u) - u
    dv = snap(v, size_v[strips], pitch_v) - v
    moved = place.copy()
    moved[strips] += du[:, None] * axes[:, :, 0] + dv[:, None] * axes[:, :, 1]
    return moved


def per_volume(name: str) -> Array:
    """(32,) a number of `Readout` at each volume's id."""
    values = np.zeros(32)
    for volume, readout in READOUT.items():
        values[volume] = getattr(readout, name)
    return values


def shapes(table: Modules, row: Array, size_u: Array, size_v: Array, charge: Array) -> Clusters:
    """Cluster features from the extents in cells, with the same formula as for TrackML's cells.

    Args:
        table: all modules.
        row: (n,) row of each hit's module.
        size_u: (n,) extent in cells.
        size_v: (n,) extent in cells.
        charge: (n,) sum of the cells.
    """
    volume = table.volume_id[row]
    thickness = np.zeros(32)
    thickness[list(NOMINAL_THICKNESS)] = list(NOMINAL_THICKNESS.values())
    angles = cluster_angles(
        size_u,
        size_v,
        per_volume("pitch_u")[volume],
        per_volume("pitch_v")[volume],
        thickness[volume],
        table.rotation[row],
    )
    return Clusters(
        size_u=size_u.astype(np.int32), size_v=size_v.astype(np.int32), charge=charge.astype(np.float32), **angles
    )
