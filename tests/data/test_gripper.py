from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.actions.gripper import GRIPPER_RULES, open_from_closedness, open_from_closing, open_from_position


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0]),
        ([1, -1, 1], [1, 0, 1]),
        ([1, 0.7, 0.3, 0], [1, 0, 0, 0]),  # on its way: where it arrives
        ([0, 0.3, 0.7, 1], [0, 1, 1, 1]),
        ([0, 0.5, 0.9], [0, 0, 0]),  # never arrives: where it came from
        ([0.6, 0.4, 0.6], [1, 0, 1]),
        ([0.96, 0.94, 0.06, 0.04], [1, 0, 0, 0]),
    ],
)
def test_positions(values: list[float], expected: list[int]) -> None:
    np.testing.assert_array_equal(open_from_position(np.array(values)), expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0, 1, 0, 0, -1, 0], [1, 1, 0, 0, 0, 1, 1]),  # 1 closes, and it stays closed
        ([0, -1, 0, 1], [0, 1, 1, 0]),  # it opens first, so it was closed
        ([0, 0, 0], [1, 1, 1]),
        ([0.05, -0.05, 0.2], [1, 1, 0]),  # what is small is none
    ],
)
def test_changes(values: list[float], expected: list[int]) -> None:
    np.testing.assert_array_equal(open_from_closing(np.array(values)), expected)


def test_constant_grippers() -> None:
    assert GRIPPER_RULES["always_open"](np.zeros(3)).tolist() == [1, 1, 1]
    assert GRIPPER_RULES["always_closed"](np.zeros(3)).tolist() == [0, 0, 0]


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.02, 0.3, 0.5, 0.7, 0.98, 1.0]), min_size=1, max_size=20))
def test_every_rule_gives_zeros_and_ones_of_which_the_inverse_is_the_inverse(values: list[float]) -> None:
    array = np.array(values)
    for rule in GRIPPER_RULES.values():
        result = rule(array)
        assert result.shape == array.shape
        assert set(result.tolist()) <= {0.0, 1.0}
    kept = array[(array < 0.05) | (array > 0.95)]
    np.testing.assert_array_equal(open_from_closedness(kept), 1 - open_from_position(kept))
