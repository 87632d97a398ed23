"""A policy as the driver of chains: what it gets to see, and its actions as the environment takes them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from anyvla.actions import ARM7, POSE7, ActionSpec
from anyvla.actions.frames import tcp_to_world
from anyvla.errors import ConfigError, did_you_mean
from anyvla.evaluation.calvin.chains import ROBOT_OBS
from anyvla.evaluation.calvin.rollouts import Command, Observation
from anyvla.policies.policy import Policy, Session

CAMERAS = ("rgb_static", "rgb_gripper")
FPS = 30.0  # control steps per second
Frame = Literal["world", "tcp"]
_PER_UNIT = {"x 0.02 m": 1.0, "m": 1 / 0.02, "x 0.05 rad": 1.0, "rad": 1 / 0.05}  # of CALVIN's relative actions
_RPY = slice(3, 6)  # of robot_obs


class PolicyDriver:
    """Drives chains with a policy; each chain has a session of it, and each subtask a new one."""

    def __init__(self, policy: Policy, frame: Frame = "world") -> None:
        """``frame``: of the relative actions that the policy was trained with.

        Raises ConfigError if the policy is one for another robot.
        """
        transforms = policy.transforms
        self._policy = policy
        self._scale = _scale(transforms.spec)
        self._absolute = self._scale is None
        self._tcp = frame == "tcp"
        if self._tcp and self._absolute:
            raise ConfigError("the policy's actions are poses, which are in the world's frame, not in that of the TCP")
        if abs(transforms.fps - FPS) > 0.01:
            raise ConfigError(f"CALVIN takes {FPS:g} actions a second, the policy was trained for {transforms.fps:g}")
        for camera in transforms.cameras:
            if camera not in CAMERAS and camera not in transforms.optional_cameras:
                raise ConfigError(f"the policy sees the camera {camera!r}; CALVIN has {' and '.join(CAMERAS)}")
        self.cameras = tuple(camera for camera in CAMERAS if camera in transforms.cameras)
        names = () if transforms.state is None else transforms.state.names
        for name in names:
            if name not in ROBOT_OBS:
                raise ConfigError(f"the policy takes the state {name!r}, which CALVIN lacks{did_you_mean(name, ROBOT_OBS)}")
        self._state = [ROBOT_OBS.index(name) for name in names]
        self._sessions: dict[int, Session] = {}
        self._stops: dict[int, int] = {}
        self._latency_ms: dict[int, list[float]] = {}

    def begin(self, slot: int, instruction: str) -> None:
        self._sessions[slot] = self._policy.start(instruction)
        self._stops.setdefault(slot, 0)
        self._latency_ms.setdefault(slot, [])

    def looks(self, slot: int) -> bool:
        return self._policy.looks(self._sessions[slot])

    def act(self, slots: Sequence[int], observations: Sequence[Observation]) -> list[Command]:
        sessions = [self._sessions[slot] for slot in slots]
        states = [observation.robot_obs[self._state] for observation in observations] if self._state else None
        looking = [slot for slot in slots if self.looks(slot)]
        began = time.perf_counter()
        actions = self._policy.act_batch(sessions, [observation.images for observation in observations], states=states)
        elapsed = round(1e3 * (time.perf_counter() - began), 3)
        for slot in looking:
            self._latency_ms[slot].append(elapsed)
        for slot, session in zip(slots, sessions, strict=True):
            self._stops[slot] += session.last is not None and session.last.stop is not None
        return [self._command(action, seen.robot_obs) for action, seen in zip(actions, observations, strict=True)]

    def finish(self, slot: int) -> dict[str, Any]:
        del self._sessions[slot]
        return {"stops": self._stops.pop(slot), "latency_ms": self._latency_ms.pop(slot)}

    def _command(self, action: np.ndarray, robot_obs: np.ndarray) -> Command:
        """(7,) in the units of the policy's spec, gripper 1 = open -> what the environment takes."""
        values = np.asarray(action, dtype=np.float64)
        if self._scale is not None:
            values = values * self._scale
        if self._tcp:
            values = tcp_to_world(values, robot_obs[_RPY])
        # the environment does not clip: it stops at anything but -1 and 1
        return Command(np.append(values[:-1], 1.0 if values[-1] >= 0.5 else -1.0), self._absolute)


def _scale(spec: ActionSpec) -> np.ndarray | None:
    """(7,) from the spec's units to those of CALVIN's relative actions; None for poses. ConfigError for other actions."""
    kinds = [dim.kind for dim in spec.dims]
    if kinds == [dim.kind for dim in ARM7.dims]:
        units = [dim.unit for dim in spec.dims[:-1]]
        if spec.names == POSE7.names and units == [dim.unit for dim in POSE7.dims[:-1]]:
            return None
        if spec.names == ARM7.names and all(unit in _PER_UNIT for unit in units):
            return np.array([*(_PER_UNIT[unit] for unit in units), 1.0])
    raise ConfigError(f"CALVIN's arm is driven with arm7, delta7 or pose7, not with the policy's actions {spec.describe()}")
