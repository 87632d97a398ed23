"""LeRobotDataset, v3.0 and v2.x: a folder with ``meta/info.json``. See ``lerobot_meta`` for its files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyvla.actions.spec import ActionDim, ActionSpec
from anyvla.config.settings import OnBadEpisode
from anyvla.data.episode import Problem
from anyvla.data.sources.lerobot_images import OpenImages
from anyvla.data.sources.lerobot_index import FrameIndex, open_index
from anyvla.data.sources.lerobot_meta import ACTION, JOURNAL, STATE, Meta, Places, read_meta
from anyvla.data.sources.mobile_h5 import STATE_HINT
from anyvla.data.video import OpenVideos
from anyvla.errors import ConfigError, DataError, did_you_mean

_RANGE_TOLERANCE = 1e-3  # recorded limits are rounded to float32


@dataclass(frozen=True)
class _Files:
    """What all episodes of a source share. Open files stay behind when it is copied to another process."""

    root: Path
    fps: float
    index: FrameIndex
    action_columns: tuple[int, ...]
    state_columns: tuple[int, ...]
    state_names: tuple[str, ...]
    features: dict[str, str]  # camera -> feature
    videos: OpenVideos
    images: OpenImages


@dataclass(frozen=True)
class LeRobotEpisode:
    """One episode; see ``anyvla.data.episode.Episode``."""

    name: str
    length: int
    instruction: str
    task: str
    data: str  # file of its rows, relative to the folder
    row: int  # its first row in that file
    first: int  # its first row in the index
    clips: dict[str, tuple[str, float]]  # camera -> video file, relative to the folder, and the second where the episode begins
    files: _Files

    @property
    def fingerprint(self) -> str:
        paths = [self.data, *(path for path, _ in self.clips.values())]
        try:
            stats = [(self.files.root / path).stat() for path in paths]
        except OSError as error:
            raise DataError(f"{self.files.root}: a file of episode {self.name} is gone ({error})") from error
        return "-".join([*(f"{stat.st_size}.{stat.st_mtime_ns}" for stat in stats), str(self.row)])

    @property
    def fps(self) -> float:
        return self.files.fps

    @property
    def actions(self) -> np.ndarray:
        return self._rows(ACTION)[:, self.files.action_columns]

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.files.state_names

    @property
    def state(self) -> np.ndarray | None:
        return self._rows(STATE)[:, self.files.state_columns] if self.state_names else None

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.files.features)

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        if not 0 <= start < stop <= self.length:
            raise IndexError(f"frames {start}-{stop} of episode {self.name}, which has {self.length}")
        found = {}
        for camera in cameras:
            if camera in self.clips:
                path, begin = self.clips[camera]
                times = (begin + self._times()[start:stop]).tolist()
                found[camera] = self.files.videos.read(self.files.root / path, times)
            else:
                rows = (self.row + start, self.row + stop)
                found[camera] = self.files.images.read(self.files.root / self.data, self.files.features[camera], *rows)
        return found

    def _rows(self, column: str) -> np.ndarray:
        return np.asarray(self.files.index.column(column)[self.first : self.first + self.length])

    def _times(self) -> np.ndarray:
        """(T,) float64 seconds from the episode's begin; those of a steady rate without their rounding to float32."""
        stored, steady = self._rows("timestamp"), np.arange(self.length) / self.fps
        return np.where(np.isclose(stored, steady, rtol=1e-6, atol=1e-6), steady, stored)


