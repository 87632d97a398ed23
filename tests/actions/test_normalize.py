import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.actions import ARM7, NAV2, fit_normalizer, normalizer_from_dict
from anyvla.actions.normalize import NormalizerKind
from anyvla.errors import DataError

KINDS = get_args(NormalizerKind)


def statistics(actions: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "min": actions.min(0),
        "max": actions.max(0),
        "mean": actions.mean(0),
        "std": actions.std(0),
        "q01": np.quantile(actions, 0.01, axis=0),
        "q99": np.quantile(actions, 0.99, axis=0),
    }


def sample(seed: int, n: int = 500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    actions = rng.normal(0.1, 0.3, (n, len(ARM7)))
    actions[:, -1] = rng.integers(0, 2, n)
    return actions.astype(np.float32)


@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 1000))
def test_inside_the_range_the_inverse_is_exact(kind: NormalizerKind, seed: int) -> None:
    actions = sample(seed)
    normalizer = fit_normalizer(kind, statistics(actions), ARM7)
    inside = np.where(ARM7.binary, actions, np.clip(actions, normalizer.low, normalizer.high)).astype(np.float32)
    if not normalizer.bounded:
        inside = actions
    np.testing.assert_allclose(normalizer.denormalize(normalizer.normalize(inside)), inside, atol=2e-6, rtol=0)


def test_quantiles_map_to_plus_minus_one_and_beyond_is_clipped() -> None:
    actions = sample(0)
    stats = statistics(actions)
    normalizer = fit_normalizer("quantile", stats, ARM7)
    low, high = normalizer.normalize(stats["q01"] - 5), normalizer.normalize(stats["q99"] + 5)
    np.testing.assert_allclose(low[:-1], -1, atol=1e-6)
    np.testing.assert_allclose(high[:-1], 1, atol=1e-6)


def test_mean_std_is_the_z_score() -> None:
    actions = sample(1)
    stats = statistics(actions)
    expected = (actions - stats["mean"]) / stats["std"]
    np.testing.assert_allclose(fit_normalizer("mean_std", stats, ARM7).normalize(actions)[:, :-1], expected[:, :-1], atol=1e-5)


def test_mu_law_is_the_published_formula() -> None:
    stats = {"min": np.array([-1.0, -1.0]), "max": np.array([1.0, 1.0])}
    x = np.linspace(-1, 1, 21)
    expected = np.sign(x) * np.log(1 + 255 * np.abs(x)) / np.log(256)
    result = fit_normalizer("mu_law", stats, NAV2).normalize(np.stack([x, x], 1))
    np.testing.assert_allclose(result[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_binary_dimensions_are_untouched(kind: NormalizerKind) -> None:
    actions = sample(2)
    np.testing.assert_array_equal(fit_normalizer(kind, statistics(actions), ARM7).normalize(actions)[:, -1], actions[:, -1])


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"identity"}))
def test_a_missing_statistic_is_an_error_never_an_identity(kind: NormalizerKind) -> None:
    with pytest.raises(DataError, match="needs the statistic"):
        fit_normalizer(kind, {}, NAV2)


def test_statistics_of_another_robot_are_refused() -> None:
    with pytest.raises(DataError, match="must be 2 finite numbers"):
        fit_normalizer("quantile", {"q01": np.zeros(7), "q99": np.ones(7)}, NAV2)
    with pytest.raises(DataError, match="must be 2 finite numbers"):
        fit_normalizer("quantile", {"q01": np.array([0, np.nan]), "q99": np.ones(2)}, NAV2)


def test_a_constant_dimension_normalises_to_zero_and_comes_back() -> None:
    stats = {"q01": np.array([-1.0, 0.3]), "q99": np.array([1.0, 0.3])}
    normalizer = fit_normalizer("quantile", stats, NAV2)
    normalized = normalizer.normalize(np.array([[0.5, 0.3]]))
    assert normalized[0, 1] == 0
    np.testing.assert_allclose(normalizer.denormalize(normalized), [[0.5, 0.3]], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_as_json_it_is_the_same_to_the_bit(kind: NormalizerKind) -> None:
    actions = sample(3)
    normalizer = fit_normalizer(kind, statistics(actions), ARM7, mu=100.0)
    again = normalizer_from_dict(json.loads(json.dumps(normalizer.to_dict())))
    np.testing.assert_array_equal(again.normalize(actions), normalizer.normalize(actions))
