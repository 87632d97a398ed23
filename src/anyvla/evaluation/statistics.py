"""Success rates with their uncertainty."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
from numpy.typing import ArrayLike

Z95 = 1.959963984540054  # the 97.5 % quantile of the normal distribution
RESAMPLES = 10_000  # of a bootstrap


def wilson_interval(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson 1927), 95 % unless ``z`` says otherwise; (0, 1) without trials.

    >>> low, high = wilson_interval(90, 100)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    center = rate + z * z / (2 * trials)
    spread = z * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


@dataclass(frozen=True)
class PairedComparison:
    """Two policies in the same worlds.

    Attributes:
        both, only_a, only_b, neither: worlds in which they succeeded. p_value: exact McNemar test of equal success rates.
        difference: rate of b minus rate of a. interval: its 95 % interval (normal approximation of paired proportions).
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    interval: tuple[float, float]
    p_value: float


def compare_paired(a: list[bool], b: list[bool]) -> PairedComparison:
    """Compare the outcomes of two policies; ``a[i]`` and ``b[i]`` come from the same world."""
    if len(a) != len(b) or not a:
        raise ValueError(f"paired outcomes of {len(a)} and {len(b)} worlds")
    n = len(a)
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    both = sum(x and y for x, y in zip(a, b, strict=True))
    difference = (only_b - only_a) / n
    spread = Z95 * sqrt(max(0.0, only_a + only_b - n * difference**2)) / n
    discordant = only_a + only_b
    tail = sum(comb(discordant, k) for k in range(min(only_a, only_b) + 1)) / 2**discordant
    return PairedComparison(
        both=both,
        only_a=only_a,
        only_b=only_b,
        neither=n - both - discordant,
        difference=difference,
        interval=(max(-1.0, difference - spread), min(1.0, difference + spread)),
        p_value=min(1.0, 2 * tail),
    )


def newcombe_interval(a: tuple[int, int], b: tuple[int, int]) -> tuple[float, float]:
    """95 % interval of rate(b) - rate(a) of two independent samples, each (successes, trials): Newcombe 1998, method 10.

    >>> low, high = newcombe_interval((48, 80), (56, 70))
    >>> round(low, 4), round(high, 4)
    (0.0524, 0.3339)
    """
    rates = [k / n for k, n in (a, b)]
    (low_a, high_a), (low_b, high_b) = wilson_interval(*a), wilson_interval(*b)
    difference = rates[1] - rates[0]
    below = sqrt((rates[1] - low_b) ** 2 + (high_a - rates[0]) ** 2)
    above = sqrt((high_b - rates[1]) ** 2 + (rates[0] - low_a) ** 2)
    return difference - below, difference + above


def bootstrap_interval(values: ArrayLike) -> tuple[float, float]:
    """95 % percentile interval of the mean of ``values`` (n,), always the same for the same values in any order."""
    low, high = np.quantile(_resampled_means(values, stream=0), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_difference(a: ArrayLike, b: ArrayLike) -> tuple[float, float]:
    """95 % percentile interval of mean(b) - mean(a) of two independent samples, (n,) and (m,)."""
    low, high = np.quantile(_resampled_means(b, stream=1) - _resampled_means(a, stream=0), [0.025, 0.975])
    return float(low), float(high)


def _resampled_means(values: ArrayLike, stream: int) -> np.ndarray:
    """(RESAMPLES,) means of samples drawn from ``values`` with replacement (Efron 1979)."""
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    drawn = np.random.default_rng([0, stream]).multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
    return drawn @ distinct / counts.sum()


def percentiles(values: list[float]) -> dict[str, float]:
    """``p50``, ``p95`` and ``p99`` of ``values``; empty without values."""
    if not values:
        return {}
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