class LeRobotSource:
    """A folder of the format; see ``anyvla.data.episode.EpisodeSource``.

    Cameras are the image and video features of three channels, without ``observation.images.`` before their names.
    """

    def __init__(
        self,
        path: Path,
        spec: ActionSpec | None = None,
        on_bad_episode: OnBadEpisode = "error",
        state: Sequence[str] | None = None,
        *,
        split: str | None = None,
        episodes: Sequence[int] | None = None,
        action_names: Sequence[str] | None = None,
        cache: Path | None = None,
    ) -> None:
        """Read the metadata and the numbers of all frames; images are not decoded yet.

        Args:
            spec: the actions wanted, found by their names; None: what LeRobotWriter left, or all with limits from the data.
            state: names of the numbers of the robot's state, in the order wanted; None: all.
            split: of those in ``info.json``; None: all. episodes: their numbers; None: all.
            action_names: of the recorded numbers in their order, instead of the stored ones.
            cache: folder of all indices, ``default_cache()`` if None.

        Raises:
            DataError: no such dataset, or (unless ``on_bad_episode`` is ``skip``) a damaged episode.
            ConfigError: the data have no such action or split; the dataset is of another robot.
        """
        self.name = str(path.resolve())
        self.problems: list[Problem] = []
        self._note_unfinished(path, on_bad_episode)
        meta = read_meta(path)
        index = open_index(meta, cache)
        self.ready: dict[str, tuple[int, int]] = {}
        self.spec, action_columns, asked = _resolve_actions(meta, index, spec, action_names)
        state_names, state_columns = _resolve_state(meta, index, state)
        features = {_camera(key): key for key, feature in meta.features.items() if _is_camera(feature)}
        self.cameras = tuple(features)
        files = _Files(path, meta.fps, index, action_columns, state_columns, state_names, features, OpenVideos(), OpenImages())
        runs = _runs(index)
        present: dict[str, bool] = {}
        self._episodes: list[LeRobotEpisode] = []
        for position in _selected(meta, split, episodes):
            try:
                episode = _open_episode(meta, files, runs, position, present)
                _check_values(path, episode, self.spec, asked)
                self._episodes.append(episode)
            except DataError as error:
                self._leave_out(meta.names[position], str(error), on_bad_episode)
        if not self._episodes:
            reason = f"; the first: {self.problems[0].reason}" if self.problems else ""
            raise DataError(f"{path}: no episode can be used{reason}")

    def __len__(self) -> int:
        return len(self._episodes)

    def episode(self, index: int) -> LeRobotEpisode:
        return self._episodes[index]

    def _leave_out(self, name: str, reason: str, on_bad_episode: OnBadEpisode) -> None:
        if on_bad_episode == "error":
            raise DataError(f"{reason} (on_bad_episode=skip leaves such episodes out)")
        self.problems.append(Problem(name, reason))

    def _note_unfinished(self, path: Path, on_bad_episode: OnBadEpisode) -> None:
        waiting = [folder.name for folder in (path / JOURNAL).glob("*") if folder.name.isdigit()]
        if waiting:
            reason = (
                f"{path / JOURNAL}: {len(waiting)} episodes are not part of the dataset yet, as its writer is at work or was "
                "interrupted; anyvla.data.writers.lerobot.finish adds them"
            )
            self._leave_out(f"{JOURNAL}/{min(waiting)}", reason, on_bad_episode)


def _resolve_actions(
    meta: Meta, index: FrameIndex, spec: ActionSpec | None, action_names: Sequence[str] | None
) -> tuple[ActionSpec, tuple[int, ...], bool]:
    """The spec, the column of each of its dimensions, and whether it was asked for (not known from the data)."""
    names = meta.feature_names(ACTION)
    where = meta.root / "meta" / "info.json"
    if action_names is not None:
        if len(action_names) != len(names) or len(set(action_names)) != len(names):
            raise ConfigError(f"data.source.action_names: {where} has {len(names)} actions ({', '.join(names)})")
        names = list(action_names)
    own = meta.spec if meta.spec is not None and list(meta.spec.names) == names else None
    wanted = spec or own or _spec_from_data(names, np.asarray(index.column(ACTION)))
    missing = [name for name in wanted.names if name not in names]
    if missing:
        raise ConfigError(
            f"{where}: the dataset is of another robot than the action spec {wanted.name!r} ({', '.join(wanted.names)}): its "
            f"actions are {', '.join(names)}; data.source.action_names gives them other names, in this order"
        )
    return wanted, tuple(names.index(name) for name in wanted.names), spec is not None and spec != own


def _spec_from_data(names: Sequence[str], actions: np.ndarray) -> ActionSpec:
    """Continuous dimensions with the limits of the finite recorded values."""
    dims = []
    for name, values in zip(names, actions.T, strict=True):
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (-1.0, 1.0)
        dims.append(ActionDim(name, low=low, high=high) if low < high else ActionDim(name, low=low - 1, high=low + 1))
    return ActionSpec("lerobot", tuple(dims))


