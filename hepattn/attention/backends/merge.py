"""A window with global tokens from two kernels: disjoint sets of keys, merged exactly by their log-sum-exp.

Query i sees the keys of its window through a kernel for windows, and those global tokens that are not in its window one
by one; a key in both sets is counted once. Global queries see all keys of their event in a call of their own. Sizes
depend on the numbers of tokens, events and global tokens only, never on values, so the graph compiles. There are
gradients where the kernel for windows gives them through its log-sum-exp.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hepattn.attention.backends.base import Call
from hepattn.masks.base import Mask, Place
from hepattn.masks.compose import Either
from hepattn.masks.tokens import GlobalTokens
from hepattn.masks.window import Window
from hepattn.sequence import Layout

__all__ = ["attend_with_globals", "window_and_tokens"]

Kernel = Callable[[Call], tuple[Tensor, Tensor]]


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
        tokens: `(B G,)` packed tokens, the last of the batch where there is none.
        there: `(B G,)` True = the event has it.
        pairs: `(B G, T)` True = key t lies in the event of the global token.
        columns: for each of the G: its packed token in each event (B,), and whether there is one (B,).
    """

    tokens: Tensor
    there: Tensor
    pairs: Tensor
    columns: list[tuple[Tensor, Tensor]]


def _to_tokens(of_event: Tensor, layout: Layout) -> Tensor:
    """(B, ...) -> (T, ...), of each token's event; or (1, ...) of the only one, whose gradient is then a plain sum."""
    return of_event if layout.batch == 1 else of_event[layout.event]


def _find(layout: Layout, mask: GlobalTokens) -> _Globals:
    indices = torch.tensor(mask.indices, device=layout.device)
    there = indices[None, :] < layout.offsets.diff()[:, None]  # (B, G)
    token = (layout.offsets[:-1, None] + indices[None, :]).clamp(max=max(layout.total - 1, 0))
    columns = [(token[:, g], there[:, g]) for g in range(len(mask.indices))]
    event = torch.arange(layout.batch, device=layout.device)[:, None].expand_as(token).flatten()
    return _Globals(token.flatten(), there.flatten(), event[:, None] == layout.event[None, :], columns)


def attend_with_globals(call: Call, window: Window, tokens: GlobalTokens, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """`(out (T, H, Dv), lse (T, H))`; `kernel` does windows and gives their log-sum-exp."""
    layout = call.queries
    found = layout.cached(("globals", tokens), lambda: _find(layout, tokens))
    precise = torch.promote_types(call.q.dtype, torch.float32)
    out, lse = (x.to(precise) for x in kernel(replace(call, mask=window, return_lse=True)))
    length = layout.offsets.diff()[layout.event]
    place = Place(length, length, layout.event)
    for token, there in found.columns:
        at = _to_tokens(token - layout.offsets[:-1], layout)
        alone = _to_tokens(there, layout) & ~window.allowed(layout.position, at, place)
        k, v = (_to_tokens(x[token].to(precise), layout) for x in (call.k, call.v))
        score = (call.q.to(precise) * k).sum(-1) * call.scale  # (T, H)
        score = score.masked_fill(~alone[:, None], -torch.inf)
        merged = torch.logaddexp(lse, score)
        out = out * (lse - merged).exp()[..., None] + v * (score - merged).exp()[..., None]
        lse = merged
    nowhere = torch.where(found.there, found.tokens, layout.total)  # a place that is cut off again
    out, lse = (
        torch.cat([x, x[:1]]).index_copy(0, nowhere, new)[: layout.total]
        for x, new in zip((out, lse), _rows(call, found, precise), strict=True)
    )
    return out.to(call.q.dtype), lse


def _rows(call: Call, found: _Globals, precise: torch.dtype) -> tuple[Tensor, Tensor]:
    """The global queries against all keys of their event: `(B G, H, Dv)`, and the log-sum-exp `(B G, H)`.

    By matrices: a kernel would go through the many keys of its few queries one block after the other.
    """
    alone = found.pairs | ~found.there[:, None]  # without its token a row means nothing, and must not be empty
    q, k, v = call.q[found.tokens].to(precise), call.k.to(precise), call.v.to(precise)
    scores = torch.einsum("ghd,thd->hgt", q, k) * call.scale
    scores = scores.masked_fill(~alone, -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    out = torch.einsum("hgt,thd->ghd", (scores - lse).exp(), v)
    return out, lse.squeeze(-1).T
