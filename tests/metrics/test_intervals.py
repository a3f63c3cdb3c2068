import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from hepattn.metrics import Fraction, binned_fraction, clopper_pearson


def test_agrees_with_scipy_and_never_has_zero_width():
    for n in (1, 2, 7, 40):
        for k in range(n + 1):
            low, high = clopper_pearson(k, n)
            slow = binomtest(k, n).proportion_ci(0.683, method="exact")
            assert low == pytest.approx(slow.low, abs=1e-9)
            assert high == pytest.approx(slow.high, abs=1e-9)
            assert 0 <= low < high <= 1
            assert low <= k / n <= high


def test_hand_computed_ends():
    low, high = clopper_pearson(0, 10)
    assert low == 0
    assert high == pytest.approx(1 - 0.1585**0.1)
    low, high = clopper_pearson(10, 10)
    assert high == 1
    assert low == pytest.approx(0.1585**0.1)


def test_covers_at_least_its_level():
    n = 30
    low, high = clopper_pearson(np.arange(n + 1), np.full(n + 1, n))
    for truth in (0.02, 0.3, 0.77, 0.99):
        inside = (low <= truth) & (truth <= high)
        assert binom.pmf(np.arange(n + 1), n, truth)[inside].sum() >= 0.683


def test_empty_is_a_gap():
    low, high = clopper_pearson([0, 1], [0, 2])
    assert np.isnan(low[0])
    assert np.isnan(high[0])
    assert not np.isnan(low[1])
    assert math.isnan(Fraction(0, 0).value)
    assert str(Fraction(0, 0)) == "- (0 of 0)"


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2)])
def test_impossible_counts_are_refused(k, n):
    with pytest.raises(ValueError, match="0 <= passed <= total"):
        clopper_pearson(k, n)


def test_bins_against_a_loop():
    rng = np.random.default_rng(0)
    x, ok = rng.normal(size=500), rng.random(500) < 0.3
    edges = [-9.0, -1.0, 0.0, 0.5, 20.0, 30.0]
    got = binned_fraction(x, ok, edges)
    for i, fraction in enumerate(got):
        inside = [j for j in range(500) if edges[i] <= x[j] < edges[i + 1]]
        assert fraction == Fraction(sum(bool(ok[j]) for j in inside), len(inside))
    assert got[-1].total == 0
    assert Fraction(1, 2) + Fraction(2, 5) == Fraction(3, 7)
