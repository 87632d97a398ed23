"""Bags of ROS 2 as episodes: cameras, commands and instructions brought to one rate by ``anyvla.ros2.synchronize``.

A bag becomes as many episodes as it has stretches without gaps and changes of the instruction. Images stay in the bag and are
decoded when they are read.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyvla.actions.spec import ActionSpec
from anyvla.config.settings import OnBadEpisode
from anyvla.config.sources import BagConfig
from anyvla.data.episode import Coding, Problem
from anyvla.errors import ConfigError, DataError, did_you_mean
from anyvla.progress import progress_bar
from anyvla.ros2.bag import Bag, Record, find_bags
from anyvla.ros2.cdr import compressed_file, deserialize, peek_stamp
from anyvla.ros2.episodes import Part, Recording, Rules, episodes_of
from anyvla.ros2.images import camera_name
from anyvla.ros2.mapping import NUMBER_KINDS, MappingConfig, Track, own_spec, read_mapping, twist_mapping
from anyvla.ros2.messages import IMAGE_KINDS

_RANGE_TOLERANCE = 1e-3
_INSTRUCTION = "/instruction"
_CMD_VEL = "/cmd_vel"
_JPEG = b"\xff\xd8"


@dataclass(frozen=True)
class BagFrames:
    """Where a camera's frames of an episode lie."""

    topic: str
    received: np.ndarray  # (T,) int64 nanoseconds
    number: np.ndarray  # (T,) of several messages that arrived in the same nanosecond, which one


@dataclass(frozen=True)
class BagEpisode:
    """A stretch of a bag; see ``anyvla.data.episode.Episode``."""

    path: Path
    name: str
    fingerprint: str
    fps: float
    instruction: str
    actions: np.ndarray  # (T, A) float32
    state_names: tuple[str, ...]
    state: np.ndarray | None  # (T, S) float32
    frames: dict[str, BagFrames]
    task: str = ""

    @property
    def length(self) -> int:
        return len(self.actions)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.frames)

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        found = {}
        for camera in cameras:
            images = []
            for record in self._records(start, stop, camera):
                try:
                    images.append(deserialize(record.kind, record.raw)[0])
                except DataError as error:
                    raise DataError(f"{self._where(camera)}: {error}") from error
            sizes = {image.shape for image in images}
            if len(sizes) > 1:
                raise DataError(f"{self._where(camera)}: frames of different sizes, {' and '.join(map(str, sorted(sizes)))}")
            found[camera] = np.stack(images)
        return found

    def read_coded(self, start: int, stop: int, camera: str, coding: Coding) -> list[bytes] | None:
        """The JPEG files that the camera has sent; None if it sent other images, or others are wanted."""
        records = self._records(start, stop, camera)
        if coding != "jpeg" or records[0].kind != "compressed_image":
            return None
        files = [compressed_file(record.raw) for record in records]
        return files if all(file.startswith(_JPEG) for file in files) else None

    def _records(self, start: int, stop: int, camera: str) -> list[Record]:
        """The messages of these frames."""
        frames = self.frames[camera]
        found: dict[tuple[int, int], Record] = {}
        wanted = list(zip(frames.received[start:stop].tolist(), frames.number[start:stop].tolist(), strict=True))
        counts: dict[int, int] = defaultdict(int)
        for record in Bag(self.path).records([frames.topic], min(wanted)[0], max(wanted)[0] + 1):
            key = record.received, counts[record.received]
            counts[record.received] += 1
            if key in wanted:
                found[key] = record
        missing = sum(key not in found for key in wanted)
        if missing:
            raise DataError(f"{self._where(camera)}: {missing} frames of {start}-{stop} are gone")
        return [found[key] for key in wanted]

    def _where(self, camera: str) -> str:
        return f"{self.path}: episode {self.name}, camera {camera} ({self.frames[camera].topic})"


