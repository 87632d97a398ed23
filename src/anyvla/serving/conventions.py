"""What each benchmark means by its images, its state and its actions: one table, and the conversions to and from a policy.

The table says what goes over vla-eval's socket, which is not always what the simulator takes: vla-eval itself turns LIBERO's
images, adds CALVIN's changes to the last commanded pose, and repeats the Google Robot's gripper commands. Policies have the
conventions of their action spec: units by its dimensions, Euler angles (droll, dpitch, dyaw) or an axis-angle vector (drx,
dry, drz), a gripper of 0 or 1 where 1 is open.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from anyvla.actions import ActionSpec
from anyvla.actions.rotations import (
    axis_angle_to_matrix,
    euler_to_matrix,
    matrix_to_axis_angle,
    matrix_to_euler,
    matrix_to_quaternion,
    quaternion_to_matrix,
)
from anyvla.errors import ConfigError, DataError, did_you_mean

Rotation = Literal["euler", "axis-angle"]
Gripper = Literal["+1 open", "+1 close", "relative"]

EULER, AXIS_ANGLE = ("roll", "pitch", "yaw"), ("rx", "ry", "rz")
QUATERNION = ("qx", "qy", "qz", "qw")


@dataclass(frozen=True)
class Convention:
    """One row of the table.

    Attributes:
        rate: control steps per second. cameras: names of the images, the main one first.
        turned: whether the images are turned by 180 degrees against what the simulator renders.
        position, rotation_unit: units of the six changes of pose. rotation: what the last three of them are.
        gripper: ``+1 open`` and ``+1 close`` are commands of -1 or 1. ``relative``: (1 - change) / 2, where change is 1 for
            a gripper that closes now, -1 for one that opens, 0 for one that stays; repeated for 15 steps by vla-eval.
        state: names of the numbers of ``states``, in their order; the rotation in it is one of roll pitch yaw, rx ry rz
            (axis-angle), and a quaternion qx qy qz qw.
        tool: (3, 3) rotation by which the training data's tool frame differs from the simulator's, if it does.
        wrist, with_state: parameters of vla-eval's benchmark that send the second camera and the state.
        params: parameters that these conventions rest on.
    """

    name: str
    rate: float
    cameras: tuple[str, ...]
    turned: bool
    position: str
    rotation_unit: str
    rotation: Rotation
    gripper: Gripper
    state: tuple[str, ...]
    tool: tuple[tuple[float, ...], ...] | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


_SIMPLER_STATE = ("x", "y", "z", "qw", "qx", "qy", "qz", "gripper_open")

CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            name="simpler-widowx",
            rate=5.0,
            cameras=("primary",),
            turned=False,
            position="m",
            rotation_unit="rad",
            rotation="axis-angle",
            gripper="+1 open",
            state=_SIMPLER_STATE,
            # Bridge measures the attitude of the gripper from where it points down
            tool=((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (-1.0, 0.0, 0.0)),
            params={"gripper_mode": "binary"},
        ),
        Convention(
            name="simpler-google",
            rate=3.0,
            cameras=("primary",),
            turned=False,
            position="m",
            rotation_unit="rad",
            rotation="axis-angle",
            gripper="relative",
            state=_SIMPLER_STATE,
            params={"gripper_mode": "sticky"},
        ),
        Convention(
            name="libero",
            rate=20.0,
            cameras=("agentview", "wrist"),
            turned=True,
            position="x 0.05 m",
            rotation_unit="x 0.5 rad",
            rotation="axis-angle",
            gripper="+1 close",
            state=("x", "y", "z", *AXIS_ANGLE, "gripper_left", "gripper_right"),
            # robosuite, and so LIBERO's data, does not fold quaternions with w < 0
            params={"absolute_action": False, "quat_no_antipodal": True},
        ),
        Convention(
            name="calvin",
            rate=30.0,
            cameras=("rgb_static", "rgb_gripper"),
            turned=False,
            position="m",
            rotation_unit="rad",
            rotation="euler",
            gripper="+1 open",
            state=("x", "y", "z", *EULER, "gripper_width", "gripper_action"),
            params={"absolute_action": False},
        ),
    )
}


def convention(name: str) -> Convention:
    """The row of ``name``; raises ConfigError for another name."""
    if name not in CONVENTIONS:
        raise ConfigError(f"unknown benchmark {name!r}{did_you_mean(name, CONVENTIONS)}")
    return CONVENTIONS[name]


# ------------------------------------------------------------------------------------------------------------------- images


def turn(image: np.ndarray) -> np.ndarray:
    """(H, W, C) turned by 180 degrees; its own inverse."""
    return np.ascontiguousarray(image[::-1, ::-1])


# -------------------------------------------------------------------------------------------------------------------- state


def named_state(convention: Convention, values: ArrayLike) -> dict[str, float]:
    """The numbers of ``states`` by name, and the rotation in the other representations too; also ``gripper_closed``.

    Raises DataError for another number of values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (len(convention.state),):
        raise DataError(
            f"states of {convention.name} are {len(convention.state)} numbers ({', '.join(convention.state)}); "
            f"these have the shape {numbers.shape}"
        )
    named = dict(zip(convention.state, numbers.tolist(), strict=True))
    matrix = _attitude(named)
    if convention.tool is not None:
        matrix = matrix @ np.array(convention.tool).T
        named = {name: value for name, value in named.items() if name not in QUATERNION}  # they are of the simulator's frame
    others = {
        **dict(zip(EULER, matrix_to_euler(matrix).tolist(), strict=True)),
        **dict(zip(AXIS_ANGLE, matrix_to_axis_angle(matrix).tolist(), strict=True)),
        **dict(zip(QUATERNION, matrix_to_quaternion(matrix).tolist(), strict=True)),
    }
    if "gripper_open" in named:
        others["gripper_closed"] = 1.0 - named["gripper_open"]
    return {**others, **named}


