"""CALVIN (Mees et al., arXiv 2112.03227), in the layout that it is published in: one file a frame.

    <root>/{training,validation}/
      episode_{frame:07d}.npz                  actions (7), rel_actions (7), robot_obs (15), rgb_static (200, 200, 3) uint8,
                                               rgb_gripper (84, 84, 3) uint8, and others that are not read
      ep_start_end_ids.npy                     int64 (E, 2): first and last frame of each recording
      lang_annotations/auto_lang_ann.npy       {'language': {'ann': [str], 'task': [str]}, 'info': {'indx': [(first, last)]}}
      scene_info.npy                           {'calvin_scene_A': [first, last], ...}; may be absent

An annotation is an episode, from its first to its last frame, both included. So is what was recorded without regard to any task
(play), if asked for.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.actions.frames import world_to_tcp
from anyvla.actions.spec import ARM7, POSE7, ActionSpec
from anyvla.config.settings import OnBadEpisode
from anyvla.config.sources import CalvinConfig
from anyvla.data.episode import Problem
from anyvla.data.sources.calvin_index import CalvinIndex, open_index, read_frame, spans_with
from anyvla.data.sources.npy import array_from, read_file
from anyvla.data.sources.restricted_npy import read_object_array
from anyvla.errors import ConfigError, DataError, did_you_mean

FPS = 30.0
STATE_NAMES = (
    *("tcp_x", "tcp_y", "tcp_z", "tcp_roll", "tcp_pitch", "tcp_yaw", "gripper_width"),
    *(f"joint_{i}" for i in range(1, 8)),
    "gripper_action",
)
_RPY = slice(3, 6)  # of robot_obs
_SCALES = {"x 0.02 m": 1.0, "m": 0.02, "x 0.05 rad": 1.0, "rad": 0.05}  # unit of a spec -> of one unit of rel_actions
_LARGEST_IDS = 2**26  # bytes
_LARGEST_FRAME = 10**12
_MOST_FRAMES = 10**8

Span = tuple[int, int]  # first and last frame, both included


@dataclass(frozen=True)
class _Reading:
    """What is read of each frame, the same for all episodes of a source."""

    index: CalvinIndex
    key: str  # rel_actions or actions
    scale: np.ndarray  # (A,) float32, of the continuous dimensions
    tcp: bool
    state_names: tuple[str, ...]


@dataclass(frozen=True)
class CalvinEpisode:
    """An annotated or unlabelled stretch of frames; see ``anyvla.data.episode.Episode``."""

    name: str
    first: int
    last: int  # included
    instruction: str
    task: str
    reading: _Reading

    @property
    def fps(self) -> float:
        return FPS

    @property
    def length(self) -> int:
        return self.last + 1 - self.first

    @property
    def fingerprint(self) -> str:
        return self.reading.index.fingerprint(self.first, self.last)

    @property
    def recording(self) -> tuple[str, int]:
        """Frames are numbered through all recordings of a split: annotations that overlap share theirs."""
        return "frames", self.first

    @property
    def cameras(self) -> tuple[str, ...]:
        return self.reading.index.cameras_of(self.first, self.last)

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.reading.state_names

    @property
    def actions(self) -> np.ndarray:
        reading = self.reading
        actions = reading.index.numbers(reading.key, self.first, self.last)
        if reading.tcp:
            actions = world_to_tcp(actions, reading.index.numbers("robot_obs", self.first, self.last)[:, _RPY])
        gripper = actions[:, -1:] > 0  # 1 = open, as here
        return np.concatenate([actions[:, :-1] * reading.scale[:-1], gripper], axis=1, dtype=np.float32)

    @property
    def state(self) -> np.ndarray | None:
        if not self.reading.state_names:
            return None
        columns = [STATE_NAMES.index(name) for name in self.reading.state_names]
        return self.reading.index.numbers("robot_obs", self.first, self.last)[:, columns]

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        if not 0 <= start < stop <= self.length:
            raise IndexError(f"frames {start}-{stop} of episode {self.name}, which has {self.length}")
        return self.reading.index.read(self.first + start, self.first + stop - 1, cameras)


@dataclass(frozen=True)
class _Stretch:
    """A candidate for an episode, as the annotations or the recordings have it."""

    name: str
    span: Span
    instruction: str
    task: str


class CalvinSource:
    """The episodes of one split of a CALVIN data set, in the order of its annotations, then of its recordings."""

    def __init__(
        self,
        config: CalvinConfig,
        spec: ActionSpec | None = None,
        on_bad_episode: OnBadEpisode = "error",
        state: Sequence[str] | None = None,
        cache: Path | None = None,
    ) -> None:
        """Read annotations and make or open the index of the split (see ``calvin_index``); no image is decoded.

        Args:
            spec: None: ``arm7`` for relative actions, ``pose7`` for absolute ones.
            state: names out of ``STATE_NAMES``; None: all.
            cache: folder of all caches, ``default_cache()`` if None.

        Raises:
            DataError: no CALVIN data there, or (unless ``on_bad_episode`` is ``skip``) a damaged episode.
            ConfigError: actions or a state that the data do not hold, or an unknown task.
        """
        if config.path is None:
            raise ConfigError("data.source.path is not set: the folder of the episodes")
        self.spec = spec or (ARM7 if config.actions == "relative" else POSE7)
        scale = _scale(self.spec, config)
        for name in state or ():
            if name not in STATE_NAMES:
                raise ConfigError(f"observation.state: CALVIN's state has no {name!r}{did_you_mean(name, STATE_NAMES)}")
        folder = split_folder(config.path, config.split).resolve()
        self.name = str(folder)
        self.problems: list[Problem] = []
        self.ready: dict[str, tuple[int, int]] = {}
        stretches = _stretches(folder, config, self.problems)
        if not stretches and not self.problems:
            raise DataError(f"{folder}: no episode is left by the settings of data.source")
        if self.problems and on_bad_episode == "error":
            raise DataError(f"{self.problems[0].reason} (on_bad_episode=skip leaves such episodes out)")

        state_names = STATE_NAMES if state is None else tuple(state)
        key = "rel_actions" if config.actions == "relative" else "actions"
        keys = [key, "robot_obs"] if state_names or config.frame == "tcp" else [key]
        spans = np.array([stretch.span for stretch in stretches], dtype=np.int64).reshape(-1, 2)
        index = open_index(folder, spans, keys, cache)
        reading = _Reading(index, key, scale, config.frame == "tcp", state_names)
        self.cameras: tuple[str, ...] = index.cameras
        whole = index.complete_rows(spans[:, 0], spans[:, 1]) & (spans_with(index.bad_frames(keys), spans) == 0)
        self._episodes: list[CalvinEpisode] = []
        for stretch, usable in zip(stretches, whole.tolist(), strict=True):
            if usable:
                self._episodes.append(CalvinEpisode(stretch.name, *stretch.span, stretch.instruction, stretch.task, reading))
                continue
            reason = f"{stretch.name}: {_what_is_wrong(index, stretch.span, keys)}"
            if on_bad_episode == "error":
                raise DataError(f"{reason} (on_bad_episode=skip leaves such episodes out)")
            self.problems.append(Problem(stretch.name, reason))
        if not self._episodes:
            raise DataError(
                f"{folder}: none of the {len(self.problems)} episodes can be used; the first: {self.problems[0].reason}"
            )

    def __len__(self) -> int:
        return len(self._episodes)

    def episode(self, index: int) -> CalvinEpisode:
        return self._episodes[index]


def split_folder(path: Path, split: str) -> Path:
    """The folder of ``split`` in the data set at ``path``, or ``path`` itself if it is the folder of a split."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    if is_split(path):
        return path
    splits = [name for name in ("training", "validation") if is_split(path / name)]
    if split not in splits:
        raise DataError(f"{path}: no CALVIN data: no {split}/ep_start_end_ids.npy or {split}/lang_annotations in this folder")
    return path / split


