"""The drive loop: images and a sentence in, commands out, over any transport, with a supervisor that stops it.

Everything that must not wait is here, everything that may take its time (decoding, the policy) is in other threads. One call
of ``step`` reads what has arrived, asks the policy if it is time to, and publishes a command: the policy's within the limits,
a human's, or to stand. It waits for nothing, so that a silent camera or a policy that hangs cannot keep it from stopping.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from anyvla.ros2.clock import CameraClock
from anyvla.ros2.commands import Sent
from anyvla.ros2.drive_settings import DriveSettings, check_settings, commands_of, image_kind
from anyvla.ros2.mapping import live_kind, live_value
from anyvla.ros2.rates import Rates
from anyvla.ros2.sources import ActionSource, Chunk, Observation, Outcome
from anyvla.ros2.transport import Kind, Message, Transport
from anyvla.serving.monitor import Moment, Monitor
from anyvla_client.brokers import Timeline
from anyvla_client.stops import StopLog
from anyvla_client.supervisor import Event, Multiplexer, Proposal, Supervisor

_STOPS_AT_EXIT, _PAUSE_AT_EXIT = 5, 0.02  # so often, and seconds between them: one may be lost
_EARLY = 0.1  # of the policy's period: so much before its time an image may be used


class DriveNode:
    """Drives one robot. Use it as a context manager: however the block is left, it is told to stand.

    Raises ConfigError where the settings do not fit the policy.
    """

    def __init__(
        self,
        transport: Transport,
        source: ActionSource,
        settings: DriveSettings,
        *,
        log: StopLog | None = None,
        steady: Callable[[], float] = time.monotonic,
        rest: Callable[[float], None] = time.sleep,
        on_status: Callable[[str], None] = lambda status: None,
        monitor: Monitor | None = None,
    ) -> None:
        """``steady``, ``rest``: the clock and the sleep of the control loop. ``on_status``: told what it does or waits for.

        ``monitor`` is shown, once in a period of the policy, what it sees, predicts and does.
        """
        about = source.about
        check_settings(settings, source)
        self._transport, self._source, self._settings = transport, source, settings
        self._steady, self._rest, self._on_status, self._status = steady, rest, on_status, ""
        self._log = log or StopLog()
        self._monitor, self._show_due = monitor, -np.inf
        self._shown_chunk: Chunk | None = None
        self._chunk: Chunk | None = None  # the newest of this episode
        self._operated = transport.now()  # when it began, or when the operator last stopped or released it
        self._commands = commands_of(settings, source)
        limits = self._commands.limits
        self._supervisor = Supervisor(
            limits,
            settings.watch,
            about.cameras,
            period=1 / settings.rate,
            state=bool(about.state or self._commands.measures),
            targets=self._commands.targets,
            training_range=about.training_range,
            workspace=None if settings.workspace is None else np.array(settings.workspace, dtype=np.float64),
        )
        self._multiplexer = Multiplexer(settings.teleop_silence)
        # angles that are targets cannot be averaged, as pi and -pi are the same: of those the newest chunk counts
        decay = None if self._commands.turns else about.decay
        self._timeline = Timeline(1 / about.fps, decay=decay, binary=limits.binary)
        self.rates = Rates(1 / settings.rate)
        self._instruction = settings.instruction.strip()
        self._human = False
        self._images: dict[str, tuple[float, np.ndarray]] = {}
        self._state: dict[str, tuple[float, float]] = {}  # value, when it arrived
        self._due = -np.inf  # on the steady clock: when the policy is asked next
        self._asked_about: float | None = None  # the stamp of the last question of this episode
        self._end: tuple[str, str] | None = None
        self._closed = False
        # what the transport's threads leave for the next step; appending to a deque needs no lock
        self._frames: dict[str, deque[tuple[float, np.ndarray]]] = {}
        self._messages: deque[tuple[Callable[[Message, float, float], None], Message]] = deque(maxlen=256)
        # apart, so that joints that are told a thousand times a second cannot push out what an operator says
        self._measurements: deque[tuple[Callable[[Message, float], None], Message]] = deque(maxlen=512)
        self._subscribe()

    @property
    def stopped(self) -> Event | None:
        """The stop that is latched."""
        return self._supervisor.stopped

    @property
    def driving(self) -> bool:
        """Whether the policy has the robot."""
        return self._supervisor.driving

    @property
    def ended(self) -> bool:
        """Whether the loop should end."""
        return self._end is not None

    def end(self, cause: str, detail: str = "") -> None:
        """Ask for the end; may be called from a signal handler or any thread."""
        self._end = self._end or (cause, detail)

    def step(self) -> None:
        """One control step."""
        steady, now = self._steady(), self._transport.now()
        self.rates.step(steady)
        self._read_images(now)
        self._read_measurements(now)
        while self._messages:
            read, message = self._messages.popleft()
            read(message, now, steady)
        human = self._human_command(now, steady)
        if human is None and self._instruction and self.stopped is None:
            self._ask(now, steady)
        if (failure := self._source.failure()) is not None:
            self._supervisor.stop(failure.cause, failure.detail, now)
        if (waiting := self._source.waiting()) > self._settings.watch.inference:
            self._supervisor.stop("policy_timeout", f"no answer for {waiting:.3f} s", now)
        command = self._supervisor.step(now, steady, self._proposal(now) if human is None else None, self._commands.at())
        if human is not None:
            self._publish(self._commands.human(human))
        elif self._supervisor.driving:
            self._publish(self._commands.drive(command))
        else:
            self._publish(self._commands.stop())
        for event in (events := self._supervisor.take_events()):
            self.rates.counts[event.kind] += 1
        self._log.write(events)
        status = "a human drives" if human is not None else self._supervisor.status
        if status.startswith("waiting") and not self._instruction:
            status = "waiting for an instruction"
        if status != self._status:
            self._status = status
            self._on_status(status)
        if self._monitor is not None and steady >= self._show_due:
            self._show_due = steady + 1 / self._source.about.fps
            self._show(self._monitor, None if human is not None else command)

    def _show(self, monitor: Monitor, command: np.ndarray | None) -> None:
        """``command``: None while a human drives."""
        chunk, stop = None if command is None else self._chunk, self.stopped
        new, self._shown_chunk = chunk is not None and chunk is not self._shown_chunk, chunk
        moment = Moment(
            "robot",
            self._instruction,
            {camera: image for camera, (_, image) in self._images.items()},
            chunk=None if chunk is None else chunk.actions,
            action=command,
            step_ms=1e3 * chunk.seconds if chunk is not None and new else None,
            stop=None if stop is None else stop.cause,
            facts={"node": self._status} | ({"stopped by": stop.detail} if stop is not None and stop.detail else {}),
        )
        monitor.show(moment)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Steps at the settings' rate, in real time, until someone asks for the end."""
        period = 1 / self._settings.rate
        due = self._steady()
        while not self.ended and not until():
            self.step()
            due += period
            pause = due - self._steady()
            if pause > 0:
                self._rest(pause)  # shorter than any limit, so that a signal's end is seen in time
            else:
                self.rates.counts["late_steps"] += 1
                due = self._steady()

    def close(self, cause: str = "exit", detail: str = "") -> dict[str, Any]:
        """Tell the robot to stand, end the source, and say what was measured. The transport stays open; it is the caller's."""
        if not self._closed:
            self._closed = True
            if self._end is not None:
                cause, detail = self._end
            with Outcome():
                self._read_measurements(self._transport.now())
            for i in range(_STOPS_AT_EXIT):
                for sent in self._commands.stop():  # each topic by itself: whatever is wrong with one, stop the others
                    with Outcome() as outcome:
                        self._publish([sent])
                    if outcome.error is not None:
                        print(f"a stop could not be sent to {sent[0]}: {outcome.error!r}", file=sys.stderr)
                if i < _STOPS_AT_EXIT - 1:
                    self._rest(_PAUSE_AT_EXIT)
            self._log.write([*self._supervisor.take_events(), Event("stop", self._transport.now(), cause, detail)])
            self._source.close()
        return self.rates.summary()

    def __enter__(self) -> DriveNode:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self.close("node_error", repr(error)[:500])

    def _subscribe(self) -> None:
        settings, subscribe = self._settings, self._transport.subscribe
        for camera, topic in settings.cameras.items():
            frames: deque[tuple[float, np.ndarray]] = deque(maxlen=8)
            self._frames[camera] = frames
            subscribe(topic, image_kind(topic), _frame_reader(frames))

        def listen(topic: str | None, kind: Kind, read: Callable[[Message, float, float], None]) -> None:
            if topic is not None:
                subscribe(topic, kind, lambda message: self._messages.append((read, message)))

        listen(settings.instruction_topic, "string", self._read_instruction)
        listen(settings.teleop_topic, "twist_stamped" if settings.teleop_stamped else "twist", self._read_teleop)
        listen(settings.operator_topic, "string", self._read_operator)
        listen(settings.pose_topic, "pose_stamped", self._read_pose)
        for topic, kind in {(item.topic, live_kind(item)) for item in settings.state} | set(self._commands.measures):
            subscribe(topic, kind, self._measurement_keeper(topic, kind))

    def _read_images(self, now: float) -> None:
        for camera, frames in self._frames.items():
            for _ in range(len(frames)):
                taken, image = frames.popleft()
                if taken > now:
                    frames.append((taken, image))  # not yet: what a policy sees is never of the future
                elif self._supervisor.image(camera, taken, image):
                    known = self._images.get(camera)
                    if known is None or taken > known[0]:
                        self._images[camera] = (taken, image)

    def _read_instruction(self, message: Message, now: float, steady: float) -> None:
        text = message.data.strip()
        if text != self._instruction:
            self._instruction = text
            self._supervisor.note(Event("instruction", now, "", text))
            self._supervisor.pause()
            self._begin_episode()

    def _read_teleop(self, message: Message, now: float, steady: float) -> None:
        if not self._multiplexer.teleop(message.data, steady):
            return
        self._human = True
        self._supervisor.note(Event("takeover", now))
        if self._settings.resume_after_teleop:
            self._supervisor.pause()
        else:
            self._supervisor.stop("teleop", "a human drives", now)

    def _read_operator(self, message: Message, now: float, steady: float) -> None:
        word = message.data.strip().lower()
        said = now if message.sent is None else message.sent
        latest = max(self._operated, -np.inf if self.stopped is None else self.stopped.time)
        latest = min(latest, message.received)  # of a clock that has gone back since
        early = f"said {latest - said:.1f} s before the last stop, reset or start"
        if word == "reset" and said < latest:  # a latched one, or one that was long under way: it was not meant for this
            self._supervisor.note(Event("old_reset", now, "", early))
            self._on_status(f"a reset is not obeyed: {early}; say it again")
        elif word == "reset":
            self._operated = now
            self._supervisor.reset(now)
            self._images.clear()
            self._begin_episode()
        else:  # whatever an operator shouts is a reason to stop
            self._operated = max(self._operated, said)
            self._supervisor.stop("operator", f"said {message.data!r}", now)

    def _read_pose(self, message: Message, now: float, steady: float) -> None:
        self._supervisor.pose(_heard(message, now), message.data[:3])

    def _measurement_keeper(self, topic: str, kind: Kind) -> Callable[[Message], None]:
        items = [item for item in self._settings.state if (item.topic, live_kind(item)) == (topic, kind)]
        commands = self._commands if (topic, kind) in self._commands.measures else None

        def read(message: Message, now: float) -> None:
            heard = _heard(message, now)
            for item in items:
                value = live_value(item, message.data)
                if value is not None:
                    self._state[item.name] = value, heard
            if commands is not None:
                commands.measure(topic, message.data, heard)

        return lambda message: self._measurements.append((read, message))

    def _read_measurements(self, now: float) -> None:
        if not self._measurements:
            return
        while self._measurements:
            read, message = self._measurements.popleft()
            read(message, now)
        needed = self._source.about.state
        if all(name in self._state for name in needed):
            oldest = min([self._state[name][1] for name in needed] + [self._commands.measured_at()])
            if np.isfinite(oldest):
                self._supervisor.state(oldest)

    def _human_command(self, now: float, steady: float) -> np.ndarray | None:
        human = self._multiplexer.human(steady)
        if human is None and self._human:
            self._human = False
            self._supervisor.note(Event("release", now))
            self._begin_episode()
        return human

    def _begin_episode(self) -> None:
        """Forget what was predicted: the next command comes from what is seen from now on."""
        self._source.restart()
        self._timeline.clear()
        self._chunk = None
        self._asked_about, self._due = None, -np.inf

    def _ask(self, now: float, steady: float) -> None:
        """Put the newest observation to the policy, at its own rate, and take what it has answered."""
        about = self._source.about
        fresh = {camera: one for camera, one in self._images.items() if now - one[0] <= self._settings.watch.camera_age}
        if steady >= self._due - _EARLY / about.fps and all(camera in fresh for camera in about.cameras) and fresh:
            stamp = max(taken for taken, _ in fresh.values())
            known = all(name in self._state for name in about.state)
            if known and (self._asked_about is None or stamp > self._asked_about):
                state = np.array([self._state[name][0] for name in about.state]) if about.state else None
                images = {camera: image for camera, (_, image) in fresh.items()}
                first = self._asked_about is None
                if self._source.submit(Observation(images, state, self._instruction, stamp, first)):
                    self._asked_about = stamp
                    self._due = max(self._due, steady - 1 / about.fps) + 1 / about.fps
                else:
                    self.rates.counts["steps_waiting_for_the_policy"] += 1
        chunk = self._source.latest()
        if chunk is not None and self._timeline.add(chunk.actions, chunk.stamp):
            self._chunk = chunk
            self.rates.chunk(chunk.seconds, now - chunk.stamp)

    def _proposal(self, now: float) -> Proposal | None:
        if not self._instruction or self.stopped is not None:
            return None
        # the timeline takes the nearest action; a command that is sent so often is the one whose time has begun
        begun = now - (1 / self._source.about.fps - 1 / self._settings.rate) / 2
        action = self._timeline.action(begun)
        return None if action is None else Proposal(action, now - self._timeline.age(now))

    def _publish(self, messages: Iterable[Sent]) -> None:
        for topic, kind, data in messages:
            self._transport.publish(topic, kind, data)


def drive(node: DriveNode, *, until: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Steps at the settings' rate, in real time, until ``until`` or someone asks for the end; the measured summary."""
    with node:
        node.run(until)
    return node.close()


@contextmanager
def signals_end(node: DriveNode) -> Iterator[None]:
    """While in it, SIGINT, SIGTERM and SIGHUP end the drive in good order, with a stop. For the main thread."""

    def handle(number: int, frame: object) -> None:
        node.end("signal", signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heard(message: Message, now: float) -> float:
    """When it arrived. One that comes while the step of ``now`` runs counts as of ``now``, not of the future."""
    return min(message.received, now)


def _frame_reader(frames: deque[tuple[float, np.ndarray]]) -> Callable[[Message], None]:
    clock = CameraClock()
    return lambda message: frames.append((clock.time(message), message.data))
