"""From events to batches of hits: a torch Dataset, random rotations and reflections, packing of several events.

Everything random here is a pure function of (seed, pass over the data, event): neither the number of worker processes
nor a resumed training changes an event's rotation or its place in the order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from hepattn.data.features import hit_features
from hepattn.data.schema import BoolArray, Event, Selection
from hepattn.sequence import Packed

COORDINATES = ("phi", "eta", "r", "z")
"""Last four columns of a hit's inputs, unscaled: phi (rad), eta, r (mm), z (mm); for encodings and order."""

Key = tuple[int, int]
"""(pass over the data, event): names one randomly turned event."""

_MIRRORED_VOLUME = {7: 9, 9: 7, 12: 14, 14: 12, 16: 18, 18: 16}
"""End caps; all others are barrels."""


def hit_inputs(event: Event, features: Sequence[str]) -> Tensor:
    """What a model sees of each hit: (n_hits, F + 4) float32, the F named features, then `COORDINATES`.

    Raises:
        ValueError: a feature is unknown, or the event lacks what it needs (cluster shapes)
    """
    hits = event.hits
    coordinates = np.stack([np.asarray(getattr(hits, name), dtype=np.float32) for name in COORDINATES], axis=1)
    return torch.cat([hit_features(event, features), torch.from_numpy(coordinates)], dim=1)


def turn(event: Event, angle: float, *, mirror_y: bool = False, mirror_z: bool = False) -> Event:
    """The event turned about the beam by `angle` (rad), after y -> -y and z -> -z where asked.

    A solenoid's field along z allows all three: y -> -y (with charge -> -charge) and z -> -z. Hits, particles and
    volumes follow. Layer and module numbers stay (they no longer name the place), and so does `truth`, which no feature
    reads.

    Returns:
        a new event that shares all arrays that don't change
    """
    sign_y, sign_z = (-1.0 if mirror_y else 1.0), (-1.0 if mirror_z else 1.0)
    hits = event.hits
    x, y = _rotate(hits.x, sign_y * hits.y, angle)
    volume = hits.volume_id
    if mirror_z:
        volume = volume.copy()
        for old, new in _MIRRORED_VOLUME.items():
            volume[hits.volume_id == old] = new
    clusters = hits.clusters
    if clusters is not None:
        # A cluster's direction has no sign in the module's own axes, so it is mirrored only where those are: modules of
        # the two end caps face opposite ways, those of the barrel all face outwards with their v along +z.
        sign = np.where(np.isin(volume, list(_MIRRORED_VOLUME)), np.float32(sign_z), np.float32(1.0))
        turned = np.arctan2(y, x) + sign * (clusters.phi_global - np.arctan2(hits.y, hits.x))
        phi_global = np.arctan2(np.sin(turned), np.cos(turned)).astype(np.float32)
        clusters = replace(clusters, phi_global=phi_global, eta_global=sign * clusters.eta_global)
    new_hits = replace(hits, x=x, y=y, z=_scaled(hits.z, sign_z), volume_id=volume, clusters=clusters)
    particles = event.particles
    if particles is not None:
        px, py = _rotate(particles.px, sign_y * particles.py, angle)
        vx, vy = _rotate(particles.vx, sign_y * particles.vy, angle)
        charge = -particles.charge if mirror_y else particles.charge
        pz, vz = _scaled(particles.pz, sign_z), _scaled(particles.vz, sign_z)
        particles = replace(particles, px=px, py=py, pz=pz, vx=vx, vy=vy, vz=vz, charge=charge)
    return replace(event, hits=new_hits, particles=particles)


def _rotate(x: Any, y: Any, angle: float) -> tuple[Any, Any]:
    """(x, y) turned by `angle`, float32, computed in float64."""
    c, s = np.cos(angle), np.sin(angle)
    x64, y64 = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return (c * x64 - s * y64).astype(np.float32), (s * x64 + c * y64).astype(np.float32)


