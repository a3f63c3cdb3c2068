"""Building blocks of a layer: norms, residual steps, dense networks. One concept a file."""

from hepattn.layers.dense import Dense
from hepattn.layers.norm import LayerNorm, RMSNorm, make_norm
from hepattn.layers.residual import DropPath, LayerScale, Residual

__all__ = ["Dense", "DropPath", "LayerNorm", "LayerScale", "RMSNorm", "Residual", "make_norm"]