class BagSource:
    """All bags below a folder, in the order of their names, or one; see ``anyvla.data.episode.EpisodeSource``."""

    def __init__(
        self,
        config: BagConfig,
        spec: ActionSpec | None = None,
        on_bad_episode: OnBadEpisode = "error",
        state: Sequence[str] | None = None,
    ) -> None:
        """Read the numbers of every bag, and the stamps of its images.

        Args:
            spec: the actions wanted, found by their names; None: nav3 of a twist, or those of the mapping.
            state: names of the numbers of the robot's state, in the order wanted; None: all of the mapping.

        Raises:
            DataError: no bag there, or (unless ``on_bad_episode`` is ``skip``) one that is damaged or holds no episode.
            ConfigError: topics or fields that a bag does not have.
        """
        assert config.path is not None
        self.name = str(config.path.resolve())
        self.problems: list[Problem] = []
        self.ready: dict[str, tuple[int, int]] = {}
        self._episodes: list[BagEpisode] = []
        mapping = None if config.mapping is None else _chosen(read_mapping(config.mapping), config.mapping, spec, state)
        bags = find_bags(config.path)
        opened: list[_Opened] = []
        with progress_bar("open bags", len(bags), shown=len(bags) > 1) as bar:
            for path in bags:
                bar.advance()
                name = path.stem if path == config.path else path.relative_to(config.path).with_suffix("").as_posix()
                try:
                    opened.append(_read_bag(path, name, config, mapping, spec))
                except DataError as error:
                    if on_bad_episode == "error":
                        raise DataError(f"{error} (on_bad_episode=skip leaves such bags out)") from error
                    self.problems.append(Problem(name, str(error)))
        if not opened:
            raise DataError(f"{config.path}: none of the {len(bags)} bags can be used; the first: {self.problems[0].reason}")
        self.spec = spec or own_spec(opened[0].mapping, [part.actions for bag in opened for part in bag.parts])
        for bag in opened:
            for number, part in enumerate(bag.parts):
                name = f"{bag.name}-{number:03d}" if len(bag.parts) > 1 else bag.name
                try:
                    episode = _episode(bag, name, part, config)
                    _check_range(episode, self.spec)
                    self._episodes.append(episode)
                except DataError as error:
                    if on_bad_episode == "error":
                        raise DataError(f"{error} (on_bad_episode=skip leaves such episodes out)") from error
                    self.problems.append(Problem(name, str(error)))
        if not self._episodes:
            raise DataError(f"{config.path}: no episode can be used; the first: {self.problems[0].reason}")
        self.cameras: tuple[str, ...] = tuple(dict.fromkeys(name for episode in self._episodes for name in episode.cameras))

    def __len__(self) -> int:
        return len(self._episodes)

    def episode(self, index: int) -> BagEpisode:
        return self._episodes[index]


def choose_cameras(bag: Bag, asked: dict[str, str] | None) -> dict[str, str]:
    """Camera -> topic: those asked for, or all but depth; where a camera is there raw and compressed, the latter."""
    if asked is not None:
        return {camera: bag.topic(topic, IMAGE_KINDS).name for camera, topic in asked.items()}
    topics = [name for name, topic in bag.topics.items() if topic.kind in IMAGE_KINDS and topic.count]
    topics = [name for name in topics if f"{name}/compressed" not in topics and "depth" not in name.lower()]
    if not topics:
        raise DataError(f"{bag.path}: no topic with images; it has {', '.join(bag.topics) or 'none at all'}")
    names = ["front"] if len(topics) == 1 else [camera_name(topic) for topic in topics]
    if len(set(names)) < len(names):
        names = [topic.strip("/").replace("/", "_") for topic in topics]
    return dict(zip(names, topics, strict=True))


def choose_twist(bag: Bag, asked: str | None) -> str:
    """The topic of the commands: the one asked for, the only one, or /cmd_vel."""
    if asked is not None:
        return bag.topic(asked, ("twist", "twist_stamped")).name
    twists = [name for name, topic in bag.topics.items() if topic.kind in ("twist", "twist_stamped")]
    if len(twists) == 1 or _CMD_VEL in twists:
        return twists[0] if len(twists) == 1 else _CMD_VEL
    if not twists:
        raise DataError(f"{bag.path}: no commands: no topic with twists, and no mapping file is given (mapping=FILE)")
    raise ConfigError(f"{bag.path}: several topics hold twists; cmd_vel= names one: {', '.join(twists)}")


@dataclass(frozen=True)
class _Opened:
    """A bag without its images."""

    path: Path
    name: str
    topics: dict[str, str]  # of the cameras
    recording: Recording
    mapping: MappingConfig
    parts: list[Part]


