"""What stands in a sequence that attends, in φ order: hits, learned tokens among them, queries in given directions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hepattn.data.schema import Event
from hepattn.sequence import Role

__all__ = ["Tokens", "among", "directions", "hits_of", "standing_at", "turn"]


def turn(angle: NDArray[Any]) -> NDArray[Any]:
    """Angles (rad) brought into [-π, π)."""
    return np.asarray((angle + np.pi) % (2 * np.pi) - np.pi)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Hits, or directions, in φ order.

    Attributes:
        phi: (n,) rad; NaN: a learned token.
        eta: (n,) pseudorapidity; NaN: a learned token, or a direction across the beam alone.
        xy: (n, 2) mm; NaN: a learned token.
        particle: (n,) -1: none, or not known.
        order: (n,) indices in the event; -1: a learned token.
    """

    phi: NDArray[np.floating[Any]]
    eta: NDArray[np.floating[Any]]
    xy: NDArray[np.floating[Any]]
    particle: NDArray[np.integer[Any]]
    order: NDArray[np.integer[Any]]


def hits_of(event: Event) -> Tokens:
    """The hits of an event, in the order in which models have them."""
    order = np.argsort(event.hits.phi.astype(np.float32), kind="stable")
    owner = np.full(len(order), -1) if event.hits.particle is None else event.hits.particle[order]
    xy = np.stack([event.hits.x, event.hits.y], axis=1)[order]
    return Tokens(event.hits.phi[order], event.hits.eta[order], xy, owner.astype(np.int64), order)


def among(hits: Tokens, roles: NDArray[np.integer[Any]]) -> Tokens:
    """The hits at their places among learned tokens, which have no φ, place or particle."""
    at = roles == Role.HIT
    phi, eta, xy = (np.full((len(roles), *more), np.nan) for more in ((), (), (2,)))
    particle, order = np.full(len(roles), -1), np.full(len(roles), -1)
    phi[at], eta[at], xy[at], particle[at], order[at] = hits.phi, hits.eta, hits.xy, hits.particle, hits.order
    return Tokens(phi, eta, xy, particle, order)


def directions(queries: int | ArrayLike, keys: Tokens) -> Tokens:
    """Queries at even or at given φ (rad), in φ order, outside of all hits.

    Raises:
        ValueError: there is none, or one has no direction.
    """
    if isinstance(queries, int):
        phi = -np.pi + 2 * np.pi * np.arange(queries) / max(queries, 1)
    else:
        phi = np.sort(turn(np.asarray(queries, dtype=np.float64)))
    if phi.ndim != 1 or not len(phi) or not np.isfinite(phi).all():
        raise ValueError(f"queries must be at least 1, or φ (rad) of one or more, got {queries!r}")
    return standing_at(phi, keys)


def standing_at(phi: NDArray[np.float64], keys: Tokens) -> Tokens:
    """Queries in these directions, outside of all hits."""
    rim = 1.06 * float(np.nanmax(np.hypot(*keys.xy.T)))
    xy = rim * np.stack([np.cos(phi), np.sin(phi)], axis=1)
    return Tokens(phi, np.full(len(phi), np.nan), xy, np.full(len(phi), -1), np.arange(len(phi)))
