"""Several sources as one: their windows numbered through, each source with the scale of its own actions and states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anyvla.actions.spec import ActionSpec
from anyvla.data.dataset import Sample, WindowDataset
from anyvla.data.episode import Episode, EpisodeSource, Problem
from anyvla.data.sampler import Item
from anyvla.errors import ConfigError, did_you_mean


class MixtureDataset:
    """The windows of ``parts``, name -> windows of one source, one after the other."""

    def __init__(self, parts: Mapping[str, WindowDataset]) -> None:
        self.parts = dict(parts)
        self._ends = np.cumsum([len(part) for part in self.parts.values()])

    @property
    def episodes(self) -> list[Episode]:
        return [episode for part in self.parts.values() for episode in part.episodes]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, item: Item) -> Sample:
        """See ``WindowDataset``; the name says the source too."""
        number = int(np.searchsorted(self._ends, item.index, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        name, part = list(self.parts.items())[number]
        sample = part[Item(item.epoch, item.index - before)]
        return {**sample, "name": f"{name}:{sample['name']}"}

    def __getitems__(self, items: list[Item]) -> list[Sample]:
        return [self[item] for item in items]


@dataclass(frozen=True)
class RenamedSource:
    """A source whose cameras have the names that the model knows them by."""

    inner: EpisodeSource
    names: Mapping[str, str]  # camera of the source -> camera of the model

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def spec(self) -> ActionSpec:
        return self.inner.spec

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.names.get(camera, camera) for camera in self.inner.cameras)

    @property
    def problems(self) -> list[Problem]:
        return self.inner.problems

    @property
    def ready(self) -> Mapping[str, tuple[int, int]]:
        return {self.names.get(camera, camera): size for camera, size in self.inner.ready.items()}

    def __len__(self) -> int:
        return len(self.inner)

    def episode(self, index: int) -> RenamedEpisode:
        return RenamedEpisode(self.inner.episode(index), self.names)


@dataclass(frozen=True)
class RenamedEpisode:
    """See ``RenamedSource``."""

    inner: Episode
    names: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    @property
    def length(self) -> int:
        return self.inner.length

    @property
    def fps(self) -> float:
        return self.inner.fps

    @property
    def instruction(self) -> str:
        return self.inner.instruction

    @property
    def task(self) -> str:
        return self.inner.task

    @property
    def actions(self) -> np.ndarray:
        return self.inner.actions

    @property
    def state_names(self) -> tuple[str, ...]:
        return self.inner.state_names

    @property
    def state(self) -> np.ndarray | None:
        return self.inner.state

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.names.get(camera, camera) for camera in self.inner.cameras)

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        theirs = {self.names.get(camera, camera): camera for camera in self.inner.cameras}
        frames = self.inner.read(start, stop, [theirs[camera] for camera in cameras])
        return {camera: frames[theirs[camera]] for camera in cameras}


def rename_cameras(source: EpisodeSource, names: Mapping[str, str]) -> EpisodeSource:
    """``source`` with its cameras renamed as ``names`` says, camera of the source -> camera of the model.

    Raises ConfigError for a camera that the source lacks, or a name that would stand for two.
    """
    if not names:
        return source
    for camera in names:
        if camera not in source.cameras:
            raise ConfigError(
                f"data.source.cameras: {source.name} has no camera {camera!r}{did_you_mean(camera, source.cameras)}"
            )
    renamed = RenamedSource(source, dict(names))
    if len(set(renamed.cameras)) < len(renamed.cameras):
        raise ConfigError(f"data.source.cameras: a name stands for two cameras of {source.name}: {', '.join(renamed.cameras)}")
    return renamed
