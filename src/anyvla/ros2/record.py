"""Record teleoperated episodes from live topics, straight into files of a training format."""

from __future__ import annotations

import json
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np

from anyvla.actions.spec import ActionSpec
from anyvla.data.episode import EpisodeWriter
from anyvla.data.writers.files import replacing
from anyvla.errors import ConfigError, DataError
from anyvla.ros2.episodes import Part, Recording, Rules, episodes_of
from anyvla.ros2.mapping import DRIVING_KEYS, MappingConfig, Track, live_kind
from anyvla.ros2.spool import NOT_KEPT, FrameSpool
from anyvla.ros2.synchronize import MAX_DELAY
from anyvla.ros2.transport import Kind, Message, Transport

Command = Literal["start", "stop", "discard", "quit"]
COMMANDS: Mapping[str, Command] = {
    "start": "start",
    "s": "start",
    "stop": "stop",
    "x": "stop",
    "discard": "discard",
    "d": "discard",
    "quit": "quit",
    "q": "quit",
}
_HEALTH = 60  # messages from which a rate is measured
_SILENT = 1.0  # seconds without a message after which a topic counts as silent
SPOOL = ".recording"
SETTINGS = "recording.json"


@dataclass(frozen=True)
class RecordedEpisode:
    """A part of a recording whose frames lie in spools; see ``anyvla.data.episode.Episode``."""

    name: str
    instruction: str
    actions: np.ndarray  # (T, A) float32
    fps: float
    images: dict[str, tuple[np.ndarray, np.ndarray]]  # camera -> (N, H, W, 3) frames, (T,) which of them
    state_names: tuple[str, ...]
    state: np.ndarray | None
    task: str = ""

    @property
    def fingerprint(self) -> str:
        return self.name

    @property
    def length(self) -> int:
        return len(self.actions)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.images)

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        return {camera: self.images[camera][0][self.images[camera][1][start:stop]] for camera in cameras}


@dataclass
class _Health:
    """When the last messages of a topic came, and how long they took."""

    came: deque[float] = field(default_factory=lambda: deque(maxlen=_HEALTH))
    delays: deque[float] = field(default_factory=lambda: deque(maxlen=_HEALTH))

    def note(self, message: Message) -> None:
        self.came.append(message.received)
        if message.stamp is not None:
            self.delays.append(message.received - message.stamp)

    def describe(self, now: float, wanted: float) -> str:
        if not self.came:
            return "NO MESSAGE YET"
        if now - self.came[-1] > _SILENT:
            return f"SILENT for {now - self.came[-1]:.1f} s"
        span = self.came[-1] - self.came[0]
        rate = (len(self.came) - 1) / span if span > 0 else 0.0
        said = f"{rate:.1f} Hz" if rate >= wanted or len(self.came) < 3 else f"ONLY {rate:.1f} Hz"
        if self.delays:
            delay = float(np.median(self.delays))
            known = 0 <= delay <= MAX_DELAY
            said += f", {1e3 * delay:.0f} ms old" if known else f", STAMPS OFF by {delay:.1f} s: time of arrival is used"
        return said


