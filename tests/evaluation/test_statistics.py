from math import comb

import pytest

from anyvla.evaluation.statistics import compare_paired, percentiles, wilson_interval


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # computed from the closed form of Wilson (1927) with z = 1.959964
    [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (90, 100, 0.82563, 0.94477), (1, 2, 0.09453, 0.90547)],
)
def test_wilson_intervals(k: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(k, n) == pytest.approx((low, high), abs=1e-5)


def test_no_trials_say_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes of 2"):
        wilson_interval(3, 2)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    n, p = 50, 0.9
    inside = (k for k in range(n + 1) if wilson_interval(k, n)[0] <= p <= wilson_interval(k, n)[1])
    assert 0.93 < sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in inside) < 0.98


def test_paired_comparison_counts_worlds_and_tests_exactly() -> None:
    a = [True] * 6 + [False] * 8 + [True] * 2
    b = [True] * 6 + [True] * 8 + [False] * 2
    result = compare_paired(a, b)
    assert (result.both, result.only_a, result.only_b, result.neither) == (6, 2, 8, 0)
    assert result.difference == pytest.approx(6 / 16)
    assert result.p_value == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert result.interval[0] < 6 / 16 < result.interval[1]
    same = compare_paired(a, a)
    assert (same.difference, same.p_value) == (0, 1)
    with pytest.raises(ValueError, match="paired outcomes"):
        compare_paired(a, b[:-1])


def test_percentiles() -> None:
    assert percentiles([]) == {}
    assert percentiles([1.0] * 99 + [100.0])["p50"] == 1.0
