"""Losses: finite for every event, also for one without a positive, or without a hit."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hepattn.layers.experts import RouterLosses

PosWeight = float | Literal["balance"]
"""Weight of a positive against a negative: a fixed number > 0, or "balance", N / N_pos of the batch at hand."""


def balance_weight(target: Tensor) -> Tensor:
    """N / N_pos, a scalar float32 in [1, N]; with no positive N / 1, which then multiplies nothing.

    Args:
        target: (T,) bool, True = positive
    """
    return (target.numel() / target.sum().clamp(min=1)).to(torch.float32).clamp(min=1.0)


def hit_loss(logits: Tensor, target: Tensor, pos_weight: PosWeight = "balance") -> Tensor:
    """Binary cross-entropy averaged over hits, positives counted `pos_weight` times; always computed in float32.

    With "balance" (arXiv:2411.07149) rare and common classes pull with like strength. The loss is always finite: no
    positive gives the mean over negatives, no hit at all gives 0 with zero gradients.

    Args:
        logits: (T,) float of any precision
        target: (T,) bool, True = the hit lies on a reconstructable particle
        pos_weight: a number > 0, or "balance"

    Raises:
        ValueError: the shapes differ, or a pos_weight that is neither "balance" nor > 0
    """
    if logits.shape != target.shape:
        raise ValueError(f"one logit a hit is needed: logits {tuple(logits.shape)}, target {tuple(target.shape)}")
    check_pos_weight(pos_weight)
    logits = logits.float()
    if not logits.numel():
        return logits.sum()
    weight = balance_weight(target) if pos_weight == "balance" else logits.new_tensor(float(pos_weight))
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), pos_weight=weight)


def count_loss(log_count: Tensor, number: Tensor) -> Tensor:
    """Smooth L1 loss (arXiv:1504.08083) of the logarithm of a number, so that it is relative; 0 without an event.

    Args:
        log_count: (B,) float, estimate of log(1 + number)
        number: (B,) int, the true numbers

    Raises:
        ValueError: the shapes differ
    """
    if log_count.shape != number.shape:
        raise ValueError(f"one number an event: estimated {tuple(log_count.shape)}, true {tuple(number.shape)}")
    log_count = log_count.float()
    return F.smooth_l1_loss(log_count, number.to(log_count).log1p(), reduction="sum") / max(1, number.numel())


@dataclass(frozen=True)
class RouterWeights:
    """Factors of the losses that keep the routers of experts even and calm, as the papers have them.

    Raises:
        ValueError: one is negative.
    """

    balance: float = 0.01
    """Of the load-balancing loss (arXiv:2101.03961)."""
    z: float = 0.001
    """Of the router z-loss (arXiv:2202.08906)."""

    def __post_init__(self) -> None:
        if min(self.balance, self.z) < 0:
            raise ValueError(f"got balance={self.balance}, z={self.z}: factors of router losses are at least 0")

    def total(self, losses: RouterLosses | None) -> Tensor | float:
        """What is added to the training loss; 0 without experts."""
        return 0.0 if losses is None else self.balance * losses.balance + self.z * losses.z


def check_pos_weight(pos_weight: PosWeight) -> None:
    """Refuses what is neither "balance" nor a finite number > 0.

    Raises:
        ValueError: in one sentence
    """
    good = pos_weight == "balance" if isinstance(pos_weight, str) else 0.0 < pos_weight < float("inf")
    if not good:
        raise ValueError(f'pos_weight is a finite number > 0 or "balance", not {pos_weight!r}')
