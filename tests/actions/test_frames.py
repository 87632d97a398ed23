import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.actions.frames import euler_to_matrix, matrix_to_euler, tcp_to_world, world_to_tcp

angles = st.tuples(*[st.floats(-3, 3)] * 3)
units = st.tuples(*[st.floats(-1, 1)] * 3)
AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


def about(axis: str, angle: float) -> np.ndarray:
    """Rotation by ``angle`` about one axis, by Rodrigues' formula."""
    x, y, z = AXES[axis]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@given(rpy=angles)
def test_angles_are_intrinsic_x_y_z(rpy: tuple[float, float, float]) -> None:
    expected = about("x", rpy[0]) @ about("y", rpy[1]) @ about("z", rpy[2])
    np.testing.assert_allclose(euler_to_matrix(np.array(rpy)), expected, atol=1e-12)
    np.testing.assert_allclose(euler_to_matrix(matrix_to_euler(expected)), expected, atol=1e-7)


@given(rpy=angles, position=units, turn=units, gripper=st.sampled_from([0.0, 1.0]))
def test_it_is_the_published_formula(rpy, position, turn, gripper) -> None:
    """p' = R(rpy)^-1 p; R' = R(rpy + 0.01 d)^-1 R(rpy), Euler xyz of it x 100."""
    rpy, turn = np.array(rpy), np.array(turn)
    action = world_to_tcp(np.array([*position, *turn, gripper]), rpy)
    R, after = (about("x", a[0]) @ about("y", a[1]) @ about("z", a[2]) for a in (rpy, rpy + 0.01 * turn))
    np.testing.assert_allclose(R @ action[:3], position, atol=1e-12)
    x, y, z = action[3:6] / 100
    np.testing.assert_allclose(about("x", x) @ about("y", y) @ about("z", z), np.linalg.inv(after) @ R, atol=1e-10)
    assert np.abs(action[3:6]).max() < 2
    assert action[6] == gripper


@given(rpy=angles, position=units, turn=units)
def test_the_inverse_brings_the_action_back(rpy, position, turn) -> None:
    if abs(np.cos(rpy[1])) < 0.05:
        return  # gimbal lock
    action = np.array([*position, *turn, 1.0])
    np.testing.assert_allclose(tcp_to_world(world_to_tcp(action, np.array(rpy)), np.array(rpy)), action, atol=1e-6)


def test_windows_of_float32_actions_keep_their_shape_and_type() -> None:
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (2, 8, 10, 7)).astype(np.float32)
    rpy = rng.uniform(-1, 1, (2, 8, 1, 3)).astype(np.float32)
    there = world_to_tcp(actions, rpy)
    assert there.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(there[..., :3], axis=-1), np.linalg.norm(actions[..., :3], axis=-1), rtol=1e-5)
    np.testing.assert_allclose(tcp_to_world(there, rpy), actions, atol=2e-5)
    assert np.array_equal(there[1, 2, 3], world_to_tcp(actions[1, 2, 3], rpy[1, 2, 0]))


def test_a_tool_in_the_axes_of_the_world() -> None:
    action = np.array([0.1, 0.2, 0.3, 0.0, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(world_to_tcp(action, np.zeros(3)), [0.1, 0.2, 0.3, 0, 0, -0.5, 1], atol=1e-12)
    turned = world_to_tcp(action, np.array([0, 0, np.pi / 2]))  # the tool's x is the world's y
    np.testing.assert_allclose(turned[:3], [0.2, -0.1, 0.3], atol=1e-12)
    assert turned[5] == pytest.approx(-0.5)