def is_split(path: Path) -> bool:
    return (path / "ep_start_end_ids.npy").is_file() or (path / "lang_annotations").is_dir()


def _scale(spec: ActionSpec, config: CalvinConfig) -> np.ndarray:
    """(A,) float32: from the numbers of the data to the units of ``spec``. Raises ConfigError if it has other dimensions."""
    served = ARM7 if config.actions == "relative" else POSE7
    if spec.names != served.names or [d.kind for d in spec.dims] != [d.kind for d in served.dims]:
        fits = "arm7 and delta7" if served is ARM7 else "pose7"
        other = "absolute" if served is ARM7 else "relative"
        raise ConfigError(
            f"the action spec {spec.name!r} ({', '.join(spec.names)}) does not go with CALVIN's {config.actions} actions, "
            f"which fit {fits}; set actions.spec, or data.source.actions={other}"
        )
    if served is POSE7:
        return np.ones(len(spec), dtype=np.float32)
    for dim in spec.dims[:-1]:
        if dim.unit not in _SCALES:
            raise ConfigError(
                f"action dimension {dim.name!r}: CALVIN's has no unit {dim.unit!r}{did_you_mean(dim.unit, _SCALES)}"
            )
    return np.array([*(_SCALES[dim.unit] for dim in spec.dims[:-1]), 1.0], dtype=np.float32)


