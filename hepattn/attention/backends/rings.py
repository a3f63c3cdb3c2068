"""Wrapped windows from a kernel whose windows do not wrap, exact in every call.

Under a flash kernel's bottom-right alignment the window (left=2h, right=0) of the a-th of some queries ends at key
a + 2h of its keys and reaches back to a. So in a ring of n tokens, with h = size // 2, the queries h ... n - h - 1 see
their h keys to either side among all keys in order, and the 2h queries around the seam, in the order of the ring, see
theirs among the 4h tokens around it. A ring of at most 2h tokens sees all of itself.

For a single ring the two calls write where their queries stand (`one_ring_operation`). Several rings are one call
without a wrap, right for all but the queries around seams, which are asked again (`ring_operation`). On a GPU the small
calls run on a stream of their own, beside the large one.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from hepattn.attention.backends.operations import Backward, Forward, Grads, Pair, Varlen, differentiable, like_output

__all__ = ["OneEvent", "one_ring_operation", "ring_operation"]


@dataclass(frozen=True)
class OneEvent:
    """Queries q (n, H, D) and keys k, v (m, H, D) of one event, as a flash kernel takes them without offsets.

    Attributes:
        reach: how many keys the a-th query sees before key a + m - n, which it sees too; None: all see all.
        scale: factor on scores.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    reach: int | None
    scale: float


ForwardInto = Callable[[OneEvent, Pair], None]
"""Writes `(out (n, H, D), lse (H, n) float32)`, which may be parts of larger tensors."""
BackwardInto = Callable[[Tensor, Tensor | None, OneEvent, Tensor, Tensor, Grads], None]
"""From what `Backward` takes, writes gradients of q, k and v, which may be parts of larger tensors."""


def one_ring_operation(name: str, forward: ForwardInto, backward: BackwardInto) -> Callable[..., Pair]:
    """The operation `hepattn::name` from what a kernel does with one event, as in `packed_operation`.

    It takes q, k, v (T, H, D) of one event, `half` > 0 and the scale, and gives `(out (T, H, D), lse (H, T) float32)`,
    both with gradients.
    """

    def ring(q: Tensor, k: Tensor, v: Tensor, half: int, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = like_output(q)
        if len(q) <= 2 * half:
            forward(OneEvent(q, k, v, None, scale), (out, lse))
            return out, lse
        inner = slice(half, -half)
        with _beside(q.device) as aside:
            forward(OneEvent(q[inner], k, v, 2 * half, scale), (out[inner], lse[:, inner]))
            with aside:
                seam = _seam(q, k, v, half, scale)
                some, some_lse = like_output(seam.q)
                forward(seam, (some, some_lse))
                _put_around(out, some)
                _put_around(lse.T, some_lse.T)
        return out, lse

    def ring_backward(
        grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, half: int,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        if len(q) <= 2 * half:
            backward(grad, grad_lse, OneEvent(q, k, v, None, scale), out, lse, (dq, dk, dv))
            return dq, dk, dv
        inner = slice(half, -half)
        with _beside(q.device) as aside:
            inner_lse = None if grad_lse is None else grad_lse[:, inner]
            call = OneEvent(q[inner], k, v, 2 * half, scale)
            backward(grad[inner], inner_lse, call, out[inner], lse[:, inner], (dq[inner], dk, dv))
            with aside:
                seam = _seam(q, k, v, half, scale)
                seam_lse = None if grad_lse is None else _around(grad_lse.T, half).T
                some_q, some_k, some_v = (torch.empty_like(x) for x in (seam.q, seam.k, seam.v))
                found = some_q, some_k, some_v
                backward(_around(grad, half), seam_lse, seam, _around(out, half), _around(lse.T, half).T, found)
                _put_around(dq, some_q)
        for whole, part in ((dk, some_k), (dv, some_v)):  # one after another: a short ring's keys stand there twice
            whole[-2 * half :] += part[: 2 * half]
            whole[: 2 * half] += part[2 * half :]
        return dq, dk, dv

    return differentiable(name, ring, ring_backward, tensors=0)


def _seam(q: Tensor, k: Tensor, v: Tensor, half: int, scale: float) -> OneEvent:
    return OneEvent(_around(q, half), _around(k, 2 * half), _around(v, 2 * half), 2 * half, scale)


def _around(x: Tensor, reach: int) -> Tensor:
    """The last `reach` and the first `reach` rows of a ring."""
    return torch.cat([x[-reach:], x[:reach]])


def _put_around(x: Tensor, rows: Tensor) -> None:
    """Writes them back."""
    reach = len(rows) // 2
    x[-reach:], x[:reach] = rows[:reach], rows[reach:]


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
        with _beside(q.device) as aside:
            if rings.plain:
                out, lse = forward(Varlen(q, k, v, offsets, offsets, rings.longest, rings.longest, (half, half), scale))
            else:
                out, lse = like_output(q)
            with aside:
                few = [forward(part.of(q, k, v, scale)) for part in rings.parts]
        for part, (some, some_lse) in zip(rings.parts, few, strict=True):
            out.index_copy_(0, part.queries, some)
            lse.index_copy_(1, part.queries, some_lse)
        return out, lse

    def ring_backward(
        grad: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
        lengths: Tensor, offsets: Tensor, half: int, scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        rings = find_rings(tuple(lengths.tolist()), half, q.device)
        with _beside(q.device) as aside:
            if rings.plain:
                call = Varlen(q, k, v, offsets, offsets, rings.longest, rings.longest, (half, half), scale)
                # weights are exp(score - lse): those of queries that are asked again are zero
                dq, dk, dv = backward(grad, grad_lse, call, out, lse.index_fill(1, rings.again, torch.inf))
            else:
                dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
            with aside:
                few = []
                for part in rings.parts:
                    upstream = grad[part.queries], None if grad_lse is None else grad_lse[:, part.queries]
                    few.append(backward(*upstream, part.of(q, k, v, scale), out[part.queries], lse[:, part.queries]))
        for part, (some_q, some_k, some_v) in zip(rings.parts, few, strict=True):
            dq.index_copy_(0, part.queries, some_q)
            dk.index_add_(0, part.keys, some_k)
            dv.index_add_(0, part.keys, some_v)
        return dq, dk, dv

    return differentiable(name, ring, ring_backward, tensors=2)


@contextmanager
def _beside(device: torch.device) -> Iterator[AbstractContextManager[None]]:
    """Gives a context: what is asked for in it runs beside what has been asked for since here. Both are awaited.

    The large call comes first and the small ones have precedence, so that neither waits for the other to be prepared.
    """
    if device.type != "cuda":
        yield nullcontext()
        return
    stream, main = _stream(device), torch.cuda.current_stream(device)
    stream.wait_event(main.record_event())
    yield torch.cuda.stream(stream)
    main.wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)
