"""The parity matrix: every kernel, mask, layout and dtype on a device, against the dense reference in float64.

`python -m tests.attention.matrix [--device cuda]` prints what passed, what refused and the worst errors, by kernel.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context

import torch

from hepattn.attention import DistanceBias
from hepattn.attention.agreement import expect
from hepattn.attention.backends import flash, flex
from hepattn.masks import Dense, GlobalTokens, Mask, Strided, Window

__all__ = ["KERNELS", "Cell", "Outcome", "cells", "run"]

KERNELS = ("sdpa", "flex", "flash", "auto")
DTYPES = {"cpu": ("float64", "float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
SELF = {"one event": (300,), "ring of one": (1,), "several events": (150, 0, 1, 7, 260)}
CROSS = {
    "cross, one event": ((150,), (450,)),  # two blocks of queries and four of keys
    "cross, several": ((30, 5, 1, 20), (300, 2, 7, 90)),
    "cross, more queries": ((300, 1, 150), (140, 0, 30)),
    "cross, no keys in one": ((5, 3), (7, 0)),
}
SELF_MASKS: dict[str, Mask | None] = {
    "none": None,
    "window, even": Window(64),
    "window, odd": Window(33),
    "window, wrapped": Window(65, wrap=True),
    "window, itself": Window(1),
    "window, neighbours": Window(2),
    "window | tokens": Window(16, wrap=True) | GlobalTokens([0, 5, 200]),
    "tokens": GlobalTokens([0, 5]),
    "window & window": Window(40) & Window(90, wrap=True),
    "dense": None,  # drawn from the layout
}
CROSS_MASKS: dict[str, Mask | None] = {
    "none": None,
    "strided": Strided(33),
    "strided, wrapped": Strided(64, wrap=True),
    "strided, transposed": Strided(16, wrap=True).transpose,
    "dense": None,
}
BIASES = {"": None, "bias": False, "circular bias": True}
HEADS, DIM = 2, 32


@dataclass(frozen=True)
class Cell:
    """One call: names of kernel, dtype, mask, layout and bias, and a device."""

    kernel: str
    dtype: str
    mask: str
    layout: str
    bias: str
    device: str
    gradients: bool = True

    def __str__(self) -> str:
        words = (self.kernel, self.dtype, self.mask, self.layout, self.bias, "" if self.gradients else "no gradients")
        return ", ".join(word for word in words if word)

    @property
    def lengths(self) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Of queries, and of keys in cross-attention."""
        return CROSS[self.layout] if self.layout in CROSS else (SELF[self.layout], None)

    def make_mask(self) -> Mask | None:
        """The mask; a dense one is drawn, with one empty row an event."""
        if self.mask != "dense":
            return (CROSS_MASKS if self.layout in CROSS else SELF_MASKS)[self.mask]
        queries, keys = self.lengths
        generator = torch.Generator().manual_seed(1)
        drawn = []
        for n, m in zip(queries, queries if keys is None else keys, strict=True):
            pairs = torch.rand(n, m, generator=generator) > 0.7
            pairs[n // 2 : n // 2 + 1] = False
            drawn.append(pairs.to(self.device))
        return Dense(drawn)

    def make_bias(self, dtype: torch.dtype) -> DistanceBias | None:
        """The bias, its slopes a leaf."""
        wrap = BIASES[self.bias]
        if wrap is None:
            return None
        slopes = torch.tensor([0.5, 0.03], dtype=torch.float64).to(self.device, dtype).requires_grad_(self.gradients)
        return DistanceBias(slopes, wrap=wrap)


@dataclass(frozen=True)
class Outcome:
    """What a cell gave: the reason for a refusal, or errors as multiples of what is allowed (at most 1 is right)."""

    refusal: str = ""
    value: float = 0.0
    lse: float = 0.0
    gradient: float = 0.0

    @property
    def worst(self) -> float:
        """The largest of the three."""
        return max(self.value, self.lse, self.gradient)


def cells(device: str, kernels: Sequence[str] = KERNELS) -> Iterator[Cell]:
    """All cells of a device; on a CPU flex is asked for values only."""
    layouts = [*product(SELF, SELF_MASKS), *product(CROSS, CROSS_MASKS)]
    for kernel, dtype, (layout, mask), bias in product(kernels, DTYPES[device], layouts, BIASES):
        if bias and (layout in CROSS or mask not in {"none", "window, wrapped", "dense"}):
            continue
        yield Cell(kernel, dtype, mask, layout, bias, device, gradients=not (kernel == "flex" and device == "cpu"))


def run(cell: Cell) -> Outcome:
    """The call and its gradients, of output and log-sum-exp at once, compared with the reference."""
    dtype = getattr(torch, cell.dtype)
    lengths, kv_lengths = cell.lengths
    counts = (sum(lengths), sum(kv_lengths or lengths), sum(kv_lengths or lengths), sum(lengths))
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(n, HEADS, DIM, generator=generator, dtype=torch.float64) for n in counts]
    q, k, v, g = (x.to(cell.device, dtype) for x in drawn)
    e = torch.randn(counts[0], HEADS, generator=generator).to(cell.device)
    found = expect(
        q,
        k,
        v,
        mask=cell.make_mask(),
        lengths=lengths,
        kv_lengths=kv_lengths,
        bias=cell.make_bias(dtype),
        upstream=g if cell.gradients else None,
        upstream_lse=e if cell.gradients else None,
    ).ask(cell.kernel, lse=not (cell.kernel == "flex" and cell.device == "cpu"))
    value, lse, gradient = (0.0 if one is None else one.ratio for one in (found.value, found.lse, found.gradient))
    return Outcome(found.refusal, value, lse, gradient)


