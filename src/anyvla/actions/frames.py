"""Relative arm actions in the world's frame <-> in the tool's own frame (tool centre point, TCP).

With R = R(rpy) the attitude of the tool, the change of position p and the change of attitude d of an action become

    p' = R^-1 p
    R' = R(rpy + 0.01 d)^-1 R(rpy),   d' = euler(R') x 100

as published for CALVIN. Angles are intrinsic x-y'-z'' Euler angles in radians: R(a, b, c) = Rx(a) Ry(b) Rz(c). The factor 0.01
makes d small enough to be a rotation. R' leads from the new attitude back to the old one, so d' is about -d where the tool's
axes are the world's.
"""

from __future__ import annotations

import numpy as np

SCALE = 0.01  # radians per unit of a change of attitude


def world_to_tcp(actions: np.ndarray, state_rpy: np.ndarray) -> np.ndarray:
    """Actions (..., A >= 6) = [change of position, change of attitude, ...] in the world's frame -> in the tool's.

    Args:
        state_rpy: (..., 3) attitude of the tool before the action, radians. Dimensions from 6 on stay as they are.
    """
    state_rpy = np.asarray(state_rpy, dtype=np.float64)
    attitude = euler_to_matrix(state_rpy)
    new = euler_to_matrix(state_rpy + SCALE * actions[..., 3:6])
    return _replace(actions, _transpose(attitude), matrix_to_euler(_transpose(new) @ attitude) / SCALE)


def tcp_to_world(actions: np.ndarray, state_rpy: np.ndarray) -> np.ndarray:
    """The inverse of ``world_to_tcp`` for changes of attitude that are small (as 0.01 d is), away from gimbal lock."""
    state_rpy = np.asarray(state_rpy, dtype=np.float64)
    attitude = euler_to_matrix(state_rpy)
    new = matrix_to_euler(attitude @ _transpose(euler_to_matrix(SCALE * actions[..., 3:6])))
    # two triples of angles mean the same attitude: the one nearer to the state is where a small change leads
    other = new * [1, -1, 1] + np.pi
    turns = [_wrap(new - state_rpy), _wrap(other - state_rpy)]
    nearer = np.linalg.norm(turns[0], axis=-1) <= np.linalg.norm(turns[1], axis=-1)
    return _replace(actions, attitude, np.where(nearer[..., None], *turns) / SCALE)


def euler_to_matrix(angles: np.ndarray) -> np.ndarray:
    """Intrinsic x-y'-z'' Euler angles (..., 3) in radians -> rotation matrices (..., 3, 3) float64."""
    angles = np.asarray(angles, dtype=np.float64)
    (sx, sy, sz), (cx, cy, cz) = np.moveaxis(np.sin(angles), -1, 0), np.moveaxis(np.cos(angles), -1, 0)
    rows = [
        [cy * cz, -cy * sz, sy],
        [cx * sz + sx * sy * cz, cx * cz - sx * sy * sz, -sx * cy],
        [sx * sz - cx * sy * cz, sx * cz + cx * sy * sz, cx * cy],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_euler(matrices: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) -> intrinsic x-y'-z'' Euler angles (..., 3) in radians, the middle one in [-pi/2, pi/2]."""
    return np.stack(
        [
            np.arctan2(-matrices[..., 1, 2], matrices[..., 2, 2]),
            np.arcsin(np.clip(matrices[..., 0, 2], -1, 1)),
            np.arctan2(-matrices[..., 0, 1], matrices[..., 0, 0]),
        ],
        axis=-1,
    )


def _wrap(angles: np.ndarray) -> np.ndarray:
    """To [-pi, pi)."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


def _transpose(matrices: np.ndarray) -> np.ndarray:
    return np.swapaxes(matrices, -1, -2)


def _replace(actions: np.ndarray, rotation: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """``actions`` with the position rotated and ``turn`` as the change of attitude, in the dtype of ``actions``."""
    position = (rotation @ actions[..., :3, None])[..., 0]
    return np.concatenate([position, turn, actions[..., 6:]], axis=-1).astype(actions.dtype)
