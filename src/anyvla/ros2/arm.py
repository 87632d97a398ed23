"""From a policy's actions to the commands of an arm, as a mapping file says, and what a stop means for each of them.

A velocity stops at zero, at once. A target stops by holding: where the arm was measured to be becomes the target, once, and
stays it; targets begin there again when the policy takes over. A gripper keeps what it was told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from anyvla.actions.rotations import (
    axis_angle_to_matrix,
    euler_to_matrix,
    matrix_to_axis_angle,
    matrix_to_euler,
    matrix_to_quaternion,
    quaternion_to_matrix,
)
from anyvla.ros2.arm_parts import POSITION, TWISTS, Part, part_of, place, wrong
from anyvla.ros2.commands import Sent
from anyvla.ros2.mapping import EULER, TWIST_FIELDS, ActionField, StateField, live_kind, live_value
from anyvla.ros2.transport import Kind
from anyvla_client.safety import Limits


class ArmCommands:
    """See ``anyvla.ros2.commands.Commands``.

    Attributes:
        steerable: whether a human's twist has one place to go, and no target beside.
    """

    def __init__(
        self,
        action: Mapping[str, Any],
        actions: Sequence[ActionField],
        state: Sequence[StateField],
        *,
        fps: float,
        period: float,
    ) -> None:
        """What is published where.

        Args:
            action: as ActionSpec.to_dict. actions, state: of the mapping file; a target is measured where the state of its name
                is, or else at the action's own topic. fps: of the policy. period: seconds of a control step.

        Raises ConfigError, with the dimension and what to write, where the mapping does not fit the policy.
        """
        limits = Limits.from_spec(action)
        items = {item.name: item for item in actions}
        states = {item.name: item for item in state}
        rate, targets = limits.rate.copy(), np.full(len(limits.names), np.nan)
        by_topic: dict[str, list[Part]] = {}
        for i, dim in enumerate(action["dims"]):
            item = items.get(dim["name"])
            if item is not None and item.rate is not None:
                rate[i] = min(rate[i], item.rate)
            part = part_of(i, dim, rate[i], items, states)
            if part.mode == "absolute":
                targets[i] = rate[i]
                if part.out.field in EULER:
                    rate[i] = np.inf  # angles turn the shortest way, which _Pose sees to, at this rate
            by_topic.setdefault(part.out.topic, []).append(part)
        self.limits = replace(limits, rate=rate)
        self.targets = None if np.isnan(targets).all() else targets
        self.turns = any(part.mode == "absolute" and part.out.field in EULER for parts in by_topic.values() for part in parts)
        self._outputs = [_output(topic, parts, fps, period) for topic, parts in by_topic.items()]
        heard = {(source.topic, live_kind(source)) for output in self._outputs for source in output.sources}
        self.measures: Sequence[tuple[str, Kind]] = sorted(heard)
        twists = [output for output in self._outputs if output.kind in TWISTS]
        others = [part for parts in by_topic.values() for part in parts if live_kind(part.out) not in TWISTS]
        self.steerable = len(twists) == 1 and all(part.mode == "binary" for part in others)  # by a human's twist

    def measure(self, topic: str, data: Any, received: float) -> None:
        for output in self._outputs:
            output.measure(topic, data, received)

    def measured_at(self) -> float:
        return min(output.measured_at() for output in self._outputs)

    def at(self) -> np.ndarray | None:
        if self.targets is None:
            return None
        found = np.full(len(self.targets), np.nan)
        for output in self._outputs:
            output.tell(found)
        return found

    def drive(self, action: np.ndarray) -> list[Sent]:
        return [(output.topic, output.kind, output.drive(action)) for output in self._outputs]

    def human(self, twist: np.ndarray) -> list[Sent]:
        """To the one topic of twists; a gripper keeps what it was told. Only if ``steerable``."""
        return [(topic, kind, twist if kind in TWISTS else data) for topic, kind, data in self.stop()]

    def stop(self) -> list[Sent]:
        found = ((output.topic, output.kind, output.stop()) for output in self._outputs)
        return [(topic, kind, data) for topic, kind, data in found if data is not None]


class _Numbers:
    """A topic of numbers that are commanded one by one: twists, joints, arrays."""

    def __init__(self, topic: str, parts: Sequence[Part], share: float, fps: float) -> None:
        """``share``: of a policy's step that a control step is."""
        self.topic, self.kind = topic, live_kind(parts[0].out)
        self.sources = [part.source for part in parts if part.source is not None]
        self._parts = parts
        self._joints = [part.out.field.partition(".")[2] for part in parts] if self.kind == "joint_state" else []
        self._column = int(parts[0].out.field.startswith("velocity."))
        self._places = np.arange(len(parts)) if self._joints else np.array([place(part) for part in parts])
        self._index = np.array([part.index for part in parts])
        twist = self.kind in TWISTS
        # a twist takes a change per step as a velocity, a position moves by it little by little
        shares = [(fps if twist else share) if part.mode == "delta" else 1.0 for part in parts]
        self._factors = np.array([part.factor for part in parts]) * shares
        self._binary = np.array([part.mode == "binary" for part in parts])
        self._low, self._high = np.array([part.low for part in parts]), np.array([part.high for part in parts])
        self._targets = np.array([part.source is not None for part in parts])
        self._adds = self._targets & np.array([part.mode == "delta" for part in parts])
        self._measured = np.full(len(parts), np.nan)
        self._times = np.where(self._targets, -np.inf, np.inf)
        # what is published; of targets that are not measured yet, and grippers that were told nothing, NaN
        self._now = np.where(self._targets | self._binary, np.nan, 0.0)
        self._driving = False

    def measure(self, topic: str, data: Any, received: float) -> None:
        for i, part in enumerate(self._parts):
            if part.source is not None and part.source.topic == topic:
                value = live_value(part.source, data)
                if value is not None:
                    self._measured[i], self._times[i] = value * part.scale, received

    def measured_at(self) -> float:
        return float(self._times.min())

    def tell(self, found: np.ndarray) -> None:
        for i, part in enumerate(self._parts):
            if part.mode == "absolute":
                found[part.index] = self._measured[i] / self._factors[i]

    def drive(self, action: np.ndarray) -> Any:
        if not self._driving:
            self._now = np.where(self._targets, self._measured, self._now)
        wanted = action[self._index]
        moved = wanted * self._factors
        moved = np.where(self._adds, self._now + moved, moved)
        self._now = np.where(self._binary, np.where(wanted > 0.5, self._high, self._low), moved)
        self._driving = True
        return self._message()

    def stop(self) -> Any | None:
        if self._driving or np.isnan(self._now[self._targets]).any():
            self._now = np.where(self._targets, self._measured, np.where(self._binary, self._now, 0.0))
            self._driving = False
        return None if np.isnan(self._now).any() else self._message()

    def _message(self) -> Any:
        if self._joints:
            empty = (np.nan, np.nan, np.nan)
            numbers = zip(self._joints, self._now.tolist(), strict=True)
            return {joint: (*empty[: self._column], value, *empty[self._column + 1 :]) for joint, value in numbers}
        message = np.zeros(len(TWIST_FIELDS) if self.kind in TWISTS else len(self._parts))
        message[self._places] = self._now
        return message


