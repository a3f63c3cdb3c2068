"""Rotary encoding of continuous coordinates: queries and keys are turned, so that scores see differences alone."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hepattn.encodings.base import Precise, as_coordinate, close_turn
from hepattn.encodings.fields import split_columns
from hepattn.sequence import Packed


class Rotary(Precise):
    """Angles `omega_k x`, k = 0 .. d // 2 - 1, by which channel pairs of q and k are turned (arXiv:2104.09864).

    A score is then `sum_k |q_k| |k_k| cos(omega_k (x_q - x_k) + a_k)`: it depends on the difference of coordinates
    alone, and norms are kept. `omega_k = alpha * base^(-2k/d)`, rad a unit of x; the paper's x is the position in a
    text, and its alpha is 1 with base 10,000.

    With `periodic=True` x is an angle in radian and the omega_k are rounded to whole numbers >= 1 (low ones occur more
    than once): -pi and +pi turn alike, bit for bit, and differences are those around the circle.

    ```python
    encoder(x, rotation=Rotary(dim // num_heads, periodic=True)(phi))
    ```

    Args:
        channels: of a head, d.
        alpha: highest frequency, rad a unit of x.
        base: ratio of the highest to (almost) the lowest frequency; None: 256, or, periodic, alpha, so that the
            lowest is one turn.
        periodic: x is an angle.

    Raises:
        ValueError: channels < 2, or alpha or base is not positive.
    """

    omega: Tensor

    def __init__(
        self, channels: int, *, alpha: float = 64.0, base: float | None = None, periodic: bool = False
    ) -> None:
        super().__init__()
        if base is None:
            base = alpha if periodic else 256.0
        if channels < 2 or alpha <= 0 or base <= 0:
            raise ValueError(
                f"Rotary got channels={channels}, alpha={alpha}, base={base}: give two channels or more, and positive "
                "frequencies."
            )
        self.channels = channels
        self.periodic = periodic
        omega = alpha * base ** (-2 * torch.arange(self.pairs, dtype=torch.float64) / channels)
        if periodic:
            omega = omega.round().clamp(min=1)
        self.register_buffer("omega", omega.to(torch.float32), persistent=False)

    @property
    def pairs(self) -> int:
        """Number of angles, channels // 2."""
        return self.channels // 2

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"channels={self.channels}, periodic={self.periodic}"

    def forward(self, x: Tensor) -> Tensor:
        """Angles of x (..), padded and nested too -> (.., channels // 2) radian, float32 also under autocast.

        Raises:
            TypeError: x is half precision.
        """
        if x.is_nested:
            packed = Packed.from_nested(x)
            return packed.with_values(self(packed.values)).to_nested()
        x = as_coordinate(x, self)
        return (close_turn(x) if self.periodic else x).unsqueeze(-1) * self.omega


class RotaryFields(Precise):
    """Several coordinates share the channels of a head: P // F pairs each (P = channels // 2), the rest is not turned.

    ```python
    rotary = RotaryFields({"phi": lambda d: Rotary(d, periodic=True), "eta": Rotary}, channels=16)
    encoder(x, rotation=rotary({"phi": phi, "eta": eta}))
    ```

    Args:
        fields: name -> a `Rotary` of 2 (P // F) channels, or a callable that makes one from the number of channels.
        channels: of a head.

    Raises:
        ValueError: no field, more fields than pairs, or a `Rotary` of another number of channels.
    """

    def __init__(self, fields: Mapping[str, Rotary | Callable[[int], Rotary]], channels: int) -> None:
        super().__init__()
        if not 1 <= len(fields) <= channels // 2:
            raise ValueError(
                f"RotaryFields got {len(fields)} fields for {channels} channels: give at least one field, and two "
                "channels or more for each."
            )
        self.channels = channels
        share = 2 * (channels // 2 // len(fields))
        made = {name: f if isinstance(f, Rotary) else f(share) for name, f in fields.items()}
        for name, rotary in made.items():
            if rotary.channels != share:
                raise ValueError(
                    f"RotaryFields got {rotary.channels} channels for {name!r}, expected 2 (P // F) = {share}: give it "
                    f"{share} channels, or its class, which is then made to fit."
                )
        self.rotaries = nn.ModuleDict(made)

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, in the order of their channels."""
        return tuple(self.rotaries)

    def forward(self, x: Mapping[str, Tensor] | Tensor) -> Tensor:
        """Angles of name -> coordinate (..), or of a tensor (T, F) with columns in the order of `names`.

        Returns:
            (.., channels // 2) radian, float32; zero where nothing turns.

        Raises:
            KeyError: a field is missing.
            ValueError: a tensor of another number of columns.
        """
        columns = split_columns(x, self.names, "RotaryFields")
        if columns[self.names[0]].is_nested:
            packed = [Packed.from_nested(columns[name]) for name in self.names]
            angles = self({name: one.values for name, one in zip(self.names, packed, strict=True)})
            return packed[0].with_values(angles).to_nested()
        joined = torch.cat([rotary(columns[name]) for name, rotary in self.rotaries.items()], dim=-1)
        return nn.functional.pad(joined, (0, self.channels // 2 - joined.shape[-1]))


def rotary_of_hits(channels: int) -> RotaryFields:
    """Angles of hits from the columns phi (radian) and eta, for heads of so many channels.

    Fine enough for a window's phi differences: at most 512 turns of the channels in a turn of phi.

    Raises:
        ValueError: fewer than four channels, two for each.
    """
    if channels < 4:
        raise ValueError(
            f"rotary turns by phi and eta, two channels each: give heads of at least 4 channels, not {channels}."
        )
    return RotaryFields({"phi": lambda share: Rotary(share, alpha=512.0, periodic=True), "eta": Rotary}, channels)
