"""Orders of hits: bijections, curves that make single steps, toys by hand, and refusals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hepattn.data import Hits, Selection, sample_event
from hepattn.data.ordering import MOST_BITS, ORDERS, hilbert_key, hit_order, morton_key, ordered_owner, quantise

CURVES = {"morton": morton_key, "hilbert": hilbert_key}


def grid(bits: int) -> tuple[np.ndarray, np.ndarray]:
    b, a = np.mgrid[0 : 1 << bits, 0 : 1 << bits]
    return a.ravel(), b.ravel()


def slow_morton(a: int, b: int, bits: int) -> int:
    """Bits in turn, as text."""
    pairs = zip(format(b, f"0{bits}b"), format(a, f"0{bits}b"), strict=True)
    return int("".join(up + across for up, across in pairs), 2)


def slow_hilbert(bits: int) -> list[complex]:
    """The curve in the unit square by its construction: four small curves, the outer two mirrored."""
    if not bits:
        return [0.5 + 0.5j]
    small = slow_hilbert(bits - 1)
    first = [complex(p.imag, p.real) for p in small]
    last = [complex(1 - p.imag, 1 - p.real) for p in small]
    quarters = ((first, 0), (small, 1j), (small, 1 + 1j), (last, 1))
    return [(p + corner) / 2 for quarter, corner in quarters for p in quarter]


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_a_curve_visits_every_cell_once(name, bits):
    assert sorted(CURVES[name](*grid(bits), bits)) == list(range(4**bits))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_successive_cells_of_the_hilbert_curve_share_a_side(bits):
    a, b = grid(bits)
    along = np.argsort(hilbert_key(a, b, bits))
    step = np.abs(np.diff(a[along])) + np.abs(np.diff(b[along]))
    assert (step == 1).all()
    assert (a[along[0]], b[along[0]]) == (0, 0)
    assert (a[along[-1]], b[along[-1]]) == ((1 << bits) - 1, 0)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_hilbert_curve_is_the_one_of_four_squares(bits):
    for key, point in enumerate(slow_hilbert(bits)):
        cell = (math.floor(point.real * 2**bits), math.floor(point.imag * 2**bits))
        assert hilbert_key([cell[0]], [cell[1]], bits) == [key]


def test_the_grids_of_the_docstring():
    morton = morton_key(*grid(2), 2).reshape(4, 4)[::-1]
    hilbert = hilbert_key(*grid(2), 2).reshape(4, 4)[::-1]
    assert morton.tolist() == [[10, 11, 14, 15], [8, 9, 12, 13], [2, 3, 6, 7], [0, 1, 4, 5]]
    assert hilbert.tolist() == [[5, 6, 9, 10], [4, 7, 8, 11], [3, 2, 13, 12], [0, 1, 14, 15]]


@given(st.integers(1, MOST_BITS).flatmap(lambda n: st.tuples(st.just(n), *[st.integers(0, (1 << n) - 1)] * 2)))
def test_keys_are_exact_at_any_number_of_bits(case):
    bits, a, b = case
    assert int(morton_key([a], [b], bits)[0]) == slow_morton(a, b, bits)
    assert 0 <= int(hilbert_key([a], [b], bits)[0]) < 4**bits


@given(st.integers(2, MOST_BITS).flatmap(lambda n: st.tuples(st.just(n), *[st.integers(0, (1 << n) - 1)] * 2)))
def test_a_coarser_hilbert_curve_is_the_same_curve(case):
    """Up to the mirror on the diagonal that each halving brings: cells of a quarter have keys of a quarter."""
    bits, a, b = case
    fine, coarse = hilbert_key([a], [b], bits), hilbert_key([a >> 1], [b >> 1], bits - 1)
    mirrored = hilbert_key([b >> 1], [a >> 1], bits - 1)
    assert int(fine[0]) >> 2 in {int(coarse[0]), int(mirrored[0])}


def test_cells():
    assert quantise([-1.0, -0.6, -0.5, 0.0, 0.99, 1.0, 7.0, -7.0], -1, 1, bits=2).tolist() == [0, 0, 1, 2, 3, 3, 3, 0]
    assert quantise([3.0, 3.0], 3.0, 3.0).tolist() == [0, 0]
    assert quantise(np.array([np.pi, -np.pi], dtype=np.float32), -np.pi, np.pi, bits=31).tolist() == [2**31 - 1, 0]


@pytest.mark.parametrize("by", ORDERS)
@pytest.mark.parametrize("along", ["eta", "z"])
def test_an_order_is_a_permutation(by, along):
    hits = sample_event().hits
    assert sorted(hit_order(hits, by, along=along)) == list(range(len(hits)))


@pytest.fixture
def four() -> Hits:
    """In the four quarters of (phi, z): -,- then +,- then +,+ then -,+; two layers far apart."""
    ones = np.ones(4, dtype=int)
    return Hits(
        x=np.array([1.0, 1.0, 1.0, 1.0]),
        y=np.array([-1.0, 1.0, 1.0, -1.0]),
        z=np.array([-5.0, -5.0, 5.0, 5.0]),
        volume_id=8 * ones,
        layer_id=2 * ones,
        module_id=ones,
    )


def test_orders_by_hand(four):
    assert hit_order(four, "phi").tolist() == [0, 3, 1, 2]  # ties as they were
    for along in ("eta", "z"):
        assert hit_order(four, "morton", along=along, bits=1).tolist() == [0, 1, 3, 2]
        assert hit_order(four, "hilbert", along=along, bits=1).tolist() == [0, 3, 2, 1]


def test_random_is_the_generators():
    hits = sample_event().hits
    assert np.array_equal(hit_order(hits, "random", seed=3), hit_order(hits, "random", seed=3))
    assert not np.array_equal(hit_order(hits, "random", seed=3), hit_order(hits, "random", seed=4))
    generator = np.random.default_rng(3)
    first = hit_order(hits, "random", seed=generator)
    assert np.array_equal(first, hit_order(hits, "random", seed=3))
    assert not np.array_equal(first, hit_order(hits, "random", seed=generator))


def test_no_hits():
    empty = sample_event().hits.take(np.zeros(0, dtype=int))
    assert all(hit_order(empty, by).tolist() == [] for by in ORDERS)


def test_owners_in_an_order():
    event, selection = sample_event(), Selection()
    assert event.hits.particle is not None
    order = hit_order(event.hits, "hilbert")
    owner = ordered_owner(event, order, selection)
    chosen = selection.particles(event)
    for place in range(0, len(order), 97):
        row = int(event.hits.particle[order[place]])
        assert owner[place] == (row if row >= 0 and chosen[row] else -1)
    assert (owner >= 0).sum() == selection.hits(event).sum()


@pytest.mark.parametrize("key", [morton_key, hilbert_key])
def test_keys_refuse(key):
    with pytest.raises(ValueError, match=r"0 \.\.\. 3"):
        key([4], [0], 2)
    with pytest.raises(ValueError, match=r"0 \.\.\. 3"):
        key([0], [-1], 2)
    with pytest.raises(ValueError, match="whole numbers, got float64"):
        key([0.5], [0], 2)
    with pytest.raises(ValueError, match="between 1 and 31"):
        key([0], [0], 32)


def test_orders_refuse(four):
    with pytest.raises(ValueError, match="orders are phi, morton, hilbert, random; got 'eta'"):
        hit_order(four, "eta")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="along='x'"):
        hit_order(four, "hilbert", along="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite"):
        quantise([np.nan], 0.0, 1.0)