class _Pose:
    """A topic of poses to be at. What the policy does not command of them stays as it was measured when it took over."""

    kind: Kind = "pose_stamped"

    def __init__(self, topic: str, parts: Sequence[Part], share: float, period: float) -> None:
        self.topic, self._share = topic, share
        self.sources = [part.source for part in parts if part.source is not None]
        self._moves = [part for part in parts if part.out.field in POSITION]
        turns = {part.out.field: part for part in parts if part.out.field in EULER}
        self._turns = [turns[name] for name in EULER] if turns else []
        self._turn_factors = np.array([part.factor for part in self._turns])
        self._farthest = period * min((part.rate for part in self._turns), default=np.inf)  # rad in a control step
        self._measured: np.ndarray | None = None  # (7,)
        self._time = -np.inf
        self._held: np.ndarray | None = None
        self._position, self._rotation = np.zeros(3), np.eye(3)
        self._driving = False

    def measure(self, topic: str, data: Any, received: float) -> None:
        if topic != self.sources[0].topic or not np.isfinite(data).all():
            return
        if abs(np.linalg.norm(data[3:]) - 1) < 0.1:  # a quaternion that nobody has set is zero
            self._measured, self._time = data, received

    def measured_at(self) -> float:
        return self._time

    def tell(self, found: np.ndarray) -> None:
        if self._measured is None:
            return
        for part in self._moves:
            if part.mode == "absolute":
                found[part.index] = self._measured[POSITION.index(part.out.field)] / part.factor
        if self._turns and self._turns[0].mode == "absolute":
            angles = matrix_to_euler(quaternion_to_matrix(self._measured[3:]))
            found[[part.index for part in self._turns]] = angles / self._turn_factors

    def drive(self, action: np.ndarray) -> np.ndarray:
        if not self._driving and self._measured is not None:
            self._position, self._rotation = self._measured[:3].copy(), quaternion_to_matrix(self._measured[3:])
        self._driving = True
        for part in self._moves:
            axis, value = POSITION.index(part.out.field), action[part.index] * part.factor
            self._position[axis] = self._position[axis] + value * self._share if part.mode == "delta" else value
        if self._turns:
            wanted = euler_to_matrix(action[[part.index for part in self._turns]] * self._turn_factors)
            if self._turns[0].mode == "delta":  # a rotation in the world's frame, as the recorder takes it
                turn = matrix_to_axis_angle(wanted) * self._share
            else:  # the shortest way there: the angles themselves jump at pi, and at the poles of the pitch
                turn = matrix_to_axis_angle(wanted @ self._rotation.T)
                turn *= min(1.0, self._farthest / max(float(np.linalg.norm(turn)), 1e-12))
            self._rotation = axis_angle_to_matrix(turn) @ self._rotation
        pose = np.concatenate([self._position, matrix_to_quaternion(self._rotation)])
        self._rotation = quaternion_to_matrix(pose[3:])  # so that rounding does not add up
        return pose

    def stop(self) -> np.ndarray | None:
        if self._driving or self._held is None:
            self._held, self._driving = self._measured, False
        return None if self._held is None else self._held.copy()


