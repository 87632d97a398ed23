"""RLDS episodes (``rlds``), as Open X-Embodiment is published: TFRecord files of TensorFlow Datasets, read without TensorFlow.

A record is an episode. Opening a dataset for the first time reads every record once and keeps what is small (see
``rlds_index``); from then on an episode is found at once, and only the images that are asked for are read and decoded. What the
features mean is said by a layout: that of a published dataset (``oxe.LAYOUTS``), or one in the settings. Actions are given in
metres, radians and 1 = open, as recorded; they are normalised once, by the transforms.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.actions.spec import DELTA7, ActionSpec
from anyvla.config.settings import OnBadEpisode
from anyvla.config.sources import RLDSConfig
from anyvla.data.episode import Coding, Problem
from anyvla.data.sources.oxe import layout_of
from anyvla.data.sources.rlds_index import open_index
from anyvla.data.sources.rlds_steps import decode_image, make_plan
from anyvla.data.sources.tfds import DatasetFolder, Shard, Slice, find_version, parse_split, read_folder
from anyvla.data.store import default_cache
from anyvla.errors import ConfigError, DataError, did_you_mean

_STATE_HINT = "observation.state=null trains without the robot's state"
_OUTSIDE = 0.01  # a larger part of the steps beyond the limits means another unit


@dataclass(frozen=True)
class RLDSEpisode:
    """One record; see ``anyvla.data.episode.Episode``."""

    path: Path  # of the shard
    name: str  # split/number
    fingerprint: str
    stamp: tuple[int, int]  # size and time of the shard when it was indexed
    offset: int  # of the payload in the shard
    fps: float
    instruction: str
    actions: np.ndarray  # (T, A) float32
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    state: np.ndarray | None  # (T, S) float32
    images: dict[str, np.ndarray]  # camera -> (T, 2) uint32: start and stop of each image in the payload
    shapes: dict[str, tuple[int | None, ...]]  # camera -> (H, W, 3) as features.json has it

    @property
    def task(self) -> str:
        return ""

    @property
    def length(self) -> int:
        return len(self.actions)

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        coded = self._coded(start, stop, cameras)
        return {camera: self._decode(images, start, camera) for camera, images in coded.items()}

    def read_coded(self, start: int, stop: int, camera: str, coding: Coding) -> list[bytes] | None:
        """The images as they are stored, if they are JPEG files and such are wanted."""
        if coding != "jpeg":
            return None
        images = self._coded(start, stop, [camera])[camera]
        return images if all(image.startswith(b"\xff\xd8\xff") for image in images) else None

    def _coded(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, list[bytes]]:
        """Camera -> the bytes of each of these images."""
        if not 0 <= start < stop <= self.length:
            raise IndexError(f"frames {start}-{stop} of episode {self.name}, which has {self.length}")
        coded = {}
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if (stat.st_size, stat.st_mtime_ns) != self.stamp:
                    raise DataError(f"{self.path}: has changed since it was opened; open the dataset anew")
                for camera in cameras:
                    places = self.images[camera][start:stop].astype(np.int64)
                    first, last = int(places.min()), int(places.max())  # images of one camera lie one behind the other
                    block = os.pread(file.fileno(), last - first, self.offset + first)
                    coded[camera] = [block[begin:end] for begin, end in (places - first).tolist()]
        except OSError as error:
            raise DataError(f"{self.path}: episode {self.name}: frames {start}-{stop} cannot be read ({error})") from error
        return coded

    def _decode(self, coded: list[bytes], start: int, camera: str) -> np.ndarray:
        images: list[np.ndarray] = []
        for t, data in enumerate(coded, start):
            try:
                images.append(decode_image(data, self.shapes[camera]))
                if images[-1].shape != images[0].shape:
                    raise DataError(f"an image of {images[-1].shape[:2]} among others of {images[0].shape[:2]}")
            except DataError as error:
                raise DataError(f"{self.path}: episode {self.name}: camera {camera!r}, frame {t}: {error}") from error
        return np.stack(images)


class RLDSSource:
    """The episodes of a split of one version of a dataset."""

    def __init__(
        self,
        config: RLDSConfig,
        spec: ActionSpec | None = None,
        on_bad_episode: OnBadEpisode = "error",
        state: Sequence[str] | None = None,
        cache: Path | None = None,
    ) -> None:
        """Open the dataset; the first time, index the shards of the split.

        Args:
            spec: dimensions of ``delta7``, all of them if None. state: names of the numbers of the robot's state, in the order
            wanted; None: those of the layout. cache: folder of the index, ``default_cache()`` if None.

        Raises:
            DataError: no dataset there, a split or (unless ``on_bad_episode`` is ``skip``) a shard or a record that cannot be
                used. ConfigError: no layout for it, a split, feature, state or action that it does not have.
        """
        self._opened_with = (config, spec, on_bad_episode, state, cache)
        if config.path is None:
            raise ConfigError("data.source.path is not set: the folder of the dataset")
        self.spec = spec or DELTA7
        for name in self.spec.names:
            if name not in DELTA7.names:
                raise ConfigError(
                    f"rlds holds no action dimension {name!r}{did_you_mean(name, DELTA7.names)} "
                    f"(action spec {self.spec.name!r}; rlds fits delta7)"
                )
        folder = open_folder(config)
        layout = config.layout or layout_of(config.dataset or folder.name, folder)
        plan = make_plan(layout, folder, config.cameras, config.motion == "reached", config.layout is None)
        self._dims = [DELTA7.names.index(name) for name in self.spec.names]
        self._state_columns = _state_columns(folder, plan.state_names, state)
        self._state_names = tuple(plan.state_names if state is None else state)
        self._fps, self._metric = layout.fps, layout.scale is not None
        # frames that are kept under the same name must be of the same images
        self._frames = hashlib.sha256(repr((plan.cameras, plan.drop_first)).encode()).hexdigest()[:8]
        self._shapes = {camera: folder.features[key].shape for camera, key in plan.cameras.items()}
        slices = parse_split(config.split, folder)
        self._shards = _shards(folder, slices)
        self._index = open_index(folder.path, self._shards, plan, config.checksum, cache or default_cache())
        if on_bad_episode == "error" and self._index.problems:
            raise DataError(f"{self._index.problems[0].reason} (on_bad_episode=skip leaves such episodes out)")
        self.name = str(folder.path.resolve())
        self.ready: dict[str, tuple[int, int]] = {}
        self.problems: list[Problem] = list(self._index.problems)
        self._chosen = self._choose(slices, config.unlabelled)
        if not len(self._chosen):
            first = f"; the first: {self.problems[0].reason}" if self.problems else ""
            raise DataError(f"{folder.path}: split {config.split!r}: none of its episodes can be used{first}")
        seen = np.bitwise_or.reduce(self._index.episodes["cameras"][self._chosen])
        self.cameras = tuple(camera for i, camera in enumerate(plan.cameras) if int(seen) >> i & 1)
        self._all_cameras = tuple(plan.cameras)
        if self._metric:
            self._check_limits()

    def __len__(self) -> int:
        return len(self._chosen)

    def __reduce__(self) -> tuple[type[RLDSSource], tuple[Any, ...]]:
        return RLDSSource, self._opened_with  # another process maps the index anew

    def episode(self, index: int) -> RLDSEpisode:
        entry = self._index.episodes[self._chosen[index]]
        shard = self._shards[int(entry["shard"])]
        rows = slice(int(entry["first"]), int(entry["first"]) + int(entry["steps"]))
        actions = self._index.actions[rows][:, self._dims]
        state = self._index.state[rows][:, self._state_columns] if self._state_names else None
        there = [i for i in range(len(self._all_cameras)) if int(entry["cameras"]) >> i & 1]
        return RLDSEpisode(
            path=shard.path,
            name=f"{shard.split}/{shard.first + int(entry['number'])}",
            fingerprint=f"{int(entry['checksum']):08x}-{int(entry['length'])}-{self._frames}",
            stamp=self._index.stamps[int(entry["shard"])],
            offset=int(entry["offset"]),
            fps=self._fps,
            instruction=self._index.sentences[int(entry["sentence"])],
            actions=np.clip(actions, self.spec.low, self.spec.high).astype(np.float32) if self._metric else actions,
            cameras=tuple(self._all_cameras[i] for i in there),
            state_names=self._state_names,
            state=state,
            images={self._all_cameras[i]: self._index.images[rows, i] for i in there},
            shapes=self._shapes,
        )

    def _choose(self, slices: Sequence[Slice], unlabelled: bool) -> np.ndarray:
        """Positions in the index of the episodes of ``slices`` that can be used; what is left out is told."""
        episodes = self._index.episodes
        numbers = np.array([shard.first for shard in self._shards])[episodes["shard"]] + episodes["number"]
        splits = np.array([shard.split for shard in self._shards])[episodes["shard"]]
        parts = [np.flatnonzero((splits == s.split) & (numbers >= s.start) & (numbers < s.stop)) for s in slices]
        chosen = np.concatenate(parts)
        silent = np.array([not sentence for sentence in self._index.sentences], dtype=bool)
        unnamed = silent[episodes["sentence"][chosen]] & (not unlabelled) if len(chosen) else np.zeros(0, dtype=bool)
        short = episodes["steps"][chosen] == 0
        unseen = episodes["cameras"][chosen] == 0
        for which, reason in (
            (unnamed, "have no sentence (data.source.unlabelled=true keeps them)"),
            (short & ~unnamed, "have no step left, when those are left out that the layout says"),
            (unseen & ~short & ~unnamed, "have no image of any camera"),
        ):
            if which.any():
                entry = episodes[chosen[np.argmax(which)]]
                shard = self._shards[int(entry["shard"])]
                name = f"{shard.split}/{shard.first + int(entry['number'])}"
                self.problems.append(
                    Problem(name, f"{shard.path}: {which.sum()} of {len(chosen)} episodes {reason}, such as {name}")
                )
        return chosen[~(unnamed | short | unseen)]

    def _check_limits(self) -> None:
        """Say how many steps are beyond the limits of the spec (and clipped to them). Raises DataError if they are many."""
        low, high = self.spec.low - 1e-4, self.spec.high + 1e-4
        outside = steps = 0
        worst: np.ndarray = np.zeros(len(self.spec))
        for entry in self._index.episodes[self._chosen]:
            values = self._index.actions[int(entry["first"]) : int(entry["first"]) + int(entry["steps"])][:, self._dims]
            beyond = (values < low) | (values > high)
            steps += len(values)
            if beyond.any():
                outside += int(beyond.any(axis=1).sum())
                worst += beyond.sum(axis=0)
        if not outside:
            return
        limits = self.spec.dims[int(worst.argmax())]
        told = (
            f"{self.name}: {outside} of {steps} steps are beyond the limits of {self.spec.name}, most often {limits.name} "
            f"beyond [{limits.low:g}, {limits.high:g}] {limits.unit}"
        )
        if outside > _OUTSIDE * steps:
            raise DataError(f"{told}: recorded in another unit, or of a robot that needs an action spec with other limits")
        self.problems.append(Problem(self.name, f"{told}; they are clipped"))


def open_folder(config: RLDSConfig) -> DatasetFolder:
    """The version folder that ``config`` leads to. Raises DataError."""
    path = config.path or Path()
    version = find_version(path, config.dataset)
    if version is None:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        raise DataError(f"{path}: no RLDS dataset: neither it nor a folder of a version in it has a features.json")
    return read_folder(version)


def _shards(folder: DatasetFolder, slices: Sequence[Slice]) -> list[Shard]:
    """The shards that ``slices`` touch. Raises DataError if no file of a split is there."""
    touched = []
    for part in slices:
        shards = folder.splits[part.split]
        if not any(shard.path.is_file() for shard in shards):
            here = [name for name, others in folder.splits.items() if any(shard.path.is_file() for shard in others)]
            first = f" (such as {shards[0].path.name})" if shards else ""
            raise DataError(
                f"{folder.path}: split {part.split!r} is named in dataset_info.json, but none of its {len(shards)} files is "
                f"here{first}; here: {', '.join(here) or 'no split'}"
            )
        touched += [shard for shard in shards if shard.first < part.stop and part.start < shard.first + shard.length]
    return list(dict.fromkeys(touched))


def _state_columns(folder: DatasetFolder, names: Sequence[str], wanted: Sequence[str] | None) -> list[int]:
    for name in wanted or ():
        if name not in names:
            raise ConfigError(f"{folder.path}: the state has no {name!r}{did_you_mean(name, names)} ({_STATE_HINT})")
    return [list(names).index(name) for name in (names if wanted is None else wanted)]
