"""hepattn: a notebook-first laboratory for attention in particle tracking."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hepattn import data as data
    from hepattn import metrics as metrics
    from hepattn import plotting as plotting
    from hepattn.attention import (
        KernelRefusal as KernelRefusal,
    )
    from hepattn.attention import (
        attend as attend,
    )
    from hepattn.attention import (
        attention_weights as attention_weights,
    )
    from hepattn.attention import (
        available_backends as available_backends,
    )
    from hepattn.attention.module import Attention as Attention
    from hepattn.attention.record import record_attention as record_attention
    from hepattn.models.encoder import Encoder as Encoder
    from hepattn.models.encoder_config import EncoderConfig as EncoderConfig
    from hepattn.models.hit_filter import HitFilter as HitFilter
    from hepattn.models.maskformer import MaskFormer as MaskFormer
    from hepattn.sequence import Layout as Layout
    from hepattn.sequence import Packed as Packed

__version__ = "0.1.0"

_HOMES = {
    "Attention": "hepattn.attention.module",
    "Encoder": "hepattn.models.encoder",
    "EncoderConfig": "hepattn.models.encoder_config",
    "HitFilter": "hepattn.models.hit_filter",
    "KernelRefusal": "hepattn.attention",
    "Layout": "hepattn.sequence",
    "MaskFormer": "hepattn.models.maskformer",
    "Packed": "hepattn.sequence",
    "attend": "hepattn.attention",
    "attention_weights": "hepattn.attention",
    "available_backends": "hepattn.attention",
    "record_attention": "hepattn.attention.record",
}
_ROOMS = ("data", "metrics", "plotting")

__all__ = [  # noqa: PLE0604  (the names of the two tables above)
    *_HOMES,
    *_ROOMS,
]


def __getattr__(name: str) -> Any:
    """Names are imported when they are first used, so that `import hepattn` and `hepattn --help` stay quick."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return import_module(f"hepattn.{name}")
    raise AttributeError(f"module 'hepattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
