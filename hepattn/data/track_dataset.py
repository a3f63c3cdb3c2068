"""Events for a tracker: the hits that a filter kept, with truth of the whole event and the particles' parameters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hepattn.data.dataset import Augmentation, HitBatch, Key, collate, hit_batch
from hepattn.data.schema import BoolArray, Event, Selection
from hepattn.data.tracks import TrackParameters

__all__ = ["TrackBatch", "TrackDataset", "collate_tracks", "track_batch"]


@dataclass(frozen=True, eq=False)
class TrackBatch:
    """Hits of one or several events with their truth, as a tracker is given them; P particles, B events."""

    hits: HitBatch
    """The hits that were kept; `reconstructable` was decided on the whole event, before any filter."""
    parameters: Tensor
    """(P, 6) float32: pT (GeV), eta, phi (rad), z0 (mm), d0 (mm), charge of each particle; NaN where not known."""
    num_hits: tuple[int, ...]
    """(B,) hits of each whole event."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The batch on another device (lengths stay on the CPU)."""
        parameters = self.parameters.to(device, non_blocking=non_blocking)
        return replace(self, hits=self.hits.to(device, non_blocking=non_blocking), parameters=parameters)

    def pin_memory(self) -> Self:
        """The batch in page-locked memory, from which copies to a GPU don't block."""
        return replace(self, hits=self.hits.pin_memory(), parameters=self.parameters.pin_memory())


def track_batch(
    event: Event,
    features: Sequence[str],
    selection: Selection,
    kept: BoolArray | None = None,
    *,
    truth: bool = True,
) -> TrackBatch:
    """One event with inputs and targets.

    Args:
        event: the whole event
        features: names of `hepattn.data.features`
        selection: which particles are reconstructable; hits outside its volumes are left out
        kept: (N,) bool, True = the filter kept the hit; None: all were
        truth: False takes an event without truth too

    Raises:
        ValueError: truth is asked for and not there, the event lacks what a feature needs, or `kept` does not fit
    """
    hits = hit_batch(event, features, selection, kept, truth=truth)
    known = len(hits.reconstructable.values)
    columns = [torch.zeros(known)] * 6
    if truth and event.particles is not None:
        true = TrackParameters.of(event.particles)
        arrays = (true.pt, true.eta, true.phi, true.z0, true.d0, true.charge)
        columns = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return TrackBatch(hits, torch.stack(columns, dim=1), (len(event.hits),))


def collate_tracks(batches: Sequence[TrackBatch]) -> TrackBatch:
    """Several batches as one; event after event, nothing padded.

    Raises:
        ValueError: no batch at all
    """
    hits = collate([batch.hits for batch in batches])
    numbers = tuple(number for batch in batches for number in batch.num_hits)
    return TrackBatch(hits, torch.cat([batch.parameters for batch in batches]), numbers)


class TrackDataset(Dataset[TrackBatch]):
    """Events as batches of one, with inputs and targets of a tracker.

    Args:
        events: any sequence of events (`open_events(...)`), read when asked for
        features: names of `hepattn.data.features`
        selection: which particles are reconstructable, decided on the whole event
        kept: of each event (N,) bool, True = the filter kept the hit; None: all were
        augmentation: None gives events as they are; what the filter keeps of an event is the same however it is turned
        seed: of the augmentation
        truth: False takes events without truth too, see `track_batch`

    Raises:
        ValueError: `kept` has another number of events
    """

    def __init__(
        self,
        events: Sequence[Event],
        features: Sequence[str],
        selection: Selection,
        kept: Sequence[BoolArray] | None = None,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        truth: bool = True,
    ) -> None:
        if kept is not None and len(kept) != len(events):
            raise ValueError(f"the filter judged {len(kept)} events, there are {len(events)}")
        self.events, self.kept = events, kept
        self.features, self.selection = tuple(features), selection
        self.augmentation, self.seed, self.truth = augmentation, seed, truth

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, key: int | Key) -> TrackBatch:
        """Event `index`, or (pass, index): the pass decides how it is turned."""
        number, index = key if isinstance(key, tuple) else (0, key)
        event, kept = self.events[index], None if self.kept is None else self.kept[index]
        if self.augmentation is not None:
            event = self.augmentation(event, np.random.default_rng((self.seed, number, index)))
        return track_batch(event, self.features, self.selection, kept, truth=self.truth)
