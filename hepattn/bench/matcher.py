"""Solvers of assignments: scipy against lapx and torch-linear-assignment, one matrix and the layers of a decoder.

`python -m hepattn.bench matcher`. Three kinds of costs: those of a trained and of an untrained tracker on random
tracks, as `pair_costs` gives them, and uniform random numbers. Solvers that are not installed are named and left out.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor

from hepattn.bench.measure import Row, report, time_all
from hepattn.models.matcher import Matched, Matcher
from hepattn.models.track_losses import pair_costs

KINDS = ("trained", "untrained", "uniform")
HITS = 9  # of a target
ALL_HITS = 5  # of the event, a target: fewer, so that targets share hits and confuse
ON_GPU = "torch-linear-assignment, GPU"


def tracks(targets: int, device: str) -> tuple[Tensor, Tensor]:
    """Targets (M, N) bool over hits in phi order, each within some 100 hits; and the first hit of each (M,)."""
    generator = torch.Generator().manual_seed(0)
    hits = ALL_HITS * targets
    first = torch.randint(hits, (targets,), generator=generator)
    on = (first[:, None] + torch.randint(-50, 50, (targets, HITS), generator=generator)) % hits
    return torch.zeros(targets, hits, dtype=torch.bool).scatter_(1, on, True).to(device), first.to(device)


def make(kind: str, queries: int, targets: int, device: str) -> Tensor:
    """Costs (Q, M) float32 of one kind.

    Trained: 85 % of the queries follow a target, one in ten of them another query's; they know most of its hits and
    like those nearby more than others. Untrained: products of small random vectors.
    """
    torch.manual_seed(0)
    if kind == "uniform":
        return torch.rand(queries, targets, device=device)
    on, first = tracks(targets, device)
    hits = on.shape[1]
    if kind == "untrained":
        masks = torch.randn(queries, 64, device=device) @ torch.randn(64, hits, device=device) / 16 - 6
        return pair_costs(0.1 * torch.randn(queries, device=device), masks, on)
    follows = torch.randperm(targets, device=device)[torch.arange(queries, device=device) % targets]
    follows = torch.where(torch.rand(queries, device=device) < 0.1, follows.roll(1), follows)
    real = torch.rand(queries, device=device) < 0.85
    away = (torch.arange(hits, device=device) - first[follows, None]).abs()
    masks = torch.randn(queries, hits, device=device) - 8 + 3 * (torch.minimum(away, hits - away) < 100)
    masks += (on[follows] & real[:, None]) * (8 + 3 * torch.randn(queries, hits, device=device))
    return pair_costs(torch.where(real, 2.0, -2.0) + torch.randn(queries, device=device), masks, on)


def like(costs: Tensor, layers: int) -> list[Tensor]:
    """As many matrices, equally hard: the same with rows in another order."""
    return [costs[torch.randperm(len(costs), device=costs.device)] for _ in range(layers)]


def total(costs: Sequence[Tensor], matched: Sequence[Matched]) -> float:
    """The cost of all pairs, in float64."""
    pairs = zip(costs, matched, strict=True)
    return sum(one.cpu().double()[found.query, found.target].sum().item() for one, found in pairs)


def sides(device: str, threads: int) -> tuple[dict[str, Callable[[list[Tensor]], list[Matched]]], dict[str, str]]:
    """What can be run here, and why the others can not."""
    found: dict[str, Callable[[list[Tensor]], list[Matched]]] = {}
    missing: dict[str, str] = {}
    for name in ("scipy", "lapx"):
        try:
            for workers in sorted({1, threads}):
                found[f"{name}, {workers} threads" if workers > 1 else f"{name}, 1 thread"] = Matcher(
                    name, workers
                ).match
        except ImportError as error:
            missing[name] = str(error)
    if device != "cuda":
        missing[ON_GPU] = "needs --device cuda; on a CPU it calls scipy"
    else:
        try:
            found[ON_GPU] = partial(on_gpu, import_module("torch_linear_assignment").batch_linear_assignment)
        except ImportError as error:
            missing[ON_GPU] = str(error)
    return found, missing


def on_gpu(solve: Callable[[Tensor], Tensor], costs: list[Tensor]) -> list[Matched]:
    """All matrices in one batch, which is solved where it lies."""
    chosen = solve(torch.stack(costs)).cpu()  # (L, Q): the target of each query, or -1
    out = []
    for row in chosen:
        query = (row >= 0).nonzero()[:, 0]
        out.append(Matched(query, row[query], torch.zeros(0, dtype=torch.int64)))
    return out


def measure(kind: str, one: Tensor, layers: int, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of one matrix, or of one a layer."""
    what = f"{kind}, {f'{layers} x ' if layers > 1 else ''}{one.shape[0]:,} x {one.shape[1]:,}"
    work, missing = sides(options.device, options.threads)
    costs = like(one, layers)
    ours = "scipy, 1 thread"
    if layers == 1:
        work = {side: solve for side, solve in work.items() if not side.endswith("threads")}
    best, skipped = total(costs, work[ours](costs)), {}
    for side, solve in list(work.items()):
        try:
            found = total(costs, solve(costs))
        except RuntimeError as error:
            skipped[side] = f"failed: {str(error).splitlines()[0]}"
        else:
            if not math.isclose(found, best, rel_tol=1e-5, abs_tol=1e-4):
                skipped[side] = f"wrong: total {found:.6g}, scipy {best:.6g}"
        if side in skipped:
            del work[side]
    times = time_all({side: partial(solve, costs) for side, solve in work.items()}, options.rounds)
    yield from (Row(what, side, found, found / times[ours]) for side, found in times.items())
    yield from (Row(what, side, None, note=why) for side, why in (skipped | missing).items())


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m hepattn.bench matcher", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--queries", type=int, nargs="+", default=[1_000, 2_500])
    parser.add_argument("--targets", type=int, nargs="+", default=[1_000, 3_000], help="as many numbers as of queries")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=min(4, Matcher().workers))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args(argv)
    if len(options.queries) != len(options.targets):
        parser.error(f"{len(options.queries)} numbers of queries, but {len(options.targets)} of targets")
    rows = (
        row
        for queries, targets in zip(options.queries, options.targets, strict=True)
        for kind in options.kinds
        for costs in [make(kind, queries, targets, options.device)]
        for layers in sorted({1, options.layers})
        for row in measure(kind, costs, layers, options)
    )
    report(f"Assignments of least cost, costs on a {options.device}", rows, options.json)
    return 0