def _stretches(folder: Path, config: CalvinConfig, problems: list[Problem]) -> list[_Stretch]:
    """What the settings select; annotations that lie outside of the recordings become ``problems``."""
    recordings = _recordings(folder / "ep_start_end_ids.npy", needed=config.language != "annotated")
    scenes = _scenes(folder / "scene_info.npy", config.scenes)
    found = []
    if config.language != "play":
        annotations = _annotations(folder / "lang_annotations" / "auto_lang_ann.npy")
        for stretch in _selected(annotations, scenes, config):
            first, last = stretch.span
            if recordings is not None and not _inside(first, last, recordings):
                reason = f"{stretch.name}: frames {first} to {last} are not part of one recording of ep_start_end_ids.npy"
                problems.append(Problem(stretch.name, reason))
            else:
                found.append(stretch)
    if config.language != "annotated" and recordings is not None:
        for first, last in recordings.tolist():
            for span in _pieces(first, last, config.play_length):
                if scenes is None or any(_within(span, scene) for scene in scenes):
                    found.append(_Stretch(f"play_{span[0]:07d}-{span[1]:07d}", span, config.play_instruction, ""))
    return found


def _recordings(path: Path, needed: bool) -> np.ndarray | None:
    """(E, 2) int64, ascending: first and last frame of each recording; None if there is no such file, and it is not needed."""
    if not path.exists() and not needed:
        return None
    ids = array_from(read_file(path, _LARGEST_IDS), str(path))
    if ids.ndim != 2 or ids.shape[1] != 2 or ids.dtype.kind not in "iu":
        raise DataError(f"{path}: shape {ids.shape}, {ids.dtype} is not (E, 2) of integers")
    bad = np.flatnonzero((ids[:, 0] > ids[:, 1]) | (ids < 0).any(1) | (ids > _LARGEST_FRAME).any(1))
    if len(bad):
        raise DataError(f"{path}: recording {bad[0]} goes from frame {ids[bad[0], 0]} to {ids[bad[0], 1]}")
    ids = ids.astype(np.int64)
    ids = ids[np.argsort(ids[:, 0])]
    if (ids[1:, 0] <= ids[:-1, 1]).any():
        i = int(np.argmax(ids[1:, 0] <= ids[:-1, 1]))
        raise DataError(f"{path}: the recordings {ids[i].tolist()} and {ids[i + 1].tolist()} overlap")
    if (ids[:, 1] - ids[:, 0]).sum() > _MOST_FRAMES:
        raise DataError(f"{path}: the recordings have more frames than {_MOST_FRAMES}")
    return ids


def _annotations(path: Path) -> list[_Stretch]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; data.source.language=play needs none")
    content = read_object_array(path)
    texts = _list_at(path, content, "language", "ann")
    tasks = _list_at(path, content, "language", "task")
    spans = _list_at(path, content, "info", "indx")
    if not len(texts) == len(tasks) == len(spans):
        raise DataError(f"{path}: {len(texts)} sentences, {len(tasks)} tasks and {len(spans)} windows do not go together")
    found = []
    for i, (text, task, span) in enumerate(zip(texts, tasks, spans, strict=True)):
        if not isinstance(text, str) or not isinstance(task, str) or not text.strip():
            raise DataError(f"{path}: annotation {i}: the sentence {text!r} and the task {task!r} must be texts")
        pair = np.asarray(span) if isinstance(span, (tuple, list, np.ndarray)) and _are_numbers(span) else np.empty(0)
        if pair.shape != (2,) or pair.dtype.kind not in "iu" or not 0 <= pair[0] <= pair[1] <= _LARGEST_FRAME:
            raise DataError(f"{path}: annotation {i}: {span!r} is not a first and a last frame")
        name = f"annotation_{i:05d}_{re.sub(r'[^A-Za-z0-9_-]', '_', task)[:60]}"
        found.append(_Stretch(name, (int(pair[0]), int(pair[1])), text.strip(), task))
    return found


