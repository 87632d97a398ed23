"""What a running policy shows to people: the newest moment of each robot, its rates, and why it was stopped.

    monitor = Monitor(policy.transforms.spec, policy.transforms.fps)
    monitor.show(Moment("robot 1", instruction, images, chunk, action, step_ms=12.0))
    monitor.stop("robot 1", "stale camera")
    address = anyvla.watch.server.start(live(monitor), port=8765)    # where `anyvla watch http://...` looks

Whoever drives a robot calls ``show`` and ``stop``; neither ever waits, computes or fails: what does not come through at once is
dropped and counted. Pictures are compressed by the thread that shows them, and only while somebody watches.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anyvla.actions import ActionSpec

ROBOTS = 32  # shown at once; the one that has been silent longest makes room
STOPS = 200  # kept
RATE_OVER = 5.0  # seconds that a rate is measured over


@dataclass(frozen=True)
class Moment:
    """One control step of one robot. The arrays are shown later: whoever hands them over must not write into them again.

    Attributes:
        robot: its name. images: camera -> (H, W, 3) uint8 RGB. chunk: (L, A) as predicted, robot units, None where none was.
        action: (A,) as executed. step_ms: from images to action. stop: why this action is a stop, or None.
        recorded: (L, A) that a recording has in the place of ``chunk``.
        pose: x, y, yaw in the world, where it is known. layout: of a simulated world, see ``BoxNav.layout``.
        outcome: what became of the episode, at its last step. facts: further lines for people.
    """

    robot: str
    instruction: str
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    chunk: np.ndarray | None = None
    action: np.ndarray | None = None
    step_ms: float | None = None
    stop: str | None = None
    recorded: np.ndarray | None = None
    pose: Sequence[float] | None = None
    path: Sequence[Sequence[float]] = ()
    layout: Mapping[str, Any] | None = None
    outcome: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Stop:
    at: float
    robot: str
    cause: str
    count: int = 1


@dataclass
class _Robot:
    number: int
    moment: Moment
    steps: int = 0
    times: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    stopped: str | None = None


@dataclass(frozen=True)
class Shown:
    """The newest moment of a robot, and what was measured of it.

    Attributes:
        number: of this moment, over all robots. age: seconds since it. hz: control steps a second. latency_ms: of its last
            steps. robots: names of all. stops: the newest last: seconds ago, robot, cause, how often in a row.
    """

    moment: Moment
    number: int
    step: int
    age: float
    hz: float | None
    latency_ms: tuple[float, ...]
    robots: tuple[str, ...]
    stops: tuple[tuple[float, str, str, int], ...]
    dropped: int


class Monitor:
    """Thread-safe; see the module.

    Attributes:
        spec, fps: of the policy. dropped: moments that were not taken because another thread was just looking.
    """

    def __init__(self, spec: ActionSpec, fps: float) -> None:
        self.spec, self.fps = spec, fps
        self.dropped = 0
        self._robots: dict[str, _Robot] = {}
        self._stops: deque[_Stop] = deque(maxlen=STOPS)
        self._number = 0
        self._lock = threading.Lock()

    def show(self, moment: Moment) -> bool:
        """Put ``moment`` in the place of the robot's last one; False if it was dropped. A ``stop`` in it is noted too."""
        if not self._lock.acquire(blocking=False):
            self.dropped += 1
            return False
        try:
            self._number += 1
            now = time.monotonic()
            robot = self._robots.pop(moment.robot, None)
            if robot is None:
                while len(self._robots) >= ROBOTS:
                    del self._robots[next(iter(self._robots))]  # in the order in which they last spoke
                robot = _Robot(self._number, moment)
            self._robots[moment.robot] = robot
            robot.number, robot.moment = self._number, moment
            robot.steps += 1
            robot.times.append(now)
            if moment.step_ms is not None:
                robot.latencies.append(moment.step_ms)
            if moment.stop is not None:
                self._note(moment.robot, moment.stop, now)
            robot.stopped = moment.stop
        finally:
            self._lock.release()
        return True

    def stop(self, robot: str, cause: str) -> None:
        """Note a stop that comes from elsewhere than a control step. It is never dropped: the lock is held briefly."""
        with self._lock:
            self._note(robot, cause, time.monotonic())

    def robots(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(sorted(self._robots))

    def shown(self, robot: str | None = None) -> Shown | None:
        """The newest moment of ``robot``, or of whoever spoke last; None before the first."""
        with self._lock:
            if not self._robots:
                return None
            name = robot if robot in self._robots else next(reversed(self._robots))
            one = self._robots[name]
            now = time.monotonic()
            recent = [moment for moment in one.times if now - moment <= RATE_OVER]
            hz = (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 1 and recent[-1] > recent[0] else None
            return Shown(
                moment=one.moment,
                number=one.number,
                step=one.steps,
                age=now - one.times[-1],
                hz=hz,
                latency_ms=tuple(one.latencies),
                robots=tuple(sorted(self._robots)),
                stops=tuple((now - stop.at, stop.robot, stop.cause, stop.count) for stop in self._stops),
                dropped=self.dropped,
            )

    def _note(self, robot: str, cause: str, now: float) -> None:
        last = self._stops[-1] if self._stops else None
        # a stop that lasts is one line, not one for each step
        if last is not None and (last.robot, last.cause) == (robot, cause) and now - last.at < RATE_OVER:
            last.count += 1
            last.at = now
        else:
            self._stops.append(_Stop(now, robot, cause))