def _read_bag(path: Path, name: str, config: BagConfig, mapping: MappingConfig | None, spec: ActionSpec | None) -> _Opened:
    bag = Bag(path)
    cameras = choose_cameras(bag, config.cameras)
    used = mapping or twist_mapping(choose_twist(bag, config.cmd_vel), spec)
    sentences = _sentence_topic(bag, config.instruction)
    recording = Recording()
    for camera, topic in cameras.items():
        recording.cameras[camera] = Track(bag.topic(topic, IMAGE_KINDS).kind or "image")
    for item in (*used.actions, *used.state):
        recording.topics[item.topic] = Track(bag.topic(item.topic, NUMBER_KINDS).kind or "twist")
    of_topic = {topic: recording.cameras[camera] for camera, topic in cameras.items()}
    counts: dict[tuple[str, int], int] = defaultdict(int)
    for record in bag.records({*cameras.values(), *recording.topics, *sentences}):
        received = record.received / 1e9
        try:
            if record.topic in of_topic:
                track, stamp = of_topic[record.topic], peek_stamp(record.kind, record.raw)
                place = record.topic, record.received
                track.data.append((record.received, counts[place]))
                counts[place] += 1
            else:
                message = record.message()
                if record.kind == "string":
                    recording.said.append((received, message.data))
                    continue
                track, stamp = recording.topics[record.topic], message.stamp
                track.data.append(message.data)
        except DataError as error:
            raise DataError(f"{path}: {record.topic} at {received:.3f} s: {error}") from error
        track.received.append(received)
        track.stamps.append(math.nan if stamp is None else stamp)
    rules = Rules(config.fps, config.max_age, config.command, config.command_gap, config.shortest)
    parts = episodes_of(recording, used, rules, str(path), config.text)
    return _Opened(path, name, cameras, recording, used, parts)


def _sentence_topic(bag: Bag, asked: str | None) -> list[str]:
    if asked is not None:
        return [bag.topic(asked, ("string",)).name]
    topic = bag.topics.get(_INSTRUCTION)
    return [_INSTRUCTION] if topic is not None and topic.kind == "string" else []


def _chosen(mapping: MappingConfig, path: Path, spec: ActionSpec | None, state: Sequence[str] | None) -> MappingConfig:
    """The dimensions of ``spec`` and the names of ``state`` of the mapping, in their order."""
    actions = {item.name: item for item in mapping.actions}
    for name in spec.names if spec else ():
        if name not in actions:
            raise ConfigError(f"{path}: no action {name!r}, which the action spec has{did_you_mean(name, actions)}")
    states = {item.name: item for item in mapping.state}
    for name in state or ():
        if name not in states:
            raise DataError(f"{path}: the state has no {name!r}{did_you_mean(name, states) or '; it has none'}")
    return MappingConfig(
        actions=[actions[name] for name in (spec.names if spec else actions)],
        state=[states[name] for name in (states if state is None else state)],
    )


def _episode(bag: _Opened, name: str, part: Part, config: BagConfig) -> BagEpisode:
    frames = {}
    for camera, chosen in part.frames.items():
        places = np.array(bag.recording.cameras[camera].data, dtype=np.int64)[chosen]
        frames[camera] = BagFrames(bag.topics[camera], places[:, 0], places[:, 1])
    files = [bag.path] if bag.path.is_file() else sorted(file for file in bag.path.iterdir() if file.is_file())
    stats = [file.stat() for file in files]
    stored = "-".join(f"{stat.st_size}.{stat.st_mtime_ns}" for stat in stats)
    names = tuple(item.name for item in bag.mapping.state)
    return BagEpisode(
        path=bag.path,
        name=name,
        fingerprint=f"{stored}-{config.model_dump_json(exclude={'path'})}-{part.times[0]!r}",
        fps=config.fps,
        instruction=part.instruction,
        actions=part.actions,
        state_names=names,
        state=part.state if names else None,
        frames=frames,
    )


def _check_range(episode: BagEpisode, spec: ActionSpec) -> None:
    where = f"{episode.path}: episode {episode.name}"
    bad = ~np.isfinite(episode.actions)
    outside = (episode.actions < spec.low - _RANGE_TOLERANCE) | (episode.actions > spec.high + _RANGE_TOLERANCE)
    if (bad | outside).any():
        frame, dim = np.argwhere(bad | outside)[0]
        limits = spec.dims[dim]
        raise DataError(
            f"{where}: {limits.name} at frame {frame} is {episode.actions[frame, dim]:g} {limits.unit}, outside "
            f"[{limits.low:g}, {limits.high:g}]; a robot with other limits needs an action spec of its own"
        )
