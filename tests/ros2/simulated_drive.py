"""A drive in simulated time: cameras, a policy, a human and faults of each, with the clock in the test's hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anyvla.actions import NAV2
from anyvla.ros2.drive_settings import DriveSettings
from anyvla.ros2.memory import MemoryTransport
from anyvla.ros2.node import DriveNode
from anyvla.ros2.sources import Chunk, DrivenBy, Failure, Observation
from anyvla.serving.monitor import Monitor
from anyvla_client.stops import StopLog
from anyvla_client.supervisor import Watch

CAMERA, CMD, SAY, TELEOP, OPERATOR = "/camera/image_raw", "/cmd_vel", "/instruction", "/teleop/cmd_vel", "/operator"
FAST = Watch(camera_age=0.2, frozen_images=5, action_age=1.0, inference=0.2)
RANGE = np.array([[-0.2, -0.8], [0.9, 0.8]])


class SlowPolicy:
    """An ActionSource that answers ``latency`` simulated seconds after it was asked."""

    def __init__(self, steady: Callable[[], float], fps: float, latency: float) -> None:
        self.about = DrivenBy(NAV2.to_dict(), ("front",), (), (), fps, RANGE)
        self.latency = latency
        self.spoil: Callable[[np.ndarray], np.ndarray] = lambda actions: actions
        self.error: Failure | None = None  # from the next answer on
        self.dead: Failure | None = None  # at once
        self.asked: list[Observation] = []
        self._steady = steady
        self._open: tuple[Observation, float] | None = None
        self._chunk: Chunk | None = None
        self._failure: Failure | None = None
        self.closed = False

    def submit(self, observation: Observation) -> bool:
        self._settle()
        if self._open is not None:
            return False
        self.asked.append(observation)
        self._open = observation, self._steady()
        return True

    def latest(self) -> Chunk | None:
        self._settle()
        return self._chunk

    def failure(self) -> Failure | None:
        self._settle()
        return self.dead or self._failure

    def waiting(self) -> float:
        self._settle()
        return 0.0 if self._open is None else self._steady() - self._open[1]

    def restart(self) -> None:
        if self.latency < 1e6:
            self._open = None
        self._chunk = self._failure = None

    def close(self) -> None:
        self.closed = True

    def _settle(self) -> None:
        if self._open is None or self._steady() - self._open[1] < self.latency - 1e-9:
            return
        observation, self._open = self._open[0], None
        if self.error is not None:
            self._failure = self.error
        else:
            self._chunk = Chunk(self.spoil(self.predict(observation.stamp)), observation.stamp, self.latency)

    def predict(self, stamp: float) -> np.ndarray:
        turn = np.sin(stamp + 0.3 * np.arange(10))
        return np.stack([np.full(10, 0.6), 0.5 * turn], axis=1).astype(np.float32)


@dataclass
class Drive:
    """``run(seconds)`` lets simulated time pass; everything that is published is in ``sent`` with the steady time."""

    log: Path
    seed: int = 0
    settings: dict = field(default_factory=dict)
    fps: float | None = None
    monitor: Monitor | None = None

    def __post_init__(self) -> None:
        rng = self.rng = np.random.default_rng(self.seed)
        self.transport = MemoryTransport(start=1000.0)
        self.steady = 50.0
        self.camera_period = 1 / rng.uniform(20, 30)
        self.camera_delay = rng.uniform(0.0, 0.02)
        self.policy = SlowPolicy(
            lambda: self.steady, self.fps or float(rng.choice([2.5, 5.0, 10.0])), float(rng.uniform(0.0, 0.15))
        )
        self.sent: list[tuple[float, np.ndarray]] = []
        self.camera_on, self.frozen = True, False
        self.stamp_of: Callable[[float], float | None] = lambda taken: taken
        self._flying: list[tuple[float, np.ndarray, float]] = []  # arrives, image, taken
        self._next_image = self.steady + rng.uniform(0, self.camera_period)
        self._image = self._picture()
        self.transport.subscribe(CMD, "twist", lambda message: self.sent.append((self.steady, message.data)))
        options = {"instruction_topic": SAY, "teleop_topic": TELEOP, "operator_topic": OPERATOR, "watch": FAST, **self.settings}
        self.node = DriveNode(
            self.transport,
            self.policy,
            DriveSettings({"front": CAMERA}, CMD, **options),
            log=StopLog(self.log),
            steady=lambda: self.steady,
            rest=rests,
            monitor=self.monitor,
        )
        self.teleop: np.ndarray | None = None
        self.step_times: list[float] = []

    def _picture(self) -> np.ndarray:
        return self.rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(round(seconds / 0.02)):
            if until():
                return
            self.pass_time(0.02)
            self.node.step()

    def pass_time(self, seconds: float) -> None:
        """The world goes on, the node does not."""
        self.steady += seconds
        self.transport.advance(seconds)
        while self._next_image <= self.steady:
            if not self.frozen:
                self._image = self._picture()
            if self.camera_on:
                self._flying.append((self._next_image + self.camera_delay, self._image, self._next_image))
            self._next_image += self.camera_period
        offset = self.transport.now() - self.steady
        for flight in [flight for flight in self._flying if flight[0] <= self.steady]:
            self._flying.remove(flight)
            self.transport.inject(CAMERA, "image", flight[1], self.stamp_of(flight[2] + offset))
        if self.teleop is not None:
            self.transport.publish(TELEOP, "twist", self.teleop)

    def say(self, text: str) -> None:
        self.transport.publish(SAY, "string", text)

    def operator(self, word: str) -> None:
        self.transport.publish(OPERATOR, "string", word)

    def drives(self) -> bool:
        return self.node.driving and bool(np.any(self.sent[-1][1] != 0))

    def since(self, time: float) -> list[np.ndarray]:
        return [twist for sent, twist in self.sent if sent >= time - 1e-9]


def rests(seconds: float) -> None:
    """A sleep that takes no time."""
