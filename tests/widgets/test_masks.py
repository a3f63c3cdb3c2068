"""The explorer of masks by its state: what it draws and counts, against dense masks."""

import time
from typing import Any

import numpy as np
import pytest
import torch

from hepattn.masks import GlobalTokens, Strided, Window
from hepattn.metrics.sparsity import pairs
from hepattn.widgets import MaskExplorer
from hepattn.widgets.masks import KINDS, NEEDS, uneven


@pytest.fixture(scope="module")
def explorer() -> MaskExplorer:
    made = MaskExplorer()
    made.draw()
    return made


def artists(explorer: MaskExplorer) -> list[int]:
    return [id(artist) for ax in explorer.figure.axes for artist in ax.get_children()]


@pytest.mark.parametrize("events", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_blocks_and_bars_are_those_of_the_dense_mask(explorer, kind, events):
    explorer.kind, explorer.events, explorer.tokens, explorer.queries, explorer.size = kind, events, 160, 48, 16
    explorer.window, explorer.wrap = 20, True
    queries, keys = explorer.layouts()
    allowed = pairs(explorer.mask(), queries, keys)
    cells = explorer.panel.image.get_array()
    assert cells is not None
    assert np.array_equal(np.asarray(cells) >= 2, allowed.numpy())
    found = explorer.count()
    assert found.allowed == int(allowed.sum())
    blocks = [cell for row in allowed.split(16) for cell in row.split(16, 1)]
    active = sum(bool(cell.any()) for cell in blocks)
    assert found.active >= active
    if "Dense" not in kind and events == 1:
        assert found.active == active
    widths = [bar.get_width() for bar in explorer.bars]
    shares = [found.allowed / found.pairs, found.active / found.blocks, found.full / found.blocks]
    assert np.allclose(widths, [100 * share for share in shares])
    assert f"{found.allowed:,} of {found.pairs:,} pairs allowed" in explorer.numbers.value


def test_every_control_changes_the_picture_and_no_artist_is_made(explorer):
    explorer.kind, explorer.events, explorer.tokens = "Window | GlobalTokens", 1, 256
    made, seen = artists(explorer), {bytes(explorer.picture.value)}
    moves: list[tuple[str, Any]] = [
        ("window", 30),
        ("wrap", False),
        ("global_tokens", 5),
        ("spread", True),
        ("tokens", 512),
        ("events", 4),
    ]
    moves += [("size", 64), ("kind", "Strided"), ("queries", 128), ("kind", "Strided, transposed"), ("kind", "Dense")]
    for name, value in moves:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value).startswith(b"\x89PNG")
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert artists(explorer) == made, name


def test_the_mask_is_the_one_that_the_state_says(explorer):
    explorer.kind, explorer.window, explorer.wrap = "Window | GlobalTokens", 12, False
    explorer.tokens, explorer.events, explorer.global_tokens, explorer.spread = 240, 1, 3, False
    assert explorer.mask() == Window(12) | GlobalTokens([0, 1, 2])
    explorer.spread = True
    assert explorer.mask() == Window(12) | GlobalTokens([0, 80, 160])
    assert explorer.title.get_text() == "Window(12) | GlobalTokens([0, 80, 160])\n240 tokens"
    explorer.kind, explorer.queries, explorer.events = "Strided, transposed", 24 + 24, 3
    assert explorer.mask() == Strided(12).transpose
    assert explorer.title.get_text().endswith("80 + 60 + 100 queries, 16 + 12 + 20 keys")
    explorer.kind = "no mask"
    assert explorer.mask() is None


def test_controls_that_mean_nothing_are_greyed_out(explorer):
    for kind in KINDS:
        explorer.kind = kind
        off = {name for name in NEEDS if explorer.controls[name].disabled}
        q, k = explorer.layouts()
        assert ("queries" in off) == (q is k)
        assert ("window" in off) == ("Window" not in kind and "Strided" not in kind)
        assert ("spread" in off) == ("GlobalTokens" not in kind)


def test_tokens_of_one_particle_see_each_other(explorer):
    explorer.kind, explorer.tokens, explorer.events = "Dense", 160, 2
    for tensor in explorer.dense_mask().tensors:
        assert torch.equal(tensor, tensor.T)
        assert tensor.diagonal().all()
        assert torch.equal((tensor.float() @ tensor.float()) > 0, tensor)


def test_lengths_sum_to_the_total():
    for total in (16, 100, 1024):
        for events in range(1, 7):
            lengths = uneven(total, events)
            assert (sum(lengths), len(lengths)) == (total, events)
            assert min(lengths) > 0


def test_the_largest_batch_is_drawn_at_once(explorer):
    explorer.kind, explorer.tokens, explorer.events, explorer.size = "Window | GlobalTokens", 768, 6, 8
    explorer.spread, explorer.global_tokens = True, 16
    times = []
    for window in range(40, 48):
        start = time.process_time()
        explorer.window = window
        times.append(time.process_time() - start)
    assert min(times) < 0.25


def test_refusals(explorer):
    with pytest.raises(ValueError, match="'Window', 'GlobalTokens'"):
        MaskExplorer("causal")
    with pytest.raises(ValueError, match="between 1 and 512"):
        explorer.window = 0
