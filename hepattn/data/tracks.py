"""What a track is: a found set of hits with a score and, where estimated, helix parameters; and submission files.

Tracks hold rows of `Event.hits` of the whole event, also where the tracker saw only the hits that a filter kept (see
`Tracks.in_event`), so that metrics count what the filter lost.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from hepattn.data.schema import MOMENTUM_FLOOR, BoolArray, Event, FloatArray, IntArray, Particles, _array
from hepattn.data.sequence import EventFileError

CURVATURE = 0.299792458e-3
"""GeV / (T mm): pT = CURVATURE * |charge| * field * radius."""

_COLUMNS = ("event_id", "hit_id", "track_id")


@dataclass(frozen=True, slots=True, eq=False)
class TrackParameters:
    """Helix at the point of closest approach to the beam axis (the perigee); all arrays (n,) float32.

    Sign of d0 as in ATLAS and ACTS: the perigee lies at x = -d0 sin(phi), y = d0 cos(phi), phi being the azimuth of the
    momentum there; d0 > 0 when the beam axis passes on the momentum's right. CMS calls this dxy, and its d0 is -dxy.
    """

    pt: FloatArray
    """Transverse momentum, GeV."""
    eta: FloatArray
    """Pseudorapidity of the momentum."""
    phi: FloatArray
    """Azimuth of the momentum at the perigee, in [-pi, pi], rad."""
    d0: FloatArray
    """Signed distance of the perigee from the beam axis, mm."""
    z0: FloatArray
    """Place of the perigee along the beam, mm."""
    charge: FloatArray
    """Expected charge in units of e: the truth is a whole number, an estimate lies between; its sign is the answer."""

    def __post_init__(self) -> None:
        n = _array(self, "pt", np.float32)
        for name in ("eta", "phi", "d0", "z0", "charge"):
            _array(self, name, np.float32, n)

    def __len__(self) -> int:
        return len(self.pt)

    def take(self, index: npt.NDArray[np.integer] | BoolArray | slice) -> "TrackParameters":
        """The parameters at `index`."""
        return TrackParameters(**{item.name: getattr(self, item.name)[index] for item in fields(self)})

    @classmethod
    def of(cls, particles: Particles, field: float = 2.0) -> "TrackParameters":
        """True parameters of particles, from their production vertex, momentum and charge: an exact helix.

        The helix is followed from the vertex for at most half a turn, forward or backward, to the perigee. Neutral
        particles (and field = 0) give a straight line. Where the helix is centred on the beam axis, every point is as
        near, and the vertex is taken. Energy loss and scattering are not in it.

        Args:
            particles: n particles
            field: Tesla, constant, along +z (TrackML and the simulator: 2)

        Returns:
            (n,) parameters, computed in float64
        """
        px, py, pz, vx, vy, vz = (
            getattr(particles, name).astype(np.float64) for name in ("px", "py", "pz", "vx", "vy", "vz")
        )
        turn = CURVATURE * field * particles.charge.astype(np.float64)
        pt, phi = np.hypot(px, py), np.arctan2(py, px)
        d0, phi0, z0 = np.empty_like(pt), np.empty_like(pt), np.empty_like(pt)

        line = turn == 0
        sin, cos = np.sin(phi[line]), np.cos(phi[line])
        along = -(vx[line] * cos + vy[line] * sin)
        phi0[line] = phi[line]
        d0[line] = vy[line] * cos - vx[line] * sin
        z0[line] = vz[line] + along * pz[line] / np.maximum(pt[line], MOMENTUM_FLOOR)

        bent = ~line
        sign, radius = np.sign(turn[bent]), pt[bent] / np.abs(turn[bent])
        # A positive particle in a positive field turns clockwise: its centre is on its right.
        centre_x = vx[bent] + sign * radius * np.sin(phi[bent])
        centre_y = vy[bent] - sign * radius * np.cos(phi[bent])
        distance = np.hypot(centre_x, centre_y)
        at_perigee = np.arctan2(sign * centre_x, -sign * centre_y)
        phi0[bent] = np.where(distance > 0, at_perigee, phi[bent])
        d0[bent] = sign * (radius - distance)
        turned = np.remainder(phi0[bent] - phi[bent] + np.pi, 2 * np.pi) - np.pi
        z0[bent] = vz[bent] - pz[bent] / turn[bent] * turned
        return cls(particles.pt, particles.eta, phi0, d0, z0, particles.charge.astype(np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One track of an event: (n,) int64 rows of `Event.hits`, a score in [0, 1], parameters of length 1 or None."""

    hits: IntArray
    score: float = 1.0
    parameters: TrackParameters | None = None

    def __len__(self) -> int:
        return len(self.hits)


