"""Which number of which topic is which dimension of the action and of the state: twists for mobile robots, a file for arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError

from anyvla.actions.rotations import matrix_to_euler, quaternion_to_matrix
from anyvla.actions.spec import ACTION_SPECS, NAV3, ActionDim, ActionSpec
from anyvla.config.settings import Settings
from anyvla.errors import ConfigError, DataError, did_you_mean
from anyvla.ros2.synchronize import CommandRule, in_force, mean_in_force, newest
from anyvla.ros2.transport import Kind

Mode = Literal["velocity", "absolute", "delta"]
TWIST_FIELDS = ("linear.x", "linear.y", "linear.z", "angular.x", "angular.y", "angular.z")
NUMBER_KINDS: tuple[Kind, ...] = ("twist", "twist_stamped", "joint_state", "pose_stamped", "float64_array")
_POSE_FIELDS = tuple(f"position.{a}" for a in "xyz") + tuple(f"orientation.{a}" for a in "xyzw")
EULER = ("orientation.roll", "orientation.pitch", "orientation.yaw")


class StateField(Settings):
    """A number of the robot's state."""

    name: str = Field(min_length=1)
    topic: str
    field: str = Field(description="linear.x, position.JOINT, velocity.JOINT, position.x, orientation.yaw, data.0 and so on")
    message: Kind | None = Field(None, description="kind of the topic, to record it; follows from the field if null")


class ActionField(StateField):
    """A dimension of the action."""

    mode: Mode | None = Field(
        None,
        description="velocity: zero after a gap, as of twists; absolute: a target that stays; delta: its change until the next "
        "tick; null: velocity of twists, absolute of all else",
    )
    kind: Literal["continuous", "binary"] = "continuous"
    threshold: float = Field(0.5, description="of a binary dimension: 1 above it, 0 below")
    unit: str = ""
    low: float | None = Field(None, description="limit; that of the data if null; binary: what is published for 0, 0 if null")
    high: float | None = Field(None, description="limit; that of the data if null; binary: what is published for 1, 1 if null")
    command: str | None = Field(None, min_length=1, description="topic on which a policy's actions are published")
    command_field: str | None = Field(None, description="its field, if it is not called as `field`")
    command_message: Kind | None = Field(None, description="its kind; follows from the field if null")
    rate: float | None = Field(
        None, gt=0, description="largest change of the command per second, if that of the policy's spec is larger or not there"
    )


DRIVING_KEYS = ("command_field", "command_message", "rate")  # of no meaning without ``command``


class MappingConfig(Settings):
    """A mapping file."""

    actions: Annotated[list[ActionField], Field(min_length=1)]
    state: list[StateField] = Field([])


@dataclass
class Track:
    """The messages of a topic in order of arrival, as numbers."""

    kind: Kind
    received: list[float] = field(default_factory=list)  # seconds
    stamps: list[float] = field(default_factory=list)  # of the headers; NaN where there is none
    data: list[Any] = field(default_factory=list)  # Message.data


@dataclass(frozen=True)
class Series:
    """The values of one field with their times, sorted: (N,) and (N, D), D = 1, or 4 of an orientation."""

    times: np.ndarray
    values: np.ndarray


def read_mapping(path: Path) -> MappingConfig:
    """Raises ConfigError, with the file and the key, for a mapping that is none."""
    try:
        tree = yaml.safe_load(path.read_text())
        mapping = MappingConfig.model_validate(tree)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    for what in (mapping.actions, mapping.state):
        names = [item.name for item in what]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"{path}: {twice!r} is there twice")
    for item in mapping.actions:
        idle = [key for key in DRIVING_KEYS if getattr(item, key) is not None]
        if item.command is None and idle:
            raise ConfigError(f"{path}: the action {item.name} has {', '.join(idle)}, but no command: TOPIC")
    return mapping


