from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as MatplotlibFigure

import hepattn.plotting
from hepattn.masks import Dense, GlobalTokens, Strided, Window
from hepattn.plotting.masks import STATES, name, share

plotting: Any = hepattn.plotting  # its artists are looked into, which their type hints do not allow


@pytest.mark.parametrize("mask", [Window(4), Window(4, wrap=True), Window(5), Window(3) | GlobalTokens([0])])
def test_the_picture_is_the_mask(mask):
    panel = plotting.mask(mask, 8).axes[0]
    assert np.array_equal(panel.images[0].get_array(), mask.dense(8).numpy())
    digits = [int(text.get_text()) for text in panel.texts]
    assert digits == mask.dense(8).int().flatten().tolist()
    assert panel.yaxis_inverted()  # row 0 on top, as printed
    assert panel.get_xlabel().startswith("key")
    assert panel.get_ylabel().startswith("query")


def test_true_is_named_in_the_legend():
    figure = plotting.mask(Window(4), 8)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1, True: may attend", "0, False: may not"]


def test_several_masks_stand_side_by_side():
    figure = plotting.mask([Window(2), Window(2, wrap=True), Window(6)], 8)
    assert [axes.get_title(loc="left").splitlines()[0] for axes in figure.axes] == [
        "Window(2)",
        "Window(2, wrap=True)",
        "Window(6)",
    ]


def test_cross_attention_has_its_own_keys():
    panel = plotting.mask(Strided(4), 6, 30).axes[0]
    assert panel.images[0].get_array().shape == (6, 30)
    assert not panel.texts  # too many to read


def test_the_fraction_of_pairs_is_told():
    assert plotting.mask(Window(4), 8).axes[0].get_title(loc="left").endswith("53% of 64 pairs")


def test_it_draws_where_the_caller_wants():
    figure = MatplotlibFigure()
    axes = figure.subplots()
    assert plotting.mask(Window(4), 8, ax=axes) is figure
    assert len(axes.images) == 1
    with pytest.raises(ValueError, match="one panel"):
        plotting.mask([Window(4), Window(6)], 8, ax=axes)


@pytest.mark.parametrize(("n", "n_kv"), [(0, None), (5000, None), (8, 5000)])
def test_sizes_that_no_picture_can_show(n, n_kv):
    with pytest.raises(ValueError, match="1 to 4096"):
        plotting.mask(Window(4), n, n_kv)


def test_no_mask():
    with pytest.raises(ValueError, match="no mask"):
        plotting.mask([], 8)


def test_names_are_written_as_code():
    assert name((Window(4) | GlobalTokens([0])) & Window(6, wrap=True)) == (
        "(Window(4) | GlobalTokens([0])) & Window(6, wrap=True)"
    )
    assert name(Dense(torch.ones(2, 2, dtype=torch.bool))) == "Dense"


# -- blocks ------------------------------------------------------------------------------------------------------------


def packed(mask, lengths) -> np.ndarray:
    """Pairs of the packed events, one event at a time."""
    found = np.zeros((sum(lengths), sum(lengths)), bool)
    for end, n in zip(np.cumsum(lengths), lengths, strict=True):
        found[end - n : end, end - n : end] = mask.dense(n).numpy()
    return found


@pytest.mark.parametrize("lengths", [[40], [20, 7, 30]])
@pytest.mark.parametrize("mask", [Window(6, wrap=True), Window(21), Window(4) | GlobalTokens([0])])
def test_every_pair_has_the_colour_of_its_block(mask, lengths):
    size, total, allowed = 8, sum(lengths), packed(mask, lengths)
    cells = plotting.blocks(mask, lengths, size=size).axes[0].images[0].get_array()
    assert np.array_equal(cells >= 2, allowed)
    for i in range(0, total, size):
        for j in range(0, total, size):
            here, may = cells[i : i + size, j : j + size], allowed[i : i + size, j : j + size]
            if not may.any():
                assert len(np.unique(here)) == 1
            elif may.all() and may.shape == (size, size):
                assert (here == 3).all()
            else:
                assert set(np.unique(here)) <= {1, 2}
    assert (cells[:8, -8:] == 0).all() or allowed[:8, -8:].any()


def test_the_grid_has_the_size_of_blocks_and_events_are_framed():
    panel = plotting.blocks(Window(4), [20, 10], size=8).axes[0]
    grid, frames = panel.collections
    levels = sorted({line[0][1] for line in grid.get_segments() if line[0][1] == line[1][1]})
    assert levels == [-0.5, 7.5, 15.5, 23.5, 29.5]
    corners = [(frame[:, 0].min(), frame[:, 0].max(), frame[:, 1].max()) for frame in frames.get_segments()]
    assert corners == [(-0.5, 19.5, 19.5), (19.5, 29.5, 29.5)]
    assert panel.yaxis_inverted()


def test_a_single_row_of_a_large_mask_is_still_seen():
    cells = plotting.blocks(GlobalTokens([1001]), [2000]).axes[0].images[0].get_array()
    assert max(cells.shape) <= 320
    assert (cells == 2).all(axis=1).sum() == 1
    assert (cells == 2).all(axis=0).sum() == 1


def test_titles_tell_the_shares():
    titles = [axes.get_title(loc="left") for axes in plotting.blocks([Window(2), None], [16], size=8).axes]
    assert titles == [
        "Window(2)\nblocks of 8: 100 % active, 0 % full\n18 % of pairs allowed",
        "no mask\nblocks of 8: 100 % active, 100 % full\n100 % of pairs allowed",
    ]


def test_several_sizes_stand_side_by_side_and_the_legend_names_the_colours():
    figure = plotting.blocks(Window(8, wrap=True), [64], size=[4, 8, 16])
    assert [axes.get_title(loc="left").splitlines()[1].split(":")[0] for axes in figure.axes] == [
        "blocks of 4",
        "blocks of 8",
        "blocks of 16",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [words for _, words in STATES]


def test_blocks_of_cross_attention_are_drawn_where_the_caller_wants():
    figure = MatplotlibFigure()
    axes = figure.subplots()
    assert plotting.blocks(Strided(8), [6, 4], kv_lengths=[60, 40], size=4, ax=axes) is figure
    assert np.asarray(axes.images[0].get_array()).shape == (10, 100)


def test_blocks_that_no_picture_can_show():
    with pytest.raises(ValueError, match=r"sparsity counts them at any size"):
        plotting.blocks(Window(4), [5000])
    with pytest.raises(ValueError, match="no mask"):
        plotting.blocks([], [8])


def test_larger_blocks_look_at_more_in_vain():
    figure = plotting.block_sizes([Window(64, wrap=True), Window(256, wrap=True)], [2048], sizes=(16, 64, 256))
    waste, index = figure.axes
    curves = [line.get_ydata() for line in waste.lines[:2]]
    assert np.allclose(curves[0], [5 * 16 / 65, 3 * 64 / 65, 3 * 256 / 65])
    assert np.allclose(curves[1], [17 * 16 / 257, 5 * 64 / 257, 3 * 256 / 257])
    assert np.allclose(index.lines[0].get_ydata(), [0.262144, 0.016384, 0.001024])


@pytest.mark.parametrize(("part", "words"), [(0, "0 %"), (1, "0.10 %"), (25, "2.5 %"), (995, "100 %"), (1000, "100 %")])
def test_shares_have_the_digits_that_they_need(part, words):
    assert share(part, 1000) == words
    assert share(part, 0) == "–"