def _attitude(named: Mapping[str, float]) -> np.ndarray:
    for names, to_matrix in (
        (QUATERNION, quaternion_to_matrix),
        (AXIS_ANGLE, axis_angle_to_matrix),
        (EULER, euler_to_matrix),
    ):
        if names[0] in named:
            return to_matrix([named[name] for name in names])
    raise AssertionError("every convention's state has a rotation")


# ------------------------------------------------------------------------------------------------------------------- action


def open_is_plus_one(gripper: float) -> float:
    """1 = open, 0 = closed -> 1, -1."""
    return 1.0 if gripper >= 0.5 else -1.0


def close_is_plus_one(gripper: float) -> float:
    """1 = open, 0 = closed -> -1, 1."""
    return -open_is_plus_one(gripper)


def relative_gripper(gripper: float, previous: float | None) -> float:
    """What the Google Robot gets: 1 when the gripper closes, 0 when it opens, 0.5 when it stays or the episode begins.

    vla-eval makes 2 x - 1 of it, turns the sign (its simulator's +1 is close) and keeps a change for 15 steps. With what is
    sent here the simulator gets what SimplerEnv's own evaluation gives it: previous minus current.
    """
    change = 0.0 if previous is None else float(previous >= 0.5) - float(gripper >= 0.5)
    return (1.0 - change) / 2


def unit_scale(unit: str) -> tuple[float, str]:
    """``x 0.02 m`` -> (0.02, "m"), ``rad`` -> (1.0, "rad").

    Raises ConfigError for a unit that is neither metres nor radians.
    """
    match = re.fullmatch(r"(?:x (\d+(?:\.\d+)?) )?(m|rad)", unit)
    if match is None:
        raise ConfigError(f"the unit {unit!r} is neither of 'm', 'rad', nor a multiple such as 'x 0.02 m'")
    return float(match.group(1) or 1), match.group(2)


