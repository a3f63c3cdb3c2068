"""Numbers and figures of encodings, against slow references in float64."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hepattn.data.schema import Event, Selection
from hepattn.encodings import Fields, Periodic, RandomFourier, Rotary, RotaryFields, Sinusoidal
from hepattn.plotting import encoding_hits, encoding_planes, encoding_similarity, encoding_waves
from hepattn.plotting.attention_tokens import turn
from hepattn.plotting.encoding_numbers import (
    KINDS,
    Ranks,
    around,
    compare,
    compare_hits,
    encode,
    encoding,
    frequencies,
    hit_ranks,
    measure,
    similarity,
)

SEAM = {"sinusoidal": True, "hepformer": True, "periodic": False, "fourier": True, "periodic_fourier": False}
SEAM |= {"rotary": True, "rotary_phi": False}
DIRECTIONS = st.lists(st.floats(-3.1, 3.1), min_size=1, max_size=5)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / math.sqrt(float(first @ first) * float(second @ second)))


@pytest.mark.parametrize("kind", KINDS)
@given(x=DIRECTIONS, y=DIRECTIONS)
@settings(max_examples=20, deadline=None)
def test_similarity_is_the_cosine_of_two_encodings(kind, x, y):
    of = encoding(kind, 16)
    one, two = encode(of, np.asarray(x)), encode(of, np.asarray(y))
    assert one.shape == (len(x), 16)
    wanted = [[cosine(a, b) for b in two] for a in one]
    assert np.allclose(similarity(of, x, y), wanted, atol=1e-12)


@given(x=DIRECTIONS, y=DIRECTIONS, periodic=st.booleans())
@settings(max_examples=30, deadline=None)
def test_rotary_similarity_is_a_mean_of_cosines(x, y, periodic):
    of = Rotary(12, periodic=periodic)
    apart = np.asarray(x, dtype=np.float32)[:, None].astype(np.float64) - np.asarray(y, dtype=np.float32)[None]
    wanted = np.cos(of.omega.double().numpy() * apart[..., None]).mean(axis=-1)
    assert np.allclose(similarity(of, x, y), wanted, atol=2e-5)  # angles to 200 rad in float32
    assert np.allclose(np.linalg.norm(encode(of, x), axis=1), math.sqrt(6))


def test_what_is_not_turned_stays():
    of = RotaryFields({"phi": Rotary, "eta": Rotary}, 14)  # 7 pairs, 3 for each field
    x = {"phi": torch.tensor([0.3, 1.0]), "eta": torch.tensor([-1.0, 2.0])}
    values = encode(of, x)
    assert np.allclose(values[:, [6, 13]], math.sqrt(0.5))
    assert np.abs(values).max() <= 1 + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_ends_are_one_direction_for_those_that_say_so(kind):
    low, high = encode(encoding(kind, 32), np.asarray([-math.pi, math.pi]))
    assert (low == high).all() != SEAM[kind]
    assert (abs(measure(encoding(kind, 32), points=8, draws=10).seam) > 0.5) == SEAM[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_around_is_the_similarity_against_distance(kind):
    own: dict[str, Any] = {"scale": 3.0, "seed": 2} if "fourier" in kind else {"alpha": 20.0}
    of = encoding(kind, 16, **own)
    away, alike = around(of, 8)
    assert alike.shape == (8, len(away))
    assert away[0] == -math.pi
    assert away[len(away) // 2] == 0
    assert np.allclose(np.diff(away), 2 * math.pi / len(away))
    here = (np.arange(8) + 0.5) / 8 * 2 * math.pi - math.pi
    for row in (0, 5, 7):
        # not at the seam itself, where one rounding decides on which side a direction lies
        some = np.flatnonzero(math.pi - np.abs(turn(here[row] + away)) > 1e-3)[::97]
        wanted = similarity(of, here[row : row + 1], turn(here[row] + away[some]))[0]
        assert np.allclose(alike[row, some], wanted, atol=1e-4)  # directions differ by a rounding in float32


@pytest.mark.parametrize("points", [0, 7, -8])
def test_around_wants_even_shares(points):
    with pytest.raises(ValueError, match="points must divide"):
        around(Periodic(8), points)


def test_frequencies():
    assert np.allclose(frequencies(Sinusoidal(4, alpha=9, base=9)), [3, 9])
    assert frequencies(Sinusoidal.hepformer(84))[0] > 11
    plain, whole = RandomFourier(16), RandomFourier(16, scale=8, periodic=True)
    assert np.allclose(frequencies(plain), np.sort(2 * math.pi * np.abs(plain.B[0].double().numpy())))
    assert np.array_equal(frequencies(whole), np.sort(np.abs(whole.B[0].numpy())))
    assert set(frequencies(Rotary(64, alpha=8, periodic=True))) <= set(range(1, 9))


def test_measure_of_one_turn_is_known():
    """Similarity cos Δφ: half-way from 1 to its mean 0 at π / 3, and all distances are ordered."""
    found = measure(Rotary(2, alpha=1, periodic=True))
    assert (found.low, found.high) == (1, 1)
    assert found.width == pytest.approx(math.pi / 3, abs=1e-3)
    assert found.ordered == 1
    assert found.alias == pytest.approx(math.cos(0.5), abs=1e-3)
    assert found.seam == pytest.approx(0, abs=1e-6)


def test_measure_sees_aliases_and_seams():
    eight = measure(Rotary(2, alpha=8, periodic=True))
    assert eight.alias == pytest.approx(1, abs=1e-5)
    assert eight.ordered == pytest.approx(0.5, abs=0.05)
    half = measure(Rotary(2, alpha=0.5))  # cos(Δφ / 2), but across the seam cos(π - 0) = -1
    assert half.seam == pytest.approx(-2, abs=1e-3)
    assert math.isnan(measure(Rotary(2, alpha=1e-12), points=8, draws=10).width)  # alike everywhere


def test_compare_is_measure():
    table = compare({"a": Periodic(16), "b": encoding("fourier", 16)})
    assert list(table.index) == ["a", "b"]
    for name, of in (("a", Periodic(16)), ("b", encoding("fourier", 16))):
        found = measure(of)
        row = table.loc[name]
        assert row["lowest [rad/rad]"] == f"{found.low:.2f}"
        assert row["half-width [rad]"] == f"{found.width:.4f}"
        assert row["nearer is liker"] == f"{100 * found.ordered:.0f} %"
        assert float(str(row["step at the seam"])) == pytest.approx(found.seam, abs=0.005)
    assert table.loc["a", "step at the seam"] == "+0.00"


def test_encodings_by_name():
    assert np.allclose(frequencies(encoding("rotary_phi", 8, alpha=4)), [1, 2, 3, 4])  # 4, 2.83, 2 and 1.41
    assert frequencies(encoding("sinusoidal", 8, alpha=5, base=16))[-1] == 5
    given_, drawn = encoding("fourier", 8, scale=3.0, seed=4), RandomFourier(8, scale=3.0, seed=4)
    assert np.array_equal(frequencies(given_), frequencies(drawn))
    assert np.array_equal(frequencies(encoding("hepformer", 8)), frequencies(Sinusoidal.hepformer(8)))
    with pytest.raises(ValueError, match=r"kind is one of 'sinusoidal'.*not 'none'"):
        encoding("none", 8)


def slow_ranks(event: Event, selection: Selection, of: Fields | RandomFourier) -> list[float]:
    """Pair by pair."""
    hits, owner = event.hits, event.hits.particle
    assert owner is not None
    places = {"phi": torch.from_numpy(hits.phi).float(), "eta": torch.from_numpy(hits.eta).float()}
    values = encode(of, places)
    found = []
    for one in np.flatnonzero(selection.particles(event)):
        rows = [i for i in np.flatnonzero(owner == one) if selection.in_volumes(hits)[i]]
        for i in rows:
            where = [
                (hits.x[i] - hits.x[j]) ** 2 + (hits.y[i] - hits.y[j]) ** 2 + (hits.z[i] - hits.z[j]) ** 2 for j in rows
            ]
            nearest = min((distance, j) for distance, j in zip(where, rows, strict=True) if j != i)[1]
            others = np.flatnonzero(owner != one)
            best = cosine(values[i], values[nearest])
            found.append(sum(cosine(values[i], values[j]) > best for j in others) / len(others))
    return found


@pytest.mark.parametrize("volumes", [None, (8, 13)])
@pytest.mark.parametrize("together", [False, True])
def test_ranks_of_hits_are_those_counted_pair_by_pair(event, volumes, together):
    fields = Fields({"phi": Periodic, "eta": Sinusoidal}, 16)
    of = RandomFourier(16, scale=0.5, coordinates=2) if together else fields
    selection = Selection(pt_min=0.9, volumes=volumes)
    found = hit_ranks(event, {"of": of}, selection)["of"]
    assert np.allclose(found.above, slow_ranks(event, selection, of))


def test_ranks_see_the_seam(event):
    """A particle at φ = π: |Δφ| itself finds its hits, a plain turn by half does not."""
    hits = event.hits
    y = hits.y.copy()
    own = np.flatnonzero(hits.particle == 0)
    x = hits.x.copy()
    x[own], y[own] = -hits.r[own], np.array([1, -1, 1, -1, 1, -1]) * 1e-3
    z = hits.z.copy()
    z[own] = [0, 0, 50, 50, 100, 100]  # pairs, each across the seam
    x[own] = [-50, -50, -100, -100, -200, -200]
    bent = Event(replace(hits, x=x, y=y, z=z), event.particles, event_id=7, source="a test")
    ranks = hit_ranks(bent, {"ring": Rotary(2, alpha=1, periodic=True), "plain": Rotary(2, alpha=0.5)}, Selection())
    for found in ranks.values():
        assert found.seam.sum() == 6
    assert ranks["ring"].above[ranks["ring"].seam].max() == 0
    assert ranks["plain"].above[ranks["plain"].seam].min() > 0.9
    assert ranks["ring"].among(0.0, seam=True).value == 1
    table = compare_hits(ranks)
    assert str(table.loc["ring", "the same across φ = ±π"]).startswith("100.0 % [")
    assert str(table.loc["plain", "the same across φ = ±π"]).startswith("0.0 % [")


def test_ranks_count_ties_half(event):
    """An encoding to which all is alike."""
    ranks = hit_ranks(event, {"blind": Rotary(2, alpha=1e-12)}, Selection())["blind"]
    assert np.allclose(ranks.above, 0.5)
    assert "nearest among the 0.1 % most alike" in compare_hits({"blind": ranks}, 0.001).columns


def test_ranks_without_particles(event):
    with pytest.raises(ValueError, match=r"no particle of event 7 has two hits .*50 GeV"):
        hit_ranks(event, {"of": Periodic(8)}, Selection(pt_min=50.0))
    with pytest.raises(ValueError, match="has no truth on its hits"):
        hit_ranks(replace(event, hits=replace(event.hits, particle=None)), {"of": Periodic(8)})


def test_waves_are_the_channels():
    some = {kind: encoding(kind, 6) for kind in KINDS[:5]}
    figure = encoding_waves(some, points=33)
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title("left") for ax in shown] == list(some)
    for ax, of in zip(shown, some.values(), strict=True):
        wanted = encode(of, np.linspace(-math.pi, math.pi, 33)).T
        assert np.array_equal(np.asarray(ax.images[0].get_array()), wanted)
        assert ax.get_xlabel() == "φ [rad]"
    assert figure.axes[0].get_ylabel() == "channel"


@pytest.mark.parametrize(("reference", "half", "seen"), [(0.0, 0.5, False), (3.0, 0.5, True), (-3.0, math.pi, True)])
def test_similarity_is_drawn_with_the_seam_where_it_is_in_view(reference, half, seen):
    of = Periodic(8)
    figure = encoding_similarity({"p": of}, reference, half=half, pair=0.1)
    ax = figure.axes[0]
    mean, curve, *rest = ax.lines
    away = np.asarray(curve.get_xdata())
    assert (away[0], away[-1]) == (-half, half)
    assert np.allclose(curve.get_ydata(), similarity(of, [reference], turn(reference + away))[0])
    assert np.allclose(mean.get_ydata(), around(of)[1].mean(axis=0))
    dashed = [line for line in rest if line.get_linestyle() == "--"]
    assert [float(np.asarray(line.get_xdata())[0]) for line in dashed] == (
        [pytest.approx(math.copysign(math.pi - abs(reference), reference))] if seen else []
    )
    words = [f"{similarity(of, [reference], turn(np.asarray([reference + d])))[0, 0]:.2f}" for d in (-0.1, 0.1)]
    assert [text.get_text() for text in ax.texts] == words
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("φ = ±π" in labels) == seen
    assert "neighbours, 0.1 rad away" in labels


def test_planes_are_similarities():
    of = Fields({"phi": Periodic, "eta": Sinusoidal}, 16)
    both = RandomFourier(16, coordinates=2)
    figure = encoding_planes({"side by side": of, "both": both}, (0.5, -1.0), reach=2.0, points=5)
    phi, eta = np.linspace(-math.pi, math.pi, 5), np.linspace(-2.0, 2.0, 5)
    for ax, one in zip(figure.axes, (of, both), strict=False):
        drawn = np.asarray(ax.images[0].get_array())
        here = encode(one, {"phi": torch.tensor([0.5]), "eta": torch.tensor([-1.0])})[0]
        for row, column in ((0, 1), (4, 2), (3, 3)):
            place = {"phi": torch.tensor([phi[column]]).float(), "eta": torch.tensor([eta[row]]).float()}
            assert drawn[row, column] == pytest.approx(cosine(here, encode(one, place)[0]), abs=1e-6)
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()) == ("φ [rad]", "η")


def test_ranks_are_drawn_as_shares():
    ranks = {"a": Ranks(np.asarray([0.0, 0.01, 0.01, 0.6]), np.zeros(4, dtype=bool))}
    figure = encoding_hits(ranks)
    line, chance = figure.axes[0].lines
    share, held = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert np.array_equal(held, np.select([share < 0.01, share < 0.6], [0.25, 0.75], 1.0))
    assert np.array_equal(np.asarray(chance.get_xdata()), np.asarray(chance.get_ydata()))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "chance"]
