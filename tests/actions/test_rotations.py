from __future__ import annotations

from math import pi, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.actions import rotations as r

angles = st.floats(-pi, pi)
vectors = st.tuples(angles, angles, angles).map(np.array)


def test_golden_values() -> None:
    """A quarter turn about x, then one about the fixed z: a third of a turn about (1, 1, 1)."""
    matrix = r.euler_to_matrix([pi / 2, 0, pi / 2])
    np.testing.assert_allclose(matrix, [[0, 0, 1], [1, 0, 0], [0, 1, 0]], atol=1e-12)
    np.testing.assert_allclose(r.matrix_to_axis_angle(matrix), np.full(3, 2 * pi / 3 / sqrt(3)))
    np.testing.assert_allclose(r.matrix_to_quaternion(matrix), [0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(r.quaternion_to_matrix([0, 0, 1, 1]), r.euler_to_matrix([0, 0, pi / 2]), atol=1e-12)
    np.testing.assert_array_equal(r.matrix_to_axis_angle(np.eye(3)), np.zeros(3))
    np.testing.assert_allclose(r.matrix_to_axis_angle(r.axis_angle_to_matrix([0, pi, 0])), [0, pi, 0])
    np.testing.assert_allclose(r.axis_angle_to_matrix([1e-10, 0, 0]) @ [0, 1, 0], [0, 1, 1e-10])


@given(vectors)
def test_every_representation_comes_back_as_the_same_rotation(vector: np.ndarray) -> None:
    for to_matrix, from_matrix in (
        (r.euler_to_matrix, r.matrix_to_euler),
        (r.axis_angle_to_matrix, r.matrix_to_axis_angle),
    ):
        matrix = to_matrix(vector)
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(matrix) == pytest.approx(1)
        np.testing.assert_allclose(to_matrix(from_matrix(matrix)), matrix, atol=1e-6)
        quaternion = r.matrix_to_quaternion(matrix)
        assert np.linalg.norm(quaternion) == pytest.approx(1)
        assert quaternion[3] >= 0
        np.testing.assert_allclose(r.quaternion_to_matrix(-3 * quaternion), matrix, atol=1e-9)


def test_a_quarter_turn_of_pitch_still_names_the_rotation() -> None:
    for pitch in (-pi / 2, pi / 2):
        matrix = r.euler_to_matrix([0.3, pitch, -0.5])
        np.testing.assert_allclose(r.euler_to_matrix(r.matrix_to_euler(matrix)), matrix, atol=1e-9)