def twist_mapping(topic: str, spec: ActionSpec | None, stamped: bool = False) -> MappingConfig:
    """The dimensions of ``spec`` (nav3 if None), each from the number of the twist that it is named after."""
    fields = {name.replace(".", "_"): name for name in TWIST_FIELDS}
    chosen = spec or NAV3
    for dim in chosen.dims:
        if dim.name not in fields:
            raise ConfigError(
                f"{topic}: a twist has no action dimension {dim.name!r}{did_you_mean(dim.name, fields)} (action spec "
                f"{chosen.name!r}; a mapping file names other topics)"
            )
    kind: Kind = "twist_stamped" if stamped else "twist"
    items = [ActionField(name=dim.name, topic=topic, field=fields[dim.name], message=kind) for dim in chosen.dims]
    return MappingConfig(actions=items)


def declared_spec(mapping: MappingConfig, where: Path) -> ActionSpec:
    """The spec of the mapping's dimensions before there are data. Raises ConfigError where a limit is open."""
    for item in mapping.actions:
        if item.kind == "continuous" and (item.low is None or item.high is None):
            raise ConfigError(f"{where}: the action {item.name} needs low and high, to be recorded")
    return own_spec(mapping, [])


def own_spec(mapping: MappingConfig, actions: Sequence[np.ndarray]) -> ActionSpec:
    """The spec of the mapping's dimensions, limits that it leaves open taken from the ``actions``, each (T, A)."""
    together = np.concatenate(actions) if actions else np.zeros((0, len(mapping.actions)))
    dims = []
    for item, values in zip(mapping.actions, together.T, strict=True):
        if item.kind == "binary":
            dims.append(ActionDim(item.name, kind="binary", unit=item.unit, low=0.0, high=1.0))
            continue
        low = item.low if item.low is not None else float(values.min(initial=np.inf))
        high = item.high if item.high is not None else float(values.max(initial=-np.inf))
        if not low < high:
            low, high = (low - 1, low + 1) if np.isfinite(low) else (-1.0, 1.0)
        dims.append(ActionDim(item.name, unit=item.unit, low=low, high=high))
    made = ActionSpec("mapping", tuple(dims))
    known = ACTION_SPECS["nav3"]
    return known if made.names == known.names and all(item.low is None for item in mapping.actions) else made


def series(track: Track, times: np.ndarray, item: StateField, where: str) -> Series:
    """The values of a field; messages that do not have it, such as of other joints, are passed over.

    Raises ConfigError for a field that the type does not have, or that no message has.
    """
    take = _getter(track.kind, item, where)
    found = [(when, value) for when, data in zip(times, track.data, strict=True) if (value := take(data)) is not None]
    if not found:
        names = {f"position.{name}" for data in track.data if track.kind == "joint_state" for name in data}
        raise ConfigError(f"{where}: {item.topic} has no {item.field!r}{did_you_mean(item.field, names)}")
    moments = np.array([when for when, _ in found])
    values = np.array([value for _, value in found], dtype=np.float64).reshape(len(found), -1)
    order = np.argsort(moments, kind="stable")
    if not np.isfinite(values).all():
        raise DataError(f"{where}: {item.topic}: {item.field} is not finite")
    return Series(moments[order], values[order])


def live_kind(item: StateField) -> Kind:
    """The kind of an item's topic where no bag can tell: as the file says, or else the one that has such a field."""
    if item.message is not None:
        return item.message
    if item.field in TWIST_FIELDS:
        return "twist"
    if item.field in (*_POSE_FIELDS, *EULER):
        return "pose_stamped"
    return "float64_array" if item.field.startswith("data.") else "joint_state"


def commanded(item: ActionField) -> StateField | None:
    """Where a policy's action is published: its topic, field and kind; None if it is not."""
    if item.command is None:
        return None
    kind = item.command_message or (item.message if item.command_field is None else None)
    return StateField(name=item.name, topic=item.command, field=item.command_field or item.field, message=kind)