def _are_numbers(span: Sequence[Any] | np.ndarray) -> bool:
    return all(isinstance(value, (int, np.integer)) for value in span)


def _list_at(path: Path, content: Any, *keys: str) -> list[Any]:
    where = "".join(f"[{key!r}]" for key in keys)
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise DataError(f"{path}: no {where}")
        content = content[key]
    if not isinstance(content, (list, tuple, np.ndarray)) or (isinstance(content, np.ndarray) and content.ndim == 0):
        raise DataError(f"{path}: {where} is not a list")
    return list(content)


def _scenes(path: Path, wanted: Sequence[str] | None) -> list[Span] | None:
    """First and last frame of each of the ``wanted`` scenes."""
    if wanted is None:
        return None
    if not path.is_file():
        raise DataError(f"{path}: no such file, so the scene of a frame is not known; leave out data.source.scenes")
    content = read_object_array(path)
    spans = []
    for scene in wanted:
        span = content.get(f"calvin_scene_{scene}") if isinstance(content, dict) else None
        if span is None:
            names = ", ".join(map(str, content)) if isinstance(content, dict) else repr(content)[:100]
            raise DataError(f"{path}: there are no frames of scene {scene} in this split; it has {names}")
        if not isinstance(span, (list, tuple, np.ndarray)) or len(span) != 2 or not _are_numbers(span):
            raise DataError(f"{path}: scene {scene}: {span!r} is not a first and a last frame")
        spans.append((int(span[0]), int(span[1])))
    return spans


def _within(span: Span, outer: Span) -> bool:
    return outer[0] <= span[0] and span[1] <= outer[1]


def _inside(first: int, last: int, recordings: np.ndarray) -> bool:
    """Whether one of ``recordings`` (E, 2), ascending, has all of these frames."""
    row = int(np.searchsorted(recordings[:, 0], first, "right")) - 1
    return row >= 0 and last <= recordings[row, 1]


def _selected(annotations: list[_Stretch], scenes: list[Span] | None, config: CalvinConfig) -> list[_Stretch]:
    """Those of the wanted scenes and tasks; and of these, for each task, as many as asked for.

    Which ones follows from ``draw`` and the task's name alone, and fewer are always among more.
    """
    tasks: dict[str, list[int]] = {}
    for i, annotation in enumerate(annotations):
        tasks.setdefault(annotation.task, []).append(i)
    for task in config.tasks or ():
        if task not in tasks:
            raise ConfigError(f"data.source.tasks: no annotation has the task {task!r}{did_you_mean(task, tasks)}")
    chosen: list[int] = []
    for task, members in tasks.items():
        if config.tasks is not None and task not in config.tasks:
            continue
        there = [i for i in members if scenes is None or any(_within(annotations[i].span, scene) for scene in scenes)]
        count = len(there)
        if config.per_task is not None:
            count = config.per_task
        elif config.fraction is not None:
            count = max(1, round(config.fraction * len(there)))
        order = np.random.default_rng([config.draw, zlib.crc32(task.encode())]).permutation(len(there))
        chosen += [there[i] for i in order[:count]]
    return [annotations[i] for i in sorted(chosen)]


def _pieces(first: int, last: int, longest: int) -> list[Span]:
    """A recording, cut into equal pieces of at most ``longest`` frames."""
    length = last + 1 - first
    count = -(-length // longest)
    return [(first + length * i // count, first + length * (i + 1) // count - 1) for i in range(count)]


def _what_is_wrong(index: CalvinIndex, span: Span, keys: Sequence[str]) -> str:
    """The first fault of an episode that cannot be used."""
    try:
        index.rows(*span)
    except DataError as error:
        return str(error)
    bad = index.bad_frames(keys)
    frame = int(bad[np.searchsorted(bad, span[0])])
    wrong = read_frame(index.folder, frame)[3]
    return next((wrong[key] for key in keys if key in wrong), f"frame {frame} changes while it is read")
