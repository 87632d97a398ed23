"""Rotations in the representations that datasets and benchmarks use, by way of (3, 3) rotation matrices.

Euler angles here are about the fixed axes x, y, z in this order: R = Rz(yaw) Ry(pitch) Rx(roll), in radians (``frames`` has
CALVIN's, about the turning axes). An axis-angle vector points along the axis, its length is the angle. Quaternions are
(x, y, z, w).
"""

from __future__ import annotations

from math import atan2, cos, hypot, sin, sqrt

import numpy as np
from numpy.typing import ArrayLike


def euler_to_matrix(angles: ArrayLike) -> np.ndarray:
    """(roll, pitch, yaw) -> (3, 3)."""
    roll, pitch, yaw = np.asarray(angles, dtype=np.float64)
    about_x = np.array([[1, 0, 0], [0, cos(roll), -sin(roll)], [0, sin(roll), cos(roll)]])
    about_y = np.array([[cos(pitch), 0, sin(pitch)], [0, 1, 0], [-sin(pitch), 0, cos(pitch)]])
    about_z = np.array([[cos(yaw), -sin(yaw), 0], [sin(yaw), cos(yaw), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def matrix_to_euler(matrix: np.ndarray) -> np.ndarray:
    """(3, 3) -> (roll, pitch, yaw), the pitch in [-pi/2, pi/2]; there, at the pole, yaw is 0."""
    level = hypot(matrix[0, 0], matrix[1, 0])
    pitch = atan2(-matrix[2, 0], level)
    if level < 1e-9:
        return np.array([atan2(-matrix[1, 2], matrix[1, 1]), pitch, 0.0])
    return np.array([atan2(matrix[2, 1], matrix[2, 2]), pitch, atan2(matrix[1, 0], matrix[0, 0])])


def axis_angle_to_matrix(vector: ArrayLike) -> np.ndarray:
    """(3,) of any length -> (3, 3)."""
    x, y, z = np.asarray(vector, dtype=np.float64)
    angle = sqrt(x * x + y * y + z * z)
    # sin(a)/a and (1 - cos(a))/a^2, which have limits where a is 0
    first = sin(angle) / angle if angle > 1e-8 else 1.0
    second = (1 - cos(angle)) / angle**2 if angle > 1e-4 else 0.5
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + first * cross + second * cross @ cross


def matrix_to_axis_angle(matrix: np.ndarray) -> np.ndarray:
    """(3, 3) -> (3,) of length [0, pi]."""
    x, y, z, w = matrix_to_quaternion(matrix)
    length = sqrt(x * x + y * y + z * z)
    if length < 1e-12:
        return np.zeros(3)
    return np.array([x, y, z]) / length * 2 * atan2(length, w)


def quaternion_to_matrix(quaternion: ArrayLike) -> np.ndarray:
    """(x, y, z, w) of any length but 0 -> (3, 3)."""
    values = np.asarray(quaternion, dtype=np.float64)
    x, y, z, w = values / np.linalg.norm(values)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def matrix_to_quaternion(matrix: np.ndarray) -> np.ndarray:
    """(3, 3) -> (x, y, z, w) of length 1 with w >= 0."""
    trace = np.trace(matrix)
    # the largest of the four numbers first: the others divide by it (Shepperd 1978)
    squares = np.array([*(1 + 2 * np.diag(matrix) - trace), 1 + trace])
    largest = int(np.argmax(squares))
    if largest == 3:
        parts = [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1], squares[3]]
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        parts = [0.0, 0.0, 0.0, matrix[k, j] - matrix[j, k]]
        parts[i], parts[j], parts[k] = squares[i], matrix[j, i] + matrix[i, j], matrix[k, i] + matrix[i, k]
    quaternion = np.array(parts) / np.linalg.norm(parts)
    return -quaternion if quaternion[3] < 0 else quaternion
