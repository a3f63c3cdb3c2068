"""LASER: attention on exponentials of the values, for gradients that do not vanish (arXiv:2411.03493).

`out = log(softmax(q k^T) exp(v - m)) + m`, m the largest value of each channel in each event. Exponentials have a
range, and a window may lie far below the maximum of its event: values more than `FLOOR` below it count as `m - FLOOR`,
in every kernel and dtype alike. That is far inside the range of float32 and bfloat16, for the exponentials and for the
products of a backward pass; float16 has no such range, so there the kernel computes in float32.
"""

import torch
from torch import Tensor

from hepattn.sequence import Layout

FLOOR = 60.0
"""So far below the largest value of its channel and event a value is taken as being just there; exp(-60) = 9e-27."""


def laser_values(v: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """What a kernel gets in place of v, and the maxima that `laser_output` needs.

    Args:
        v: (T, H, D).
        layout: events of v.

    Returns:
        `exp(max(v - m, -FLOOR))` (T, H, D) in the dtype of v, but float32 for float16 values; and m (B, H, D) float32
        (float64 for float64 values): the largest value of each channel in each event, 0 for an event without tokens.
        No gradient flows through m: the result does not depend on it, as long as nothing lies below the floor.
    """
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    lowest = wide.new_full((layout.batch, *v.shape[1:]), -torch.inf)
    event = layout.event[:, None, None].expand(v.shape)
    peak = lowest.scatter_reduce(0, event, wide.detach(), "amax")
    peak = peak.masked_fill(peak.isinf(), 0.0)
    exponentials = (wide - peak[layout.event]).clamp(min=-FLOOR).exp()
    return exponentials if v.dtype == torch.float16 else exponentials.to(v.dtype), peak


def laser_output(out: Tensor, peak: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """`log(out) + m` (T, H, D) in `dtype`; zero where a whole head is zero: nothing was allowed there.

    Args:
        out: (T, H, D), a kernel's answer to the exponentials, which is positive wherever something was allowed.
        peak: (B, H, D), m from `laser_values`.
        layout: events of the queries.
        dtype: of the values.
    """
    wide = out.to(peak.dtype)
    nothing = (wide == 0).all(dim=-1, keepdim=True)
    logarithm = wide.masked_fill(nothing, 1.0).log() + peak[layout.event]
    return logarithm.masked_fill(nothing, 0.0).to(dtype)
