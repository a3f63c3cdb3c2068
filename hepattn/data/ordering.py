"""Orders of hits: along φ, along a Morton or a Hilbert curve through (φ, η) or (φ, z), or at random.

A window or a block of attention holds hits that stand close together *in the sequence*; an order decides which hits
those are. A space-filling curve visits every cell of a grid once, so that its places are keys to sort by: hits that are
close on Hilbert's curve are close in the plane (Morton's jumps at times). The reverse does not hold: no line keeps all
neighbours of a plane.

Both curves are drawn here on a grid of 4 x 4 cells, the numbers being keys; first coordinate across, second up::

    Morton          Hilbert
    10 11 14 15      5  6  9 10
     8  9 12 13      4  7  8 11
     2  3  6  7      3  2 13 12
     0  1  4  5      0  1 14 15
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hepattn.data.schema import Event, Hits, Selection

__all__ = [
    "MOST_BITS",
    "ORDERS",
    "Keys",
    "Order",
    "hilbert_key",
    "hit_order",
    "morton_key",
    "ordered_owner",
    "quantise",
]

Order = Literal["phi", "morton", "hilbert", "random"]

ORDERS: tuple[Order, ...] = ("phi", "morton", "hilbert", "random")
"""What `hit_order` knows."""

BITS = 20
"""Of each coordinate: cells of 6e-6 rad in φ, about 1e-5 in η and 6 μm in z, finer than what is measured."""

MOST_BITS = 31
"""Two coordinates of so many bits make a key that int64 holds."""

Keys = NDArray[np.int64]


def hit_order(
    hits: Hits,
    by: Order = "phi",
    *,
    along: Literal["eta", "z"] = "eta",
    bits: int = BITS,
    seed: int | np.random.Generator = 0,
) -> Keys:
    """The permutation that puts hits in order: hit `order[t]` stands at place t. Ties stay as they were.

    Args:
        hits: n hits of one event
        by: "phi", from -π to +π, as the models sort; "morton" or "hilbert": along that curve through a square whose
            first side is the full turn of φ and whose second goes from the least to the largest value of `along` in
            these hits; "random"
        along: second coordinate of the curves, η or z (mm)
        bits: of each coordinate, the square having 2^bits cells a side
        seed: of "random", or a generator, which is then advanced

    Returns:
        (n,) int64, each of 0 ... n - 1 once

    Raises:
        ValueError: there is no such order or coordinate, or too many bits
    """
    if by not in ORDERS:
        raise ValueError(f"orders are {', '.join(ORDERS)}; got {by!r}")
    if along not in {"eta", "z"}:
        raise ValueError(f"curves go through φ and eta or z, got along={along!r}")
    n = len(hits)
    if by == "random":
        return np.random.default_rng(seed).permutation(n)
    if by == "phi":
        return np.argsort(hits.phi, kind="stable")
    second = hits.eta if along == "eta" else hits.z
    low, high = (float(second.min()), float(second.max())) if n else (0.0, 1.0)
    a, b = quantise(hits.phi, -np.pi, np.pi, bits), quantise(second, low, high, bits)
    return np.argsort(morton_key(a, b, bits) if by == "morton" else hilbert_key(a, b, bits), kind="stable")


def ordered_owner(event: Event, order: NDArray[np.integer[Any]], selection: Selection) -> NDArray[np.int64]:
    """(n_hits,) int64: row of the particle at each place of the order; -1 where the hit lies on no selected particle.

    Raises:
        ValueError: the event has no truth
    """
    target = selection.hits(event)  # raises without truth
    owner = np.full(len(event.hits), -1, dtype=np.int64)
    owner[target] = np.asarray(event.hits.particle)[target]
    return owner[order]


def quantise(values: ArrayLike, low: float, high: float, bits: int = BITS) -> Keys:
    """Which of 2^bits cells of equal width between low and high each value lies in; int64, computed in float64.

    Values outside, and `high` itself, lie in the outermost cells.

    Raises:
        ValueError: a value is not finite, high < low, or bits outside 1 ... 31
    """
    _check_bits(bits)
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all() or not high >= low:
        raise ValueError(f"cells are cut from finite values between low and high, got low={low}, high={high}")
    cells = 1 << bits
    width = high - low if high > low else 1.0
    return np.clip(np.floor((x - low) / width * cells), 0, cells - 1).astype(np.int64)


def morton_key(a: ArrayLike, b: ArrayLike, bits: int = BITS) -> Keys:
    """Place of each cell on the Morton (z-order) curve: the bits of both numbers in turn, a's the lower of each two.

    G. M. Morton, "A computer oriented geodetic data base" (IBM, 1966).

    Args:
        a: (n,) whole numbers, 0 <= a < 2^bits
        b: (n,), likewise
        bits: at most 31

    Raises:
        ValueError: numbers outside the grid, or bits outside 1 ... 31
    """
    x, y = _cells(a, b, bits)
    key = np.zeros(x.shape, dtype=np.int64)
    for bit in range(bits):
        key |= ((x >> bit) & 1) << (2 * bit) | ((y >> bit) & 1) << (2 * bit + 1)
    return key


def hilbert_key(a: ArrayLike, b: ArrayLike, bits: int = BITS) -> Keys:
    """Place of each cell on the Hilbert curve, from cell (0, 0) to (2^bits - 1, 0): successive cells share a side.

    D. Hilbert, Math. Ann. 38 (1891) 459. Each square is made of four: up, across, down, where the curve through the
    first is mirrored on the diagonal, that through the last on the other diagonal. So, from the coarsest bit to the
    finest, the quarter that a cell lies in gives two bits of its key, and its place inside is mirrored likewise.

    Args:
        a: (n,) whole numbers, 0 <= a < 2^bits
        b: (n,), likewise
        bits: at most 31

    Raises:
        ValueError: numbers outside the grid, or bits outside 1 ... 31
    """
    x, y = _cells(a, b, bits)
    key = np.zeros(x.shape, dtype=np.int64)
    for bit in reversed(range(bits)):
        right, top = (x >> bit) & 1, (y >> bit) & 1
        # quarters in the order of the curve: left below 0, left above 1, right above 2, right below 3
        key = key << 2 | (right << 1) | (right ^ top)
        inside = (1 << bit) - 1
        x, y = x & inside, y & inside
        last = (right == 1) & (top == 0)
        x, y = np.where(last, inside - x, x), np.where(last, inside - y, y)
        x, y = np.where(top == 0, y, x), np.where(top == 0, x, y)
    return key


def _cells(a: ArrayLike, b: ArrayLike, bits: int) -> tuple[Keys, Keys]:
    _check_bits(bits)
    x, y = np.broadcast_arrays(np.asarray(a), np.asarray(b))
    for one in (x, y):
        if one.size and one.dtype.kind not in "iu":
            raise ValueError(f"cells are whole numbers, got {one.dtype}: see quantise")
        if one.size and (one.min() < 0 or one.max() >= 1 << bits):
            raise ValueError(f"cells lie in 0 ... {(1 << bits) - 1}, got {one.min()} ... {one.max()}")
    return x.astype(np.int64), y.astype(np.int64)


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MOST_BITS:
        raise ValueError(f"bits lie between 1 and {MOST_BITS}, got {bits}")