class Recorder:
    """Listens to topics; ``start`` and ``stop`` make an episode, which the writer has when ``stop`` returns.

    Messages come on the transport's threads; everything else is called from one thread.
    """

    def __init__(
        self,
        transport: Transport,
        writer: EpisodeWriter,
        cameras: Mapping[str, str],
        mapping: MappingConfig,
        rules: Rules,
        *,
        instruction: str | None = None,
        control: str | None = None,
        text: str | None = None,
    ) -> None:
        """Subscribe.

        Args:
            cameras: name -> topic; compressed where it ends with ``/compressed``. mapping: of actions and state.
            instruction: topic of the sentences. control: topic of start, stop and discard.
            text: instruction until one is said.
        """
        self.commands: queue.Queue[str] = queue.Queue()
        self.old: queue.Queue[str] = queue.Queue()  # what is said of commands that came too late to be obeyed
        self._transport, self._writer, self._mapping, self._rules, self._text = transport, writer, mapping, rules, text
        self._cameras = dict(cameras)
        self._folder = writer.path / SPOOL
        self._lock = Lock()
        self._health: dict[str, _Health] = {}
        self._spools: dict[str, FrameSpool] = {}
        self._open: Recording | None = None
        self._began = 0.0
        self._failed: DataError | None = None
        self._last: dict[str, Message] = {}  # what holds when an episode begins
        self._kinds: dict[str, Kind] = {item.topic: live_kind(item) for item in (*mapping.actions, *mapping.state)}
        self._said: tuple[float, str] | None = None
        for camera, topic in self._cameras.items():
            self._listen(topic, "compressed_image" if topic.endswith("/compressed") else "image", self._frame(camera))
        for topic, kind in self._kinds.items():
            self._listen(topic, kind, self._number(topic))
        if instruction is not None:
            transport.subscribe(instruction, "string", self._hear)
        if control is not None:
            began = transport.now()

            def command(message: Message) -> None:
                if message.sent is None or message.sent >= began:
                    self.commands.put(message.data)
                else:  # a latched one, meant for another recording
                    self.old.put(
                        f"not done: {message.data!r} was said {began - message.sent:.1f} s before this recording began"
                    )

            transport.subscribe(control, "string", command)

    @property
    def recording(self) -> bool:
        return self._open is not None

    def start(self) -> None:
        """Begin an episode. Raises DataError if one is open, or the disk cannot be written to."""
        if self.recording:
            raise DataError("an episode is being recorded already: stop or discard it first")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self._folder}: cannot be made ({error})") from error
        with self._lock:
            self._began, self._failed = self._transport.now(), None
            fps = self._rules.fps
            self._spools = {name: FrameSpool(self._folder / f"{name}.raw", fps, self._began) for name in self._cameras}
            recording = Recording({name: spool.track for name, spool in self._spools.items()})
            recording.topics = {topic: Track(kind) for topic, kind in self._kinds.items()}
            for topic, message in self._last.items():
                _append(recording.topics[topic], message)
            first = self._said or (self._text and (self._began, self._text))
            recording.said = [first] if first else []
            self._open = recording

    def stop(self) -> list[str]:
        """End the episode and write it; returns the names of what it became, several where there were gaps.

        Raises DataError if nothing usable was recorded, or it cannot be written; it is lost then.
        """
        recording = self._end()
        try:
            if self._failed is not None:
                raise self._failed
            for spool in self._spools.values():
                spool.finish()
            where = f"the recording of {time.strftime('%H:%M:%S', time.localtime(self._began))}"
            parts = episodes_of(recording, self._mapping, self._rules, where, anchor=self._began)
            name = time.strftime("%Y%m%d-%H%M%S", time.localtime(self._began)) + f"-{1000 * (self._began % 1):03.0f}"
            names = []
            for number, part in enumerate(parts):
                names.append(f"{name}-{number:02d}" if len(parts) > 1 else name)
                self._writer.add(self._episode(names[-1], part))
            return names
        finally:
            self._remove_spools()

    def discard(self) -> None:
        """End the episode and forget it. Raises DataError if none is open."""
        self._end()
        self._remove_spools()

    def close(self) -> bool:
        """Forget what is open; whether there was something. Finished episodes stay. The transport is its owner's to close."""
        was_open = self.recording
        if was_open:
            self.discard()
        if self._folder.exists() and not any(self._folder.iterdir()):
            self._folder.rmdir()
        return was_open

    def status(self) -> str:
        """One line: rate and age of every topic, the instruction, and what is being recorded."""
        now = self._transport.now()
        with self._lock:
            parts = [
                f"{topic} {health.describe(now, self._rules.fps if topic in self._cameras.values() else 0.0)}"
                for topic, health in self._health.items()
            ]
        said = self._said[1] if self._said else self._text
        parts.append(f"instruction {said!r}" if said else "NO INSTRUCTION")
        parts.append(f"RECORDING {now - self._began:.1f} s" if self.recording else f"{len(self._writer)} episodes")
        return " | ".join(parts)

    def obey(self, said: str) -> str:
        """Do what a message of the control topic, or a key, says; returns what came of it, in words."""
        command = COMMANDS.get(said.strip().lower())
        try:
            if command == "start":
                self.start()
                return "recording"
            if command == "stop":
                return f"written: {', '.join(self.stop())}"
            if command == "discard":
                self.discard()
                return "discarded"
        except DataError as error:
            return f"not done: {error}"
        return f"not understood: {said.strip()!r}; known: start, stop, discard"

    def _end(self) -> Recording:
        with self._lock:
            recording, self._open = self._open, None
        if recording is None:
            raise DataError("no episode is being recorded")
        return recording

    def _remove_spools(self) -> None:
        for spool in self._spools.values():
            spool.remove()
        self._spools = {}

    def _episode(self, name: str, part: Part) -> RecordedEpisode:
        images = {}
        for camera, chosen in part.frames.items():
            numbers = np.array(self._spools[camera].track.data)[chosen]
            if (numbers == NOT_KEPT).any():
                raise DataError(f"the stamps of the camera {camera} jumped, and frames that they now ask for were not kept")
            images[camera] = self._spools[camera].frames(), numbers
        names = tuple(item.name for item in self._mapping.state)
        state = part.state if names else None
        return RecordedEpisode(name, part.instruction, part.actions, self._rules.fps, images, names, state)

    def _listen(self, topic: str, kind: Kind, callback: Callable[[Message], None]) -> None:
        self._health[topic] = _Health()
        self._transport.subscribe(topic, kind, callback)

    def _frame(self, camera: str) -> Callable[[Message], None]:
        def heard(message: Message) -> None:
            with self._lock:
                self._health[self._cameras[camera]].note(message)
                if self._open is not None and self._failed is None:
                    try:
                        self._spools[camera].add(message)
                    except DataError as error:
                        self._failed = error  # told when the episode ends

        return heard

    def _number(self, topic: str) -> Callable[[Message], None]:
        def heard(message: Message) -> None:
            with self._lock:
                self._health[topic].note(message)
                self._last[topic] = message
                if self._open is not None:
                    _append(self._open.topics[topic], message)

        return heard

    def _hear(self, message: Message) -> None:
        with self._lock:
            self._said = message.received, message.data
            if self._open is not None:
                self._open.said.append(self._said)


