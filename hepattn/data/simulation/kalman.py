"""The classical peer: ACTS's seeding, combinatorial Kalman filter and greedy choice among tracks, on any event's hits.

It gets exactly the hits that the event holds, noise too, whether the simulator has just made the event, a file holds
it, a hit filter thinned it (`Event.keep`), or it is TrackML's (see `measurements`). It uses no truth. What it is told:

- the precision of a hit is that of its cells, pitch / sqrt(12), whatever the cluster's shape;
- material and field are the simulator's, without error. Those of TrackML's events are others, as the momenta tell (110
  tracks of a real event): right for |eta| < 1, 7 % too high up to 2 and 12 % up to 2.5, where the field must be weaker;
  two fifths of the hits on strips in the end-caps are left out of their tracks;
- particles lose energy and scatter as pions do;
- where collisions happen along the beam (`KalmanConfig.collision_region`), but not where each one was.

Method and software: X. Ai et al., "A Common Tracking Software Project" (arXiv:2106.13593).
"""

import math
import time
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from hepattn.data.schema import Event
from hepattn.data.simulation.detector import DIGITAL, READOUT, detector, modules
from hepattn.data.simulation.measurements import Measurements, measure
from hepattn.data.simulation.packages import require
from hepattn.data.tracks import TrackParameters, Tracks

PIXELS = tuple(volume for volume in READOUT if volume not in DIGITAL)
"""Volumes whose hits make seeds."""

STAGES = ("measurements", "seeding", "filter", "ambiguity", "tracks")
"""Hits into ACTS; triplets of pixels and their parameters; following them; choosing; tracks out of ACTS."""

SEED_HITS = 3
"""Hits of a seed."""

ITERATIONS = 100_000
"""Tracks that the choice may drop, far more than there are."""

ZERO_ALLOWED = frozenset({"max_holes", "max_outliers", "max_shared"})
"""Numbers of `KalmanConfig` that may be 0."""


@dataclass(frozen=True, slots=True)
class KalmanConfig:
    """What is searched for and how thoroughly; lengths in mm, momenta in GeV.

    The collision region matters most. On two events with pile-up 200, of prompt particles with pT > 1 GeV, |eta| < 2.5
    and >= 7 hits, seeds within +-250 mm find 94 %, within +-30 mm 99 %: a pixel keeps its best seeds only, and a wide
    region has more wrong ones. Three seeds a space point instead of one take half as long again, and find more.
    """

    pt_min: float = 0.5
    """Of seeds and of tracks."""
    eta_max: float = 4.0
    """The same, on |eta|."""
    min_measurements: int = 7
    """Hits that a track needs."""
    max_holes: int = 2
    """Modules that a track may cross without a hit."""
    max_outliers: int = 2
    """Hits near a track that don't fit well: they are counted, but are not on the track."""
    seeds_per_space_point: int = 1
    """Seeds that are kept for each hit in their middle, the best first."""
    collision_region: float = 30.0
    """Seeds point to |z| below this on the beam axis. The default is 5.5 times the beam spot's 5.5 mm (simulator, full
    TrackML events). Events whose collisions spread farther need more, or most of their tracks are missed."""
    seed_d0_max: float = 3.0
    """Distance from the beam axis at which seeds pass it."""
    d0_max: float = 4.0
    """The same of tracks."""
    chi2_measurement: float = 15.0
    """A hit is put on a track when it adds no more to the track's chi2 (two degrees of freedom)."""
    chi2_outlier: float = 25.0
    """Where no hit does, the best one up to this is an outlier; beyond, the module is a hole."""
    branches: int = 3
    """Hits of a module with which a track is followed on, each by itself."""
    max_shared: int = 2
    """Hits that a track may share with others; of tracks that share more the worse ones are dropped."""
    field: float = 2.0
    """Tesla, constant along z."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            whole = item.type is int
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise TypeError(f"{item.name} must be a {'whole ' * whole}number, got {value!r}")
            least = "at least" if item.name in ZERO_ALLOWED else "more than"
            if not (value >= 0 if item.name in ZERO_ALLOWED else value > 0) or math.isinf(value):
                raise ValueError(f"{item.name} must be {least} 0 and finite, got {value!r}")
        if self.min_measurements < SEED_HITS:
            raise ValueError(
                f"min_measurements must be at least {SEED_HITS}, a seed's hits, got {self.min_measurements}"
            )
        if self.chi2_outlier < self.chi2_measurement:
            raise ValueError(
                "chi2_outlier must not be below chi2_measurement (a hit that fits worse than one on the track), got "
                f"{self.chi2_outlier:g} below {self.chi2_measurement:g}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class KalmanResult:
    """The tracks of an event, and what they took."""

    tracks: Tracks
    """Rows of the event's hits, each track from the inside out, with parameters at the perigee. The finder doesn't say
    how sure it is: scores are 1."""
    seconds: dict[str, float]
    """Stage -> seconds: see `STAGES`."""
    seeds: int
    candidates: int
    """Tracks before the choice among those that share hits."""
    unplaced: int
    """Hits that lie on no module of this detector, which the finder didn't get."""

    def __str__(self) -> str:
        times = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in self.seconds.items())
        return (
            f"{len(self.tracks):,} tracks of {self.candidates:,} from {self.seeds:,} seeds in "
            f"{sum(self.seconds.values()):.2f} s ({times})"
        )


