"""What the features of the published Open X-Embodiment datasets mean, by name; and mixtures of them.

Names of features, control rates and conventions are those of the TensorFlow Datasets catalogue and of common practice
(Open X-Embodiment, arXiv 2310.08864; Octo, arXiv 2405.12213; OpenVLA, arXiv 2406.09246). Where the two disagree (the grippers
of Taco Play and of the Fanuc), practice is followed. ``scale=None`` marks actions that are no changes in metres and radians, or
not known to be: velocities, fractions of a largest step, and poses. They mean something under their own normalisation only.
"""

from __future__ import annotations

from anyvla.config.sources import OpenXConfig, RLDSConfig, RLDSLayout
from anyvla.data.sources.tfds import DatasetFolder
from anyvla.errors import ConfigError, did_you_mean

_POSE = ["x", "y", "z", "roll", "pitch", "yaw"]
_XYZ = ["x", "y", "z"]
_QUATERNION = ["qx", "qy", "qz", "qw"]
_NATURAL = ["observation/natural_language_instruction"]


def _joints(count: int) -> list[str]:
    return [f"joint_{i}" for i in range(count)]


def _views(
    primary: str | None = "image", secondary: str | None = None, wrist: str | None = None, **more: str
) -> dict[str, str]:
    named = {"primary": primary, "secondary": secondary, **more, "wrist": wrist}
    return {camera: f"observation/{key}" for camera, key in named.items() if key is not None}


_BRIDGE = RLDSLayout(
    cameras=_views("image_0", "image_1", tertiary="image_2", quaternary="image_3"),
    translation="action[0:3]",
    rotation="action[3:6]",
    gripper="action[6]",
    reached="observation/state[0:6]",
    state={"observation/state": [*_POSE, "gripper"]},
    drop_first=1,  # its action is zero
    fps=5,
)
_RT1 = RLDSLayout(
    cameras=_views(),
    translation="action/world_vector",
    rotation="action/rotation_delta",
    gripper="action/gripper_closedness_action",
    gripper_rule="closing",
    state={"observation/base_pose_tool_reached": [*_XYZ, *_QUATERNION], "observation/gripper_closed": ["gripper_closed"]},
    instruction=_NATURAL,
    fps=3,
)
_AUSTIN = RLDSLayout(
    cameras=_views(wrist="wrist_image"),
    translation="action[0:3]",
    rotation="action[3:6]",
    gripper="action[6]",
    gripper_rule="closed",
    scale=None,
    state={"observation/state[0:8]": [*_joints(7), "gripper"]},
    fps=20,
)
_LIBERO = RLDSLayout(
    cameras=_views(wrist="wrist_image"),
    translation="action[0:3]",
    rotation="action[3:6]",
    gripper="action[6]",
    gripper_rule="closed",
    scale=None,
    state={"observation/state": [*_POSE, "finger_0", "finger_1"]},
    fps=20,
)

