"""From a policy's actions to a Twist, and from messages to the numbers of the robot's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import pi
from typing import Any

import numpy as np

from anyvla.errors import ConfigError, did_you_mean
from anyvla.ros2.transport import Kind, Message

TWIST = ("linear_x", "linear_y", "linear_z", "angular_x", "angular_y", "angular_z")
POSE = ("x", "y", "z", "qx", "qy", "qz", "qw")
_JOINT = ("position", "velocity", "effort")
# unit -> metres or radians per second
_UNITS = {
    "linear": {"m/s": 1.0, "": 1.0, "cm/s": 0.01, "mm/s": 0.001, "km/h": 1 / 3.6},
    "angular": {"rad/s": 1.0, "": 1.0, "deg/s": pi / 180},
}


class TwistOf:
    """Actions (A,) of a base, in the units of their spec, as a twist (6,): linear xyz in m/s, angular xyz in rad/s."""

    def __init__(self, action: Mapping[str, Any]) -> None:
        """``action``: as ActionSpec.to_dict. Raises ConfigError where an action is more than a velocity of a base."""
        self._places, self._factors = [], []
        for dim in action["dims"]:
            name, unit = dim["name"], dim.get("unit", "")
            if name not in TWIST or dim.get("kind") == "binary":
                raise ConfigError(
                    f"the policy's action {name!r} has no place in a Twist, which holds {', '.join(TWIST)}; "
                    "arms are driven through a mapping file"
                )
            units = _UNITS[name.partition("_")[0]]
            if unit not in units:
                raise ConfigError(f"the policy's action {name!r} is in {unit!r}{did_you_mean(unit, units)}")
            self._places.append(TWIST.index(name))
            self._factors.append(units[unit])

    def __call__(self, action: np.ndarray) -> np.ndarray:
        twist = np.zeros(len(TWIST))
        twist[self._places] = action * np.array(self._factors)
        return twist


def named_numbers(message: Message, names: Sequence[str]) -> dict[str, float]:
    """Those of ``names`` that a message holds.

    Twists hold ``linear_x`` ... ``angular_z``; poses ``x y z qx qy qz qw``; joint states every joint's position as its name,
    and ``<name>.velocity`` and ``<name>.effort``; arrays hold all of ``names``, in order, or nothing.
    """
    if message.kind in ("twist", "twist_stamped"):
        numbers = dict(zip(TWIST, message.data, strict=True))
    elif message.kind == "pose_stamped":
        numbers = dict(zip(POSE, message.data, strict=True))
    elif message.kind == "joint_state":
        numbers = {}
        for joint, values in message.data.items():
            numbers[joint] = values[0]
            numbers |= {f"{joint}.{what}": value for what, value in zip(_JOINT, values, strict=True)}
    elif message.kind == "float64_array" and len(message.data) == len(names):
        numbers = dict(zip(names, message.data, strict=True))
    else:
        numbers = {}
    return {name: float(numbers[name]) for name in names if name in numbers and np.isfinite(numbers[name])}


STATE_KINDS: tuple[Kind, ...] = ("float64_array", "joint_state", "twist", "twist_stamped", "pose_stamped")
