"""From a policy's actions to messages: what every robot's commands must be able to do, and the Twist of a base."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import pi
from typing import Any, Protocol

import numpy as np

from anyvla.errors import ConfigError, did_you_mean
from anyvla.ros2.transport import Kind
from anyvla_client.safety import Limits

Sent = tuple[str, Kind, Any]  # topic, kind, Message.data

TWIST = ("linear_x", "linear_y", "linear_z", "angular_x", "angular_y", "angular_z")
_LENGTHS = {"m": 1.0, "cm": 0.01, "mm": 0.001}
_ANGLES = {"rad": 1.0, "deg": pi / 180}
# SI unit -> unit -> how many of the SI unit it is
UNITS = {
    "m": _LENGTHS,
    "rad": _ANGLES,
    "m/s": {"m/s": 1.0, "cm/s": 0.01, "mm/s": 0.001, "km/h": 1 / 3.6},
    "rad/s": {"rad/s": 1.0, "deg/s": pi / 180},
}
_SCALED = re.compile(r"x (\d+\.?\d*) (\S+)")  # "x 0.02 m": an action of 1 is 2 cm


def in_si(unit: str) -> tuple[str, float] | None:
    """``cm/s`` -> ("m/s", 0.01); None for a unit that is not known."""
    scaled = _SCALED.fullmatch(unit)
    scale, unit = (float(scaled[1]), scaled[2]) if scaled else (1.0, unit)
    return next(((si, scale * known[unit]) for si, known in UNITS.items() if unit in known), None)


class Commands(Protocol):
    """What the drive loop publishes. Nothing here waits, or raises for a message that says nonsense.

    Attributes:
        limits: of the actions. targets: as ``Supervisor`` has it; None where no dimension is a target.
        turns: whether an orientation is a target. measures: topics that must be heard, as targets start from what they tell.
    """

    limits: Limits
    targets: np.ndarray | None
    turns: bool
    measures: Sequence[tuple[str, Kind]]

    def measure(self, topic: str, data: Any, received: float) -> None:
        """A message of one of ``measures`` arrived."""
        ...

    def measured_at(self) -> float:
        """When the oldest of the newest measured values arrived; -inf where one has not, inf where none is needed."""
        ...

    def at(self) -> np.ndarray | None:
        """(A,) where the robot is, in the actions' units; NaN for what is no target, or not measured yet."""
        ...

    def drive(self, action: np.ndarray) -> list[Sent]:
        """``action`` (A,) of the policy, within the limits, for one control step."""
        ...

    def human(self, twist: np.ndarray) -> list[Sent]:
        """``twist`` (6,) of a human."""
        ...

    def stop(self) -> list[Sent]:
        """Stand: at once, and again at every call until ``drive``."""
        ...


class BaseCommands:
    """See ``Commands``: velocities of a base as a Twist. A stop is zero."""

    targets: np.ndarray | None = None
    turns = False
    measures: Sequence[tuple[str, Kind]] = ()

    def __init__(self, action: Mapping[str, Any], topic: str, stamped: bool) -> None:
        """``action``: as ActionSpec.to_dict. Raises ConfigError where an action is more than a velocity of a base."""
        self.limits = Limits.from_spec(action)
        self._topic = topic
        self._kind: Kind = "twist_stamped" if stamped else "twist"
        self._twist = TwistOf(action)

    def measure(self, topic: str, data: Any, received: float) -> None:
        """Nothing is needed."""

    def measured_at(self) -> float:
        return np.inf

    def at(self) -> np.ndarray | None:
        return None

    def drive(self, action: np.ndarray) -> list[Sent]:
        return self.human(self._twist(action))

    def human(self, twist: np.ndarray) -> list[Sent]:
        return [(self._topic, self._kind, twist)]

    def stop(self) -> list[Sent]:
        return self.human(np.zeros(len(TWIST)))


class TwistOf:
    """Actions (A,) of a base, in the units of their spec, as a twist (6,): linear xyz in m/s, angular xyz in rad/s."""

    def __init__(self, action: Mapping[str, Any]) -> None:
        """``action``: as ActionSpec.to_dict. Raises ConfigError where an action is more than a velocity of a base."""
        self._places, self._factors = [], []
        for dim in action["dims"]:
            name, unit = dim["name"], dim.get("unit", "")
            if name not in TWIST or dim.get("kind") == "binary":
                raise ConfigError(
                    f"the policy's action {name!r} has no place in a Twist, which holds {', '.join(TWIST)}; for an arm, "
                    f"say where each action is published: command: TOPIC in its line of the mapping file (--mapping FILE)"
                )
            units = UNITS["m/s" if name.startswith("linear") else "rad/s"] | {"": 1.0}
            if unit not in units:
                raise ConfigError(f"the policy's action {name!r} is in {unit!r}{did_you_mean(unit, units)}")
            self._places.append(TWIST.index(name))
            self._factors.append(units[unit])

    def __call__(self, action: np.ndarray) -> np.ndarray:
        twist = np.zeros(len(TWIST))
        twist[self._places] = action * np.array(self._factors)
        return twist
