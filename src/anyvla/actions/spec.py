"""ActionSpec: the name, kind, unit and limits of every action dimension.

Losses, metrics, normalisation, safety limits, plots and messages are derived from it, so that no 7 or 2 is written anywhere
else. Continuous dimensions are real numbers in their unit; binary ones are 0 or 1 (for a gripper, 1 = open).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from anyvla.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class ActionDim:
    """One dimension: ``low`` and ``high`` are hard limits in ``unit``; ``rate`` bounds its change, in ``unit`` per second."""

    name: str
    kind: Literal["continuous", "binary"] = "continuous"
    unit: str = ""
    low: float = -1.0
    high: float = 1.0
    rate: float | None = None
    mirrored: bool = False  # changes sign when left and right are exchanged

    def __post_init__(self) -> None:
        if self.kind not in ("continuous", "binary"):
            raise ConfigError(f"action dimension {self.name!r}: kind is {self.kind!r}, not 'continuous' or 'binary'")
        if not self.low < self.high:
            raise ConfigError(f"action dimension {self.name!r}: low {self.low} is not below high {self.high}")


@dataclass(frozen=True)
class ActionSpec:
    """An ordered set of action dimensions, ``A`` of them."""

    name: str
    dims: tuple[ActionDim, ...]

    def __post_init__(self) -> None:
        if not self.dims:
            raise ConfigError(f"action spec {self.name!r} has no dimensions")
        if len(set(self.names)) != len(self.dims):
            raise ConfigError(f"action spec {self.name!r} names a dimension twice: {', '.join(self.names)}")

    def __len__(self) -> int:
        return len(self.dims)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dim.name for dim in self.dims)

    @property
    def binary(self) -> np.ndarray:
        """(A,) bool: which dimensions are binary."""
        return np.array([dim.kind == "binary" for dim in self.dims])

    @property
    def low(self) -> np.ndarray:
        """(A,) float64: lower limits."""
        return np.array([dim.low for dim in self.dims])

    @property
    def high(self) -> np.ndarray:
        """(A,) float64: upper limits."""
        return np.array([dim.high for dim in self.dims])

    @property
    def rate(self) -> np.ndarray:
        """(A,) float64: largest change per second; infinite where the spec sets none."""
        return np.array([np.inf if dim.rate is None else dim.rate for dim in self.dims])

    @property
    def mirror_sign(self) -> np.ndarray:
        """(A,) float32 of +1 and -1: factor that turns an action into its mirror image (left and right exchanged)."""
        return np.array([-1.0 if dim.mirrored else 1.0 for dim in self.dims], dtype=np.float32)

    def describe(self) -> str:
        """``linear_x [-1.15, 1.15] m/s, ...``: one line for people."""
        parts = (f"{d.name} {'{0, 1}' if d.kind == 'binary' else f'[{d.low:g}, {d.high:g}]'} {d.unit}" for d in self.dims)
        return ", ".join(part.strip() for part in parts)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dims": [asdict(dim) for dim in self.dims]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ActionSpec:
        """The inverse of ``to_dict``; raises ConfigError for an unknown or missing key."""
        _check_keys("", value, known={"name": str, "dims": list}, needed={"name", "dims"})
        dims = []
        for i, dim in enumerate(value["dims"]):
            _check_keys(f"dims[{i}]", dim, _DIM_KEYS, needed={"name"})
            dims.append(ActionDim(**dim))
        return cls(value["name"], tuple(dims))


_DIM_KEYS: dict[str, Any] = {
    "name": str,
    "kind": str,
    "unit": str,
    "low": (int, float),
    "high": (int, float),
    "rate": (int, float, type(None)),
    "mirrored": bool,
}


def _check_keys(path: str, value: Any, known: Mapping[str, Any], needed: set[str]) -> None:
    """Raise ConfigError unless ``value`` is a mapping of ``known`` keys of their types, the ``needed`` ones among them."""
    where = f"action spec{': ' * bool(path)}{path}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping with the keys {', '.join(known)}, not {value!r}")
    for key, item in value.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(str(key), known)}")
        if not isinstance(item, known[key]):
            raise ConfigError(f"{where}: {key} cannot be {item!r}")
    for key in sorted(needed - set(value)):
        raise ConfigError(f"{where} has no {key}")


def _arm_dims(names: Sequence[str], unit: str, limit: float = 1.0) -> tuple[ActionDim, ...]:
    # y, roll and yaw change sign when y is mirrored in a right-handed frame (x forward, y left, z up)
    mirrored = ("y", "roll", "yaw")
    return tuple(
        ActionDim(name, unit=unit, low=-limit, high=limit, mirrored=name.removeprefix("d") in mirrored) for name in names
    )


_GRIPPER = ActionDim("gripper", kind="binary", unit="1 = open", low=0.0, high=1.0)
# changes of the pose of the hand, as CALVIN commands them; in metres and radians, as most of Open X; and poses
ARM7 = ActionSpec(
    "arm7",
    (
        *_arm_dims(("dx", "dy", "dz"), "x 0.02 m"),
        *_arm_dims(("droll", "dpitch", "dyaw"), "x 0.05 rad"),
        _GRIPPER,
    ),
)
DELTA7 = ActionSpec(
    "delta7",
    (
        *_arm_dims(("dx", "dy", "dz"), "m", 0.25),
        *_arm_dims(("droll", "dpitch", "dyaw"), "rad", 1.6),
        _GRIPPER,
    ),
)
POSE7 = ActionSpec(
    "pose7",
    (
        *_arm_dims(("x", "y", "z"), "m", 2.0),
        *_arm_dims(("roll", "pitch", "yaw"), "rad", 6.3),
        _GRIPPER,
    ),
)
# Meta-World's: the hand's change of place, and how hard the fingers press; its x points to the right, y away from the robot
METAWORLD4 = ActionSpec(
    "metaworld4",
    (
        ActionDim("dx", unit="x 0.01 m", mirrored=True),
        ActionDim("dy", unit="x 0.01 m"),
        ActionDim("dz", unit="x 0.01 m"),
        ActionDim("gripper", unit="effort, 1 = close"),
    ),
)
_LINEAR_X = ActionDim("linear_x", unit="m/s", low=-1.15, high=1.15, rate=3.0)
_LINEAR_Y = ActionDim("linear_y", unit="m/s", low=-1.15, high=1.15, rate=3.0, mirrored=True)
_ANGULAR_Z = ActionDim("angular_z", unit="rad/s", low=-1.15, high=1.15, rate=3.0, mirrored=True)
NAV2 = ActionSpec("nav2", (_LINEAR_X, _LINEAR_Y))
NAV3 = ActionSpec("nav3", (_LINEAR_X, _LINEAR_Y, _ANGULAR_Z))

ACTION_SPECS = {spec.name: spec for spec in (ARM7, DELTA7, POSE7, METAWORLD4, NAV2, NAV3)}


def action_spec(value: str | Mapping[str, Any] | None) -> ActionSpec:
    """A built-in spec by name, or one's own from a mapping with ``name`` and ``dims``.

    Raises ConfigError for anything else, None (which stands for the spec of some data) among it.
    """
    if value is None:
        raise ConfigError("actions.spec is null, which means that of the data; here it must be named")
    if not isinstance(value, str):
        return ActionSpec.from_dict(value)
    if value not in ACTION_SPECS:
        raise ConfigError(f"unknown action spec {value!r}{did_you_mean(value, ACTION_SPECS)}")
    return ACTION_SPECS[value]
