"""An arm driven in simulated time: it measures itself, follows what it is told, and keeps what it was told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from anyvla.actions.rotations import axis_angle_to_matrix, matrix_to_axis_angle, matrix_to_quaternion, quaternion_to_matrix
from anyvla.actions.spec import ActionSpec
from anyvla.ros2.drive_settings import DriveSettings
from anyvla.ros2.mapping import MappingConfig
from anyvla.ros2.memory import MemoryTransport
from anyvla.ros2.node import DriveNode
from anyvla.ros2.sources import DrivenBy
from anyvla_client.stops import StopLog
from tests.ros2.simulated_drive import CAMERA, FAST, OPERATOR, SlowPolicy, rests

TICK = 0.02
POSE, JOINTS = "/ee_pose", "/joint_states"
TWIST, TARGET, ARRAY, GRIPPER = "/servo_node/delta_twist_cmds", "/target_pose", "/arm_controller/commands", "/gripper/commands"
START = np.array([0.4, 0.1, 0.3, 1.0, 0.0, 0.0, 0.0])  # the hand points down: a roll of pi
NAMES = ("shoulder", "elbow")


class ArmPolicy(SlowPolicy):
    """Says ``action`` (A,) at all times."""

    def __init__(self, steady: Callable[[], float], spec: ActionSpec, action: np.ndarray, fps: float, latency: float) -> None:
        super().__init__(steady, fps, latency)
        self.about = DrivenBy(spec.to_dict(), ("front",), (), (), fps)
        self.action = np.asarray(action, dtype=np.float64)

    def predict(self, stamp: float) -> np.ndarray:
        return np.tile(self.action, (10, 1))


@dataclass
class ArmDrive:
    """``run(seconds)`` lets simulated time pass. One row of ``history`` for each control step."""

    log: Path
    spec: ActionSpec
    mapping: str
    action: np.ndarray
    seed: int = 0
    fps: float = 10.0
    settings: dict = field(default_factory=dict)
    frozen: bool = False
    decay: float | None = None

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.transport = MemoryTransport(start=1000.0)
        self.steady = 50.0
        self.policy = ArmPolicy(
            lambda: self.steady, self.spec, self.action, self.fps, latency=float(self.rng.uniform(0.0, 0.1))
        )
        self.policy.about = replace(self.policy.about, decay=self.decay)
        self.pose, self.joints = START.copy(), np.array([0.2, -0.5])
        self.follows, self.measures, self.camera_on = True, True, True
        self.measured: dict[str, Any] = {}  # topic -> the last message
        self.sent: dict[str, Any] = {}  # topic -> the last message
        self.counts: dict[str, int] = {}
        self.history: list[tuple[float, bool, dict[str, Any], dict[str, Any]]] = []  # steady, stopped, sent, measured
        kinds = {TWIST: "twist_stamped", TARGET: "pose_stamped", ARRAY: "float64_array", GRIPPER: "float64_array"}
        for topic, kind in kinds.items():
            self.transport.subscribe(topic, kind, lambda message, topic=topic: self._told(topic, message.data))
        made = MappingConfig.model_validate(yaml.safe_load(self.mapping))
        options = {"actions": made.actions, "state": made.state, "operator_topic": OPERATOR, "watch": FAST, **self.settings}
        self.node = DriveNode(
            self.transport,
            self.policy,
            DriveSettings({"front": CAMERA}, instruction="take the cup", **options),
            log=StopLog(self.log),
            steady=lambda: self.steady,
            rest=rests,
        )

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(round(seconds / TICK)):
            if until():
                return
            self.pass_time()
            self.node.step()
            self.history.append((self.steady, self.node.stopped is not None, dict(self.sent), dict(self.measured)))

    def drive(self) -> None:
        """Let it begin."""
        self.run(3, until=lambda: self.node.driving)
        assert self.node.driving, self.node.stopped
        assert self.node.stopped is None

    def pass_time(self) -> None:
        self.steady += TICK
        self.transport.advance(TICK)
        if self.follows:
            self._move()
        if self.measures:
            noise = self.rng.normal(0, 1e-4, 5)
            pose = self.pose + np.concatenate([noise[:3], np.zeros(4)])
            joints = {name: (value, np.nan, np.nan) for name, value in zip(NAMES, self.joints + noise[3:], strict=True)}
            self.measured = {POSE: pose, JOINTS: joints}
            self.transport.publish(POSE, "pose_stamped", pose)
            self.transport.publish(JOINTS, "joint_state", joints)
        if self.camera_on:
            image = np.zeros((4, 4, 3), np.uint8) if self.frozen else self.rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            self.transport.publish(CAMERA, "image", image)

    def operator(self, word: str) -> None:
        self.transport.publish(OPERATOR, "string", word)

    def _told(self, topic: str, data: np.ndarray) -> None:
        self.sent[topic] = data
        self.counts[topic] = self.counts.get(topic, 0) + 1

    def _move(self) -> None:
        """It follows targets with a lag, and twists at once."""
        if TWIST in self.sent:
            self.pose[:3] += self.sent[TWIST][:3] * TICK
        if TARGET in self.sent:
            self.pose[:3] += 0.3 * (self.sent[TARGET][:3] - self.pose[:3])
            now = quaternion_to_matrix(self.pose[3:])
            turn = matrix_to_axis_angle(quaternion_to_matrix(self.sent[TARGET][3:]) @ now.T)
            self.pose[3:] = matrix_to_quaternion(axis_angle_to_matrix(0.3 * turn) @ now)
        if ARRAY in self.sent:
            self.joints += 0.3 * (self.sent[ARRAY] - self.joints)
