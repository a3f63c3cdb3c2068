"""Settings of models are what their fields say, or one sentence says which is not."""

import math
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from hepattn.layers.dense import ACTIVATIONS, GATED

__all__ = ["LayerSettings", "check_layers", "check_names", "check_types"]


class LayerSettings:
    """What an `EncoderConfig` and a `DecoderConfig` can do alike; dataclasses whose fields all have a default."""

    owner: ClassVar[str]
    """Whose settings they are, for messages."""
    sizes: ClassVar[tuple[str, ...]]
    """Fields that `switches` leaves out."""

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Self:
        """The configuration with these settings, such as `asdict` gave or a file holds.

        Raises:
            ValueError: one of them is unknown; the others are named.
        """
        check_names(cls.owner, cls, settings)
        return cls(**settings)

    def changed(self) -> dict[str, Any]:
        """The settings that are not the default ones."""
        default = type(self)()
        values = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value != getattr(default, name)}

    def switches(self) -> list[str]:
        """Those of them that are no sizes, in words: "gate", "registers=4"."""
        return [
            name if value is True else f"{name}={value}"
            for name, value in self.changed().items()
            if name not in self.sizes
        ]


def check_types(owner: str, settings: Any) -> None:
    """Refuses a field of a dataclass that holds something else than its annotation says.

    Whole numbers serve as floats, True and False never as numbers, and a float is finite. Annotations other than bool,
    int, float, str, None, Literal and unions of these are not looked at.

    Args:
        owner: whose settings they are, for the message
        settings: a dataclass

    Raises:
        ValueError: naming the field, what it holds and what it should
    """
    hints = get_type_hints(type(settings))
    for one in fields(settings):
        value = getattr(settings, one.name)
        if not _fits(value, hints[one.name]):
            raise ValueError(f"{owner} got {one.name}={value!r}, expected {_words(hints[one.name])}.")


def check_names(owner: str, kind: type, settings: dict[str, Any]) -> None:
    """Refuses settings that the dataclass `kind` has no field for.

    Raises:
        ValueError: naming them, and those that there are
    """
    known = [one.name for one in fields(kind)]
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{owner} has no setting {', '.join(unknown)}: it knows {', '.join(known)}.")


def check_layers(owner: str, settings: Any) -> None:
    """Refuses values and contradictions of what encoder and decoder have alike: switches of their layers.

    Args:
        owner: whose settings they are, for the message
        settings: an `EncoderConfig` or a `DecoderConfig`, whose types have been checked

    Raises:
        ValueError: a setting has no such value, or two of them contradict each other
    """
    c = settings
    if c.activation not in ACTIVATIONS | GATED:
        known = ", ".join(map(repr, ACTIVATIONS | GATED))
        raise ValueError(f"{owner} got activation={c.activation!r}, expected one of {known}.")
    if not 0 <= c.drop_path < 1:
        raise ValueError(f"{owner} got drop_path={c.drop_path}, expected a probability in [0, 1).")
    if c.layer_scale is not None and c.layer_scale < 0:
        raise ValueError(f"{owner} got layer_scale={c.layer_scale}: give a factor of at least 0, or None.")
    if c.drop_path and c.num_layers == 1:
        raise ValueError("drop_path rises from 0 at the first layer to its rate: with one layer, leave it out.")
    if c.zero_start and c.layer_scale is not None:
        raise ValueError("zero_start and layer_scale both let a layer begin as (nearly) the identity: choose one.")
    if c.hybrid_norm and c.v_norm:
        raise ValueError("hybrid_norm norms q, k and v already: leave v_norm out.")
    if c.value_residual and c.num_layers == 1:
        raise ValueError("value_residual mixes the first layer's values into later ones: with one layer, leave it out.")
    if c.experts is not None and not 1 <= c.experts_per_token <= c.experts:
        raise ValueError(
            f"{owner} got experts_per_token={c.experts_per_token}, experts={c.experts}: a token uses at least one, and "
            "no more than there are."
        )
    if c.experts is None and c.experts_per_token != type(c).experts_per_token:
        raise ValueError("experts_per_token is of use with experts alone: give experts, or leave it out.")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in {Union, UnionType}:
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return any(type(value) is type(known) and value == known for known in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return type(value) is hint if hint in {bool, int, str, NoneType} else True


def _words(hint: Any) -> str:
    """The annotation in words: "a whole number or None"."""
    if get_origin(hint) in {Union, UnionType}:
        return " or ".join(_words(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return {bool: "True or False", int: "a whole number", float: "a finite number", str: "a word"}.get(hint, "None")
