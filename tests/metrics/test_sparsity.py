"""Counts of pairs and blocks against dense masks that are built pair by pair and cut into blocks."""

import math

import numpy as np
import pytest
import torch

from hepattn.masks import Dense, GlobalTokens, Mask, Strided, Window
from hepattn.metrics.sparsity import layouts, pairs, sparsity, sparsity_table

MASKS: list[Mask | None] = [
    None,
    Window(7),
    Window(64, wrap=True),
    Window(500, wrap=True),
    GlobalTokens([0, 40]),
    Window(30) | GlobalTokens([3]),
    Window(90) & Window(20, wrap=True),
]


def dense(mask: Mask | None, queries: list[int], keys: list[int]) -> torch.Tensor:
    """The packed mask, event by event."""
    shapes = zip(queries, keys, strict=True)
    return torch.block_diag(*(torch.ones(q, k) if mask is None else mask.dense(q, k).float() for q, k in shapes)).bool()


def by_blocks(allowed: torch.Tensor, size: int) -> tuple[int, int, int]:
    """All blocks, those with an allowed pair, and whole ones in which all pairs are."""
    cells = [cell for row in allowed.split(size, 0) for cell in row.split(size, 1)]
    return len(cells), sum(bool(c.any()) for c in cells), sum(bool(c.all()) and c.numel() == size**2 for c in cells)


@pytest.mark.parametrize("lengths", [[300], [130, 1, 77], [128, 128], [5]])
@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_counts_equal_those_of_a_dense_mask(mask, lengths):
    allowed = dense(mask, lengths, lengths)
    assert torch.equal(pairs(mask, *layouts(lengths)), allowed)
    for size in (16, 50, 128):
        found = sparsity(mask, lengths, size)
        blocks, active, full = by_blocks(allowed, size)
        assert (found.pairs, found.allowed, found.blocks) == (allowed.numel(), int(allowed.sum()), blocks)
        assert found.full <= full <= active <= found.active  # it may be cautious
        if not isinstance(mask, Mask) or "&" not in str(mask):
            assert found.active - active <= (0 if len(lengths) == 1 else 2)
        assert found.computed == found.active * size**2


@pytest.mark.parametrize("transposed", [False, True])
def test_queries_and_keys_of_different_number(transposed):
    few, many, mask = [20, 9], [200, 150], Strided(24, wrap=True)
    queries, keys = (many, few) if transposed else (few, many)
    mask = mask.transpose if transposed else mask
    allowed = dense(mask, queries, keys)
    found = sparsity(mask, queries, 16, keys)
    assert (found.allowed, found.blocks, found.active) == (int(allowed.sum()), *by_blocks(allowed, 16)[:2])


def test_dense_masks_of_several_events():
    each = [torch.rand(n, n, generator=torch.Generator().manual_seed(n)) < 0.05 for n in (70, 90)]
    mask = Dense(each)
    assert torch.equal(pairs(mask, *layouts([70, 90])), torch.block_diag(*(one.float() for one in each)).bool())
    found = sparsity(mask, [70, 90], 32)
    assert found.allowed == sum(int(one.sum()) for one in each)
    assert found.active >= by_blocks(pairs(mask, *layouts([70, 90])), 32)[1]


def test_a_window_over_a_whole_event_counts_as_its_formula_says():
    found = sparsity(Window(1024, wrap=True), [57_344])
    assert found.allowed == 57_344 * 1025
    assert found.active == 448 * 9  # the block itself and four on either side
    assert found.full == 448 * 7
    assert found.waste == pytest.approx(9 * 128 / 1025)


def test_nothing_allowed():
    found = sparsity(Dense(torch.zeros(6, 6, dtype=torch.bool)), [6], 4)
    assert found.allowed == 0
    assert math.isnan(found.waste)


def test_a_mask_that_does_not_fit():
    with pytest.raises(ValueError, match="1 events, the batch has 2"):
        sparsity(Dense(torch.ones(3, 3, dtype=torch.bool)), [3, 3])


def test_the_table_has_a_row_a_mask():
    table = sparsity_table({"all": None, "near": Window(2, wrap=True)}, [8, 8], 8)
    assert list(table.index) == ["all", "near"]
    assert np.allclose(table.loc["all"], [50, 50, 50, 1])
    assert np.allclose(table.loc["near"], [18.75, 50, 0, 128 / 48], atol=0.01)