def _scaled(values: Any, sign: float) -> Any:
    return values if sign == 1.0 else -values


@dataclass(frozen=True)
class Augmentation:
    """Which symmetries of the detector a training event is moved by, at random.

    Attributes:
        rotate: by an angle about the beam, uniform in a full turn
        mirror_y: y -> -y in half of the cases (charges change sign)
        mirror_z: z -> -z in half of the cases
    """

    rotate: bool = True
    mirror_y: bool = True
    mirror_z: bool = True

    def __call__(self, event: Event, rng: np.random.Generator) -> Event:
        """A turned event; `rng` gives the same three numbers' worth of randomness whatever is switched on."""
        angle, y, z = rng.random(3)
        return turn(
            event,
            2 * np.pi * angle if self.rotate else 0.0,
            mirror_y=self.mirror_y and y < 0.5,
            mirror_z=self.mirror_z and z < 0.5,
        )


@dataclass(frozen=True, eq=False)
class HitBatch:
    """Hits of one or several events with their truth; T hits, P particles, B events.

    Attributes:
        inputs: values (T, F + 4) float32, see `hit_inputs`; lengths (B,)
        target: values (T,) bool, True = the hit lies on a reconstructable particle
        particle: (T,) int64, row of its own event's particles; -1 = noise
        row: (T,) int64, row of its own event's hits
        reconstructable: values (P,) bool; lengths (B,) int64: particles of each event
        event_ids: (B,) the events' own numbers
    """

    inputs: Packed
    target: Tensor
    particle: Tensor
    row: Tensor
    reconstructable: Packed
    event_ids: tuple[int, ...]

    @property
    def num_reconstructable(self) -> Tensor:
        """(B,) int64: reconstructable particles of each event, before any filter."""
        return torch.stack([particles.sum() for particles in self.reconstructable.split()])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The batch on another device (lengths stay on the CPU)."""

        def moved(x: Packed) -> Packed:
            return x.with_values(x.values.to(device, non_blocking=non_blocking))

        return replace(
            self,
            inputs=moved(self.inputs),
            target=self.target.to(device, non_blocking=non_blocking),
            particle=self.particle.to(device, non_blocking=non_blocking),
            row=self.row.to(device, non_blocking=non_blocking),
            reconstructable=moved(self.reconstructable),
        )

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from which copies to a GPU don't block."""
        return replace(
            self,
            inputs=self.inputs.with_values(self.inputs.values.pin_memory()),
            target=self.target.pin_memory(),
            particle=self.particle.pin_memory(),
            row=self.row.pin_memory(),
            reconstructable=self.reconstructable.with_values(self.reconstructable.values.pin_memory()),
        )


def collate(batches: Sequence[HitBatch]) -> HitBatch:
    """Several batches as one; event after event, nothing padded.

    Raises:
        ValueError: no batch at all
    """
    if not batches:
        raise ValueError("collate needs at least one event")

    def joined(parts: Sequence[Packed]) -> Packed:
        return Packed(torch.cat([p.values for p in parts]), torch.cat([p.lengths for p in parts]))

    return HitBatch(
        inputs=joined([b.inputs for b in batches]),
        target=torch.cat([b.target for b in batches]),
        particle=torch.cat([b.particle for b in batches]),
        row=torch.cat([b.row for b in batches]),
        reconstructable=joined([b.reconstructable for b in batches]),
        event_ids=tuple(number for b in batches for number in b.event_ids),
    )