def _resolve_state(meta: Meta, index: FrameIndex, wanted: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    names = meta.feature_names(STATE) if STATE in index else []
    for name in wanted or ():
        if name not in names:
            hint = did_you_mean(name, names) or "; it has none"
            raise DataError(f"{meta.root / 'meta' / 'info.json'}: the state has no {name!r}{hint} ({STATE_HINT})")
    chosen = tuple(names if wanted is None else wanted)
    return chosen, tuple(names.index(name) for name in chosen)


def _camera(key: str) -> str:
    return key.removeprefix("observation.").removeprefix("images.")


def _is_camera(feature: dict[str, object]) -> bool:
    """Whether a feature is the RGB frames of a camera: depth maps are stored as images and videos, too."""
    shape, info = feature["shape"], feature.get("info") or feature.get("video_info") or {}
    assert isinstance(shape, list)
    depth = isinstance(info, dict) and (info.get("is_depth_map") or info.get("video.is_depth_map"))
    return feature["dtype"] in ("image", "video") and len(shape) == 3 and 3 in (shape[0], shape[-1]) and not depth


def _selected(meta: Meta, split: str | None, episodes: Sequence[int] | None) -> list[int]:
    """Positions of the chosen episodes, by their numbers."""
    wanted = set(meta.index.tolist())
    if split is not None:
        if split not in meta.splits:
            raise ConfigError(f"data.source.split: {meta.root} has no {split!r}{did_you_mean(split, meta.splits)}")
        bounds = re.fullmatch(r"(\d+):(\d+)", meta.splits[split])
        if bounds is None:
            raise DataError(f"{meta.root / 'meta' / 'info.json'}: split {split!r} is {meta.splits[split]!r}, not begin:end")
        wanted = {i for i in wanted if int(bounds[1]) <= i < int(bounds[2])}
    if episodes is not None:
        unknown = [i for i in episodes if i not in wanted]
        if unknown:
            raise ConfigError(f"data.source.episodes: there is no episode {unknown[0]} (of {len(wanted)})")
        wanted = set(episodes)
    order = np.argsort(meta.index)
    return [position for position in order.tolist() if int(meta.index[position]) in wanted]


def _runs(index: FrameIndex) -> dict[tuple[str, int], list[tuple[int, int]]]:
    """(data file, episode) -> first row and number of rows of every run of its frames in the index."""
    runs: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for name, (first, count) in index.files.items():
        numbers = np.asarray(index.column("episode_index")[first : first + count])
        starts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [count]])
        for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            runs.setdefault((name, int(numbers[start])), []).append((first + start, stop - start))
    return runs


def _open_episode(
    meta: Meta,
    files: _Files,
    runs: dict[tuple[str, int], list[tuple[int, int]]],
    position: int,
    present: dict[str, bool],
) -> LeRobotEpisode:
    number, length = int(meta.index[position]), int(meta.length[position])
    data, _ = _place(meta.data, position)
    if data in files.index.broken:
        raise DataError(f"episode {number}: {files.index.broken[data]}")
    found = runs.get((data, number), [])
    if [count for _, count in found] != [length]:
        rows = " + ".join(str(count) for _, count in found) or "no"
        raise DataError(f"{meta.root / data}: {rows} frames of episode {number}, which has {length} frames in the metadata")
    first = found[0][0]
    task = int(files.index.column("task_index")[first])
    if task not in meta.tasks:
        raise DataError(f"{meta.root / data}: episode {number}: 'task_index' is {task}, but there are {len(meta.tasks)} tasks")
    clips = {camera: _place(meta.videos[key], position) for camera, key in files.features.items() if key in meta.videos}
    for camera, (path, begin) in clips.items():
        if path not in present:
            present[path] = (meta.root / path).is_file()
        if not present[path]:
            raise DataError(f"{meta.root / path}: no such file, which episode {number} needs for the camera {camera}")
        if not 0 <= begin < 1e9:
            raise DataError(f"{meta.root / 'meta'}: episode {number}: begins at {begin} s of the video of {camera}")
    return LeRobotEpisode(
        name=meta.names[position],
        length=length,
        instruction=meta.tasks[task],
        task=meta.task_names[position],
        data=data,
        row=first - files.index.files[data][0],
        first=first,
        clips=clips,
        files=files,
    )


def _place(places: Places, position: int) -> tuple[str, float]:
    return places.paths[int(places.file[position])], float(places.start[position])


def _check_values(root: Path, episode: LeRobotEpisode, spec: ActionSpec, asked: bool) -> None:
    """Every number must be finite; actions must fit a spec that was asked for."""
    where = f"{root / episode.data}: episode {episode.name}"
    actions, state = episode.actions, episode.state
    for names, values in ((spec.names, actions), (episode.state_names, state)):
        if values is not None and not np.isfinite(values).all():
            frame, dim = np.argwhere(~np.isfinite(values))[0]
            raise DataError(f"{where}: {names[dim]} at frame {frame} is {values[frame, dim]}")
    if not np.isfinite(episode._times()).all():
        raise DataError(f"{where}: a 'timestamp' is not finite")
    outside = (actions < spec.low - _RANGE_TOLERANCE) | (actions > spec.high + _RANGE_TOLERANCE)
    if asked and outside.any():
        frame, dim = np.argwhere(outside)[0]
        limits = spec.dims[dim]
        raise DataError(
            f"{where}: {limits.name} at frame {frame} is {actions[frame, dim]:g} {limits.unit}, outside "
            f"[{limits.low:g}, {limits.high:g}]; a robot with other limits needs an action spec of its own"
        )
