"""Matching queries to targets: the assignment of least total cost, solved on the CPU while the GPU goes on.

`python -m hepattn.bench matcher` measures the solvers.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = ["LIMIT", "SOLVERS", "Matched", "Matcher", "Pending", "Solver", "finite_costs"]

Solver = Callable[[NDArray[np.float64]], tuple[NDArray[Any], NDArray[Any]]]
"""Finite costs (Q, M) -> the rows and the columns of the min(Q, M) pairs of least total cost, in any order."""
Answer = TypeVar("Answer")

LIMIT = 1e9
"""Costs beyond +-LIMIT are cut to it, so that double precision still tells ordinary costs beside them apart."""


@dataclass(frozen=True)
class Matched:
    """The min(Q, M) pairs of least total cost; `query[k]` belongs to `target[k]`. On the CPU until moved with `to`."""

    query: Tensor
    """(K,) int64, ascending."""
    target: Tensor
    """(K,) int64, no target twice."""
    surplus: Tensor
    """(M - K,) int64, ascending: targets that got no query, as there are too few; those that the optimum leaves."""
    changed: int = 0
    """How many costs were not finite or beyond +-`LIMIT`, and so were changed before solving."""

    def to(self, device: torch.device | str) -> "Matched":
        """The same on another device."""
        query, target, surplus = (one.to(device) for one in (self.query, self.target, self.surplus))
        return Matched(query, target, surplus, self.changed)


def scipy_solver(costs: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """`scipy.optimize.linear_sum_assignment` (Crouse, doi:10.1109/TAES.2016.140952), without the GIL."""
    rows, columns = linear_sum_assignment(costs)
    return rows, columns


def lapx_solver(costs: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """`lapjvs` of the package lapx (Jonker and Volgenant, doi:10.1007/BF02278710), in double precision.

    Raises:
        ImportError: lapx is not installed, or too old.
    """
    try:
        lapjvs = import_module("lap").lapjvs
    except (ImportError, AttributeError) as error:
        raise ImportError('solver="lapx" needs `pip install "lapx>=0.11"`; solver="scipy" needs nothing') from error
    rows, columns = lapjvs(costs, extend_cost=True, return_cost=False, prefer_float32=False)
    return rows, columns


SOLVERS: dict[str, Solver] = {"scipy": scipy_solver, "lapx": lapx_solver}


def finite_costs(costs: NDArray[Any]) -> tuple[NDArray[np.float64], int]:
    """Costs that any solver takes, in double precision, and how many had to be changed.

    Finite ones are cut to +-`LIMIT`. NaN, inf and -inf (an overflow, no promise) become one number so large that a
    matching with fewer of them is always cheaper, whatever the others cost: none is taken that can be avoided.

    Args:
        costs: (Q, M) float; is not written to
    """
    out = np.array(costs, dtype=np.float64)
    if np.abs(out).max(initial=0.0) <= LIMIT:  # False with a NaN, too
        return out, 0
    sound = np.isfinite(out)
    changed = int(np.count_nonzero(~sound | (np.abs(out) > LIMIT)))
    np.clip(out, -LIMIT, LIMIT, out=out)
    known = out[sound]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    out[~sound] = high + min(out.shape) * (high - low) + 1.0
    return out, changed


class Pending(Generic[Answer]):
    """A matching under way; `result()` waits for it."""

    def __init__(self, futures: list[Future[Matched]], arrange: Callable[[list[Matched]], Answer]) -> None:
        self._futures, self._arrange = futures, arrange

    def done(self) -> bool:
        """True = `result()` would not wait."""
        return all(one.done() for one in self._futures)

    def result(self) -> Answer:
        """One `Matched` a cost matrix, arranged as the costs were.

        Raises:
            RuntimeError: a solver failed; it says on which shape.
        """
        return self._arrange([one.result() for one in self._futures])


class Matcher:
    """Solves assignments in threads: solvers let go of the GIL, so that events and decoder layers run side by side.

    Args:
        solver: a name in `SOLVERS`, or a function like those
        workers: threads; None: the cores this process may use. They start with the first matching.

    Raises:
        ValueError: an unknown solver, or workers < 1
        ImportError: the solver's package is not installed
    """

    def __init__(self, solver: str | Solver = "scipy", workers: int | None = None) -> None:
        if isinstance(solver, str) and solver not in SOLVERS:
            raise ValueError(f"solver is one of {', '.join(SOLVERS)}, or a function, not {solver!r}")
        if workers is not None and workers < 1:
            raise ValueError(f"got workers={workers}: at least one thread solves")
        self.solver: Solver = SOLVERS[solver] if isinstance(solver, str) else solver
        self.name = solver if isinstance(solver, str) else getattr(solver, "__name__", repr(solver))
        self.workers = _cores() if workers is None else workers
        self._pool: ThreadPoolExecutor | None = None
        if solver == "lapx":
            lapx_solver(np.zeros((1, 1)))  # says at once if it is missing

    @overload
    def match(self, costs: Sequence[Tensor]) -> list[Matched]: ...
    @overload
    def match(self, costs: Sequence[Sequence[Tensor]]) -> list[list[Matched]]: ...
    def match(self, costs: Any) -> Any:
        """The pairs of least total cost of each matrix; `start(costs).result()`.

        Args:
            costs: (Q_i, M_i) float matrices, a list of them or (layers) a list of lists; of any device. One without
                queries or targets gives no pair. How costs that are not finite are treated, `finite_costs` says.

        Returns:
            as many `Matched`, in a list or a list of lists

        Raises:
            ValueError: a cost is no (Q, M) matrix of floating point
            RuntimeError: a solver failed; it says on which shape.
        """
        return self.start(costs).result()

    @overload
    def start(self, costs: Sequence[Tensor]) -> Pending[list[Matched]]: ...
    @overload
    def start(self, costs: Sequence[Sequence[Tensor]]) -> Pending[list[list[Matched]]]: ...
    def start(self, costs: Any) -> Any:
        """Begins the same, and returns at once: neither the GPU nor the caller waits.

        Costs on a GPU go to pinned memory in one copy, on a stream of its own, so that later kernels run meanwhile;
        threads wait for that copy. The costs may be changed as soon as this returns.

        Raises:
            ValueError: a cost is no (Q, M) matrix of floating point
        """
        nested = len(costs) > 0 and not isinstance(costs[0], Tensor)
        lengths = [len(row) for row in costs] if nested else [len(costs)]
        flat: list[Tensor] = [one for row in costs for one in row] if nested else list(costs)
        for one in flat:
            if not isinstance(one, Tensor) or one.dim() != 2 or not one.is_floating_point():
                got = f"{one.dtype} {tuple(one.shape)}" if isinstance(one, Tensor) else type(one).__name__
                raise ValueError(f"costs are floating (queries, targets) matrices, in a list or a list of lists: {got}")

        def arrange(matched: list[Matched]) -> list[Any]:
            ends = np.cumsum(lengths).tolist()
            rows = [matched[end - length : end] for end, length in zip(ends, lengths, strict=True)]
            return rows if nested else rows[0]

        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="matcher")
        copies, event = _to_cpu(flat)
        return Pending([self._pool.submit(self._solve, one, event) for one in copies], arrange)

    def close(self) -> None:
        """Ends the threads, once what they do is done; the next matching starts new ones."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None}  # threads stay where they are when a model is copied or saved

    def _solve(self, copy: Tensor, event: torch.cuda.Event | None) -> Matched:
        if event is not None:
            event.synchronize()
        queries, targets = copy.shape
        pairs = min(queries, targets)
        if not pairs:
            none = torch.zeros(0, dtype=torch.int64)
            return Matched(none, none, torch.arange(targets))
        costs, changed = finite_costs(copy.numpy())
        try:
            rows, columns = (np.asarray(one, dtype=np.int64) for one in self.solver(costs))
        except Exception as error:
            raise RuntimeError(f"{self.name} failed on costs of shape ({queries}, {targets}): {error}") from error
        left = np.setdiff1d(np.arange(targets), columns)
        if len(rows) != len(columns) or len(np.unique(rows)) != pairs or len(left) != targets - pairs:
            got = f"{len(rows)} rows, {len(columns)} columns, not {pairs} different pairs"
            raise RuntimeError(f"{self.name} gave no assignment of costs of shape ({queries}, {targets}): {got}")
        order = np.argsort(rows)
        query, target, surplus = (torch.from_numpy(one) for one in (rows[order], columns[order], left))
        return Matched(query, target, surplus, changed)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _to_cpu(costs: list[Tensor]) -> tuple[list[Tensor], torch.cuda.Event | None]:
    """Copies in ordinary memory, or in pinned memory and the event after which they are there."""
    costs = [one.detach() if one.dtype == torch.float64 else one.detach().float() for one in costs]
    if not costs or any(one.device != costs[0].device or one.dtype != costs[0].dtype for one in costs):
        return [one.to("cpu", copy=True) for one in costs], None
    if not costs[0].is_cuda:
        return [one.to("cpu", copy=True) for one in costs], None
    device = costs[0].device
    joined = torch.cat([one.reshape(-1) for one in costs])
    pinned = torch.empty(joined.shape, dtype=joined.dtype, pin_memory=True)
    stream, event = torch.cuda.Stream(device), torch.cuda.Event(blocking=True)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        pinned.copy_(joined, non_blocking=True)
        event.record(stream)
    joined.record_stream(stream)  # its memory is not given away before the copy is made
    parts = pinned.split([one.numel() for one in costs])
    return [part.view(one.shape) for part, one in zip(parts, costs, strict=True)], event
