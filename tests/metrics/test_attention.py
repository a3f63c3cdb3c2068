"""Pairs of hits on one particle in windows and blocks, against all pairs one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepattn.masks import Window
from hepattn.metrics.attention import block_pairs, pair_recall, particle_spread, whole_particles, window_blocks
from hepattn.metrics.intervals import Fraction

owners = st.lists(st.integers(-1, 4), max_size=40).map(np.array).map(lambda one: one.astype(np.int64))


def dense_pairs(owner: np.ndarray) -> np.ndarray:
    """(n, n) bool: same particle, not the same hit."""
    same = (owner[:, None] == owner[None, :]) & (owner >= 0)[:, None]
    np.fill_diagonal(same, False)
    return same


def distances(n: int, wrap: bool) -> np.ndarray:
    i = np.arange(n)
    d = np.abs(i[:, None] - i[None, :])
    return np.minimum(d, n - d) if wrap else d


@given(owners, st.integers(1, 90), st.booleans())
def test_recall_is_that_of_the_dense_mask(owner, window, wrap):
    same = dense_pairs(owner)
    allowed = Window(window, wrap=wrap).dense(len(owner)).numpy() if len(owner) else np.zeros((0, 0), bool)
    (found,) = pair_recall(owner, [window], wrap=wrap)
    assert found == Fraction(int((same & allowed).sum()), int(same.sum()))


@given(owners, st.booleans())
def test_spread_and_whole_particles_are_those_of_all_distances(owner, wrap):
    d, same = distances(len(owner), wrap), dense_pairs(owner)
    numbers = sorted(set(owner[owner >= 0].tolist()))
    slow = [int((d * same)[owner == one].max(initial=0)) for one in numbers]
    assert particle_spread(owner, wrap=wrap).tolist() == slow
    windows = [1, 2, 3, 4, 7, 12, 30, 100]
    wanted = [Fraction(sum(s <= w // 2 for s in slow), len(slow)) for w in windows]
    assert whole_particles(owner, windows, wrap=wrap) == wanted


@given(owners, st.integers(1, 50))
def test_blocks_are_those_of_all_pairs(owner, size):
    n = len(owner)
    blocks = -(-n // size)
    slow = np.zeros((blocks, blocks), dtype=int)
    for i, j in zip(*np.nonzero(dense_pairs(owner)), strict=True):
        slow[i // size, j // size] += 1
    found = block_pairs(owner, size)
    assert found.blocks == blocks
    assert list(zip(found.row, found.column, strict=True)) == [tuple(one) for one in np.argwhere(slow)]
    assert found.pairs.tolist() == slow[slow > 0].tolist()
    assert found.active == Fraction(int((slow > 0).sum()), blocks**2)
    assert found.total == int(dense_pairs(owner).sum())


@given(owners, st.integers(1, 10), st.floats(0, 1))
def test_fewer_blocks_than_needed_hold_less(owner, size, recall):
    found = block_pairs(owner, size)
    needed = found.needed(recall).passed
    best = np.sort(found.pairs)[::-1]
    assert best[:needed].sum() >= recall * found.total - 1e-9
    assert needed == 0 or best[: needed - 1].sum() < recall * found.total
    blocks, held = found.best()
    assert len(blocks) == len(held) == len(found.pairs) + 1
    if found.total:
        assert held[0] == 0
        assert held[-1] == 1
        assert (np.diff(held) > 0).all()


@given(st.integers(0, 70), st.integers(1, 150), st.integers(1, 30), st.booleans())
def test_blocks_of_a_window_are_those_of_its_pairs(n, window, size, wrap):
    blocks = -(-n // size)
    allowed = Window(window, wrap=wrap).dense(n).numpy() if n else np.zeros((0, 0), bool)
    filled = np.pad(allowed, (0, blocks * size - n))
    active = int(filled.reshape(blocks, size, blocks, size).any(axis=(1, 3)).sum())
    assert window_blocks(n, window, size, wrap=wrap) == Fraction(active, blocks**2)


@given(owners, st.integers(0, 40), st.integers(1, 60))
def test_a_ring_can_be_turned(owner, shift, window):
    turned = np.roll(owner, shift)
    assert pair_recall(owner, [window]) == pair_recall(turned, [window])
    assert particle_spread(owner).tolist() == particle_spread(turned).tolist()


def test_by_hand():
    """Ten places; particle 0 at both ends, particle 1 in the middle."""
    owner = np.array([0, -1, -1, -1, 1, 1, -1, 1, -1, 0])
    # pairs: 0-9 (distance 9, circular 1), 4-5 (1), 5-7 (2), 4-7 (3), each both ways
    assert pair_recall(owner, [1, 2, 4, 6], wrap=False) == [Fraction(k, 8) for k in (0, 2, 4, 6)]
    assert pair_recall(owner, [1, 2, 4, 6], wrap=True) == [Fraction(k, 8) for k in (0, 4, 6, 8)]
    assert particle_spread(owner, wrap=False).tolist() == [9, 3]
    assert particle_spread(owner).tolist() == [1, 3]
    assert whole_particles(owner, [2, 6]) == [Fraction(1, 2), Fraction(2, 2)]
    blocks = block_pairs(owner, 5)  # 0-9, 4-5 and 4-7 cross over, 5-7 lies in the second block
    assert (blocks.row.tolist(), blocks.column.tolist()) == ([0, 1, 1], [1, 0, 1])
    assert blocks.pairs.tolist() == [3, 3, 2]
    assert blocks.active == Fraction(3, 4)
    assert blocks.needed(0.75) == Fraction(2, 4)


def test_three_hits_around_the_ring():
    """The run that holds them all is longer than any of their distances."""
    owner = np.full(9, -1)
    owner[[0, 3, 6]] = 2
    assert particle_spread(owner).tolist() == [3]
    assert pair_recall(owner, [5, 6]) == [Fraction(0, 6), Fraction(6, 6)]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_sequence_shorter_than_the_window_is_held_whole(n):
    owner = np.zeros(n, dtype=int)
    for wrap in (True, False):
        assert pair_recall(owner, [4 * n], wrap=wrap) == [Fraction(n * (n - 1), n * (n - 1))]
        assert whole_particles(owner, [4 * n], wrap=wrap) == [Fraction(1, 1)]


def test_no_particle_is_a_gap():
    nothing = np.full(6, -1)
    assert pair_recall(nothing, [4]) == [Fraction(0, 0)]
    assert whole_particles(nothing, [4]) == [Fraction(0, 0)]
    assert block_pairs(nothing, 2).active == Fraction(0, 9)
    assert np.isnan(block_pairs(nothing, 2).best()[1]).all()


def test_the_picture_of_blocks():
    owner = np.array([0, 0, -1, -1, 1, 1, -1, -1, 2, 2])  # blocks of 2: active (0, 0), (2, 2), (4, 4) of 5 x 5
    found = block_pairs(owner, 2)
    assert np.array_equal(found.image(), np.diag([1.0, 0.0, 1.0, 0.0, 1.0]))
    assert np.array_equal(found.image(3), np.diag([0.25, 0.25, 1.0]))  # the last cell holds one block


def test_refusals():
    with pytest.raises(ValueError, match=r"shape \(n,\), got \(2, 2\)"):
        pair_recall(np.zeros((2, 2), dtype=int), [4])
    with pytest.raises(ValueError, match="at least 1"):
        pair_recall(np.zeros(2, dtype=int), [0])
    with pytest.raises(ValueError, match="size=0"):
        block_pairs(np.zeros(2, dtype=int), 0)
    with pytest.raises(ValueError, match="size=0"):
        window_blocks(4, 2, 0)
    with pytest.raises(ValueError, match="recall"):
        block_pairs(np.zeros(2, dtype=int), 1).needed(1.5)
