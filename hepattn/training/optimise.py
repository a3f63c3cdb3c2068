"""Optimiser and learning-rate schedule as plain functions, for the command line and for loops driven from outside."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW (arXiv:1711.05101), linear warm-up, then a cosine (arXiv:1608.03983) down to a fraction of the peak."""

    learning_rate: float = 2e-3
    """Peak, reached after warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    """On matrices only: biases, norms and scales are left alone."""
    warmup_steps: int = 50
    final_fraction: float = 0.01
    """Learning rate at the last step over the peak."""
    total_steps: int | None = None
    """Steps over which the schedule runs; None takes what the trainer is going to do (max_steps or max_epochs)."""
    clip_norm: float = 1.0
    """Gradients are scaled down to at most this norm over all parameters."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if not (self.learning_rate > 0 and self.clip_norm > 0 and self.weight_decay >= 0 and self.warmup_steps >= 0):
            raise ValueError(
                "learning_rate and clip_norm must be > 0, weight_decay and warmup_steps >= 0, not "
                f"{self.learning_rate}, {self.clip_norm}, {self.weight_decay}, {self.warmup_steps}"
            )
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(f"final_fraction is a fraction of the peak learning rate, not {self.final_fraction}")


def make_optimiser(model: nn.Module, config: OptimiserConfig, *, fused: bool = True) -> torch.optim.AdamW:
    """AdamW on all parameters that learn; weight decay on those with two or more dimensions.

    Args:
        model: its parameters
        config: learning rate, betas, weight decay
        fused: one kernel for the whole step; False where a loss scaler (float16) must undo its scale before clipping
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def learning_rate_factor(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """Learning rate of step `step` (0, 1, ... total_steps - 1) over its peak."""
    warmup = min(config.warmup_steps, max(total_steps - 1, 0))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(total_steps - 1 - warmup, 1))
    return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def make_schedule(optimiser: torch.optim.Optimizer, config: OptimiserConfig, total_steps: int) -> LambdaLR:
    """The schedule; call `.step()` after each step of the optimiser.

    Raises:
        ValueError: total_steps < 1
    """
    if total_steps < 1:
        raise ValueError(f"a learning-rate schedule needs a number of steps, not {total_steps}")
    return LambdaLR(optimiser, lambda step: learning_rate_factor(step, total_steps, config))