def _append(track: Track, message: Message) -> None:
    track.received.append(message.received)
    track.stamps.append(np.nan if message.stamp is None else message.stamp)
    track.data.append(message.data)


def record(recorder: Recorder, say: Callable[[str], None], period: float = 1.0) -> None:
    """Obey ``recorder.commands`` until one says quit, and tell the state once a ``period`` (seconds)."""
    due = time.monotonic()
    while True:
        wait = due - time.monotonic()
        try:
            said = recorder.commands.get(timeout=max(wait, 0.001))
        except queue.Empty:
            while not recorder.old.empty():
                say(recorder.old.get())
            say(recorder.status())
            due = time.monotonic() + period
            continue
        if COMMANDS.get(said.strip().lower()) == "quit":
            return
        say(recorder.obey(said))


def keep_settings(writer: EpisodeWriter, cameras: Mapping[str, str], mapping: MappingConfig, rules: Rules) -> None:
    """Write down in the folder how its episodes come to be. Raises ConfigError if it holds some that came otherwise."""
    driving = {"actions": {"__all__": {"command", *DRIVING_KEYS}}}  # how a policy drives later says nothing of the episodes
    fields = mapping.model_dump(mode="json", exclude=driving)
    settings = {"cameras": dict(cameras), "mapping": fields, "rules": asdict(rules)}
    path = writer.path / SETTINGS
    try:
        known = json.loads(path.read_text()) if path.exists() and len(writer) else settings
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    for key, value in settings.items():
        if not isinstance(known, dict) or known.get(key) != value:
            raise ConfigError(f"{path}: the episodes here were recorded with other {key}; choose another folder")
    try:
        with replacing(path) as partial:
            partial.write_text(json.dumps(settings, indent=1))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error


def open_writer(out: Path, to: Literal["mobile_h5", "lerobot"], spec: ActionSpec, fps: float, video: bool) -> EpisodeWriter:
    """The writer of a format. Raises ConfigError for actions that it does not hold, DataError if the folder cannot be used."""
    if to == "lerobot":
        from anyvla.data.writers.lerobot import LeRobotWriter

        return LeRobotWriter(out, spec, fps, cameras="video" if video else "image")
    from anyvla.data.writers.mobile_h5 import MobileH5Writer

    return MobileH5Writer(out, spec)
