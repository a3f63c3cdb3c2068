"""Windowed attention on a CPU: ours (blocked SDPA) against SDPA with a dense mask, and FlexAttention compiled.

`python -m hepattn.bench local-cpu`; run it on an idle machine. Window 256, 8 heads x 32, float32, one event.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from hepattn.attention import attend
from hepattn.bench.measure import Row, peak_memory, report, time_all
from hepattn.masks import Window
from hepattn.sequence import Layout

WINDOW = Window(256)
HEADS, HEAD_DIM = 8, 32
LARGEST_DENSE = 16_384  # beyond it the dense mask, as SDPA uses it, takes tens of GB
FLEX = "flex, compiled"


def inputs(tokens: int, *, grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v (tokens, heads, head_dim)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, tokens, HEADS, HEAD_DIM, generator=generator).unbind(0)
    return q.clone().requires_grad_(grad), k.clone().requires_grad_(grad), v.clone().requires_grad_(grad)


def make(side: str, tokens: int, *, grad: bool) -> Callable[[], object]:
    """The work of one side, with everything that depends on lengths alone made beforehand."""
    q, k, v = inputs(tokens, grad=grad)
    gradient = torch.ones_like(q)
    layout = Layout.of([tokens], "cpu")
    if side == "SDPA, dense mask":
        mask = WINDOW.dense(tokens)

        def forward() -> Tensor:
            q_, k_, v_ = (t.transpose(0, 1)[None] for t in (q, k, v))
            return scaled_dot_product_attention(q_, k_, v_, attn_mask=mask)[0].transpose(0, 1)
    else:
        backend = "flex" if side == FLEX else "sdpa"
        mask_ = Window(WINDOW.size, wrap="wrapped" in side)

        def forward() -> Tensor:
            return attend(q, k, v, mask=mask_, lengths=layout, backend=backend)

    def both() -> None:
        forward().backward(gradient)

    return both if grad else forward


def once(side: str, tokens: int, grad: bool) -> None:
    """One run, for its memory."""
    make(side, tokens, grad=grad)()


def measure(tokens: int, *, grad: bool, rounds: int) -> Iterator[Row]:
    """Rows of one size, forward, or forward and backward."""
    ours = "hepattn sdpa, blocks"
    sides = [ours, "hepattn sdpa, blocks, wrapped"]
    if tokens <= LARGEST_DENSE:
        sides.append("SDPA, dense mask")
    if not grad:
        sides.append(FLEX)
    times = time_all({side: make(side, tokens, grad=grad) for side in sides}, rounds)
    work = f"{'forward + backward' if grad else 'forward'}, {tokens:,} x {HEADS} x {HEAD_DIM}"
    for side in sides:
        memory = None if side == FLEX else peak_memory(once, side, tokens, grad)  # a new process would compile anew
        yield Row(work, side, times[side], times[side] / times[ours], memory)
    if tokens > LARGEST_DENSE:
        yield Row(work, "SDPA, dense mask", None, note=f"not run: {tokens**2 * 5 / 2**30:.0f} GiB for the mask")


def main(argv: Sequence[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m hepattn.bench local-cpu", description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4_096, 16_384, 65_536])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    options = parser.parse_args(argv)
    rows = (
        row
        for tokens in options.tokens
        for grad in (False, True)
        for row in measure(tokens, grad=grad, rounds=options.rounds)
    )
    report(f"Attention in {WINDOW} on a CPU, float32", rows, options.json)
    return 0
