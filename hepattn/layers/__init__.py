"""Building blocks of a layer: norms, residual steps, dense networks, experts. One concept a file."""

from hepattn.layers.dense import Dense
from hepattn.layers.experts import Experts, RouterLosses, mean_losses
from hepattn.layers.norm import LayerNorm, RMSNorm, make_norm
from hepattn.layers.residual import DropPath, LayerScale, Residual
from hepattn.layers.tokens import ExtraTokens, Inserted, Role, spread

__all__ = [
    "Dense",
    "DropPath",
    "Experts",
    "ExtraTokens",
    "Inserted",
    "LayerNorm",
    "LayerScale",
    "RMSNorm",
    "Residual",
    "Role",
    "RouterLosses",
    "make_norm",
    "mean_losses",
    "spread",
]