def kalman_tracks(event: Event, config: KalmanConfig | None = None) -> KalmanResult:
    """Find an event's tracks in the classical way: the same event and configuration give the same tracks.

    Runs on one core. An event with pile-up 200 takes 5 to 10 s; the first call of a process 2 s more, for the geometry.

    Args:
        event: from the simulator, from a file, or TrackML's; truth isn't looked at. Of an event that a filter thinned
            (`event.keep(kept)`), `result.tracks.in_event(kept)` gives rows of the whole event.
        config: left out, the defaults.

    Returns:
        tracks with `Tracks.num_hits` = len(event.hits), in ACTS's order. Tracks may share hits (see `max_shared`).

    Raises:
        ImportError: pyacts is missing.
        ValueError: most hits lie on no module: the event is from another detector.
        RuntimeError: ACTS failed.
    """
    acts = require("acts")
    examples = require("acts.examples")
    settings = KalmanConfig() if config is None else config
    table, _ = modules(), _identifiers()  # a second, once a process: not counted
    clock = [time.perf_counter()]
    measured = measure(event.hits, table)
    unplaced = len(event.hits) - len(measured)
    if unplaced > len(measured):
        raise ValueError(
            f"{unplaced:,} of the {len(event.hits):,} hits of {event.source or 'the event'} lie on no module of the "
            "simulator's detector: only its own events and TrackML's can be reconstructed"
        )
    found = _collector(clock)
    sequencer = examples.Sequencer(events=1, numThreads=1, logLevel=acts.logging.WARNING, trackFpes=False)
    for algorithm in (
        *_measurements(measured),
        _clock("Measured", clock),
        *_seeding(settings),
        _clock("Seeded", clock),
        _filter(settings),
        _clock("Followed", clock),
        _choice(settings),
        _clock("Chosen", clock),
        found,
    ):
        sequencer.addAlgorithm(algorithm)
    sequencer.run()
    if len(clock) != len(STAGES) + 1:
        raise RuntimeError(f"ACTS ended without tracks of event {event.event_id}")
    tracks = Tracks.from_hits(
        [measured.hit[rows] for rows in found.measurements], len(event.hits), parameters=_parameters(found.parameters)
    )
    seconds = dict(zip(STAGES, np.diff(clock).tolist(), strict=True))
    return KalmanResult(tracks, seconds, found.seeds, found.candidates, unplaced)


@cache
def _identifiers() -> list[Any]:
    """ACTS's identifiers of the modules, in the order of `modules()`."""
    identifier = require("acts").GeometryIdentifier
    table = modules()
    ids = zip(table.volume_id.tolist(), table.layer_id.tolist(), table.module_id.tolist(), strict=True)
    return [identifier(volume=volume, layer=layer, sensitive=module) for volume, layer, module in ids]


