"""How a bench measures and prints: interleaved medians, peak memory in a process of its own, one table."""

import json
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hepattn import info

__all__ = ["Row", "peak_memory", "report", "time_all"]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        work: what was done, such as "forward, 16,384 x 8 x 32".
        side: who did it.
        milliseconds: the median of the rounds; None where it was not run.
        ratio: how many times longer than ours.
        megabytes: growth of the peak memory during the work; None where it was not measured.
        note: why something was left out.
    """

    work: str
    side: str
    milliseconds: float | None
    ratio: float | None = None
    megabytes: float | None = None
    note: str = ""


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_all(sides: Mapping[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Median milliseconds of each side: one warm-up, then rounds in which every side takes its turn."""
    for work in sides.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            _synchronise()
            start = time.perf_counter()
            work()
            _synchronise()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _peak() -> float:
    """Peak memory of this process, MB. On Linux getrusage would count what the parent had, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS counts bytes


def _grow(work: Callable[..., object], arguments: tuple[object, ...], queue: "multiprocessing.Queue[float]") -> None:
    before = _peak()
    work(*arguments)
    queue.put(_peak() - before)


def peak_memory(work: Callable[..., object], *arguments: object) -> float | None:
    """Megabytes by which `work(*arguments)` raises the peak memory of a new process; None where it could not finish."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[float] = context.Queue()
    process = context.Process(target=_grow, args=(work, arguments, queue))
    process.start()
    process.join()
    return queue.get() if process.exitcode == 0 else None


def report(title: str, rows: Iterable[Row], path: Path | None) -> None:
    """Prints each row as soon as it is measured, below the machine; also as JSON where `path` is given."""
    machine = info.collect()
    out = sys.stdout.write
    out(f"{title}\n{machine.platform}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    out(f", {torch.cuda.get_device_name()}\n\n" if torch.cuda.is_available() else "\n\n")
    out(f"{'work':<44}{'side':<32}{'ms':>12}{'x ours':>9}{'peak MB':>9}\n")
    measured = []
    for row in rows:
        cells = [
            "-" if value is None else f"{value:,.{digits}f}"
            for value, digits in ((row.milliseconds, 3), (row.ratio, 1), (row.megabytes, 0))
        ]
        out(f"{row.work:<44}{row.side:<32}{cells[0]:>12}{cells[1]:>9}{cells[2]:>9}  {row.note}".rstrip() + "\n")
        sys.stdout.flush()
        measured.append(row)
    if path is not None:
        record = {"title": title, "machine": asdict(machine), "rows": [asdict(row) for row in measured]}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
