"""What stops a robot, whatever drives it: limits and watchdogs outside the policy, a latch, and the human's right of way.

Pure state machines: the caller says what arrived and what time it is, so that a test can hold the clock. ``now`` is the clock
of the messages; ``steady`` is a clock that never jumps (``time.monotonic``). Both in seconds.

A stop is latched: from the first doubt on, every command is zero until ``reset``. Before everything that a policy needs has
been seen, the robot waits: zero, but not latched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from anyvla_client.safety import LimitsLike, approach, neutral

CAUSES = (
    "stale_camera",
    "frozen_camera",
    "stale_state",
    "stale_pose",
    "outside_workspace",
    "stale_action",
    "malformed_action",
    "non_finite_action",
    "out_of_distribution",
    "policy_timeout",
    "policy_error",
    "server_lost",
    "clock_jump",
    "loop_stalled",
    "teleop",
    "operator",
    "node_error",
    "signal",
    "exit",
)
STILL = 0.05  # of a dimension's limit: commands below it are standing, during which images may well be the same


@dataclass(frozen=True)
class Watch:
    """How long is too long, in seconds unless said.

    Attributes:
        camera_age: of the newest image of any needed camera. state_age: of the robot's state, and of its pose.
        frozen_images: so many times the very same image again, while the robot is told to move, is a frozen camera.
        action_age: since the observation from which the action was predicted. inference: of one call of the policy.
        clock_jump: by which the messages' clock may part from the steady one between two steps.
        loop_gap: between two steps of the control loop.
        margin: by which an action may leave the range of the training data, as a share of that range's width.
    """

    camera_age: float = 0.25
    state_age: float = 0.25
    frozen_images: int = 5
    action_age: float = 1.5
    inference: float = 1.0
    clock_jump: float = 0.1
    loop_gap: float = 0.25
    margin: float = 0.25

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, not {value!r}")


@dataclass(frozen=True)
class Proposal:
    """What the policy wants: ``action`` (A,), predicted from what was observed at ``stamp``."""

    action: np.ndarray
    stamp: float


@dataclass(frozen=True)
class Event:
    """For the log. ``kind``: stop, reset, old_reset, takeover, release or instruction. ``time``: of the messages' clock."""

    kind: str
    time: float
    cause: str = ""
    detail: str = ""


class _Camera:
    """The newest image of one camera, and how often it came again."""

    def __init__(self) -> None:
        self.time: float | None = None
        self.image: np.ndarray | None = None
        self.command = np.zeros(0)  # that was in force when it came
        self.again = 0