def _output(topic: str, parts: Sequence[Part], fps: float, period: float) -> _Numbers | _Pose:
    """Raises ConfigError where a message would hold numbers of which nobody says what they are."""
    fields = [part.out.field for part in parts]
    for i, part in enumerate(parts):
        if part.out.field in fields[:i]:
            raise wrong(part.out.name, f"{part.out.field} of {topic} is commanded twice")
        if live_kind(part.out) != live_kind(parts[0].out):
            what = f"{live_kind(parts[0].out)} and {live_kind(part.out)}"
            raise wrong(part.out.name, f"{topic} is commanded as {what}; write the right command_message:")
    share = fps * period
    kind, last = live_kind(parts[0].out), parts[-1].out.name
    if kind == "pose_stamped":
        turns = [part for part in parts if part.out.field in EULER]
        if len(turns) not in (0, 3) or len({part.mode for part in turns}) > 1:
            raise wrong(turns[-1].out.name, f"{topic} takes roll, pitch and yaw together, in the same mode, or none of them")
        if len({part.source.topic for part in parts if part.source is not None}) > 1:
            raise wrong(last, f"the numbers of {topic} must all be measured on one topic of poses")
        return _Pose(topic, parts, share, period)
    if kind == "joint_state" and len({field.partition(".")[0] for field in fields}) > 1:
        raise wrong(last, f"{topic} is commanded by positions and velocities; give each a topic of its own")
    if kind == "float64_array":
        missing = set(range(len(parts))) - set(map(place, parts))
        if missing:
            raise wrong(last, f"no action says what data.{min(missing)} of {topic} is, which is sent as well")
    return _Numbers(topic, parts, share, fps)
