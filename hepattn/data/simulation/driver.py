"""Many events on many processes: the same events whatever the number of workers, nothing done is ever lost."""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from hepattn.data.schema import Event
from hepattn.data.simulation.files import clean, finished, open_folder, other_versions
from hepattn.data.simulation.packages import PACKAGES, require
from hepattn.data.simulation.recipe import Hard, Recipe
from hepattn.data.simulation.worker import Answer, Order, carry_out, receive, send


class SimulationError(RuntimeError):
    """Some events could not be made; the others were. `failures`: index -> one sentence."""

    def __init__(self, failures: dict[int, str], done: int) -> None:
        self.failures = failures
        self.done = done
        first = min(failures)
        more = "" if len(failures) == 1 else f" (and {len(failures) - 1} more)"
        super().__init__(f"event {first} failed{more}: {failures[first]}; {done} events are done")


def simulate(
    events: int = 1,
    pileup: float = 200.0,
    seed: int = 7,
    workers: int | None = None,
    *,
    noise: bool = True,
    hard: Hard = "ttbar",
    first: int = 0,
    progress: bool = False,
) -> list[Event]:
    """Simulate events in memory; the same seed and index give the same event, however many workers and events.

    Particles are those that leave at least one hit; primaries have pT > 0.15 GeV and |eta| < 4 (electrons from photons
    that convert may have less). A hit that particles share belongs to the first of them.

    Args:
        events: how many.
        pileup: mean number of inelastic proton collisions beside the hard one, at 14 TeV.
        seed: any number >= 0.
        workers: processes side by side, 1 = in this process; None: as many as there are cores, at most one an event.
        noise: add noise hits, 0.942 a module (`Hits.particle` -1).
        hard: "ttbar" or "none".
        first: index of the first event.
        progress: draw a bar.

    Raises:
        ImportError: pyacts or pythia8mc is missing.
        ValueError: an argument out of range.
        SimulationError: an event failed.
    """
    recipe = Recipe(seed=seed, pileup=pileup, hard=hard, noise=noise)
    order = Order(recipe)
    made: dict[int, Event] = {}
    for answer in _run(order, _indices(first, events), workers, progress):
        assert answer.event is not None
        made[answer.index] = answer.event
    return [made[index] for index in sorted(made)]


def simulate_to(
    out: str | Path,
    recipe: Recipe,
    events: int,
    workers: int | None = None,
    *,
    first: int = 0,
    csv: bool = False,
    progress: bool = False,
) -> int:
    """Simulate events into a folder, one Parquet pair an event; those that are there already are not made again.

    Returns:
        How many events were made now.

    Raises:
        ImportError, SimulationError: as `simulate`; events that are done stay.
        ValueError: an argument out of range, no folder can be there, or it holds events of another recipe.
    """
    out = Path(out)
    indices = _indices(first, events)
    _check_workers(workers)
    open_folder(out, recipe)
    missing = [index for index in indices if not finished(out, index, csv=csv)]
    if missing and (differ := other_versions(out)):
        sys.stderr.write(
            f"{out} was begun with other versions ({', '.join(differ)}): the events made now may differ from what "
            "those would have made\n"
        )
    order = Order(recipe, out=out, csv=csv)
    return sum(1 for _ in _run(order, missing, workers, progress, before=len(indices) - len(missing)))


def _indices(first: int, events: int) -> range:
    if events < 1 or first < 0:
        raise ValueError(f"events must be at least 1 and first at least 0, got {events} and {first}")
    return range(first, first + events)


def _check_workers(workers: int | None) -> None:
    """Before anything is written: a number of processes that can be, and packages that are there."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    for module in PACKAGES:
        require(module)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(
    order: Order, indices: Sequence[int], workers: int | None, progress: bool, before: int = 0
) -> Iterator[Answer]:
    """Answers of all events that succeed, as they come; then one error that names those that did not."""
    _check_workers(workers)
    workers = min(cores() if workers is None else workers, max(len(indices), 1))
    source = _here(order, indices) if workers == 1 else _parallel(order, indices, workers)
    failures: dict[int, str] = {}
    done = before
    bar = tqdm(total=before + len(indices), initial=before, unit="event", disable=not progress, dynamic_ncols=True)
    try:
        for answer in source:
            if answer.error is None:
                done += 1
                bar.update()
                yield answer
            else:
                failures[answer.index] = answer.error
                if answer.trace:
                    bar.write(answer.trace, file=sys.stderr)
    finally:
        bar.close()
        source.close()
    if failures:
        raise SimulationError(failures, done)


def _here(order: Order, indices: Sequence[int]) -> Generator[Answer, None, None]:
    """Answers from this process."""
    for index in indices:
        yield carry_out(order, index)


def _parallel(order: Order, indices: Sequence[int], workers: int) -> Generator[Answer, None, None]:
    """Answers from worker processes, in the order in which they come.

    Each worker is a fresh Python (not a fork: a notebook's threads and locks stay out of it, and a script needs no
    `if __name__ == "__main__"`), with one thread that hands it events and waits for its answers.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in indices:
        waiting.put(index)
    answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # The workers import this very package, from wherever it was imported here.
    roots = [str(Path(__file__).resolve().parents[3]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(root for root in roots if root)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "import hepattn.data.simulation.worker as worker; worker.main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        for _ in range(workers)
    ]
    threads = [
        threading.Thread(target=_serve, args=(process, order, waiting, answers), daemon=True) for process in processes
    ]
    try:
        for thread in threads:
            thread.start()
        running = workers
        while running:
            answer = answers.get()
            if answer is None:
                running -= 1
            else:
                yield answer
        while not waiting.empty():  # every worker has died
            yield Answer(waiting.get(), error="no worker was left to make it")
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()
        for thread in threads:
            thread.join()
        if order.out is not None:
            clean(order.out, indices)


def _serve(
    process: "subprocess.Popen[bytes]",
    order: Order,
    waiting: "queue.SimpleQueue[int]",
    answers: "queue.SimpleQueue[Answer | None]",
) -> None:
    """Give one worker an event after the other; a worker that dies fails the event that it had, and only that one."""
    assert process.stdin is not None
    assert process.stdout is not None
    index: int | None = None
    try:
        send(process.stdin, order)  # type: ignore[arg-type]
        while True:
            try:
                index = waiting.get_nowait()
            except queue.Empty:
                break
            send(process.stdin, index)  # type: ignore[arg-type]
            answers.put(receive(process.stdout))  # type: ignore[arg-type]
            index = None
        process.stdin.close()
        process.wait()
    except (EOFError, OSError, pickle.UnpicklingError):
        if index is not None:
            answers.put(Answer(index, error=f"its worker process ended with status {process.wait()}"))
    finally:
        process.stdout.close()
        answers.put(None)
