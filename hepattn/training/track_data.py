"""Events for a tracker: the filter in front judges each once; held-out events come whole, to judge tracks by."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from typing_extensions import override

from hepattn.data.dataset import HitBatch, hit_batch, hit_inputs
from hepattn.data.schema import BoolArray, Event, Selection
from hepattn.data.track_dataset import TrackBatch, TrackDataset, collate_tracks, track_batch
from hepattn.metrics import Fraction, ScoredEvent, filter_metrics
from hepattn.models.hit_encoder import HitModelConfig
from hepattn.models.hit_filter import HitFilter, HitFilterConfig
from hepattn.models.maskformer import MaskFormerConfig, filter_in_front, kept_hits
from hepattn.training.base import say
from hepattn.training.data import EventDataModule

__all__ = ["EventBatch", "KeptHits", "TrackDataModule", "WholeEvents", "collate_events", "judge_kept"]

PARTS = {"fit": ("train", "validation"), "validate": ("validation",), "test": ("test",), "predict": ("predict",)}
"""Which events a stage of the trainer reads."""


class KeptHits(Sequence[BoolArray]):
    """Which hits a filter kept of many events, in a bit a hit."""

    def __init__(self) -> None:
        self._bits: list[npt.NDArray[np.uint8]] = []
        self._lengths: list[int] = []

    def append(self, kept: BoolArray) -> None:
        """Adds an event's (N,) bool."""
        self._bits.append(np.packbits(kept))
        self._lengths.append(len(kept))

    def __len__(self) -> int:
        return len(self._bits)

    @overload
    def __getitem__(self, index: int) -> BoolArray: ...
    @overload
    def __getitem__(self, index: slice) -> list[BoolArray]: ...
    def __getitem__(self, index: int | slice) -> BoolArray | list[BoolArray]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return np.unpackbits(self._bits[index], count=self._lengths[index]).astype(np.bool_)


@dataclass(frozen=True, eq=False)
class EventBatch:
    """What a tracker is given of one or several events, and the events themselves; B events."""

    given: TrackBatch
    events: tuple[Event, ...]
    """(B,) with all their hits."""
    kept: tuple[BoolArray, ...]
    """(B,) times (N,) bool, True = the tracker is given the hit."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The batch with what is given on another device; events stay where they are."""
        return replace(self, given=self.given.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The batch with what is given in page-locked memory, from which copies to a GPU don't block."""
        return replace(self, given=self.given.pin_memory())


def collate_events(batches: Sequence[EventBatch]) -> EventBatch:
    """Several batches as one.

    Raises:
        ValueError: no batch at all
    """
    return EventBatch(
        collate_tracks([batch.given for batch in batches]),
        tuple(event for batch in batches for event in batch.events),
        tuple(kept for batch in batches for kept in batch.kept),
    )


class WholeEvents(Dataset[EventBatch]):
    """Held-out events as batches of one, as they are.

    Args:
        events: any sequence of events, read when asked for
        features: names of `hepattn.data.features`
        selection: which particles are reconstructable, decided on the whole event
        kept: of each event (N,) bool, True = the filter kept the hit; None: all in the selected volumes were
        truth: False takes events without truth too
    """

    def __init__(
        self,
        events: Sequence[Event],
        features: Sequence[str],
        selection: Selection,
        kept: Sequence[BoolArray] | None = None,
        *,
        truth: bool = True,
    ) -> None:
        self.events, self.features, self.selection = events, tuple(features), selection
        self.kept, self.truth = kept, truth

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: int) -> EventBatch:
        event = self.events[index]
        kept = self.selection.in_volumes(event.hits) if self.kept is None else self.kept[index]
        given = track_batch(event, self.features, self.selection, kept, truth=self.truth)
        return EventBatch(given, (event,), (kept,))


class _WithEvents(Dataset[tuple[Event, HitBatch]]):
    """Events, each with what a filter is given of it: read and prepared once, by the loader's processes."""

    def __init__(self, events: Sequence[Event], config: HitFilterConfig) -> None:
        self.events, self.config = events, config

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: int) -> tuple[Event, HitBatch]:
        event = self.events[index]
        return event, hit_batch(event, self.config.features, self.config.selection, truth=False)