class Supervisor:
    """Watches one robot. ``step`` is called at a fixed rate and gives the command that may be sent.

    Args:
        limits: of the commands. cameras: that must be fresh. state: whether the robot's state is needed, be it by targets.
        targets: (A,) for a dimension that says where to be its largest change per second, NaN for one that says how to move;
            None: there are no targets.
        training_range: (2, A) smallest and largest action of the training data, or None where it is not known.
        workspace: (2, 3) corners of the box, in metres, that the robot's position must not leave; None: no such box.
        period: seconds between two steps, as planned.
    """

    def __init__(
        self,
        limits: LimitsLike,
        watch: Watch,
        cameras: Sequence[str],
        *,
        period: float,
        state: bool = False,
        targets: np.ndarray | None = None,
        training_range: np.ndarray | None = None,
        workspace: np.ndarray | None = None,
    ) -> None:
        self._limits, self._watch, self._period = limits, watch, period
        self._cameras = {camera: _Camera() for camera in cameras}
        self._measured = {name: None for name, needed in (("state", state), ("pose", workspace is not None)) if needed}
        self._measured_at: dict[str, float | None] = dict(self._measured)
        self._position = np.zeros(3)
        self._workspace = workspace
        self._range: tuple[np.ndarray, np.ndarray] | None = None
        if training_range is not None:
            low, high = np.asarray(training_range, dtype=np.float64)
            # what hardly moved in the training data may move a little
            room = watch.margin * np.maximum(high - low, STILL * (limits.high - limits.low))
            self._range = (low - room, high + room)
        self._targets = np.full(len(limits.names), np.nan) if targets is None else np.asarray(targets, dtype=np.float64)
        self._last = neutral(limits)
        self._clocks: tuple[float, float] | None = None
        self._driving = False
        self._stopped: Event | None = None
        self._events: list[Event] = []
        self._lacking = "no step yet"

    @property
    def stopped(self) -> Event | None:
        """The stop that is latched."""
        return self._stopped

    @property
    def driving(self) -> bool:
        """Whether the policy has the robot: neither stopped nor waiting."""
        return self._driving

    @property
    def status(self) -> str:
        """For people: driving, stopped and why, or waiting for what."""
        if self._stopped is not None:
            return f"stopped: {self._stopped.cause}"
        return "driving" if self._driving else f"waiting: {self._lacking}"

    def take_events(self) -> list[Event]:
        """What happened since the last call, for the log."""
        events, self._events = self._events, []
        return events

    def note(self, event: Event) -> None:
        """Put something into the log that is no stop."""
        self._events.append(event)

    def image(self, camera: str, time: float, image: np.ndarray) -> bool:
        """An image arrived, taken at ``time``. False if a newer one is known already: it is not to be used."""
        seen = self._cameras.get(camera)
        if seen is None:
            return True  # an optional camera
        if seen.time is not None and time <= seen.time:
            return False
        same = seen.image is not None and np.array_equal(seen.image, image)
        seen.again = seen.again + self._moving(seen, time) if same else 0
        seen.time, seen.image, seen.command = time, image, self._last
        return True

    def state(self, time: float) -> None:
        """The robot's state arrived, as of ``time``."""
        self._measured_at["state"] = time

    def pose(self, time: float, position: np.ndarray) -> None:
        """The robot was at ``position`` (3,) at ``time``."""
        self._measured_at["pose"] = time
        self._position = np.asarray(position, dtype=np.float64)

    def stop(self, cause: str, detail: str, now: float) -> None:
        """Latch a stop. Of several, the first counts."""
        if cause not in CAUSES:
            raise ValueError(f"unknown cause of a stop: {cause!r}")
        self._driving = False
        if self._stopped is None:
            self._stopped = Event("stop", now, cause, detail)
            self._events.append(self._stopped)

    def pause(self) -> None:
        """Wait, without a latch, until everything that driving needs is there again."""
        self._driving = False

    def reset(self, now: float) -> None:
        """Release the latch. The robot waits until everything has been seen anew."""
        self._events.append(Event("reset", now, self._stopped.cause if self._stopped else ""))
        self._stopped = None
        self._driving = False
        for seen in self._cameras.values():
            seen.time, seen.image, seen.again = None, None, 0
        self._measured_at = dict(self._measured)

    def step(self, now: float, steady: float, proposal: Proposal | None, at: np.ndarray | None = None) -> np.ndarray:
        """(A,) the command for now: ``proposal`` within the limits, or standing where there is any doubt.

        ``at``: (A,) where the robot is, of targets; NaN for all else, and where it is not known. To stand is zero, or to be
        there. A target that the policy takes over begins there too, and leaves it no faster than the limits allow: what was
        last sent says nothing of where the arm is after a stop.
        """
        seconds = self._watch_clocks(now, steady)
        if not self._driving:
            self._last = self._standing(at)
        if self._stopped is None:
            doubt = self._observation_doubt(now)
            self._lacking = "no prediction" if doubt is None else doubt[0]
            if doubt is None and proposal is not None and 0 <= now - proposal.stamp <= self._watch.action_age:
                self._driving = True
            if self._driving:
                doubt = doubt or self._action_doubt(now, proposal)
                if doubt is not None:
                    self.stop(*doubt, now)
        if self._driving and proposal is not None:
            rate = self._limits.rate
            change = np.multiply(rate, max(seconds, 0.0), out=np.full(rate.shape, np.inf), where=np.isfinite(rate))
            self._last = approach(self._limits, proposal.action, self._last, change)
        else:
            self._last = self._standing(at)
        return self._last.copy()

    def _standing(self, at: np.ndarray | None) -> np.ndarray:
        standing = np.where(self._limits.binary, self._last, neutral(self._limits))
        return standing if at is None else np.where(np.isfinite(self._targets) & np.isfinite(at), at, standing)

    def _watch_clocks(self, now: float, steady: float) -> float:
        """Seconds since the last step. Clocks that part, or a loop that stood still, stop a robot that drives."""
        before, self._clocks = self._clocks, (now, steady)
        if before is None:
            return self._period
        passed, steadily = now - before[0], steady - before[1]
        if self._driving and not abs(passed - steadily) <= self._watch.clock_jump:
            self.stop("clock_jump", f"the clock went {passed:+.3f} s in {steadily:.3f} s", now)
        if self._driving and not 0 <= steadily <= self._watch.loop_gap:
            self.stop("loop_stalled", f"{steadily:.3f} s between two control steps", now)
        return steadily

    def _observation_doubt(self, now: float) -> tuple[str, str] | None:
        for name, seen in self._cameras.items():
            if seen.time is None or not 0 <= now - seen.time <= self._watch.camera_age:
                age = "none yet" if seen.time is None else f"{now - seen.time:.3f} s old"
                return "stale_camera", f"{name}: newest image {age}"
            if seen.again >= self._watch.frozen_images:
                return "frozen_camera", f"{name}: the same image {seen.again + 1} times"
        for name, time in self._measured_at.items():
            if time is None or not 0 <= now - time <= self._watch.state_age:
                return "stale_" + name, "none yet" if time is None else f"{now - time:.3f} s old"
        if self._workspace is not None:
            low, high = self._workspace
            if not ((self._position >= low) & (self._position <= high)).all():  # also true for NaN
                return "outside_workspace", f"at {np.round(self._position, 3).tolist()}"
        return None

    def _action_doubt(self, now: float, proposal: Proposal | None) -> tuple[str, str] | None:
        if proposal is None:
            return "stale_action", "no action was predicted for this moment"
        if not 0 <= now - proposal.stamp <= self._watch.action_age:
            return "stale_action", f"predicted from what was seen {now - proposal.stamp:.3f} s ago"
        action = np.asarray(proposal.action)
        if action.shape != self._last.shape or action.dtype.kind not in "fiu":
            return "malformed_action", f"shape {action.shape} of {action.dtype}"
        if not np.isfinite(action).all():
            return "non_finite_action", self._describe(action, ~np.isfinite(action))
        if self._range is not None:
            outside = ~self._limits.binary & ((action < self._range[0]) | (action > self._range[1]))
            if outside.any():
                return "out_of_distribution", self._describe(action, outside)
        return None

    def _describe(self, action: np.ndarray, which: np.ndarray) -> str:
        return ", ".join(f"{name} = {action[i]:g}" for i, name in enumerate(self._limits.names) if which[i])

    def _moving(self, seen: _Camera, time: float) -> bool:
        largest = np.maximum(np.abs(self._limits.low), np.abs(self._limits.high))
        moving = ~self._limits.binary & (np.abs(self._last) > STILL * largest)
        if seen.time is not None and not np.isnan(self._targets).all():  # a target moves the robot while it changes
            changes = self._driving & (np.abs(self._last - seen.command) > STILL * self._targets * (time - seen.time))
            moving = np.where(np.isnan(self._targets), moving, changes)
        return bool(moving.any())


class Multiplexer:
    """Who drives: a human whenever one says anything, even zero; otherwise the policy. All times of the steady clock.

    The human has the robot until ``silence`` seconds after the last command, which holds for so long.
    """

    def __init__(self, silence: float = 0.25) -> None:
        self._silence = silence
        self._command: np.ndarray | None = None
        self._heard = 0.0

    def teleop(self, command: np.ndarray, steady: float) -> bool:
        """The human's ``command``; what is not finite counts as zero. True if the human takes over with it."""
        takes_over = self._command is None
        self._command = np.where(np.isfinite(command), command, 0.0)
        self._heard = steady
        return takes_over

    def human(self, steady: float) -> np.ndarray | None:
        """The human's command for now, or None while the human is silent."""
        if self._command is not None and not 0 <= steady - self._heard <= self._silence:
            self._command = None
        return self._command
