"""A window with global tokens from two kernels: disjoint sets of keys, merged exactly by their log-sum-exp.

Query i sees the keys of its window through a kernel for windows, and those global tokens that are not in its window one
by one; a key in both sets is counted once. Global queries see all keys of their event in a third call. Without
gradients: kernels for windows give none through their log-sum-exp.
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
    """The global tokens of a batch.

    Attributes:
        tokens: `(G,)` packed tokens of all events.
        layout: how many each event has.
        columns: for each index of the mask: the packed token in each token's event (T,), and whether there is one (T,).
    """

    tokens: Tensor
    layout: Layout
    columns: list[tuple[Tensor, Tensor]]


def _find(layout: Layout, mask: GlobalTokens) -> _Globals:
    lengths = layout.offsets.diff()
    indices = torch.tensor(mask.indices, device=layout.device)
    there = indices[None, :] < lengths[:, None]  # (events, indices)
    token = layout.offsets[:-1, None] + indices[None, :]
    counts = there.sum(1).cpu()
    last = max(layout.total - 1, 0)
    columns = [
        (token[:, column][layout.event].clamp(max=last), there[:, column][layout.event])
        for column in range(len(indices))
    ]
    return _Globals(token[there], Layout.of(counts, layout.device, total=int(counts.sum())), columns)


def attend_with_globals(call: Call, window: Window, tokens: GlobalTokens, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """`(out (T, H, Dv), lse (T, H))`; `kernel` does windows, and calls without a mask."""
    layout = call.queries
    found = layout.cached(("globals", tokens), lambda: _find(layout, tokens))
    out, lse = kernel(replace(call, mask=window))
    wide, lse = out.float(), lse.float()
    place = Place(layout.offsets.diff()[layout.event], layout.offsets.diff()[layout.event], layout.event)
    for token, there in found.columns:
        in_window = window.allowed(layout.position, token - layout.offsets[layout.event], place)
        score = (call.q.float() * call.k[token].float()).sum(-1) * call.scale  # (T, H)
        score = score.masked_fill(~(there & ~in_window)[:, None], -torch.inf)
        merged = torch.logaddexp(lse, score)
        wide = wide * (lse - merged).exp()[..., None] + call.v[token].float() * (score - merged).exp()[..., None]
        lse = merged
    rows = replace(call, q=call.q[found.tokens], mask=None, queries=found.layout)
    if len(found.tokens):
        out_rows, lse_rows = kernel(rows)
        wide = wide.index_copy(0, found.tokens, out_rows.float())
        lse = lse.index_copy(0, found.tokens, lse_rows.float())
    return wide.to(call.q.dtype), lse
