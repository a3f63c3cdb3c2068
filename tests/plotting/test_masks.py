from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as MatplotlibFigure

import hepattn.plotting
from hepattn.masks import Dense, GlobalTokens, Strided, Window
from hepattn.plotting.masks import name

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