LAYOUTS: dict[str, RLDSLayout] = {
    "bridge_dataset": _BRIDGE,  # Bridge V2 of its project page
    "bridge_orig": _BRIDGE,
    "bridge": RLDSLayout(  # Bridge V2 of Open X-Embodiment
        cameras=_views(secondary="image_1"),
        translation="action/world_vector",
        rotation="action/rotation_delta",
        gripper="action/open_gripper",
        reached="observation/state[0:6]",
        state={"observation/state": [*_POSE, "gripper"]},
        instruction=_NATURAL,
        drop_first=1,
        fps=5,
    ),
    "fractal20220817_data": _RT1,
    "kuka": _RT1.model_copy(
        update={
            "state": {
                "observation/clip_function_input/base_pose_tool_reached": [*_XYZ, *_QUATERNION],
                "observation/gripper_closed": ["gripper_closed"],
            },
            "fps": 10.0,
        }
    ),
    "taco_play": RLDSLayout(
        cameras=_views("rgb_static", wrist="rgb_gripper"),
        translation="action/rel_actions_world[0:3]",
        rotation="action/rel_actions_world[3:6]",
        gripper="action/rel_actions_world[6]",
        scale=None,
        state={"observation/robot_obs[0:7]": [*_POSE, "gripper_width"]},
        instruction=_NATURAL,
        fps=15,
    ),
    "jaco_play": RLDSLayout(
        cameras=_views(wrist="image_wrist"),
        translation="action/world_vector",
        gripper="action/gripper_closedness_action",
        gripper_rule="closing",
        scale=None,
        state={"observation/end_effector_cartesian_pos[0:3]": _XYZ, "observation/end_effector_cartesian_pos[6]": ["gripper"]},
        instruction=_NATURAL,
        fps=10,
    ),
    "berkeley_cable_routing": RLDSLayout(
        cameras=_views(secondary="top_image", wrist="wrist45_image", wrist_2="wrist225_image"),
        translation="action/world_vector",
        rotation="action/rotation_delta",
        gripper_rule="always_closed",
        scale=None,
        state={"observation/robot_state": _joints(7)},
        instruction=_NATURAL,
        fps=10,
    ),
    "language_table": RLDSLayout(
        cameras=_views("rgb"),
        translation="action",
        gripper_rule="always_open",
        state={"observation/effector_translation": ["x", "y"]},
        instruction=["observation/instruction"],
        fps=10,
    ),
    "roboturk": RLDSLayout(
        cameras=_views("front_rgb"),
        translation="action/world_vector",
        rotation="action/rotation_delta",
        gripper="action/gripper_closedness_action",
        gripper_rule="closed",
        scale=None,
        instruction=_NATURAL,
        fps=10,
    ),
    "nyu_door_opening_surprising_effectiveness": RLDSLayout(
        cameras=_views(None, wrist="image"),
        translation="action/world_vector",
        rotation="action/rotation_delta",
        gripper="action/gripper_closedness_action",
        gripper_rule="closing",
        scale=None,
        instruction=_NATURAL,
        fps=3,
    ),
    "viola": RLDSLayout(
        cameras=_views("agentview_rgb", wrist="eye_in_hand_rgb"),
        translation="action/world_vector",
        rotation="action/rotation_delta",
        gripper="action/gripper_closedness_action",
        gripper_rule="closed",
        scale=None,
        state={"observation/joint_states": _joints(7), "observation/gripper_states": ["gripper_width"]},
        instruction=_NATURAL,
        fps=20,
    ),
    "berkeley_autolab_ur5": RLDSLayout(
        cameras=_views(wrist="hand_image"),
        translation="action/world_vector",
        rotation="action/rotation_delta",
        gripper="action/gripper_closedness_action",
        gripper_rule="closing",
        state={"observation/robot_state[6:14]": [*_XYZ, *_QUATERNION, "gripper_closed"]},
        instruction=_NATURAL,
        fps=5,
    ),
    "toto": RLDSLayout(
        cameras=_views(),
        translation="action/world_vector",
        rotation="action/rotation_delta",
        gripper="action/open_gripper",
        scale=None,
        state={"observation/state": _joints(7)},
        instruction=_NATURAL,
        fps=30,
    ),
    "stanford_hydra_dataset_converted_externally_to_rlds": RLDSLayout(
        cameras=_views(wrist="wrist_image"),
        translation="action[0:3]",
        rotation="action[3:6]",
        gripper="action[6]",
        gripper_rule="closed",
        state={"observation/state[0:3]": _XYZ, "observation/state[7:10]": _POSE[3:], "observation/state[-3]": ["gripper"]},
        fps=10,
    ),
    "austin_buds_dataset_converted_externally_to_rlds": _AUSTIN,
    "austin_sailor_dataset_converted_externally_to_rlds": _AUSTIN.model_copy(
        update={"state": {"observation/state": [*_XYZ, *_QUATERNION, "gripper"]}}
    ),
    "austin_sirius_dataset_converted_externally_to_rlds": _AUSTIN,
    "utaustin_mutex": _AUSTIN,
    "nyu_franka_play_dataset_converted_externally_to_rlds": RLDSLayout(
        cameras=_views(secondary="image_additional_view"),
        translation="action[7:10]",
        rotation="action[10:13]",
        gripper="action[13]",
        state={"observation/state[7:13]": _POSE},
        fps=3,
    ),
    "maniskill_dataset_converted_externally_to_rlds": RLDSLayout(
        cameras=_views(wrist="wrist_image"),
        translation="action[0:3]",
        rotation="action[3:6]",
        rotation_form="axis_angle",
        gripper="action[6]",
        scale=(0.1, 0.1),
        state={"observation/tcp_pose": [*_XYZ, "qw", "qx", "qy", "qz"], "observation/state[7]": ["finger_0"]},
        fps=20,
    ),
    "furniture_bench_dataset_converted_externally_to_rlds": RLDSLayout(
        cameras=_views(wrist="wrist_image"),
        translation="action[0:3]",
        rotation="action[3:7]",
        rotation_form="quaternion",
        gripper="action[7]",
        gripper_rule="closed",
        scale=None,
        state={"observation/state[0:7]": [*_XYZ, *_QUATERNION], "observation/state[-1]": ["gripper_width"]},
        fps=10,
    ),
    "ucsd_kitchen_dataset_converted_externally_to_rlds": RLDSLayout(
        cameras=_views(),
        translation="action[0:3]",
        rotation="action[3:6]",
        gripper="action[6]",
        scale=None,
        state={"observation/state[0:7]": _joints(7)},
        fps=2,
    ),
    "bc_z": RLDSLayout(
        cameras=_views(),
        translation="action/future/xyz_residual[0:3]",
        rotation="action/future/axis_angle_residual[0:3]",  # added to the axis and angle: small ones are added to rpy alike
        gripper="action/future/target_close[0]",
        gripper_rule="closed",
        state={
            "observation/present/xyz": _XYZ,
            "observation/present/axis_angle": ["axis_x", "axis_y", "axis_z"],
            "observation/present/sensed_close": ["gripper_closed"],
        },
        instruction=_NATURAL,
        fps=10,
    ),
    "dlr_edan_shared_control_converted_externally_to_rlds": RLDSLayout(
        cameras=_views(),
        translation="action[0:3]",
        rotation="action[3:6]",
        gripper="action[6]",
        gripper_rule="closed",
        scale=None,
        state={"observation/state": [*_POSE, "gripper"]},
        fps=5,
    ),
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": RLDSLayout(
        cameras=_views(wrist="wrist_image"),
        translation="action[0:3]",
        rotation="action[3:7]",
        rotation_form="quaternion",
        gripper="action[7]",
        scale=None,
        state={"observation/state[0:8]": [*_joints(7), "gripper"]},
        fps=20,
    ),
    "berkeley_fanuc_manipulation": RLDSLayout(
        cameras=_views(wrist="wrist_image"),
        translation="action[0:3]",
        rotation="action[3:6]",
        gripper="observation/state[6]",  # no command is recorded
        gripper_rule="closed",
        state={"observation/state[0:7]": [*_joints(6), "gripper"]},
        fps=10,
    ),
    "cmu_stretch": RLDSLayout(
        cameras=_views(),
        translation="action[0:3]",
        rotation="action[3:6]",
        gripper="action[6]",
        scale=None,
        state={"observation/state": [*_XYZ, "gripper"]},
        fps=10,
    ),
    "droid": RLDSLayout(
        cameras=_views("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"),
        translation="action_dict/cartesian_velocity[0:3]",
        rotation="action_dict/cartesian_velocity[3:6]",
        gripper="action_dict/gripper_position",
        gripper_rule="closed",
        scale=None,
        state={"observation/cartesian_position": _POSE, "observation/gripper_position": ["gripper_closed"]},
        instruction=["language_instruction", "language_instruction_2", "language_instruction_3"],
        fps=15,
    ),
    "fmb": RLDSLayout(
        cameras=_views("image_side_1", "image_side_2", "image_wrist_1", wrist_2="image_wrist_2"),
        translation="action[0:3]",
        rotation="action[3:6]",
        gripper="action[6]",
        scale=None,
        state={"observation/eef_pose": [*_XYZ, *_QUATERNION], "observation/state_gripper_pose": ["gripper"]},
        instruction=["language_instruction", "episode_metadata/episode_language_instruction"],
        fps=10,
    ),
    "dobbe": RLDSLayout(
        cameras=_views(None, wrist="wrist_image"),
        translation="action[0:3]",
        rotation="action[3:6]",
        gripper="action[6]",
        scale=None,
        state={"observation/state": [*_POSE, "gripper"]},
        fps=30,
    ),
    **{f"libero_{suite}_no_noops": _LIBERO for suite in ("spatial", "object", "goal", "10")},
}
ALIASES = {"bridge_oxe": "bridge", "fmb_dataset": "fmb"}

