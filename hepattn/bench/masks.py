"""Block masks for FlexAttention: from intervals, cold and kept, against torch's create_block_mask.

`python -m hepattn.bench masks [--device cuda]`. Window 1,024, wrapped, two events.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from hepattn.bench.measure import Row, report, time_all
from hepattn.masks import Window
from hepattn.masks.blocks import block_mask
from hepattn.sequence import Layout

WINDOW = Window(1024, wrap=True)
LARGEST_ON_CPU = 16_384  # create_block_mask evaluates all pairs: 4 GB at 16k


def sides(tokens: int, device: str) -> dict[str, Callable[[], object]]:
    """Ours without and with a kept layout, and torch's."""
    lengths = [tokens // 3, tokens - tokens // 3]
    kept = Layout.of(lengths, device)
    event, position = kept.event.int(), kept.position.int()
    length = kept.offsets.diff().int()[kept.event]

    def mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001  (as its users write it)
        distance = (position[q] - position[k]).abs()
        near = (distance <= WINDOW.half) | (length[q] - distance <= WINDOW.half)
        return (event[q] == event[k]) & near

    def cold() -> object:
        layout = Layout.of(lengths, device)
        return block_mask(WINDOW, layout, layout)

    found: dict[str, Callable[[], object]] = {
        "hepattn, cold": cold,
        "hepattn, kept": lambda: block_mask(WINDOW, kept, kept),
    }
    if device == "cuda":
        compiled = torch.compile(create_block_mask)
        found["create_block_mask, compiled"] = lambda: compiled(mod, None, None, tokens, tokens, device=device)
    elif tokens <= LARGEST_ON_CPU:
        found["create_block_mask"] = lambda: create_block_mask(mod, None, None, tokens, tokens, device=device)
    return found


def measure(tokens: int, device: str, rounds: int) -> Iterator[Row]:
    """Rows of one size."""
    work = f"block mask, {tokens:,} hits"
    times = time_all(sides(tokens, device), rounds)
    for side, time in times.items():
        yield Row(work, side, time, time / times["hepattn, cold"])
    if len(times) == 2:
        yield Row(work, "create_block_mask", None, note="not run: needs N x N memory")


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m hepattn.bench masks", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="+", default=[16_384, 65_536, 131_072])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args(argv)
    rows = (row for tokens in options.tokens for row in measure(tokens, options.device, options.rounds))
    report(f"{WINDOW}, two events, {options.device}", rows, options.json)
    return 0
