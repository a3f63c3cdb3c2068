"""Events for training, validation, test and prediction, from the sample or from any folder of events."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from hepattn.data.dataset import Augmentation, EventStream, HitDataset, collate, hit_batch
from hepattn.data.features import DEFAULT_FEATURES
from hepattn.data.schema import Event, Selection
from hepattn.data.sources import open_events
from hepattn.models.hit_encoder import HitModelConfig
from hepattn.training.base import say


class StreamLoader(DataLoader[Any]):
    """Counts the batches it has given of an `EventStream`, so that a resumed training goes on with the next."""

    consumed = 0
    _stream: Generator[Any, None, None] | None = None
    _outdated = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches from the first one not yet given, without an end: whoever trains decides when to stop.

        It is the same iterator each time, so that worker processes live as long as the training, not for one pass.
        """
        if self._stream is None:
            self._stream = self._batches()
        return self._stream

    def _batches(self) -> Generator[Any, None, None]:
        assert isinstance(self.batch_sampler, EventStream)
        while True:
            self.batch_sampler.start, self._outdated = self.consumed, False
            for batch in super().__iter__():
                self.consumed += 1
                yield batch
                if self._outdated:
                    break

    def renew(self) -> None:
        """The dataset has changed: the next batch is made of what it is now, also where workers have prepared some."""
        self._outdated = True

    def state_dict(self) -> dict[str, int]:
        """Batches given so far."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on after that many batches."""
        self.close()
        self.consumed = state["consumed"]

    def close(self) -> None:
        """Ends the worker processes, at once and not when the garbage collector comes by."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class EventDataModule(pl.LightningDataModule):
    """Events from `path`, split into train, validation and test: the last events are held out.

    Events that can't be used (no truth, no clusters where the features need them) are left out, and it is said which
    and why.

    Args:
        path: "sample", or a folder or file of Parquet events or TrackML files, see `hepattn.data.open_events`
        validation, test: held-out events, as a number of events (>= 1) or a fraction (< 1) of those in `path`
        validation_path, test_path: separate events, instead of a part of `path`
        limit: use only so many events of `path`, from the first; None for all
        features, selection: as the model has them; None takes them from the model that is trained
        augmentation: random rotations and reflections of training events; null for none
        batch_size: events in a step of training; held-out events are judged one by one
        seed: of the order and the augmentation
        workers: processes that prepare batches; 0 prepares them in the training process
        cache: read all events first, check each, and keep them in memory (about 60 bytes a hit); else only the first is
            checked, and events are read when they are needed

    Raises:
        ValueError: a setting is impossible, or no event is left
    """

    def __init__(
        self,
        path: str = "sample",
        validation: float = 0.1,
        test: float = 0.1,
        validation_path: str | None = None,
        test_path: str | None = None,
        limit: int | None = None,
        features: tuple[str, ...] | None = None,
        selection: Selection | None = None,
        augmentation: Augmentation | None = Augmentation(),  # noqa: B008
        batch_size: int = 1,
        seed: int = 0,
        workers: int = 0,
        cache: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0 or (limit is not None and limit < 1):
            raise ValueError(f"batch_size and limit are >= 1, workers >= 0, not {batch_size}, {limit}, {workers}")
        if validation < 0 or test < 0:
            raise ValueError(f"validation and test are numbers or fractions of events, not {validation} and {test}")
        self.path, self.validation_path, self.test_path = path, validation_path, test_path
        self.validation, self.test, self.limit = validation, test, limit
        self.features, self.selection, self.augmentation = features, selection, augmentation
        self.batch_size, self.seed, self.workers, self.cache = batch_size, seed, workers, cache
        self._events: dict[str, Sequence[Event]] = {}
        self._consumed = 0
        self._loader: StreamLoader | None = None

    def read_for(self, config: HitModelConfig | None) -> None:
        """Takes features and selection from a model's configuration, where they were not given."""
        if self.features is None:
            self.features = DEFAULT_FEATURES if config is None else config.features
        if self.selection is None:
            self.selection = Selection() if config is None else config.selection

    def events(self, part: str) -> Sequence[Event]:
        """The events for "train", "validation", "test" or "predict", after `setup`."""
        return self._events[part]

    def select(self, selection: Selection) -> None:
        """Other particles are reconstructable from now on: in a training's next batch, and in every loader made later.

        Raises:
            RuntimeError: a training goes on whose batches don't follow a selection
        """
        if self._loader is not None:
            dataset = self._loader.dataset
            if not isinstance(dataset, HitDataset):
                raise RuntimeError(f"the selection of {type(dataset).__name__} can't be changed while it trains")
            dataset.selection = selection
            self._loader.renew()
        self.selection = selection

    def share(self, other: "EventDataModule") -> None:
        """Takes the events that `other` has opened, with its split, so that `setup` need not read them again."""
        self._events = dict(other._events)  # noqa: SLF001  (its own class)

    def setup(self, stage: str | None = None) -> None:
        """Opens the events and splits them; says on the screen what there is.

        Raises:
            ValueError: no usable event
        """
        model = getattr(getattr(self.trainer, "lightning_module", None), "model", None)
        self.read_for(getattr(model, "config", None))
        if stage == "predict":
            if "predict" not in self._events:
                self._events["predict"] = self._open(self.path, truth=False)
            return
        if "train" in self._events:
            return
        events = self._open(self.path)
        test = 0 if self.test_path else _number(self.test, len(events))
        validation = 0 if self.validation_path else _number(self.validation, len(events))
        if test + validation >= len(events) and len(events) > 1:
            raise ValueError(
                f"{len(events)} events in {self.path} are not enough for {validation} to validate and {test} to test "
                "and one to train on: hold out fewer, for instance with --data.validation 1 --data.test "
                f"{min(len(events) - 2, 1)}"
            )
        if len(events) == 1:
            say(
                f"{self.path} has one usable event, which serves training, validation and test alike where no other is "
                "given: such numbers say how well it was learnt by heart, nothing about other events"
            )
            self._events = dict.fromkeys(("train", "validation", "test"), events)
        else:
            train = len(events) - test - validation
            self._events = {
                "train": events[:train],
                "validation": events[train : train + validation],
                "test": events[train + validation :],
            }
        for part, path in (("validation", self.validation_path), ("test", self.test_path)):
            if path:
                self._events[part] = self._open(path)
        counts = {name: len(part) for name, part in self._events.items()}
        say(", ".join(f"{n} {'event' if n == 1 else 'events'} for {name}" for name, n in counts.items()))

    def _open(self, path: str, *, truth: bool = True) -> Sequence[Event]:
        """The usable events of `path`; what is left out is said, with the reason."""
        opened = open_events(path)
        count = len(opened) if self.limit is None else min(self.limit, len(opened))
        events, left_out = _usable(opened, range(count), self._checks(truth=truth), keep=self.cache)
        for reason, numbers in left_out.items():
            named = ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")
            say(f"left out {len(numbers)} of {count} events in {path} (event {named}): {reason}")
        if not events:
            why = "; ".join(left_out) or "there is none"
            raise ValueError(f"no event in {path} can be used: {why}")
        return events

    def _checks(self, *, truth: bool) -> Callable[[Event], object]:
        """What an event must pass: a few of its hits are made into a batch, with all checks that this brings."""
        assert self.features is not None
        assert self.selection is not None
        features, selection = self.features, self.selection

        def check(event: Event) -> None:
            if not len(event.hits):
                raise ValueError("it has no hits")
            if truth and event.hits.particle is None:
                raise ValueError("its hits have no truth to learn from")
            if truth and event.particles is None:
                raise ValueError("it has no particles to learn from")
            hit_batch(event.keep(np.arange(min(2, len(event.hits)))), features, selection, truth=truth)

        return check

    def dataset(self, part: str) -> Dataset[Any]:
        """The batches of one event each of "train", "validation", "test" or "predict", after `setup`."""
        assert self.features is not None
        augmentation = self.augmentation if part == "train" else None
        events, truth = self._events[part], part != "predict"
        return HitDataset(events, self.features, self.selection, augmentation, self.seed, truth=truth)

    def collate(self, part: str) -> Callable[[Sequence[Any]], Any]:
        """What makes one batch of several of that part."""
        del part  # all alike here
        return collate

    def train_dataloader(self) -> StreamLoader:
        """Shuffled, turned at random; goes on where a loaded checkpoint stopped."""
        loader = StreamLoader(
            self.dataset("train"),
            batch_sampler=EventStream(len(self._events["train"]), self.batch_size, self.seed),
            collate_fn=self.collate("train"),
            num_workers=self.workers,
            pin_memory=self._pin(),
            generator=torch.Generator(),  # else each loop draws from the global one, and a resumed training differs
        )
        loader.consumed = self._consumed
        self._loader = loader
        return loader

    def _held_out(self, part: str) -> DataLoader[Any]:
        return DataLoader(
            self.dataset(part),
            batch_size=1,
            collate_fn=self.collate(part),
            num_workers=self.workers,
            pin_memory=self._pin(),
            generator=torch.Generator(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Held-out events as they are, in order."""
        return self._held_out("validation")

    def test_dataloader(self) -> DataLoader[Any]:
        """Held-out events as they are, in order."""
        return self._held_out("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """All events of `path`, with or without truth, in order."""
        return self._held_out("predict")

    def _pin(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    @override
    def teardown(self, stage: str) -> None:
        """Ends the workers of training."""
        if self._loader is not None:
            self._loader.close()

    @override
    def on_exception(self, exception: BaseException) -> None:
        """The same after Ctrl-C or an error."""
        self.teardown("fit")

    def state_dict(self) -> dict[str, int]:
        """How far the stream of training batches was read."""
        return {"consumed": self._consumed if self._loader is None else self._loader.consumed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on there."""
        self._consumed = state_dict["consumed"]


def _number(part: float, events: int) -> int:
    """`part` of that many events: a fraction below 1 (at least one event, unless 0), or a number."""
    return int(part) if part >= 1 else min(events, max(1, round(part * events))) if part else 0


def _usable(
    opened: Sequence[Event], index: range, check: Callable[[Event], object], *, keep: bool
) -> tuple[Sequence[Event], dict[str, list[int]]]:
    """Events that pass `check`, and for each reason the numbers of those that don't.

    With `keep` all are read, once, and kept; else only the first is read and checked, and the others stay on disk.
    """
    kept: list[Event] = []
    left_out: dict[str, list[int]] = {}
    for i in index:
        event = opened[i]
        try:
            check(event)
        except ValueError as error:
            left_out.setdefault(str(error), []).append(event.event_id)
            continue
        if not keep:
            return opened[i : index.stop], left_out
        kept.append(event)
    return kept, left_out
