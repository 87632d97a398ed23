"""The table of published datasets, against made datasets with the features that those have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anyvla.config.sources import RLDSConfig
from anyvla.data.sources.oxe import ALIASES, LAYOUTS, MIXTURES
from anyvla.data.sources.rlds import RLDSSource
from anyvla.data.sources.rlds_steps import axis_angle_to_rpy, quaternion_to_rpy
from tests.data.rlds_made import STEPS, made_steps, make_dataset


def _open(tmp_path: Path, name: str, values: dict) -> RLDSSource:
    return RLDSSource(RLDSConfig(path=make_dataset(tmp_path, name, [values])), cache=tmp_path / "cache")


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_dataset_of_the_table_is_read(tmp_path: Path, name: str) -> None:
    made = "bridge_dataset" if name == "bridge_orig" else name
    values = made_steps(made, 6)
    config = RLDSConfig(path=make_dataset(tmp_path, made, [values]), dataset=name)
    source = RLDSSource(config, cache=tmp_path / "cache")
    layout = LAYOUTS[name]
    episode = source.episode(0)
    assert episode.length == 6 - layout.drop_first
    assert episode.fps == layout.fps
    assert episode.instruction == "push the block 0"
    assert set(episode.cameras) >= {camera for camera, key in layout.cameras.items() if key in STEPS[made]}
    frames = episode.read(0, 2, episode.cameras)
    for camera in episode.cameras:
        expected = values[layout.cameras[camera]][layout.drop_first : layout.drop_first + 2]
        np.testing.assert_array_equal(frames[camera], expected)
    assert episode.state_names == tuple(name for names in layout.state.values() for name in names)
    assert episode.actions.shape == (episode.length, 7)
    assert np.isfinite(episode.actions).all()
    assert set(episode.actions[:, 6].tolist()) <= {0.0, 1.0}
    assert np.ptp(episode.actions[:, 0]) > 0


# dataset -> key of its gripper, column, values of six steps, open at each of them
_RELATIVE = ([0, 0, 1, 0, -1, 0], [1, 1, 0, 0, 1, 1])
_CLOSED = ([0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1])
_SIGNED_CLOSED = ([-1, -1, 1, 1, -1, -1], [1, 1, 0, 0, 1, 1])
_OPEN = ([1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1])
_SIGNED_OPEN = ([1, 1, -1, -1, 1, 1], [1, 1, 0, 0, 1, 1])
_CONTINUOUS_CLOSED = ([0, 0, 0.5, 1, 0.4, 0], [1, 1, 0, 0, 1, 1])
_CONTINUOUS_OPEN = ([1, 1, 0.5, 0, 0.4, 1], [1, 1, 0, 0, 1, 1])
GRIPPERS = {
    "bridge_dataset": ("action", 6, _CONTINUOUS_OPEN),
    "bridge": ("action/open_gripper", None, _OPEN),
    "fractal20220817_data": ("action/gripper_closedness_action", 0, _RELATIVE),
    "kuka": ("action/gripper_closedness_action", 0, _RELATIVE),
    "taco_play": ("action/rel_actions_world", 6, _SIGNED_OPEN),
    "jaco_play": ("action/gripper_closedness_action", 0, _RELATIVE),
    "roboturk": ("action/gripper_closedness_action", 0, _SIGNED_CLOSED),
    "nyu_door_opening_surprising_effectiveness": ("action/gripper_closedness_action", 0, _RELATIVE),
    "viola": ("action/gripper_closedness_action", None, _SIGNED_CLOSED),
    "berkeley_autolab_ur5": ("action/gripper_closedness_action", None, _RELATIVE),
    "toto": ("action/open_gripper", None, _OPEN),
    "stanford_hydra_dataset_converted_externally_to_rlds": ("action", 6, _CLOSED),
    "austin_buds_dataset_converted_externally_to_rlds": ("action", 6, _SIGNED_CLOSED),
    "austin_sailor_dataset_converted_externally_to_rlds": ("action", 6, _SIGNED_CLOSED),
    "austin_sirius_dataset_converted_externally_to_rlds": ("action", 6, _SIGNED_CLOSED),
    "utaustin_mutex": ("action", 6, _SIGNED_CLOSED),
    "nyu_franka_play_dataset_converted_externally_to_rlds": ("action", 13, _SIGNED_OPEN),
    "maniskill_dataset_converted_externally_to_rlds": ("action", 6, _SIGNED_OPEN),
    "furniture_bench_dataset_converted_externally_to_rlds": ("action", 7, _SIGNED_CLOSED),
    "ucsd_kitchen_dataset_converted_externally_to_rlds": ("action", 6, _OPEN),
    "bc_z": ("action/future/target_close", 0, _CLOSED),
    "dlr_edan_shared_control_converted_externally_to_rlds": ("action", 6, _CLOSED),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": ("action", 7, _OPEN),
    "berkeley_fanuc_manipulation": ("observation/state", 6, _CLOSED),
    "cmu_stretch": ("action", 6, _OPEN),
    "droid": ("action_dict/gripper_position", 0, _CONTINUOUS_CLOSED),
    "fmb": ("action", 6, _OPEN),
    "dobbe": ("action", 6, _CONTINUOUS_OPEN),
    "libero_goal_no_noops": ("action", 6, _SIGNED_CLOSED),
}


@pytest.mark.parametrize("name", sorted(GRIPPERS))
def test_grippers_are_0_and_1_with_1_open(tmp_path: Path, name: str) -> None:
    key, column, (recorded, expected) = GRIPPERS[name]
    values = made_steps(name, 6)
    if column is None:
        values[key] = np.array(recorded, values[key].dtype)
    else:
        values[key][:, column] = recorded
    episode = _open(tmp_path, name, values).episode(0)
    np.testing.assert_array_equal(episode.actions[:, 6], expected[LAYOUTS[name].drop_first :])


def test_every_gripper_of_the_table_is_checked() -> None:
    fixed = {name for name, layout in LAYOUTS.items() if layout.gripper is None}
    same = {"bridge_orig", *(f"libero_{suite}_no_noops" for suite in ("spatial", "object", "10"))}
    assert set(GRIPPERS) | fixed | same == set(LAYOUTS)
    assert fixed == {"language_table", "berkeley_cable_routing"}


def test_motion_is_taken_from_the_right_columns(tmp_path: Path) -> None:
    for name, key, start in (
        ("nyu_franka_play_dataset_converted_externally_to_rlds", "action", 7),
        ("stanford_hydra_dataset_converted_externally_to_rlds", "action", 0),
        ("droid", "action_dict/cartesian_velocity", 0),
    ):
        values = made_steps(name, 5)
        actions = _open(tmp_path / name, name, values).episode(0).actions
        np.testing.assert_allclose(actions[:, :6], values[key][:, start : start + 6], atol=1e-7)
    values = made_steps("fractal20220817_data", 5)
    actions = _open(tmp_path, "fractal20220817_data", values).episode(0).actions
    np.testing.assert_allclose(actions[:, :3], values["action/world_vector"], atol=1e-7)
    np.testing.assert_allclose(actions[:, 3:6], values["action/rotation_delta"], atol=1e-7)
    values = made_steps("language_table", 5)
    actions = _open(tmp_path, "language_table", values).episode(0).actions
    np.testing.assert_allclose(actions[:, :2], values["action"], atol=1e-7)
    np.testing.assert_array_equal(actions[:, 2:], np.tile([0, 0, 0, 0, 1], (5, 1)))


def test_units_and_rotations_become_metres_and_roll_pitch_yaw(tmp_path: Path) -> None:
    name = "maniskill_dataset_converted_externally_to_rlds"  # 1 is 0.1 m, and 0.1 rad about an axis
    values = made_steps(name, 3)
    values["action"][:, :6] = [1, -0.5, 0, 0, 0, 1]
    actions = _open(tmp_path, name, values).episode(0).actions
    np.testing.assert_allclose(actions[:, :6], np.tile([0.1, -0.05, 0, 0, 0, 0.1], (3, 1)), atol=1e-7)
    name = "furniture_bench_dataset_converted_externally_to_rlds"  # a quaternion x y z w
    values = made_steps(name, 3)
    values["action"][:, 3:7] = [np.sin(0.1), 0, 0, np.cos(0.1)]
    actions = _open(tmp_path, name, values).episode(0).actions
    np.testing.assert_allclose(actions[:, 3:6], np.tile([0.2, 0, 0], (3, 1)), atol=1e-6)


def test_rotations_agree_with_their_matrices() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 3))
    angles = np.linalg.norm(vectors, axis=1)
    axes = vectors / angles[:, None]
    for rpy, axis, angle in zip(axis_angle_to_rpy(vectors), axes, angles, strict=True):
        cross = np.cross(np.eye(3), axis)
        rodrigues = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        np.testing.assert_allclose(_matrix(rpy), rodrigues, atol=1e-9)
    np.testing.assert_allclose(axis_angle_to_rpy(np.zeros((1, 3))), 0)
    assert np.isfinite(quaternion_to_rpy(np.zeros((1, 4)))).all()


def _matrix(rpy: np.ndarray) -> np.ndarray:
    (sr, sp, sy), (cr, cp, cy) = np.sin(rpy), np.cos(rpy)
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return z @ y @ x


def test_mixtures_and_aliases_name_datasets_of_the_table() -> None:
    assert set(ALIASES.values()) <= set(LAYOUTS)
    for weights in MIXTURES.values():
        assert set(weights) <= set(LAYOUTS)
        assert all(weight > 0 for weight in weights.values())
    assert {len(weights) for weights in MIXTURES.values()} == {2, 10, 23, 27}