_RTX = {
    "fractal20220817_data": 0.54087122203,
    "kuka": 0.8341046294,
    "bridge_dataset": 1.0,
    "taco_play": 2.0,
    "jaco_play": 2.0,
    "berkeley_cable_routing": 3.0,
    "roboturk": 1.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 1.0,
    "toto": 1.0,
}
_MAGIC_SOUP = {
    **_RTX,
    "jaco_play": 1.0,
    "berkeley_cable_routing": 1.0,
    "roboturk": 2.0,
    "berkeley_autolab_ur5": 2.0,
    "language_table": 0.1,
    "stanford_hydra_dataset_converted_externally_to_rlds": 2.0,
    "austin_buds_dataset_converted_externally_to_rlds": 1.0,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 3.0,
    "furniture_bench_dataset_converted_externally_to_rlds": 0.1,
    "ucsd_kitchen_dataset_converted_externally_to_rlds": 2.0,
    "austin_sailor_dataset_converted_externally_to_rlds": 1.0,
    "austin_sirius_dataset_converted_externally_to_rlds": 1.0,
    "dlr_edan_shared_control_converted_externally_to_rlds": 1.0,
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": 1.0,
    "utaustin_mutex": 1.0,
    "berkeley_fanuc_manipulation": 2.0,
    "cmu_stretch": 1.0,
}