def check_field(item: StateField) -> None:
    """Raises ConfigError if the topic's kind has no such field."""
    _getter(live_kind(item), item, "mapping file")


def _getter(kind: Kind, item: StateField, where: str) -> Callable[[Any], Any]:
    name = item.field
    if kind in ("twist", "twist_stamped") and name in TWIST_FIELDS:
        return lambda data: data[TWIST_FIELDS.index(name)]
    if kind == "pose_stamped" and name in _POSE_FIELDS:
        return lambda data: data[_POSE_FIELDS.index(name)]
    if kind == "pose_stamped" and name in EULER:
        return lambda data: data[3:] if np.any(data[3:]) else None
    group, _, rest = name.partition(".")
    if kind == "joint_state" and group in ("position", "velocity", "effort") and rest:
        column = ("position", "velocity", "effort").index(group)
        return lambda data: data[rest][column] if rest in data and np.isfinite(data[rest][column]) else None
    if kind == "float64_array" and group == "data" and rest.isdecimal():
        return lambda data: data[int(rest)] if int(rest) < len(data) else None
    known: Mapping[str, Sequence[str]] = {
        "pose_stamped": (*_POSE_FIELDS, *EULER),
        "joint_state": ("position.JOINT", "velocity.JOINT", "effort.JOINT"),
        "float64_array": ("data.0", "data.1"),
    }
    hint = did_you_mean(name, known.get(kind, TWIST_FIELDS))
    raise ConfigError(f"{where}: {item.name}: a {kind} has no field {name!r}{hint}")


def live_value(item: StateField, data: Any) -> float | None:
    """The item's number in one message of its topic; None if this message does not have it, or not as a finite number."""
    found = _getter(live_kind(item), item, item.topic)(data)
    if found is None:
        return None
    value = float(_component(item, np.asarray(found, dtype=np.float64).reshape(1, -1))[0])
    return value if np.isfinite(value) else None


def state_values(item: StateField, found: Series, ticks: np.ndarray) -> np.ndarray:
    """(T,) the newest value at each tick."""
    return _component(item, found.values[newest(found.times, ticks)])


def action_values(
    item: ActionField, kind: Kind, found: Series, ticks: np.ndarray, step: float, rule: CommandRule, gap: float
) -> np.ndarray:
    """(T,) the action's dimension at each tick, before which there is a value."""
    mode = item.mode or ("velocity" if kind in ("twist", "twist_stamped") else "absolute")
    if mode == "velocity":
        if rule == "mean":
            values = mean_in_force(found.times, found.values, ticks, gap, step)[:, 0]
        else:
            values = in_force(found.times, found.values, ticks, gap)[:, 0]
    else:
        now = found.values[newest(found.times, ticks)]
        values = _component(item, now)
        if mode == "delta":
            values = _change(item, now, found.values[newest(found.times, ticks + step)])
    return (values > item.threshold).astype(np.float64) if item.kind == "binary" else values


def must_be_heard(item: ActionField, kind: Kind) -> bool:
    """Whether there is no action before the topic's first message: a velocity is zero there, a target is not."""
    return not (item.mode == "velocity" or (item.mode is None and kind in ("twist", "twist_stamped")))


def _component(item: StateField, values: np.ndarray) -> np.ndarray:
    if item.field not in EULER:
        return values[:, 0]
    return np.array([matrix_to_euler(quaternion_to_matrix(q))[EULER.index(item.field)] for q in values])


def _change(item: StateField, now: np.ndarray, then: np.ndarray) -> np.ndarray:
    """What is added; of an angle, the rotation in the world's frame that leads from one orientation to the other."""
    if item.field not in EULER:
        return then[:, 0] - now[:, 0]
    turns = [quaternion_to_matrix(b) @ quaternion_to_matrix(a).T for a, b in zip(now, then, strict=True)]
    return np.array([matrix_to_euler(turn)[EULER.index(item.field)] for turn in turns])
