"""Several coordinates side by side in one encoding."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hepattn.encodings.base import Encoding


class Fields(Encoding):
    """Every field gets dim // F channels (F fields), concatenated in the order given; the remainder is zero.

    ```python
    encode = Fields({"phi": Periodic, "eta": Sinusoidal, "r": lambda d: Sinusoidal(d, alpha=16.0)}, dim=64)
    encode({"phi": phi, "eta": eta, "r": r / 500})      # (T, 64)
    ```

    Args:
        fields: name -> an encoding of dim // F channels, or a callable that makes one from the number of channels.
        dim: channels in all.

    Raises:
        ValueError: no field, or an encoding of another number of channels than dim // F.
    """

    def __init__(self, fields: Mapping[str, Encoding | Callable[[int], Encoding]], dim: int) -> None:
        super().__init__(dim)
        if not fields:
            raise ValueError("Fields got no field: give at least one, such as {'phi': Periodic}.")
        share = dim // len(fields)
        made = {name: f if isinstance(f, Encoding) else f(share) for name, f in fields.items()}
        for name, encoding in made.items():
            if encoding.channels != share:
                raise ValueError(
                    f"Fields got {encoding.channels} channels for {name!r}, expected dim // F = {dim} // {len(fields)} "
                    f"= {share}: give it {share} channels, or its class, which is then made to fit."
                )
        self.encodings = nn.ModuleDict(made)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, in the order of their channels."""
        return tuple(self.encodings)

    def forward(self, x: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Encodes name -> coordinate (T,), or a tensor (T, F) with columns in the order of `names`: (T, dim) float32.

        Names that are no field are not read, so that all coordinates of an event may be given.

        Raises:
            KeyError: a field is missing.
            ValueError: a tensor of another number of columns.
        """
        columns = split_columns(x, self.names, "Fields")
        parts = [encoding(columns[name]) for name, encoding in self.encodings.items()]
        joined = torch.cat(parts, dim=-1)
        return nn.functional.pad(joined, (0, self.channels - joined.shape[-1]))


def split_columns(x: Mapping[str, Tensor] | Tensor, names: tuple[str, ...], owner: str) -> Mapping[str, Tensor]:
    """Name -> coordinate, from a mapping that has all of `names`, or from a tensor (T, F) with a column for each.

    Raises:
        KeyError: a name is missing.
        ValueError: a tensor of another number of columns.
    """
    if isinstance(x, Tensor):
        if x.ndim != 2 or x.shape[1] != len(names):
            raise ValueError(
                f"{owner} got a tensor of shape {tuple(x.shape)}, expected (T, {len(names)}) with the columns "
                f"{', '.join(names)}."
            )
        return dict(zip(names, x.unbind(dim=1), strict=True))
    missing = [name for name in names if name not in x]
    if missing:
        raise KeyError(
            f"{owner} misses {', '.join(missing)} among the coordinates {', '.join(x) or 'none'}: add them, or make "
            "the encoding without them."
        )
    return x
