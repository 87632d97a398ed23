"""From a policy's actions to a Twist."""

from __future__ import annotations

from collections.abc import Mapping
from math import pi
from typing import Any

import numpy as np

from anyvla.errors import ConfigError, did_you_mean

TWIST = ("linear_x", "linear_y", "linear_z", "angular_x", "angular_y", "angular_z")
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