# dataset -> how often each of its steps is drawn, relative to the others': its share is this times its number of steps
MIXTURES: dict[str, dict[str, float]] = {
    "bridge_rt_1": {"bridge_dataset": 1.0, "fractal20220817_data": 1.0},
    "rtx": _RTX,
    "oxe_magic_soup": _MAGIC_SOUP,
    "oxe_magic_soup_plus": {**_MAGIC_SOUP, "bc_z": 0.2, "fmb": 1.0, "dobbe": 0.2, "droid": 0.06},
}


def datasets_of(config: OpenXConfig) -> dict[str, RLDSConfig]:
    """Name -> settings of every dataset of a published mixture.

    Raises ConfigError for an unknown mixture or dataset, or for one that is not in the folder.
    """
    if config.path is None:
        raise ConfigError("data.source.path is not set: the folder of the datasets' folders")
    if config.mixture not in MIXTURES:
        raise ConfigError(f"data.source.mixture: unknown mixture {config.mixture!r}{did_you_mean(config.mixture, MIXTURES)}")
    names = MIXTURES[config.mixture]
    for name in config.leave_out:
        if name not in names:
            raise ConfigError(f"data.source.leave_out: {config.mixture} has no {name!r}{did_you_mean(name, names)}")
    chosen = [name for name in names if name not in config.leave_out]
    missing = [name for name in chosen if not (config.path / name).is_dir()]
    if missing:
        raise ConfigError(
            f"{config.path}: {config.mixture} needs {', '.join(missing)}, which is not here; data.source.leave_out does without"
        )
    if len(chosen) < 2:
        raise ConfigError("data.source.leave_out leaves fewer than two datasets: use a source of type rlds")
    return {
        name: RLDSConfig(
            path=config.path / name,
            split=config.split,
            motion=config.motion if LAYOUTS[name].reached else "commanded",
        )
        for name in chosen
    }


def layout_of(name: str, folder: DatasetFolder) -> RLDSLayout:
    """The layout of a published dataset. Raises ConfigError with what can be done for one that is not in the table."""
    known = ALIASES.get(name, name)
    if known in LAYOUTS:
        return LAYOUTS[known]
    images = [key.removeprefix("steps/") for key, feature in folder.features.items() if feature.kind == "image"]
    numbers = [
        f"{key.removeprefix('steps/')} ({feature.size})"
        for key, feature in folder.features.items()
        if feature.kind == "tensor" and feature.in_steps and 0 < feature.size <= 64
    ]
    near = did_you_mean(name, [*LAYOUTS, *ALIASES])
    raise ConfigError(
        f"{folder.path}: nothing is known of the dataset {name!r}{near if 'did you mean' in near else ''}; "
        "data.source.dataset=NAME says that it has the layout of a known one, data.source.layout describes it "
        "(cameras, translation, rotation, gripper, gripper_rule, state, instruction, fps). "
        f"Its images: {', '.join(images) or 'none'}; its numbers: {', '.join(numbers) or 'none'}"
    )
