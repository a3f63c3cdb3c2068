"""One windowed call on a GPU: ours (auto, each kernel) against torch's flash kernel, FA4 itself, and global attention.

`python -m hepattn.bench attention`. Window 1,024 on one event, bfloat16; times from CUDA events. Beside them what a
wrap costs, in one event and in eight of the same size together, and four global tokens, also in a graph.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hepattn.attention import attend
from hepattn.attention.backends import flash
from hepattn.bench.measure import Row, report
from hepattn.masks import GlobalTokens, Mask, Window
from hepattn.sequence import Layout

SIZE = 1024
SIZES = ("65536x8x32", "65536x4x64", "65536x2x128", "131072x4x64")
Work = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(layout: Layout, backend: str, mask: Mask) -> Work:
    """`attend` with a kept layout."""
    return lambda q, k, v: attend(q, k, v, mask=mask, lengths=layout, backend=backend)


def torch_flash(layout: Layout) -> Work:
    """The flash kernel that torch ships, called as its users call it."""
    from torch.nn.attention.varlen import varlen_attn

    offsets, longest, half = layout.offsets.int(), layout.max_length, SIZE // 2

    def work(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found: Any = varlen_attn(q, k, v, offsets, offsets, longest, longest, window_size=(half, half))
        out: Tensor = found
        return out

    return work


def fa4() -> Work:
    """flash-attn-4, called as its users call it."""
    from flash_attn.cute import flash_attn_func

    half = SIZE // 2

    def work(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found: Any = flash_attn_func(q[None], k[None], v[None], window_size=(half, half))
        out: Tensor = found[0] if isinstance(found, tuple) else found
        return out[0]

    return work


def everyone(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All tokens look at all: what a window saves."""
    q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
    return scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)


def sides(tokens: int, device: str) -> dict[str, Work]:
    """Who is measured; ours first."""
    layout, eight = Layout.of([tokens], device), Layout.of([tokens // 8] * 7 + [tokens - tokens // 8 * 7], device)
    window, ring = Window(SIZE), Window(SIZE, wrap=True)
    with_tokens = ours(layout, "auto", ring | GlobalTokens(range(4)))
    found = {
        "hepattn auto": ours(layout, "auto", window),
        "hepattn auto, wrapped": ours(layout, "auto", ring),
        "hepattn auto, 8 events": ours(eight, "auto", window),
        "hepattn auto, wrapped, 8 events": ours(eight, "auto", ring),
        "hepattn auto, wrapped, 4 tokens": with_tokens,
        "the same, compiled": torch.compile(with_tokens, fullgraph=True, dynamic=True),
        "hepattn flex": ours(layout, "flex", window),
        "hepattn flex, wrapped": ours(layout, "flex", ring),
    }
    if door := flash.door():
        found[f"hepattn flash ({door.name})"] = ours(layout, "flash", window)
        found[f"hepattn flash ({door.name}), wrapped"] = ours(layout, "flash", ring)
        found["torch varlen_attn (FA2)"] = torch_flash(layout)
        if door.name == "flash-attn-4":
            found["flash-attn-4 itself"] = fa4()
    found["global SDPA"] = everyone
    return found


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Median over rounds between CUDA events, after three calls that warm up.

    Before each call 4 GB are written: the call finds no operand in the cache, and the device is busy for about a
    millisecond, in which the host prepares the call, as in a model whose host runs ahead.
    """
    flush = torch.empty(1 << 28, dtype=torch.int8, device="cuda")
    for _ in range(3):
        work()
    marks = []
    for _ in range(rounds):
        for _ in range(16):
            flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        marks.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks)


def measure(tokens: int, heads: int, dim: int, rounds: int) -> Iterator[Row]:
    """Rows of one size: forward without a gradient, and forward with backward."""
    generator = torch.Generator(device="cuda").manual_seed(0)
    shape = (tokens, heads, dim)
    q, k, v, g = (torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    for grad in (False, True):
        work = f"{'forward + backward' if grad else 'forward'}, {tokens:,} x {heads} x {dim}"
        first: float | None = None
        for name, side in sides(tokens, "cuda").items():
            if grad and name == "global SDPA":
                continue
            leaves = [t.detach().requires_grad_(grad) for t in (q, k, v)]

            def run(side: Work = side, leaves: list[Tensor] = leaves, grad: bool = grad) -> None:
                out = side(*leaves)
                if grad:
                    torch.autograd.grad(out, leaves, g)

            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            time = milliseconds(run, rounds)
            first = time if first is None else first
            memory = (torch.cuda.max_memory_allocated() - before) / 2**20
            yield Row(work, name, time, time / first, memory)


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m hepattn.bench attention", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), help="tokens x heads x head dimension: 65536x4x64")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device; on a CPU measure local-cpu")
    sizes = [tuple(int(number) for number in size.split("x")) for size in options.sizes]
    rows = (row for tokens, heads, dim in sizes for row in measure(tokens, heads, dim, options.rounds))
    report(f"One call in Window({SIZE}), one event, bfloat16", rows, options.json)
    return 0