@dataclass(frozen=True, slots=True, eq=False)
class Tracks(Sequence[Track]):
    """All tracks of one event; iterating gives `Track`, a slice gives `Tracks`. K tracks with M hits in all.

    Raises:
        ValueError: lengths that don't add up, rows outside the event, a hit twice on one track, scores outside [0, 1].
    """

    hits: IntArray
    """(M,) int64, rows of `Event.hits`, track after track."""
    lengths: IntArray
    """(K,) int64, hits on each track; 0 is allowed (see `at_least`)."""
    score: FloatArray
    """(K,) float32 in [0, 1], how sure the finder is."""
    num_hits: int
    """Hits of the event."""
    parameters: TrackParameters | None = None
    """(K,) estimates, or None."""

    def __post_init__(self) -> None:
        entries = _array(self, "hits", np.int64)
        count = _array(self, "lengths", np.int64)
        _array(self, "score", np.float32, count)
        if (count and int(self.lengths.min()) < 0) or int(self.lengths.sum()) != entries:
            raise ValueError(
                f"Tracks.lengths must be >= 0 and sum to the {entries} hits, not {int(self.lengths.sum())}"
            )
        if count and not (self.score.min() >= 0 and self.score.max() <= 1):
            raise ValueError(f"Tracks.score lies in [0, 1], got {self.score.min():g} to {self.score.max():g}")
        if self.parameters is not None and len(self.parameters) != count:
            raise ValueError(f"Tracks.parameters has {len(self.parameters)} values where {count} are needed")
        if entries:
            low, high = int(self.hits.min()), int(self.hits.max())
            if low < 0 or high >= self.num_hits:
                raise ValueError(f"Tracks.hits are rows of an event with {self.num_hits} hits, got {low} to {high}")
            key = np.sort(self.owner * self.num_hits + self.hits)
            twice = np.flatnonzero(key[1:] == key[:-1])
            if len(twice):
                track, hit = divmod(int(key[twice[0]]), self.num_hits)
                raise ValueError(f"track {track} holds hit {hit} twice: a track is a set of hits")

    @classmethod
    def from_labels(
        cls,
        labels: npt.ArrayLike,
        score: npt.ArrayLike | None = None,
        parameters: TrackParameters | None = None,
    ) -> "Tracks":
        """Tracks from one label a hit.

        Args:
            labels: (N,) int, one for each hit of the event; -1 = on no track, any other (0 too) names a track.
                TrackML's submissions use 0 for none instead: subtract 1
            score: (K,) of the tracks in rising order of label; left out, 1
            parameters: (K,) in the same order, or None

        Returns:
            K tracks in rising order of label (labels need not be consecutive), hits in rising order of row

        Raises:
            ValueError: labels are not whole numbers >= -1.
        """
        given = np.asarray(labels)
        if given.ndim != 1 or (len(given) and given.dtype.kind not in "iu"):
            raise ValueError(f"labels are (N,) integers, not {given.dtype} of shape {given.shape}")
        if len(given) and given.min() < -1:
            raise ValueError(f"labels are -1 (on no track) or >= 0, got {int(given.min())}")
        rows = np.flatnonzero(given >= 0)
        order = rows[np.argsort(given[rows], kind="stable")]
        _, lengths = np.unique(given[rows], return_counts=True)
        sure = np.ones(len(lengths)) if score is None else np.asarray(score)
        return cls(order, lengths, sure, len(given), parameters)

    @classmethod
    def from_hits(
        cls,
        hits: Iterable[npt.ArrayLike],
        num_hits: int,
        score: npt.ArrayLike | None = None,
        parameters: TrackParameters | None = None,
    ) -> "Tracks":
        """Tracks from one array (or list) of rows each, in an event of `num_hits` hits; a hit may lie on several."""
        rows = [np.asarray(one, dtype=np.int64) if not len(np.atleast_1d(one)) else np.asarray(one) for one in hits]
        lengths = np.array([len(one) for one in rows], dtype=np.int64)
        entries = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
        sure = np.ones(len(lengths)) if score is None else np.asarray(score)
        return cls(entries, lengths, sure, num_hits, parameters)

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Track: ...

    @overload
    def __getitem__(self, index: slice) -> "Tracks": ...

    def __getitem__(self, index: int | slice) -> "Track | Tracks":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        at = range(len(self))[index]
        begin = int(self.lengths[:at].sum())
        return self._track(at, begin)

    def __iter__(self) -> Iterator[Track]:
        begin = 0
        for at, length in enumerate(self.lengths):
            yield self._track(at, begin)
            begin += int(length)

    def _track(self, at: int, begin: int) -> Track:
        parameters = None if self.parameters is None else self.parameters.take(slice(at, at + 1))
        return Track(self.hits[begin : begin + int(self.lengths[at])], float(self.score[at]), parameters)

    def __repr__(self) -> str:
        return f"Tracks({len(self):,} tracks, {len(self.hits):,} of {self.num_hits:,} hits)"

    @property
    def owner(self) -> IntArray:
        """(M,) int64, the track of each entry of `hits`."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def labels(self) -> IntArray:
        """(N,) int64, the track of each hit of the event; -1 = on no track.

        Raises:
            ValueError: a hit lies on two tracks.
        """
        times = np.bincount(self.hits, minlength=self.num_hits)
        if len(self.hits) and times.max() > 1:
            hit, tracks = int(times.argmax()), int(times.max())
            raise ValueError(f"hit {hit} lies on {tracks} tracks, so it has no one label: share out hits first")
        labels = np.full(self.num_hits, -1, dtype=np.int64)
        labels[self.hits] = self.owner
        return labels

    def take(self, index: npt.NDArray[np.integer] | BoolArray) -> "Tracks":
        """The tracks at `index` (integers in any order, or bool with True = keep)."""
        chosen = np.arange(len(self))[index]
        begin, lengths = (np.cumsum(self.lengths) - self.lengths)[chosen], self.lengths[chosen]
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        parameters = None if self.parameters is None else self.parameters.take(chosen)
        rows = self.hits[np.repeat(begin, lengths) + within]
        return Tracks(rows, lengths, self.score[chosen], self.num_hits, parameters)

    def at_least(self, min_hits: int = 3) -> "Tracks":
        """The tracks with at least `min_hits` hits."""
        return self.take(self.lengths >= min_hits)

    def in_event(self, kept: npt.NDArray[Any]) -> "Tracks":
        """Tracks found among the hits that a filter kept, as tracks of the whole event.

        Args:
            kept: (N,) bool, True = the filter kept the hit; its True values are this object's hits, in order

        Returns:
            the same tracks with rows of the whole event, num_hits = N

        Raises:
            ValueError: `kept` is not bool, or keeps another number of hits than these tracks know.
        """
        mask = np.asarray(kept)
        if mask.dtype != np.bool_ or mask.ndim != 1 or int(mask.sum()) != self.num_hits:
            number = int(mask.sum()) if mask.dtype == np.bool_ else "integers"
            raise ValueError(f"kept must be (N,) bool with {self.num_hits} times True, got {number} of {mask.shape}")
        return Tracks(np.flatnonzero(mask)[self.hits], self.lengths, self.score, len(mask), self.parameters)


def write_submission(path: str | Path, found: Iterable[tuple[Event, Tracks]]) -> None:
    """Write tracks as a TrackML submission: csv with event_id, hit_id, track_id, each hit of each event once.

    Track k (from 0) gets number k + 1; 0 is every hit on no track (arXiv:1904.06778; the challenge's scorer judges
    number 0 as if it were a track like any other). Scores, parameters and tracks without hits have no place in the
    file.

    Raises:
        ValueError: an event has no hit_id, an event twice, tracks of another event, or a hit on two tracks.
    """
    seen: set[int] = set()
    tables = []
    for event, tracks in found:
        if event.event_id in seen:
            raise ValueError(f"event {event.event_id} comes twice; a submission needs different event numbers")
        seen.add(event.event_id)
        if tracks.num_hits != len(event.hits):
            raise ValueError(
                f"event {event.event_id} has {len(event.hits)} hits, its tracks know {tracks.num_hits}: "
                "use Tracks.in_event for tracks that were found after a filter"
            )
        event_id = np.full(len(event.hits), event.event_id, dtype=np.int64)
        tables.append(pa.table(dict(zip(_COLUMNS, (event_id, _hit_id(event), tracks.labels() + 1), strict=True))))
    with pa.OSFile(str(path), "wb") as file:
        # pyarrow would put the names into quotes, which not every reader of submissions takes
        file.write(f"{','.join(_COLUMNS)}\n".encode())
        for table in tables:
            if len(table):
                pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(include_header=False))


def read_submission(path: str | Path, events: Iterable[Event]) -> dict[int, Tracks]:
    """Read the tracks of `events` from a TrackML submission; what the file says of other events is left aside.

    Args:
        path: csv with the columns event_id, hit_id, track_id, in any order; track_id 0 = on no track
        events: the events that the hits belong to, with hit_id

    Returns:
        event_id -> tracks in rising order of track_id, score 1

    Raises:
        EventFileError: the file can't be read, lacks an event, or doesn't name each of its hits exactly once.
        ValueError: an event has no hit_id.
    """
    types = dict.fromkeys(_COLUMNS, pa.int64())
    options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(_COLUMNS))
    try:
        table = pyarrow.csv.read_csv(str(path), convert_options=options)
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise EventFileError(f"{path} is no submission with {', '.join(_COLUMNS)} as integers: {error}") from error
    if any(table[name].null_count for name in _COLUMNS):
        raise EventFileError(f"{path} has empty fields: each row needs event_id, hit_id and track_id")
    event_id, hit_id, track_id = (table[name].to_numpy() for name in _COLUMNS)
    if len(track_id) and track_id.min() < 0:
        raise EventFileError(f"{path} has track_id {int(track_id.min())}: tracks count from 1, 0 is none")
    read = {}
    for event in events:
        mine = event_id == event.event_id
        own, said = _hit_id(event), hit_id[mine]
        if not mine.any() and len(own):
            raise EventFileError(f"{path} has no event {event.event_id}")
        order, given = np.argsort(own, kind="stable"), np.argsort(said, kind="stable")
        if not np.array_equal(own[order], said[given]):
            raise EventFileError(
                f"{path} must name each of the {len(own)} hits of event {event.event_id} exactly once: it has "
                f"{len(said)} rows, {len(np.intersect1d(own, said))} of its hits"
            )
        labels = np.empty(len(own), dtype=np.int64)
        labels[order] = track_id[mine][given] - 1
        read[event.event_id] = Tracks.from_labels(labels)
    return read


def _hit_id(event: Event) -> IntArray:
    if event.hits.hit_id is None:
        raise ValueError(
            f"event {event.event_id} of {event.source or 'an unnamed source'} has no hit_id, which a submission needs: "
            "give its Hits one, e.g. np.arange(len(event.hits)) + 1"
        )
    return event.hits.hit_id