class ActionTranslator:
    """From a policy's actions to a benchmark's.

    Raises ConfigError where the policy's action spec has no counterpart: other dimensions, unknown units, absolute poses.
    """

    def __init__(self, spec: ActionSpec, convention: Convention) -> None:
        self._convention = convention
        self._rotation: Rotation = "axis-angle" if "drx" in spec.names else "euler"
        turns = ("drx", "dry", "drz") if self._rotation == "axis-angle" else ("droll", "dpitch", "dyaw")
        wanted = ("dx", "dy", "dz", *turns, "gripper")
        if sorted(spec.names) != sorted(wanted):
            raise ConfigError(
                f"{convention.name} takes changes of a pose (dx dy dz, droll dpitch dyaw or drx dry drz) and a gripper; "
                f"the policy gives {spec.describe()}"
            )
        self._order = [spec.names.index(name) for name in wanted]
        dims = [spec.dims[i] for i in self._order]
        if dims[-1].kind != "binary":
            raise ConfigError("the policy's gripper is not binary (0 closed, 1 open): its sign cannot be known")
        units = [convention.position] * 3 + [convention.rotation_unit] * 3
        self._to_si, self._from_si = np.ones(6), np.ones(6)
        for i, (dim, unit) in enumerate(zip(dims[:6], units, strict=True)):
            try:
                self._to_si[i], kind = unit_scale(dim.unit)
            except ConfigError as error:
                raise ConfigError(f"action dimension {dim.name!r}: {error}") from error
            scale, expected = unit_scale(unit)
            if kind != expected:
                raise ConfigError(f"action dimension {dim.name!r} is in {dim.unit}, {convention.name} takes {unit}")
            self._from_si[i] = 1 / scale

    def __call__(self, action: np.ndarray, previous_gripper: float | None = None) -> np.ndarray:
        """(7,) of the policy -> (7,) float32 of the benchmark.

        Args:
            previous_gripper: that of the policy's last action in this episode.
        """
        values = np.asarray(action, dtype=np.float64)[self._order]
        pose = values[:6] * self._to_si
        if self._rotation != self._convention.rotation:
            if self._convention.rotation == "axis-angle":
                pose[3:] = matrix_to_axis_angle(euler_to_matrix(pose[3:]))
            else:
                pose[3:] = matrix_to_euler(axis_angle_to_matrix(pose[3:]))
        return np.array([*(pose * self._from_si), self._gripper(values[6], previous_gripper)], dtype=np.float32)

    def gripper(self, action: np.ndarray) -> float:
        """Of a policy's action."""
        return float(action[self._order[6]])

    def _gripper(self, gripper: float, previous: float | None) -> float:
        if self._convention.gripper == "relative":
            return relative_gripper(gripper, previous)
        return open_is_plus_one(gripper) if self._convention.gripper == "+1 open" else close_is_plus_one(gripper)

    def describe(self) -> str:
        factors = sorted({f"{factor:g}" for factor in self._to_si * self._from_si})
        turned = (
            "as they are" if self._rotation == self._convention.rotation else f"{self._rotation} to {self._convention.rotation}"
        )
        return f"changes of pose times {', '.join(factors)}, rotations {turned}, gripper {self._convention.gripper}"


# --------------------------------------------------------------------------------------------------------------------- names


def match_names(kind: str, wanted: Sequence[str], offered: Sequence[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """For each name that the policy wants, the name that the benchmark has for it; what the benchmark lacks is left out.

    Args:
        renamed: the benchmark's name -> the policy's name. kind: ``camera`` or ``state``, for messages.

    Raises:
        ConfigError: ``renamed`` holds a name that is not there.
    """
    for theirs, ours in renamed.items():
        if theirs not in offered:
            raise ConfigError(
                f"--{kind} {theirs}={ours}: the benchmark has no {kind} {theirs!r}{did_you_mean(theirs, offered)}"
            )
        if ours not in wanted:
            raise ConfigError(f"--{kind} {theirs}={ours}: the policy has no {kind} {ours!r}{did_you_mean(ours, wanted)}")
    found = {name: name for name in wanted if name in offered}
    return {**found, **{ours: theirs for theirs, ours in renamed.items()}}
