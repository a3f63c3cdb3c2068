"""A window with global tokens from two parts: disjoint sets of keys, merged exactly by their log-sum-exp.

Query i sees the keys of its window through a kernel for windows, and those global tokens that are not in its window as
one small matrix; a key in both sets is counted once. Global queries see all keys of their event as another. Sizes
depend on the numbers of tokens, events and global tokens only, never on values, so the graph compiles. There are
gradients where the kernel for windows gives them through its log-sum-exp.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from hepattn.attention.backends.base import Call
from hepattn.masks.base import Mask, Place
from hepattn.masks.compose import Either
from hepattn.masks.tokens import GlobalTokens
from hepattn.masks.window import Window
from hepattn.sequence import Layout

__all__ = ["attend_with_globals", "window_and_tokens"]

CHUNKS = {"cpu": 1}
"""Into how many all tokens are cut, by kind of device (32 elsewhere), see `_chunks`."""
Kernel = Callable[[Call], tuple[Tensor, Tensor | None]]


def window_and_tokens(mask: Mask | None) -> tuple[Window, GlobalTokens] | None:
    """The two parts of `Window(...) | GlobalTokens(...)`, in whichever order; None for any other mask."""
    if isinstance(mask, Either):
        for one, other in ((mask.left, mask.right), (mask.right, mask.left)):
            if isinstance(one, Window) and isinstance(other, GlobalTokens):
                return one, other
    return None


@dataclass(frozen=True, eq=False)
class _Globals:
    """The global tokens of a batch of B events, G an event, whether an event is long enough to have them or not.

    Attributes:
        tokens: `(B G,)` packed tokens, any where there is none.
        places: `(B G,)` the same, or T where there is none.
        inside: `(T, B G)` True = the token is in the event of the global one, which is there.
        beyond: `(T, B G)` True = it is, and does not have it in its window.
    """

    tokens: Tensor
    places: Tensor
    inside: Tensor
    beyond: Tensor


def _find(layout: Layout, window: Window, tokens: GlobalTokens) -> _Globals:
    indices = torch.tensor(tokens.indices, device=layout.device)
    there = indices[None, :] < layout.offsets.diff()[:, None]  # (B, G)
    token = (layout.offsets[:-1, None] + indices[None, :]).clamp(max=max(layout.total - 1, 0))
    event = torch.arange(layout.batch, device=layout.device)[:, None].expand_as(token)
    event, position = event.flatten(), indices.expand_as(token).flatten()
    inside = (layout.event[:, None] == event) & there.flatten()
    length = layout.offsets.diff()[layout.event][:, None]
    in_window = window.allowed(
        layout.position[:, None], position[None, :], Place(length, length, layout.event[:, None])
    )
    places = torch.where(there, token, layout.total).flatten()
    return _Globals(token.flatten(), places, inside, inside & ~in_window)


def attend_with_globals(call: Call, window: Window, tokens: GlobalTokens, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """`(out (T, H, Dv), lse (T, H))`; `kernel` does windows and gives their log-sum-exp."""
    layout = call.queries
    found = layout.cached(("globals", window, tokens), lambda: _find(layout, window, tokens))
    precise = torch.promote_types(call.q.dtype, torch.float32)
    out, lse = kernel(replace(call, mask=window, return_lse=True))
    assert lse is not None
    out, lse = out.to(precise), lse.to(precise)
    with torch.autocast(call.q.device.type, enabled=False):  # scores are float32, as inside a kernel
        q, k, v = (_chunks(x).to(precise) for x in (call.q, call.k, call.v))  # (H, S, C, D)
        # (H, 1, B G, D)
        q_few, k_few, v_few = (
            x.index_select(0, found.tokens).to(precise).transpose(0, 1)[:, None] for x in (call.q, call.k, call.v)
        )
        # what a window gave is one more key, whose score is its log-sum-exp
        scores = ((q @ k_few.mT) * call.scale).masked_fill(~_chunks(found.beyond[:, None])[0], -torch.inf)
        scores = torch.cat([_chunks(lse[..., None]), scores], -1)
        weights = scores.softmax(-1)
        out = _whole(weights[..., :1], layout) * out + _whole(weights[..., 1:] @ v_few, layout)
        lse = _whole(scores.logsumexp(-1), layout)
        # a row of an event that lacks its global token means nothing, and must not be empty
        seen = _chunks((found.inside | ~found.inside.any(0))[:, None])[0].mT
        scores = ((q_few @ k.mT) * call.scale).masked_fill(~seen, -torch.inf)  # (H, S, B G, C)
        lse_rows = scores.logsumexp((1, 3))
        rows = ((scores - lse_rows[:, None, :, None]).exp() @ v).sum(1)  # (H, B G, Dv)

    def put(all_tokens: Tensor, few: Tensor) -> Tensor:  # a place beyond the end is cut off again
        beyond_the_end = all_tokens.new_zeros(1, *all_tokens.shape[1:])
        return torch.cat([all_tokens, beyond_the_end]).index_copy(0, found.places, few.transpose(0, 1))[: layout.total]

    return put(out, rows).to(call.q.dtype), put(lse, lse_rows)


def _chunks(x: Tensor) -> Tensor:
    """(T, H, ...) -> (H, S, C, ...), S chunks of C tokens, zeros after the last.

    A product that sums over all tokens is then one over many chunks, whose sums are added up: as one matrix of few rows
    and columns it would keep a single multiprocessor of a GPU busy. There are zeros for any T, and C is at least 2: a
    traced graph would else be bound to whether there are.
    """
    number = CHUNKS.get(x.device.type, 32)
    size = len(x) // number + 2
    by_head = x.transpose(0, 1)
    return pad(by_head, (0, 0) * (x.ndim - 2) + (0, number * size - len(x))).unflatten(1, (number, size))


def _whole(x: Tensor, layout: Layout) -> Tensor:
    """(H, S, C, ...) -> (T, H, ...)."""
    return x.flatten(1, 2)[:, : layout.total].transpose(0, 1)