def _kind(refusal: str) -> str:
    """The sentence without sizes and dtypes."""
    return re.sub(r"\(.*\)", "(...)", refusal.split(", got", maxsplit=1)[0])


def _prepare() -> None:
    """What a process needs to run all cells: exact products, room for kernels of flex of each kind and length."""
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)  # a number that is left open may settle while dynamo traces, which it takes for a fault
    flex.GRAPHS = 1000


def main(argv: Sequence[str]) -> int:
    """Runs all cells of a device and prints the summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.attention.matrix", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--kernels", nargs="+", default=list(KERNELS), choices=KERNELS)
    parser.add_argument("--dtypes", nargs="+", help="float32, bfloat16 ...; all that the device has by default")
    parser.add_argument("--processes", type=int, default=1, help="cells side by side: flex compiles most of its time")
    options = parser.parse_args(argv)
    dtypes = [dtype for dtype in DTYPES[options.device] if dtype in (options.dtypes or DTYPES[options.device])]
    door = flash.door()
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    sys.stdout.write(f"{name}, torch {torch.__version__}, flash through {door.name if door else 'nothing'}\n")
    sys.stdout.write("errors in units of what is allowed, see hepattn.attention.agreement\n\n")
    sys.stdout.write(
        f"{'kernel':<8}{'dtype':<10}{'passed':>7}{'refused':>8}{'failed':>7}{'value':>8}{'lse':>8}{'gradient':>9}\n"
    )
    failures, refusals = [], set()
    asked = [cell for cell in cells(options.device, options.kernels) if cell.dtype in dtypes]
    with ProcessPoolExecutor(options.processes, get_context("spawn"), _prepare) as workers:
        outcomes = workers.map(run, asked)
        for kernel, dtype in product(options.kernels, dtypes):
            found = [(cell, next(outcomes)) for cell in asked if (cell.kernel, cell.dtype) == (kernel, dtype)]
            done = [(cell, outcome) for cell, outcome in found if not outcome.refusal]
            wrong = [(cell, outcome) for cell, outcome in done if not outcome.worst <= 1]
            refusals |= {_kind(outcome.refusal) for _, outcome in found if outcome.refusal}
            worst = [
                max([getattr(outcome, part) for _, outcome in done], default=0.0)
                for part in ("value", "lse", "gradient")
            ]
            sys.stdout.write(
                f"{kernel:<8}{dtype:<10}{len(done) - len(wrong):>7}{len(found) - len(done):>8}{len(wrong):>7}"
                f"{worst[0]:>8.2f}{worst[1]:>8.2f}{worst[2]:>9.2f}\n"
            )
            sys.stdout.flush()
            failures += wrong
    sys.stdout.write("\nrefusals:\n" + "".join(f"  {one}\n" for one in sorted(refusals)))
    for cell, outcome in failures:
        sys.stdout.write(f"FAILED {cell}: {outcome}\n")
    return len(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
