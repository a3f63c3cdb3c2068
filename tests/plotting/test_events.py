import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as MatplotlibFigure

import hepattn.plotting
from hepattn.data.schema import Event, Selection
from hepattn.masks import Window
from hepattn.plotting import style

plotting: Any = hepattn.plotting  # its artists are looked into, which their type hints do not allow


def labels(figure: MatplotlibFigure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def points(axes) -> int:
    return sum(len(collection.get_offsets()) for collection in axes.collections)


@pytest.mark.parametrize("colour_by", ["particle", "volume", "layer", "noise"])
def test_every_hit_is_drawn_once_in_each_view(event, colour_by):
    figure = plotting.event(event, colour_by)
    assert [points(axes) for axes in figure.axes[:3]] == [82, 82, 82]
    assert figure._repr_png_()


def test_axes_carry_units_and_the_coordinates(event):
    xy, rz, etaphi = plotting.event(event, np.zeros(82)).axes[:3]
    assert (xy.get_xlabel(), xy.get_ylabel()) == ("x [mm]", "y [mm]")
    assert (rz.get_xlabel(), rz.get_ylabel()) == ("z [mm]", "r [mm]")
    assert (etaphi.get_xlabel(), etaphi.get_ylabel()) == ("η", "φ [rad]")
    drawn = np.asarray(rz.collections[0].get_offsets())
    assert np.allclose(drawn, np.stack([event.hits.z, event.hits.r], axis=1))
    assert xy.get_aspect() == 1.0


def test_noise_is_fainter_and_lies_below(event):
    noise, real = plotting.event(event, "noise").axes[0].collections
    assert (len(noise.get_offsets()), len(real.get_offsets())) == (10, 72)
    assert noise.get_alpha() < 0.5 < real.get_alpha()
    assert noise.get_sizes()[0] < real.get_sizes()[0]


def test_a_selection_is_lit_and_printed(event):
    selection = Selection(pt_min=0.9)
    figure = plotting.event(event, "particle", selection=selection)
    assert labels(figure) == ["noise (10)", "other particle (36)", "6 reconstructable particles (36), colours in turn"]
    assert str(selection) in figure.get_suptitle()


def test_neighbours_in_phi_differ_in_colour(event):
    lit = plotting.event(event, "particle").axes[0].collections[1]
    owner = event.hits.particle[event.hits.particle >= 0]
    colour = {int(particle): tuple(face) for particle, face in zip(owner, lit.get_facecolors(), strict=True)}
    around = np.argsort(event.particles.phi)
    assert all(colour[int(a)] != colour[int(b)] for a, b in itertools.pairwise(around))


def test_volumes_are_named(event):
    assert labels(plotting.event(event, "volume")) == [
        "7 pixel end-cap −z (10)",
        "8 pixel barrel (48)",
        "13 short strip barrel (12)",
        "17 long strip barrel (12)",
    ]


def test_numbers_get_a_colour_bar_with_a_label(event):
    values = np.linspace(0, 1, 82)
    values[3] = np.nan
    figure = plotting.event(event, values, views=("xy",), label="score")
    assert figure.axes[1].get_ylabel() == "score"
    assert points(figure.axes[0]) == 82
    assert labels(figure) == ["no value (1)"]


def test_a_bool_array_is_drawn_in_two_colours(event):
    pixels = np.isin(event.hits.volume_id, (7, 8, 9))
    assert labels(plotting.event(event, pixels)) == ["False (24)", "True (58)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"colour_by": "charm"}, "colour_by is particle"),
        ({"colour_by": np.zeros(3)}, r"shape \(82,\)"),
        ({"views": ("xz",)}, "views are xy, rz, etaphi; got 'xz'"),
        ({"views": ()}, "got none"),
    ],
)
def test_wrong_requests_are_told_in_one_sentence(event, arguments, message):
    with pytest.raises(ValueError, match=message):
        plotting.event(event, **arguments)


@pytest.mark.parametrize("colour_by", ["particle", "noise"])
def test_truth_that_is_not_there(event, colour_by):
    blind = Event(replace(event.hits, particle=None))
    with pytest.raises(ValueError, match="needs truth"):
        plotting.event(blind, colour_by)
    assert plotting.event(blind, "volume").axes


def test_an_empty_event_is_an_empty_picture(event):
    nothing = event.keep(np.zeros(82, dtype=bool))
    assert plotting.event(nothing, "particle")._repr_png_()
    assert plotting.event(nothing, "layer")._repr_png_()


def test_it_draws_where_the_caller_wants(event):
    figure = MatplotlibFigure()
    axes = figure.subplots()
    assert plotting.event(event, "noise", views=("xy",), ax=axes) is figure
    assert points(axes) == 82
    assert axes.get_legend() is not None
    with pytest.raises(ValueError, match="one panel"):
        plotting.event(event, ax=axes)


@pytest.mark.parametrize("wrap", [False, True])
def test_attended_hits_are_those_of_the_mask(event, wrap):
    order = np.argsort(event.hits.phi, kind="stable")
    first = int(order[0])  # at the seam: wrapped, it sees hits at +π
    panel = plotting.attended(event, Window(20, wrap=wrap), first, views=("etaphi",)).axes[0]
    seen = next(one for one in panel.collections if one.get_label().startswith("seen ("))
    expected = np.concatenate([order[:11], order[-10:]]) if wrap else order[:11]
    expected_phi = np.sort(event.hits.phi[expected])
    assert np.allclose(np.sort(np.asarray(seen.get_offsets())[:, 1]), expected_phi)
    star = panel.collections[-1]
    assert np.allclose(np.asarray(star.get_offsets())[0, 1], event.hits.phi[first])
    assert mark_colour(star) == style.ORANGE


def mark_colour(collection) -> str:
    from matplotlib.colors import to_hex

    return to_hex(collection.get_facecolors()[0]).upper()


def test_attended_refuses_a_hit_that_is_not_there(event):
    with pytest.raises(ValueError, match="query 82 is not one of the event's 82 hits"):
        plotting.attended(event, Window(4), 82)
