"""LASER: attention on exponentials of the values, for gradients that do not vanish (arXiv:2411.03493)."""

import torch
from torch import Tensor

from hepattn.sequence import Layout


def laser_values(v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """What a kernel gets in place of v, and the maxima that `laser_output` needs.

    Args:
        v: (T, H, D).
        layout: events of v.

    Returns:
        `exp(v - m)` (T, H, D) in the dtype of v, and m (B, H, D) float32 (float64 for float64 values): the largest
        value of each channel in each event, 0 for an event without tokens. No gradient flows through m: the result
        does not depend on it.
    """
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    lowest = wide.new_full((layout.batch, *v.shape[1:]), -torch.inf)
    event = layout.event[:, None, None].expand(v.shape)
    peak = lowest.scatter_reduce(0, event, wide.detach(), "amax")
    peak = peak.masked_fill(peak.isinf(), 0.0)
    return (wide - peak[layout.event]).exp().to(v.dtype), peak


def laser_output(out: Tensor, peak: Tensor, layout: Layout) -> Tensor:
    """`log(out) + m` (T, H, D) in the dtype of `out`; zero where a whole head is zero: nothing was allowed there.

    Args:
        out: (T, H, D), a kernel's answer to `exp(v - m)`.
        peak: (B, H, D), m from `laser_values`.
        layout: events of the queries.

    A window whose values all lie more than 87 below the event's maximum underflows in float32 and is clamped there.
    """
    wide = out.to(peak.dtype)
    nothing = (wide == 0).all(dim=-1, keepdim=True)
    logarithm = wide.clamp_min(torch.finfo(wide.dtype).tiny).log() + peak[layout.event]
    return logarithm.masked_fill(nothing, 0.0).to(out.dtype)