class HitDataset(Dataset[HitBatch]):
    """Events as batches of one, with inputs and targets of the hit filter.

    Args:
        events: any sequence of events with truth (`open_events(...)`), read when asked for
        features: names of `hepattn.data.features`
        selection: which particles are reconstructable, decided on the whole event; where it names volumes, only hits of
            those are given
        augmentation: None gives events as they are
        seed: of the augmentation
        truth: False takes events without truth too, see `hit_batch`
    """

    def __init__(
        self,
        events: Sequence[Event],
        features: Sequence[str],
        selection: Selection | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        truth: bool = True,
    ) -> None:
        self.events = events
        self.features = tuple(features)
        self.selection = Selection() if selection is None else selection
        self.augmentation = augmentation
        self.seed = seed
        self.truth = truth

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, key: int | Key) -> HitBatch:
        """Event `index`, or (pass, index): the pass decides how it is turned."""
        number, index = key if isinstance(key, tuple) else (0, key)
        event = self.events[index]
        if self.augmentation is not None:
            event = self.augmentation(event, np.random.default_rng((self.seed, number, index)))
        return hit_batch(event, self.features, self.selection, truth=self.truth)


def hit_batch(
    event: Event,
    features: Sequence[str],
    selection: Selection,
    kept: BoolArray | None = None,
    *,
    truth: bool = True,
) -> HitBatch:
    """One event with inputs and targets.

    Args:
        event: its hits outside the selection's volumes are left out
        features: names of `hepattn.data.features`
        selection: which particles are reconstructable, decided on all hits of the event
        kept: (N,) bool, True = a filter kept the hit, all others are left out; None: all were kept
        truth: False takes an event without truth too: no hit is a target then, and all count as noise

    Raises:
        ValueError: truth is asked for and not there, the event lacks what a feature needs, or `kept` is not (N,) bool
    """
    if kept is not None and (kept.dtype != np.bool_ or kept.shape != (len(event.hits),)):
        raise ValueError(f"kept is ({len(event.hits)},) bool, not {kept.dtype} of shape {kept.shape}")
    if truth:
        reconstructable = torch.from_numpy(selection.particles(event))
        particle = torch.from_numpy(np.asarray(event.hits.particle, dtype=np.int64))
    else:
        reconstructable = torch.zeros(0, dtype=torch.bool)
        particle = torch.full((len(event.hits),), -1)
    row = torch.arange(len(event.hits))
    if selection.volumes is not None or kept is not None:
        inside = selection.in_volumes(event.hits)
        inside = inside if kept is None else inside & kept
        event, keep = event.keep(inside), torch.from_numpy(inside)
        particle, row = particle[keep], row[keep]
    inputs = hit_inputs(event, features)
    return HitBatch(
        inputs=Packed(inputs, torch.tensor([len(inputs)])),
        # noise (-1) points at one more row, which is never a target
        target=torch.cat([reconstructable, torch.zeros(1, dtype=torch.bool)])[particle],
        particle=particle,
        row=row,
        reconstructable=Packed(reconstructable, torch.tensor([len(reconstructable)])),
        event_ids=(event.event_id,),
    )


class EventStream(Sampler[list[Key]]):
    """An endless stream of shuffled events, cut into batches; can begin at any batch.

    Pass p over the data is a permutation drawn from (seed, p). Batch b holds the keys b * size to (b + 1) * size - 1 of
    the stream of all passes, so that a batch may hold the end of one pass and the beginning of the next.

    Args:
        events: number of events, > 0
        size: events in each batch, > 0
        seed: of the order
    """

    def __init__(self, events: int, size: int = 1, seed: int = 0) -> None:
        if events < 1 or size < 1:
            raise ValueError(f"a stream needs at least one event and one event a batch, not {events} and {size}")
        self.events = events
        self.size = size
        self.seed = seed
        self.start = 0

    def __len__(self) -> int:
        """Batches in one pass over the data, the last one counted where it is not full."""
        return (self.events + self.size - 1) // self.size

    def __iter__(self) -> Iterator[list[Key]]:
        place = self.start * self.size
        number, order = -1, np.zeros(0, dtype=np.int64)
        while True:
            keys = []
            for i in range(place, place + self.size):
                if i // self.events != number:
                    number = i // self.events
                    order = np.random.default_rng((self.seed, number)).permutation(self.events)
                keys.append((number, int(order[i % self.events])))
            yield keys
            place += self.size
