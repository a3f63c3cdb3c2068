"""The explorer of encodings by its state."""

import math
from typing import Any

import numpy as np
import pytest

from hepattn.plotting.attention_tokens import turn
from hepattn.plotting.encoding_numbers import KINDS, around, encode, encoding, frequencies, measure, similarity
from hepattn.widgets import EncodingExplorer
from hepattn.widgets.encodings import OWN


def artists(explorer: EncodingExplorer) -> list[int]:
    return [id(artist) for ax in explorer.figure.axes for artist in (*ax.lines, *ax.images, *ax.texts)]


@pytest.mark.parametrize("kind", KINDS)
def test_curves_waves_and_numbers_are_those_of_the_encoding(kind):
    explorer = EncodingExplorer()
    explorer.kind, explorer.channels, explorer.reference, explorer.half = kind, 20, 3.0, 0.4
    explorer.draw()
    of = encoding(kind, 20)  # with its own defaults
    away = np.asarray(explorer.line.get_xdata())
    assert (away[0], away[-1]) == (-0.4, 0.4)
    assert np.allclose(explorer.line.get_ydata(), similarity(of, [3.0], turn(3.0 + away))[0])
    assert np.allclose(explorer.mean.get_ydata(), around(of)[1].mean(axis=0))
    waves = np.asarray(explorer.image.get_array())
    assert np.array_equal(waves, encode(of, np.linspace(-math.pi, math.pi, waves.shape[1])).T)
    assert np.asarray(explorer.seam.get_xdata())[0] == pytest.approx(math.pi - 3.0)
    assert explorer.title.get_text() == f"{kind}, d = 20, from φ = 3.00 rad"
    found = measure(of)
    assert f"frequencies {found.low:.2f} to {found.high:.0f} rad/rad" in explorer.numbers.value
    assert f"in {100 * found.ordered:.0f} % of cases" in explorer.numbers.value
    assert f"half-width {found.width:.4f} rad" in explorer.numbers.value


def test_own_numbers_are_the_defaults():
    assert list(OWN) == list(KINDS)
    for kind, own in OWN.items():
        given: dict[str, Any] = dict(own)
        assert np.array_equal(frequencies(encoding(kind, 24, **given)), frequencies(encoding(kind, 24)))


def test_a_kind_brings_its_own_numbers_and_opens_its_sliders():
    explorer = EncodingExplorer()
    explorer.alpha = 8.0
    assert frequencies(explorer.encoding())[-1] == 8
    explorer.kind = "hepformer"
    assert (explorer.alpha, explorer.base) == (1000, 100)
    assert explorer.drawings == 2  # sliders that follow don't draw again
    explorer.alpha = 30.0
    assert frequencies(explorer.encoding())[-1] == pytest.approx(30)
    explorer.kind = "periodic_fourier"
    closed = {name for name, control in explorer.controls.items() if control.disabled}
    assert (closed, explorer.scale) == ({"alpha", "base"}, 8)
    explorer.kind = "rotary"
    assert {name for name, control in explorer.controls.items() if control.disabled} == {"scale", "seed"}
    assert (EncodingExplorer("fourier").scale, EncodingExplorer("rotary_phi").base) == (1, 64)


def test_every_control_moves_the_picture_and_no_artist_is_made():
    explorer = EncodingExplorer("fourier")
    explorer.draw()
    made, seen = artists(explorer), {bytes(explorer.picture.value)}
    moves = [("seed", 3), ("scale", 4.0), ("kind", "periodic"), ("alpha", 10.0), ("base", 20.0), ("channels", 30)]
    for name, value in [*moves, ("reference", 1.0), ("half", 1.5)]:
        setattr(explorer, name, value)
        assert bytes(explorer.picture.value) not in seen, name
        seen.add(bytes(explorer.picture.value))
        assert artists(explorer) == made, name


def test_the_seam_is_shown_where_it_is_in_view():
    explorer = EncodingExplorer()
    explorer.draw()
    assert explorer.seam.get_visible()
    explorer.half = 0.5
    assert not explorer.seam.get_visible()  # 2.6 + 0.5 < π
    explorer.reference = -3.0
    assert explorer.seam.get_visible()
    assert np.asarray(explorer.seam.get_xdata())[0] == pytest.approx(3.0 - math.pi)


def test_ticks_are_quarters_of_a_turn_or_plain_numbers():
    explorer = EncodingExplorer()
    for half, last in ((3.14, "π"), (0.5, "0.50"), (3.14, "π")):
        explorer.half = half
        explorer.draw()
        labels = [tick.get_text() for tick in explorer.curve.get_xticklabels()]
        assert labels[-1] == last


def test_moving_the_reference_computes_no_waves(monkeypatch):
    explorer = EncodingExplorer()
    explorer.draw()
    monkeypatch.setattr("hepattn.widgets.encodings.around", None)
    monkeypatch.setattr("hepattn.widgets.encodings.measure", None)
    explorer.reference = 1.0
    explorer.half = 0.3
    assert explorer.drawings == 3
    with pytest.raises(TypeError):
        explorer.channels = 10


def test_refusals():
    with pytest.raises(ValueError, match=r"kind is one of 'sinusoidal'.*not 'none'"):
        EncodingExplorer("none")
    with pytest.raises(ValueError, match="channels lies between 4 and 128"):
        EncodingExplorer().channels = 500
