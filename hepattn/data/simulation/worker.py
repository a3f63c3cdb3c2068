"""A process that simulates events one after the other, started by the driver.

It talks to the driver through its standard input and output in pickled frames: first an `Order`, then indices of
events; each index is answered by an `Answer`. It ends when its input ends, so none stays when the driver is killed.
"""

import os
import pickle
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hepattn.data.schema import Event
from hepattn.data.simulation.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker does with each event."""

    recipe: Recipe
    out: Path | None = None
    """Folder to write to; None sends the events back."""
    csv: bool = False
    """Write TrackML files too."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one event."""

    index: int
    event: Event | None = None
    error: str | None = None
    """One sentence, where it failed."""
    trace: str = ""


def carry_out(order: Order, index: int) -> Answer:
    """Simulate one event here; every failure of it becomes part of the answer."""
    from hepattn.data.simulation.files import write_event

    try:
        event = simulator(order.recipe).simulate(index)
        if order.out is None:
            return Answer(index, event=event)
        write_event(order.out, event, csv=order.csv)
    except Exception as error:  # noqa: BLE001  what ACTS or Pythia raise is not known; the driver reports it
        return Answer(index, error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
    return Answer(index)


_SIMULATORS: dict[Recipe, Any] = {}


def simulator(recipe: Recipe) -> Any:
    """The simulator of a recipe; the last one made is kept, as building one takes seconds."""
    from hepattn.data.simulation.chain import EventSimulator

    if recipe not in _SIMULATORS:
        made = EventSimulator(recipe)
        _SIMULATORS.clear()
        _SIMULATORS[recipe] = made
    return _SIMULATORS[recipe]


def send(stream: BinaryIO, content: object) -> None:
    """Write one pickled object."""
    pickle.dump(content, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one pickled object.

    Raises:
        EOFError: the other side is gone.
    """
    return pickle.load(stream)  # noqa: S301  both ends are this package, one the parent of the other


def main() -> int:
    """Answer the driver until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which then ends its workers
    # ACTS and Pythia print to the standard output; the answers need it for themselves.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    orders = sys.stdin.buffer
    order: Order = receive(orders)
    while True:
        try:
            index = receive(orders)
        except EOFError:
            return 0
        send(answers, carry_out(order, index))
