"""Which pairs of hits on one particle a window or a block of attention holds, counted without looking at N x N pairs.

Everything here sees `owner`, (n,) whole numbers: which particle the hit at each place of the sequence lies on, negative
where it lies on none that is asked for (noise, particles that aren't reconstructable). A *pair* is ordered, (i, j) with
i != j: hit i attends to hit j of its own particle. A particle with k hits has k (k - 1) pairs.

`hepattn.data.ordering.ordered_owner` makes `owner` from an event, an order and a named selection.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hepattn.metrics.intervals import Fraction

__all__ = ["BlockPairs", "block_pairs", "pair_recall", "particle_spread", "whole_particles", "window_blocks"]

Owner = NDArray[np.integer[Any]]
Whole = NDArray[np.int64]


def pair_recall(owner: Owner, windows: Iterable[int], *, wrap: bool = True) -> list[Fraction]:
    """Share of the pairs of hits on one particle that a window holds: distance in the sequence <= w // 2.

    Args:
        owner: (n,) particle at each place of the sequence, negative for none
        windows: sizes w as of `hepattn.masks.Window`
        wrap: distance is min(d, n - d), with n the length of the whole sequence

    Returns:
        for each window pairs inside / all pairs; 0 / 0 where no particle has two hits

    Raises:
        ValueError: owner has not one dimension, or a window is below 1
    """
    particle, place, n = _by_particle(owner)
    _, sizes = _runs(particle)
    total = int((sizes * (sizes - 1)).sum())
    # places a turn later follow those of the same particle, so that what lies ahead is one run of a sorted array
    stride = 3 * n
    keys = np.repeat(np.arange(len(sizes)), sizes) * stride + place
    ahead = np.sort(np.concatenate([keys, keys + n])) if wrap else keys
    here = np.searchsorted(ahead, keys)
    found = []
    for half in _halves(windows):
        if wrap and 2 * half >= n - 1:
            found.append(Fraction(total, total))  # beyond, a pair would be met both ways around
            continue
        last = np.searchsorted(ahead, keys + min(half, n), side="right")
        found.append(Fraction(2 * int((last - here - 1).sum()), total))
    return found


def particle_spread(owner: Owner, *, wrap: bool = True) -> Whole:
    """Largest distance in the sequence between two hits of each particle, circular with `wrap`.

    A window w keeps a particle whole, every hit seeing every other, where its spread is at most w // 2.

    Args:
        owner: (n,) particle at each place of the sequence, negative for none
        wrap: distance is min(d, n - d)

    Returns:
        (particles,) in rising order of their numbers, those with a hit in `owner` only; 0 for a single hit

    Raises:
        ValueError: owner has not one dimension
    """
    particle, place, n = _by_particle(owner)
    first, sizes = _runs(particle)
    if not wrap:
        return place[first + sizes - 1] - place[first]
    # the hit farthest from one is the nearest to the place half a turn away, on either side of it
    run = np.repeat(np.arange(len(sizes)), sizes)
    keys = run * n + place
    opposite = (place + n // 2) % n
    after = np.searchsorted(keys, run * n + opposite) - first[run]
    farthest = np.zeros(len(place), dtype=np.int64)
    for step in (-1, 0, 1):  # n // 2 is rounded, so that one more than two neighbours is asked
        other = place[first[run] + (after + step) % sizes[run]]
        distance = np.abs(place - other)
        farthest = np.maximum(farthest, np.minimum(distance, n - distance))
    return np.maximum.reduceat(farthest, first) if len(first) else farthest


def whole_particles(owner: Owner, windows: Iterable[int], *, wrap: bool = True) -> list[Fraction]:
    """Share of the particles all of whose pairs a window holds, see `particle_spread`.

    Args:
        owner: (n,) particle at each place of the sequence, negative for none
        windows: sizes w
        wrap: circular distance

    Returns:
        for each window particles held whole / particles with a hit in `owner`

    Raises:
        ValueError: as `pair_recall`
    """
    spread = particle_spread(owner, wrap=wrap)
    return [Fraction(int((spread <= half).sum()), len(spread)) for half in _halves(windows)]


@dataclass(frozen=True, slots=True, eq=False)
class BlockPairs:
    """Pairs of hits on one particle in each block of attention; only blocks that hold some are listed.

    Attributes:
        size: hits along the side of a block
        blocks: blocks along the side of the map, ceil(n / size)
        row, column: (active,) place of the block, sorted by row, then column
        pairs: (active,) pairs in it, >= 1
    """

    size: int
    blocks: int
    row: Whole
    column: Whole
    pairs: Whole

    @property
    def active(self) -> Fraction:
        """Blocks that hold a pair / all blocks: what a kernel that skips blocks must compute to lose no pair."""
        return Fraction(len(self.pairs), self.blocks**2)

    @property
    def total(self) -> int:
        """All pairs."""
        return int(self.pairs.sum())

    def best(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Share of pairs held against share of blocks computed, where the fullest blocks are taken first.

        No choice of as many blocks holds more pairs. It needs the truth: a bound on all masks made of such blocks.

        Returns:
            (share of all blocks, share of pairs), (active + 1,) each, from 0; NaN shares where there is no pair
        """
        held = np.cumsum(np.append(0, np.sort(self.pairs)[::-1]))
        taken = np.arange(len(held)) / max(self.blocks**2, 1)
        return taken, held / self.total if self.total else np.full(len(held), np.nan)

    def needed(self, recall: float) -> Fraction:
        """The least number of blocks that hold at least this share of the pairs / all blocks.

        Raises:
            ValueError: recall outside [0, 1]
        """
        if not 0 <= recall <= 1:
            raise ValueError(f"recall lies in [0, 1], got {recall}")
        held = np.cumsum(np.append(0, np.sort(self.pairs)[::-1]))
        return Fraction(int(np.searchsorted(held, recall * self.total - 1e-9)), self.blocks**2)

    def image(self, cells: int = 128) -> NDArray[np.float64]:
        """Share of active blocks in each cell of a picture of at most `cells` x `cells`."""
        step = max(1, -(-self.blocks // cells))
        side = -(-self.blocks // step)
        found = np.zeros((side, side))
        np.add.at(found, (self.row // step, self.column // step), 1.0)
        wide = np.minimum(step, self.blocks - step * np.arange(side))
        share: NDArray[np.float64] = found / (wide[:, None] * wide[None, :])
        return share


def block_pairs(owner: Owner, size: int) -> BlockPairs:
    """Counts the pairs in each block of `size` x `size` that the map of attention is cut into.

    A particle with hits in m blocks touches at most m^2 blocks of the map, and only these are looked at.

    Args:
        owner: (n,) particle at each place of the sequence, negative for none
        size: hits along the side of a block, at least 1; the last block may be cut short

    Raises:
        ValueError: owner has not one dimension, or size is below 1
    """
    if size < 1:
        raise ValueError(f"a block has at least one hit a side, got size={size}")
    particle, place, n = _by_particle(owner)
    blocks = -(-n // size)
    # hits of a particle in a block: runs, for both are sorted
    first, hits = _runs(np.unique(particle, return_inverse=True)[1] * max(blocks, 1) + place // size)
    block = place[first] // size
    start, many = _runs(particle[first])  # the blocks of each particle
    run = np.repeat(np.arange(len(many)), many)
    # each block of a particle against all of its blocks
    left = np.repeat(np.arange(len(block)), many[run])
    offset = np.arange(len(left)) - np.repeat(np.cumsum(many[run]) - many[run], many[run])
    right = start[run[left]] + offset
    pairs = hits[left] * hits[right] - np.where(left == right, hits[left], 0)
    cell, where = np.unique(block[left] * max(blocks, 1) + block[right], return_inverse=True)
    found = np.bincount(where, weights=pairs, minlength=len(cell)).astype(np.int64)  # exact below 2^53
    held = found > 0
    return BlockPairs(size, blocks, cell[held] // max(blocks, 1), cell[held] % max(blocks, 1), found[held])


def window_blocks(n: int, window: int, size: int, *, wrap: bool = True) -> Fraction:
    """Blocks of `size` x `size` that hold a pair which a window allows / all blocks: what its kernel computes.

    Args:
        n: hits of the sequence
        window: size w as of `hepattn.masks.Window`
        size: hits along the side of a block
        wrap: circular distance

    Raises:
        ValueError: window or size is below 1
    """
    (half,) = _halves([window])
    if size < 1:
        raise ValueError(f"a block has at least one hit a side, got size={size}")
    blocks = -(-n // size)
    start = np.arange(blocks) * size
    low, high = start - half, np.minimum(start + size, n) - 1 + half
    if not wrap:
        seen = np.minimum(high, n - 1) // size - np.maximum(low, 0) // size + 1
        return Fraction(int(seen.sum()), blocks**2)
    first, last = low % max(n, 1) // size, high % max(n, 1) // size
    seen = last - first + 1
    around = (low < 0) | (high >= n)
    seen = np.where(around, np.minimum(seen + blocks, blocks), seen)  # the block where both ends meet counts once
    seen = np.where(high - low + 1 >= n, blocks, seen)
    return Fraction(int(seen.sum()), blocks**2)


def _by_particle(owner: Owner) -> tuple[Whole, Whole, int]:
    """Particle and place of the hits that lie on one, sorted by both; and the length of the sequence."""
    given = np.asarray(owner)
    if given.ndim != 1:
        raise ValueError(f"owner has one entry a hit, shape (n,), got {given.shape}")
    place = np.flatnonzero(given >= 0)
    place = place[np.argsort(given[place], kind="stable")]
    return given[place].astype(np.int64), place.astype(np.int64), len(given)


def _runs(sorted_values: Whole) -> tuple[Whole, Whole]:
    """First index and length of each run of equal values."""
    new = np.append(True, sorted_values[1:] != sorted_values[:-1]) if len(sorted_values) else np.zeros(0, bool)
    first = np.flatnonzero(new).astype(np.int64)
    return first, np.diff(np.append(first, len(sorted_values)))


def _halves(windows: Iterable[int]) -> list[int]:
    sizes = [int(window) for window in windows]
    if any(size < 1 for size in sizes):
        raise ValueError(f"windows are at least 1, got {sizes}")
    return [size // 2 for size in sizes]