class TrackDataModule(EventDataModule):
    """`EventDataModule` for a tracker: the hit filter that its configuration names judges every event first, once.

    The filter runs in evaluation mode, in the trainer's precision, and on its GPU if it has one. What it keeps does not
    depend on how an event is turned later. Which particles are reconstructable is decided before it.

    Args:
        **settings: those of `EventDataModule`; features and selection are the model's

    Raises:
        ValueError: a setting is impossible, or no event is left
        FileNotFoundError: there is no such filter
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._config: MaskFormerConfig | None = None
        self._front: HitFilter | None = None
        self._kept: dict[str, KeptHits] = {}
        self._said = False

    @override
    def read_for(self, config: HitModelConfig | None) -> None:
        """Takes features, selection and the filter from a tracker's configuration.

        Raises:
            ValueError: others were given
        """
        super().read_for(config)
        if not isinstance(config, MaskFormerConfig) or config == self._config:
            return
        if self.features != config.features or self.selection != config.selection:
            raise ValueError(
                "features and selection of the data are those of the tracker: leave data.features and "
                "data.selection out, and set them in model.network"
            )
        self._config, self._front, self._kept = config, filter_in_front(config), {}

    @override
    def share(self, other: EventDataModule) -> None:
        super().share(other)
        if isinstance(other, TrackDataModule) and other._config == self._config:  # noqa: SLF001  (its own class)
            self._kept = dict(other._kept)  # noqa: SLF001

    def kept(self, part: str) -> KeptHits | None:
        """What the filter kept of each event of a part, after `setup`; None without a filter."""
        return self._kept.get(part)

    @override
    def setup(self, stage: str | None = None) -> None:
        """Opens the events, splits them, and lets the filter judge those that this stage reads; says what it keeps.

        Raises:
            ValueError: no usable event
        """
        super().setup(stage)
        if self._front is None:
            if not self._said:  # the trainer sets up again what the command line has
                say("no hit filter in front: all hits in the selected volumes go in")
            self._said = True
            return
        for part in PARTS.get(stage or "fit", ()):
            if part not in self._kept:
                self._kept[part] = self._judge(part)

    def _judge(self, part: str) -> KeptHits:
        config, front, events = self._config, self._front, self._events[part]
        assert config is not None
        assert front is not None
        root = None if self.trainer is None else self.trainer.strategy.root_device
        device = root if root is not None and root.type == "cuda" else torch.device("cpu")
        front.to(device)
        inputs = DataLoader(
            _WithEvents(events, front.config),
            batch_size=None,
            num_workers=self.workers,
            generator=torch.Generator(),  # else this loop would draw from the global one
        )
        precision = nullcontext if self.trainer is None else self.trainer.precision_plugin.forward_context
        shown = self.trainer is None or self.trainer.progress_bar_callback is not None
        out, judged = KeptHits(), dict.fromkeys(("kept", "efficiency", "retention"), Fraction(0, 0))
        bar = tqdm(inputs, f"hit filter, {part}", len(events), leave=False, disable=not shown, file=sys.stderr)
        for event, batch in bar:
            with torch.no_grad(), precision():
                probability = front.logits(batch.to(device).inputs).sigmoid().cpu()
            scores = torch.full((len(event.hits),), torch.nan).index_put((batch.row,), probability)
            kept = kept_hits(event, config, scores)
            out.append(kept)
            scored = judge_kept(event, kept, config.selection, truth=part != "predict")
            metrics = filter_metrics([scored], 0.5, config.min_hits)
            judged = {name: fraction + getattr(metrics, name) for name, fraction in judged.items()}
        front.to("cpu")  # leaves the GPU to the training
        number, hits = len(events), judged["kept"]
        sentence = (
            f"{part}: the hit filter {config.filter} (score >= {config.filter_threshold:g}) keeps "
            f"{hits.passed / number:,.0f} of {hits.total / number:,.0f} hits an event"
        )
        if part != "predict":
            sentence += (
                f", {judged['efficiency'].value:.2%} of target hits, and {judged['retention'].value:.2%} of "
                f"reconstructable particles with >= {config.min_hits} hits"
            )
        say(sentence)
        return out

    @override
    def dataset(self, part: str) -> Dataset[Any]:
        assert self.features is not None
        assert self.selection is not None
        events, kept = self._events[part], self.kept(part)
        if part == "train":
            return TrackDataset(events, self.features, self.selection, kept, self.augmentation, self.seed)
        return WholeEvents(events, self.features, self.selection, kept, truth=part != "predict")

    @override
    def collate(self, part: str) -> Callable[[Sequence[Any]], Any]:
        return collate_tracks if part == "train" else collate_events

    @override
    def _checks(self, *, truth: bool) -> Callable[[Event], object]:
        check, front = super()._checks(truth=truth), self._front

        def check_both(event: Event) -> None:
            check(event)
            if front is not None:
                hit_inputs(event.keep(np.arange(min(2, len(event.hits)))), front.config.features)

        return check_both


def judge_kept(event: Event, kept: BoolArray, selection: Selection, *, truth: bool = True) -> ScoredEvent:
    """What a filter kept of an event as scores 0 and 1 of the hits in the selected volumes, for `filter_metrics`.

    Args:
        event: the whole event
        kept: (N,) bool
        selection: which particles are reconstructable
        truth: False takes an event without truth: no hit is a target then
    """
    inside = selection.in_volumes(event.hits)
    scores = kept[inside].astype(np.float32)
    if not truth:
        nothing = np.zeros(len(scores), dtype=np.bool_)
        return ScoredEvent(scores, nothing, np.full(len(scores), -1), nothing[:0])
    assert event.hits.particle is not None
    return ScoredEvent(scores, selection.hits(event)[inside], event.hits.particle[inside], selection.particles(event))
