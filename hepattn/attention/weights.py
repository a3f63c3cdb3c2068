"""Attention weights of any call, recomputed exactly from q, k and the mask."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hepattn.attention.functional import make_call
from hepattn.attention.reference import allowed_pairs
from hepattn.masks.base import Mask
from hepattn.sequence import Lengths

__all__ = ["attention_weights"]

LARGEST = 1 << 28  # weights held at one time (1 GiB of float32)


def attention_weights(
    q: Tensor,
    k: Tensor,
    *,
    mask: Mask | None = None,
    lengths: Lengths = None,
    kv_lengths: Lengths = None,
    rows: Sequence[int] | Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """The weights that `attend` gives each key, whichever kernel runs: `(H, R, Tk)` float32.

    Args:
        q: `(Tq, H, D)`, as given to `attend`.
        k: `(Tk, H, D)`, as given to `attend`.
        mask: who may attend to whom inside an event.
        lengths: tokens of each event, summing to Tq.
        kv_lengths: the same for k.
        scale: factor on the scores, `D ** -0.5` by default.
        rows: positions of R queries among all Tq; None = all. Keys of other events have weight 0.

    Returns:
        Rows sum to one, or to zero for a query that may attend to nothing.

    Raises:
        ValueError: more than 2^28 weights were asked for (choose rows), or a row does not exist.
    """
    call = make_call(q, k, k, mask, lengths, kv_lengths, scale)
    chosen = torch.arange(len(q)) if rows is None else torch.as_tensor(rows, dtype=torch.int64).cpu().reshape(-1)
    if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(q):
        raise ValueError(f"rows must lie in 0 ... {len(q) - 1}, got {int(chosen.min())} ... {int(chosen.max())}")
    size = q.shape[1] * len(chosen) * len(k)
    if size > LARGEST:
        raise ValueError(f"{q.shape[1]} heads x {len(chosen)} queries x {len(k)} keys are {size} weights: choose rows")
    weights = torch.zeros(q.shape[1], len(chosen), len(k), dtype=torch.float32, device=q.device)
    chosen = chosen.to(q.device)
    events = call.queries.event[chosen]
    for event in events.unique().tolist():
        here = (events == event).nonzero()[:, 0]
        local = call.queries.position[chosen[here]]
        n_q, n_k = call.queries.host_lengths[event], call.keys.host_lengths[event]
        start = int(call.keys.offsets[event])
        pairs = allowed_pairs(mask, n_q, n_k, event, q.device, rows=local)
        keys = k[start : start + n_k].float()
        scores = torch.einsum("qhd,khd->hqk", q[chosen[here]].float(), keys) * call.scale
        found = scores.masked_fill(~pairs, -torch.inf).softmax(-1).nan_to_num(0.0)
        weights[:, here, start : start + n_k] = found.to(weights.dtype)
    return weights
