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
from torch.nn.functional import scaled_dot_product_attention

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
        columns: for each of the G: the packed token in each token's event (T,), and whether there is one (T,).
    """

    tokens: Tensor
    there: Tensor
    pairs: Tensor
    columns: list[tuple[Tensor, Tensor]]


def _find(layout: Layout, mask: GlobalTokens) -> _Globals:
    indices = torch.tensor(mask.indices, device=layout.device)
    there = indices[None, :] < layout.offsets.diff()[:, None]  # (B, G)
    token = (layout.offsets[:-1, None] + indices[None, :]).clamp(max=max(layout.total - 1, 0))
    columns = [(token[:, g][layout.event], there[:, g][layout.event]) for g in range(len(mask.indices))]
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
        in_window = window.allowed(layout.position, token - layout.offsets[layout.event], place)
        score = (call.q.to(precise) * call.k[token].to(precise)).sum(-1) * call.scale  # (T, H)
        score = score.masked_fill(~(there & ~in_window)[:, None], -torch.inf)
        merged = torch.logaddexp(lse, score)
        v = call.v[token].to(precise)
        out = out * (lse - merged).exp()[..., None] + v * (score - merged).exp()[..., None]
        lse = merged
    rows, lse_rows = _rows(call, found)
    nowhere = torch.where(found.there, found.tokens, layout.total)  # a place that is cut off again
    out, lse = (
        torch.cat([x, x[:1]]).index_copy(0, nowhere, new.to(precise))[: layout.total]
        for x, new in ((out, rows), (lse, lse_rows))
    )
    return out.to(call.q.dtype), lse


def _rows(call: Call, found: _Globals) -> tuple[Tensor, Tensor]:
    """The global queries against all keys of their event: `(B G, H, Dv)`, and the log-sum-exp where it is asked for."""
    q = call.q[found.tokens]
    heads = (q.transpose(0, 1)[None], call.k.transpose(0, 1)[None], call.v.transpose(0, 1)[None])
    alone = found.pairs | ~found.there[:, None]  # without its token a row means nothing, and must not be empty
    out = scaled_dot_product_attention(*heads, attn_mask=alone[None, None], scale=call.scale)[0].transpose(0, 1)
    if not call.return_lse:
        return out, q.new_zeros(q.shape[:2])
    precise = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("ghd,thd->ght", q.to(precise), call.k.to(precise)) * call.scale
    return out, scores.masked_fill(~alone[:, None], -torch.inf).logsumexp(-1)
