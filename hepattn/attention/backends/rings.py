"""Wrapped windows from a kernel whose windows do not wrap, exact in every call.

A call without a wrap is right for all queries but the first and the last h = size // 2 of an event. Those 2h, in the
order of the ring, are asked for the 4h tokens around the seam: under a flash kernel's bottom-right alignment the window
(left=2h, right=0) of query a ends at key a + 2h and reaches back to a, which on the ring are h keys to either side. An
event of at most 2h tokens sees all of itself, in a third call. On a GPU these small calls run on a stream of their own,
beside the large one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from hepattn.attention.backends.operations import Backward, Forward, Pair, Varlen, differentiable, like_output

__all__ = ["ring_operation"]


@dataclass(frozen=True, eq=False)
class Part:
    """Some queries of a batch with some keys, as a flash kernel takes them.

    Attributes:
        queries: `(n,)` packed tokens of the batch.
        keys: `(m,)` packed tokens; one may stand there twice.
        numbers: int32 offsets of events in both, longest lengths, and the window (left, right).
    """

    queries: Tensor
    keys: Tensor
    numbers: tuple[Tensor, Tensor, int, int, int, int]

    def of(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Varlen:
        """The call for these alone."""
        q_offsets, k_offsets, max_q, max_k, left, right = self.numbers
        chosen = q[self.queries], k[self.keys], v[self.keys]
        return Varlen(*chosen, q_offsets, k_offsets, max_q, max_k, (left, right), scale)


@dataclass(frozen=True, eq=False)
class Rings:
    """What a call without a wrap gets wrong: the seams of long events, and events that the window covers whole.

    Attributes:
        longest: tokens of the longest event.
        parts: the calls that put it right.
        again: `(n,)` all their queries.
        plain: whether there is a query that the call without a wrap gets right.
    """

    longest: int
    parts: tuple[Part, ...]
    again: Tensor
    plain: bool


@lru_cache(maxsize=8)  # all layers of a model share them, forward and backward
def find_rings(lengths: tuple[int, ...], half: int, device: torch.device) -> Rings:
    """Of events of these lengths, in windows that reach `half` > 0 tokens to either side."""
    starts = [sum(lengths[:event]) for event in range(len(lengths))]
    events = list(zip(starts, lengths, strict=True))
    long = [event for event in events if event[1] > 2 * half]
    short = [event for event in events if 0 < event[1] <= 2 * half]
    parts = []
    if long:
        queries, keys = (_around_seams(long, reach, device) for reach in (half, 2 * half))
        q_offsets, k_offsets = (_offsets([2 * reach] * len(long), device) for reach in (half, 2 * half))
        parts.append(Part(queries, keys, (q_offsets, k_offsets, 2 * half, 4 * half, 2 * half, 0)))
    if short:
        tokens = torch.cat([torch.arange(start, start + n, device=device) for start, n in short])
        sizes = [n for _, n in short]
        offset = _offsets(sizes, device)
        parts.append(Part(tokens, tokens, (offset, offset, max(sizes), max(sizes), -1, -1)))
    again = torch.cat([part.queries for part in parts] or [torch.zeros(0, dtype=torch.int64, device=device)])
    return Rings(max(lengths, default=0), tuple(parts), again, plain=bool(long))


def _around_seams(events: list[tuple[int, int]], reach: int, device: torch.device) -> Tensor:
    """The last `reach` and the first `reach` tokens of events, given by start and length."""
    start, length = torch.tensor(events, device=device).T[..., None]
    return (start + torch.arange(-reach, reach, device=device) % length).flatten()


def _offsets(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def ring_operation(name: str, forward: Forward, backward: Backward) -> Callable[..., Pair]:
    """The operation `hepattn::name` from what a kernel does, as in `packed_operation`.

    It takes packed q, k, v (T, H, D), the events' lengths (B,) on the host, their int32 offsets on the device, `half`
    and the scale, and gives `(out (T, H, D), lse (H, T) float32)`, both with gradients.
    """

    def ring(
        q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, offsets: Tensor, half: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        rings = find_rings(tuple(lengths.tolist()), half, q.device)
        with _beside(q.device) as wait:
            few = [forward(part.of(q, k, v, scale)) for part in rings.parts]
        if rings.plain:
            out, lse = forward(Varlen(q, k, v, offsets, offsets, rings.longest, rings.longest, (half, half), scale))
        else:
            out, lse = like_output(q)
        wait()
        for part, (some, some_lse) in zip(rings.parts, few, strict=True):
            out.index_copy_(0, part.queries, some)
            lse.index_copy_(1, part.queries, some_lse)
        return out, lse

    def ring_backward(
        grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        lengths: Tensor, offsets: Tensor, half: int, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        rings = find_rings(tuple(lengths.tolist()), half, q.device)
        with _beside(q.device) as wait:
            few = []
            for part in rings.parts:
                upstream = grad[part.queries], None if grad_lse is None else grad_lse[:, part.queries]
                few.append(backward(*upstream, part.of(q, k, v, scale), out[part.queries], lse[:, part.queries]))
        if rings.plain:
            call = Varlen(q, k, v, offsets, offsets, rings.longest, rings.longest, (half, half), scale)
            # weights are exp(score - lse): those of queries that are asked again are zero
            dq, dk, dv = backward(grad, grad_lse, call, out, lse.index_fill(1, rings.again, torch.inf))
        else:
            dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
        wait()
        for part, (some_q, some_k, some_v) in zip(rings.parts, few, strict=True):
            dq.index_copy_(0, part.queries, some_q)
            dk.index_add_(0, part.keys, some_k)
            dv.index_add_(0, part.keys, some_v)
        return dq, dk, dv

    return differentiable(name, ring, ring_backward, tensors=2)


@contextmanager
def _beside(device: torch.device) -> Iterator[Callable[[], None]]:
    """What is asked for inside runs beside what is asked for afterwards, until the function that it gives is called."""
    if device.type != "cuda":
        yield lambda: None
        return
    stream, main = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(main)
    with torch.cuda.stream(stream):
        yield lambda: main.wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