def _measurements(measured: Measurements) -> list[Any]:
    """The two algorithms that give the hits to ACTS: a container, and a view of it, which needs it in ACTS's store.

    Measurement k is row k of `measured`. (ACTS's classes exist only where ACTS does: ours derive inside functions.)
    """
    acts = require("acts")
    examples = require("acts.examples")

    class Fill(examples.IAlgorithm):  # type: ignore[name-defined]
        def __init__(self) -> None:
            examples.IAlgorithm.__init__(self, "Fill", acts.logging.WARNING)
            self.out = examples.WriteDataHandle(self, examples.MeasurementContainer, "OutputMeasurements")
            self.out.initialize("measurements")

        def execute(self, context: Any) -> Any:
            container = examples.MeasurementContainer()
            container.reserve(len(measured))
            identifiers = _identifiers()
            place = np.stack([measured.u, measured.v], axis=1).tolist()
            variance = np.stack([measured.sigma_u, measured.sigma_v], axis=1) ** 2
            for module, uv, spread in zip(measured.module.tolist(), place, variance.tolist(), strict=True):
                container.emplaceMeasurement(identifiers[module], (0, 1), uv, spread)
            self.out(context, container)
            return examples.ProcessCode.SUCCESS

    class View(examples.IAlgorithm):  # type: ignore[name-defined]
        def __init__(self) -> None:
            examples.IAlgorithm.__init__(self, "View", acts.logging.WARNING)
            self.all = examples.ReadDataHandle(self, examples.MeasurementContainer, "InputMeasurements")
            self.all.initialize("measurements")
            self.out = examples.WriteDataHandle(self, examples.MeasurementSubset, "OutputSubset")
            self.out.initialize("subset")

        def execute(self, context: Any) -> Any:
            container = self.all(context.eventStore)
            self.out(context, examples.MeasurementSubset(container, range(len(container))))
            return examples.ProcessCode.SUCCESS

    return [Fill(), View()]


def _seeding(config: KalmanConfig) -> list[Any]:
    """Pixels to space points, space points to triplets, triplets to the parameters that the filter starts from."""
    acts = require("acts")
    examples = require("acts.examples")
    unit = acts.UnitConstants
    level = acts.logging.ERROR
    geometry = detector().trackingGeometry()
    span = {f"deltaR{which}{side}": r for which, r in (("Min", 1.0), ("Max", 300.0)) for side in ("", "Top", "Bottom")}
    points = examples.SpacePointMaker(
        level=level,
        inputMeasurements="subset",
        outputSpacePoints="points",
        trackingGeometry=geometry,
        geometrySelection=[acts.GeometryIdentifier(volume=volume) for volume in PIXELS],
    )
    triplets = examples.GridTripletSeedingAlgorithm(
        level=level,
        inputSpacePoints="points",
        outputSeeds="triplets",
        bFieldInZ=config.field * unit.T,
        minPt=config.pt_min * unit.GeV,
        cotThetaMax=math.sinh(config.eta_max),
        impactMax=config.seed_d0_max,
        collisionRegionMin=-config.collision_region,
        collisionRegionMax=config.collision_region,
        maxSeedsPerSpM=config.seeds_per_space_point,
        # the whole pixel detector, mm
        rMax=200.0,
        zMin=-2000.0,
        zMax=2000.0,
        **span,
        # how far a triplet may deviate from a helix: standard deviations of scattering in so many radiation lengths
        sigmaScattering=5.0,
        radLengthPerSeed=0.1,
    )
    start = examples.TrackParamsEstimationAlgorithm(
        level=level,
        inputSeeds="triplets",
        outputSeeds="seeds",
        outputTrackParameters="start",
        trackingGeometry=geometry,
        magneticField=_field(config),
        initialSigmas=[1 * unit.mm, 1 * unit.mm, 1 * unit.degree, 1 * unit.degree, 0.0, 1 * unit.ns],
        initialSigmaQoverPt=0.1 / unit.GeV,
        initialSigmaPtRel=0.1,
        initialVarInflation=[1.0] * 6,
    )
    return [points, triplets, start]


