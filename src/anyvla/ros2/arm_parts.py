"""Where each dimension of an arm's action goes, by the mapping file: place in a message, unit, and where it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyvla.errors import ConfigError, did_you_mean
from anyvla.ros2.commands import in_si
from anyvla.ros2.mapping import EULER, TWIST_FIELDS, ActionField, StateField, check_field, commanded, live_kind
from anyvla.ros2.transport import Kind

TWISTS: tuple[Kind, ...] = ("twist", "twist_stamped")
POSITION = ("position.x", "position.y", "position.z")


@dataclass(frozen=True)
class Part:
    """One dimension of the action and its place in a message.

    Attributes:
        index: in the action. out: topic, field and kind of the command. mode: velocity, absolute, delta or binary.
        factor: from the action's unit to that of the message. rate: largest change of a target per second, in the latter.
        low, high: of a binary one, what is published for 0 and 1. source: where a target is measured; None of all else.
        scale: from the unit of ``source`` to that of the message.
    """

    index: int
    out: StateField
    mode: str
    factor: float
    rate: float
    low: float
    high: float
    source: StateField | None
    scale: float


def wrong(name: str, what: str) -> ConfigError:
    return ConfigError(f"the policy's action {name!r}, in actions: of the mapping file: {what}")


def place(part: Part) -> int:
    field = part.out.field
    return TWIST_FIELDS.index(field) if field in TWIST_FIELDS else int(field.partition(".")[2])


def part_of(
    index: int, dim: Mapping[str, Any], rate: float, items: Mapping[str, ActionField], states: Mapping[str, StateField]
) -> Part:
    """Dimension ``index`` of the action, ``dim`` of its spec.

    Args:
        rate: its largest change per second. items, states: of the mapping file, by name.

    Raises ConfigError, with what to write, where the mapping does not fit it.
    """
    name, unit, kind = dim["name"], dim.get("unit", ""), dim.get("kind", "continuous")
    item = items.get(name)
    if item is None:
        line = f"- {{name: {name}, topic: TOPIC, field: FIELD, command: TOPIC}}"
        raise wrong(name, f"it is not there{did_you_mean(name, items)}; write {line}")
    out = commanded(item)
    if out is None:
        raise wrong(name, "nobody says where it is published; write command: TOPIC")
    check_field(out)
    if item.kind != kind:
        raise wrong(name, f"the policy has it as {kind}; write kind: {kind}")
    mode = "binary" if kind == "binary" else _mode(item)
    fits, si = _takes(out)
    if mode not in fits:
        what = f"{mode} does not fit {out.field} of {out.topic} ({live_kind(out)})"
        if not fits:
            raise wrong(name, f"{what}: through it the robot cannot be stopped; command_field: names another")
        raise wrong(name, f"{what}, which takes {' or '.join(fits)}; write mode: {fits[0]}, if that is what the policy says")
    if mode == "absolute" and not np.isfinite(rate):
        raise wrong(
            name, f"nobody says how fast this target may change; write rate: NUMBER, in {unit or 'its unit'} per second"
        )
    units = tuple(f"{u}/s" for u in si) if mode == "velocity" else si
    factor = 1.0 if mode == "binary" else _factor(name, unit, item, units)
    source, scale = None, 1.0
    if mode in ("absolute", "delta") and live_kind(out) not in TWISTS:
        source = states.get(name, item)
        _check_source(name, source, out, {other.command for other in items.values()})
        scale = _scale(name, unit, source, out, item)
    low, high = (0.0 if item.low is None else item.low), (1.0 if item.high is None else item.high)
    return Part(index, out, mode, factor, rate * factor, low, high, source, scale)


def _mode(item: ActionField) -> str:
    velocity = live_kind(item) in TWISTS or item.field.startswith("velocity.")
    return item.mode or ("velocity" if velocity else "absolute")


def _takes(out: StateField) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The modes that fit a command's field, and the units of its positions; () stands for any."""
    field, kind = out.field, live_kind(out)
    if kind in TWISTS:
        return ("delta", "velocity"), ("m",) if field.startswith("linear") else ("rad",)
    if kind == "pose_stamped":
        known = field in POSITION or field in EULER
        return ("absolute", "delta") if known else (), ("m",) if field in POSITION else ("rad",)
    if kind == "joint_state":
        modes = {"position": ("absolute", "delta", "binary"), "velocity": ("velocity",)}
        return modes.get(field.partition(".")[0], ()), ("rad", "m")
    return ("absolute", "delta", "velocity", "binary"), ()


def _factor(name: str, unit: str, item: ActionField, si: Sequence[str]) -> float:
    """From the policy's unit to that of the message: one of ``si``, or that of the item for arrays, which have none."""
    if not si:
        ours = item.unit or unit
        if unit in ("", ours):
            return 1.0
        known, own = in_si(unit), in_si(ours)
        if known is None or own is None or known[0] != own[0]:
            raise wrong(name, f"the policy has it in {unit!r}, not {ours!r}; write unit: the one that {item.command} takes")
        return known[1] / own[1]
    if not unit:
        return 1.0
    known = in_si(unit)
    if known is None or known[0] not in si:
        raise wrong(name, f"the policy has it in {unit!r}, but {item.command} takes {' or '.join(si)}; another mode or field?")
    return known[1]


def _scale(name: str, unit: str, source: StateField, out: StateField, item: ActionField) -> float:
    """From the unit of what is measured to that of the command: of arrays that of the item, of all else SI."""
    heard, said = live_kind(source) == "float64_array", live_kind(out) == "float64_array"
    ours = item.unit or unit
    if heard == said or not ours:
        return 1.0
    known = in_si(ours)
    if known is None:
        raise wrong(name, f"{source.topic} has no {ours!r}; write unit: rad or m, or whatever of these {item.command} takes")
    return 1 / known[1] if said else known[1]


def _check_source(name: str, source: StateField, out: StateField, commands: Set[str | None]) -> None:
    check_field(source)
    where = f"a target must be measured: say where, in state:, with name: {name}"
    if live_kind(source) in TWISTS or source.field.partition(".")[0] in ("velocity", "effort"):
        raise wrong(name, f"{source.field} of {source.topic} is no position; {where}")
    if live_kind(out) == "pose_stamped" and live_kind(source) != "pose_stamped":
        raise wrong(name, f"{source.topic} is no topic of poses (PoseStamped), as {out.topic} is; {where}")
    if source.topic in commands:  # what the node has said itself is not where the robot is
        raise wrong(name, f"it would be measured on {source.topic}, which is a command itself; {where}")
