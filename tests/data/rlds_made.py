"""Made RLDS datasets, with the features that the catalogue of TensorFlow Datasets lists."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.rlds_writer import Values, encode_example, encode_image, write_dataset

IMAGE = ("image", (8, 10, 3))
TEXT = ("text",)


def numbers(*shape: int, dtype: str = "float32", encoding: str = "none") -> tuple[Any, ...]:
    return ("tensor", dtype, shape, encoding)


_NATURAL = {"observation/natural_language_instruction": TEXT}
_WORLD = {"action/world_vector": numbers(3), "action/rotation_delta": numbers(3)}
_AUSTIN = {
    "action": numbers(7),
    "language_instruction": TEXT,
    "observation/image": IMAGE,
    "observation/wrist_image": IMAGE,
    "observation/state": numbers(24),
}

# the features of the steps that matter, of published datasets
STEPS: dict[str, dict[str, tuple[Any, ...]]] = {
    "bridge_dataset": {
        "action": numbers(7),
        "language_instruction": TEXT,
        "observation/state": numbers(7),
        **{f"observation/image_{i}": IMAGE for i in range(4)},
    },
    "bridge": {
        **_WORLD,
        **_NATURAL,
        "action/open_gripper": numbers(dtype="bool"),
        "observation/image": IMAGE,
        "observation/state": numbers(7),
    },
    "fractal20220817_data": {
        **_WORLD,
        **_NATURAL,
        "action/gripper_closedness_action": numbers(1),
        "observation/image": IMAGE,
        "observation/base_pose_tool_reached": numbers(7),
        "observation/gripper_closed": numbers(1),
    },
    "kuka": {
        **_WORLD,
        **_NATURAL,
        "action/gripper_closedness_action": numbers(1),
        "observation/image": IMAGE,
        "observation/clip_function_input/base_pose_tool_reached": numbers(7, encoding="zlib"),
        "observation/gripper_closed": numbers(1, encoding="zlib"),
    },
    "taco_play": {
        **_NATURAL,
        "action/rel_actions_world": numbers(7),
        "observation/rgb_static": IMAGE,
        "observation/rgb_gripper": IMAGE,
        "observation/robot_obs": numbers(15),
    },
    "jaco_play": {
        **_NATURAL,
        "action/world_vector": numbers(3),
        "action/gripper_closedness_action": numbers(1),
        "observation/image": IMAGE,
        "observation/image_wrist": IMAGE,
        "observation/end_effector_cartesian_pos": numbers(7),
    },
    "berkeley_cable_routing": {
        **_WORLD,
        **_NATURAL,
        **{f"observation/{view}image": IMAGE for view in ("", "top_", "wrist45_", "wrist225_")},
        "observation/robot_state": numbers(7),
    },
    "language_table": {
        "action": numbers(2),
        "observation/rgb": IMAGE,
        "observation/effector_translation": numbers(2),
        "observation/instruction": numbers(512, dtype="int32"),
    },
    "roboturk": {**_WORLD, **_NATURAL, "action/gripper_closedness_action": numbers(1), "observation/front_rgb": IMAGE},
    "nyu_door_opening_surprising_effectiveness": {
        **_WORLD,
        **_NATURAL,
        "action/gripper_closedness_action": numbers(1),
        "observation/image": IMAGE,
    },
    "viola": {
        **_WORLD,
        **_NATURAL,
        "action/gripper_closedness_action": numbers(),
        "observation/agentview_rgb": IMAGE,
        "observation/eye_in_hand_rgb": IMAGE,
        "observation/joint_states": numbers(7),
        "observation/gripper_states": numbers(1),
    },
    "berkeley_autolab_ur5": {
        **_WORLD,
        **_NATURAL,
        "action/gripper_closedness_action": numbers(),
        "observation/image": IMAGE,
        "observation/hand_image": IMAGE,
        "observation/robot_state": numbers(15),
    },
    "toto": {
        **_WORLD,
        **_NATURAL,
        "action/open_gripper": numbers(dtype="bool"),
        "observation/image": IMAGE,
        "observation/state": numbers(7),
    },
    "stanford_hydra_dataset_converted_externally_to_rlds": {**_AUSTIN, "observation/state": numbers(27)},
    "austin_buds_dataset_converted_externally_to_rlds": _AUSTIN,
    "austin_sailor_dataset_converted_externally_to_rlds": {**_AUSTIN, "observation/state": numbers(8)},
    "austin_sirius_dataset_converted_externally_to_rlds": {**_AUSTIN, "observation/state": numbers(8)},
    "utaustin_mutex": _AUSTIN,
    "nyu_franka_play_dataset_converted_externally_to_rlds": {
        "action": numbers(15),
        "language_instruction": TEXT,
        "observation/image": IMAGE,
        "observation/image_additional_view": IMAGE,
        "observation/state": numbers(13),
    },
    "maniskill_dataset_converted_externally_to_rlds": {
        **_AUSTIN,
        "observation/state": numbers(18),
        "observation/tcp_pose": numbers(7),
    },
    "furniture_bench_dataset_converted_externally_to_rlds": {
        **_AUSTIN,
        "action": numbers(8),
        "observation/state": numbers(35),
    },
    "ucsd_kitchen_dataset_converted_externally_to_rlds": {
        "action": numbers(8),
        "language_instruction": TEXT,
        "observation/image": IMAGE,
        "observation/state": numbers(21),
    },
    "bc_z": {
        **_NATURAL,
        "action/future/xyz_residual": numbers(30),
        "action/future/axis_angle_residual": numbers(30),
        "action/future/target_close": numbers(10, dtype="int64"),
        "observation/image": IMAGE,
        "observation/present/xyz": numbers(3),
        "observation/present/axis_angle": numbers(3),
        "observation/present/sensed_close": numbers(1),
    },
    "dlr_edan_shared_control_converted_externally_to_rlds": {
        "action": numbers(7),
        "language_instruction": TEXT,
        "observation/image": IMAGE,
        "observation/state": numbers(7),
    },
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": {
        **_AUSTIN,
        "action": numbers(8),
        "observation/state": numbers(20),
    },
    "berkeley_fanuc_manipulation": {**_AUSTIN, "action": numbers(6), "observation/state": numbers(13)},
    "cmu_stretch": {
        "action": numbers(8),
        "language_instruction": TEXT,
        "observation/image": IMAGE,
        "observation/state": numbers(4),
    },
    "droid": {
        **{f"language_instruction{suffix}": TEXT for suffix in ("", "_2", "_3")},
        "action_dict/cartesian_velocity": numbers(6),
        "action_dict/gripper_position": numbers(1),
        **{f"observation/{view}": IMAGE for view in ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left")},
        "observation/cartesian_position": numbers(6),
        "observation/gripper_position": numbers(1),
    },
    "fmb": {
        "action": numbers(7),
        "language_instruction": TEXT,
        **{f"observation/image_{view}": IMAGE for view in ("side_1", "side_2", "wrist_1", "wrist_2")},
        "observation/eef_pose": numbers(7),
        "observation/state_gripper_pose": numbers(),
    },
    "dobbe": {
        "action": numbers(7),
        "language_instruction": TEXT,
        "observation/wrist_image": IMAGE,
        "observation/state": numbers(7),
    },
    **{
        f"libero_{suite}_no_noops": {**_AUSTIN, "observation/state": numbers(8)}
        for suite in ("spatial", "object", "goal", "10")
    },
}


def made_steps(name: str, length: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Random values of every feature: key -> (T, ...) array, T images, or a sentence. In ``changes``, ``__`` is ``/``."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    for key, feature in STEPS[name].items():
        if feature[0] == "image":
            values[key] = list(rng.integers(0, 256, (length, *feature[1]), dtype=np.uint8))
        elif feature[0] == "text":
            values[key] = f"push the block {seed}"
        elif "instruction" in key:
            text = f"push the block {seed}".encode()
            values[key] = np.tile(np.frombuffer(text.ljust(feature[2][0], b"\0"), np.uint8), (length, 1))
        elif feature[1] == "float32":
            values[key] = rng.uniform(-0.1, 0.1, (length, *feature[2])).astype(np.float32)
        else:
            values[key] = rng.integers(0, 2, (length, *feature[2]))
    return values | {key.replace("__", "/"): value for key, value in changes.items()}


def encode_episode(name: str, values: dict[str, Any], packed: bool = True) -> bytes:
    """The payload of a record of these steps."""
    length = len(next(value for value in values.values() if isinstance(value, list)))
    features: dict[str, Values] = {"episode_metadata/file_path": [b"/somewhere"]}
    for key, value in values.items():
        feature = STEPS[name].get(key, TEXT)
        if isinstance(value, str):
            features[f"steps/{key}"] = [value.encode()] * length
        elif isinstance(value, list):
            features[f"steps/{key}"] = [v if isinstance(v, bytes) else encode_image(v) for v in value]
        elif feature[3:] == ("zlib",):
            features[f"steps/{key}"] = [zlib.compress(row.astype("<f4").tobytes()) for row in value]
        else:
            features[f"steps/{key}"] = value
    return encode_example(features, packed)


def make_dataset(root: Path, name: str, *shards: list[dict[str, Any]], packed: bool = True) -> Path:
    """A version folder of ``name`` below ``root`` with a split ``train`` of these episodes."""
    features = {f"steps/{key}": feature for key, feature in STEPS[name].items()} | {"episode_metadata/file_path": TEXT}
    payloads = [[encode_episode(name, values, packed) for values in shard] for shard in shards]
    return write_dataset(root / name / "0.1.0", name, features, {"train": payloads})