def _filter(config: KalmanConfig) -> Any:
    """The combinatorial Kalman filter: outwards from each seed, and back inwards to the perigee."""
    acts = require("acts")
    examples = require("acts.examples")
    finder = examples.TrackFindingAlgorithm
    geometry, field = detector().trackingGeometry(), _field(config)
    level = acts.logging.FATAL  # it reports each seed that leads nowhere as an error
    limits: Any = ([], [config.chi2_measurement], [config.chi2_outlier], [config.branches])
    return finder(
        level=level,
        inputMeasurements="subset",
        inputSeeds="seeds",
        inputInitialTrackParameters="start",
        outputTracks="candidates",
        trackingGeometry=geometry,
        magneticField=field,
        findTracks=finder.makeTrackFinderFunction(geometry, field, level),
        measurementSelectorCfg=acts.MeasurementSelector.Config([(acts.GeometryIdentifier(), limits)]),
        trackSelectorCfg=acts.TrackSelector.Config(
            pt=(config.pt_min * acts.UnitConstants.GeV, math.inf),
            absEta=(0.0, config.eta_max),
            loc0=(-config.d0_max, config.d0_max),
            minMeasurements=config.min_measurements,
            maxHoles=config.max_holes,
            maxOutliers=config.max_outliers,
        ),
        twoWay=True,
        seedDeduplication=True,  # no second track from a seed whose hits one track holds already
        stayOnSeed=True,
    )


def _choice(config: KalmanConfig) -> Any:
    """The greedy choice: while a track shares too many hits, the one that shares the most of its own is dropped."""
    acts = require("acts")
    return require("acts.examples").GreedyAmbiguityResolutionAlgorithm(
        level=acts.logging.ERROR,
        inputTracks="candidates",
        outputTracks="tracks",
        maximumSharedHits=config.max_shared + 1,  # ACTS drops tracks with so many
        nMeasurementsMin=config.min_measurements,
        maximumIterations=ITERATIONS,
    )


def _field(config: KalmanConfig) -> Any:
    acts = require("acts")
    return acts.ConstantBField(acts.Vector3(0, 0, config.field * acts.UnitConstants.T))


def _clock(name: str, clock: list[float]) -> Any:
    """An algorithm that notes the time."""
    acts = require("acts")
    examples = require("acts.examples")

    class Clock(examples.IAlgorithm):  # type: ignore[name-defined]
        def __init__(self) -> None:
            examples.IAlgorithm.__init__(self, name, acts.logging.WARNING)

        def execute(self, _context: Any) -> Any:
            clock.append(time.perf_counter())
            return examples.ProcessCode.SUCCESS

    return Clock()


def _collector(clock: list[float]) -> Any:
    """The last algorithm: brings the tracks of one event into Python, and notes the time."""
    acts = require("acts")
    examples = require("acts.examples")
    link = examples.IndexSourceLink

    class Collector(examples.IAlgorithm):  # type: ignore[name-defined]
        def __init__(self) -> None:
            examples.IAlgorithm.__init__(self, "Collector", acts.logging.WARNING)
            self.handles = {}
            for name, kind in (
                ("seeds", acts.SeedContainer),
                ("candidates", examples.ConstTrackContainer),
                ("tracks", examples.ConstTrackContainer),
            ):
                self.handles[name] = examples.ReadDataHandle(self, kind, name)
                self.handles[name].initialize(name)
            self.seeds = self.candidates = 0
            self.measurements: list[list[int]] = []
            self.parameters: npt.NDArray[np.float64] = np.zeros((0, 6))

        def execute(self, context: Any) -> Any:
            seeds, candidates, tracks = (handle(context.eventStore) for handle in self.handles.values())
            self.seeds, self.candidates = len(seeds), len(candidates)
            for track in tracks:
                outside_in = [
                    link.fromSourceLink(state.uncalibratedSourceLink).index()
                    for state in track.trackStatesReversed
                    if state.typeFlags.isMeasurement and not state.typeFlags.isOutlier
                ]
                self.measurements.append(outside_in[::-1])
            if self.measurements:
                self.parameters = np.array(tracks.parameters)
            clock.append(time.perf_counter())
            return examples.ProcessCode.SUCCESS

    return Collector()


def _parameters(bound: npt.NDArray[np.float64]) -> TrackParameters:
    """Of (K, 6) ACTS parameters at the perigee: d0, z0, phi, theta, charge / momentum, time."""
    d0, z0, phi, theta, curvature, _ = bound.T
    return TrackParameters(
        pt=np.sin(theta) / np.abs(curvature),
        eta=-np.log(np.tan(theta / 2)),
        phi=phi,
        d0=d0,
        z0=z0,
        charge=np.sign(curvature),
    )
