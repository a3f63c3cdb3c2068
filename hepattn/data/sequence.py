"""Events by index, each read when it is asked for."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

from hepattn.data.schema import Event


class EventFileError(ValueError):
    """A file of events that can't be used: one sentence naming the file and, where there is one, the column and row."""


class EventSequence(Sequence[Event]):
    """A lazy list of events.

    `events[3]` reads one event, `events[10:20]` is a lazy list again, nothing is kept in memory.
    """

    @abstractmethod
    def read(self, index: int) -> Event:
        """Read event number `index`, 0 <= index < len(self)."""

    @property
    @abstractmethod
    def event_ids(self) -> list[int]:
        """The number of every event, without reading them."""

    @overload
    def __getitem__(self, index: int) -> Event: ...
    @overload
    def __getitem__(self, index: slice) -> "EventSequence": ...
    def __getitem__(self, index: int | slice) -> "Event | EventSequence":
        if isinstance(index, slice):
            return EventSlice(self, range(len(self))[index])
        try:
            position = range(len(self))[index]
        except IndexError:
            raise IndexError(f"event {index} of {len(self)}") from None
        return self.read(position)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} events)"


class EventSlice(EventSequence):
    """Some events of another sequence."""

    def __init__(self, events: EventSequence, index: Sequence[int]) -> None:
        self._events = events
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    @property
    def event_ids(self) -> list[int]:
        """The number of every event, without reading them."""
        numbers = self._events.event_ids
        return [numbers[index] for index in self._index]

    def read(self, index: int) -> Event:
        """Read event number `index` of the slice."""
        return self._events.read(self._index[index])
