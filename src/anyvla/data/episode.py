"""The contract between a data format and everything behind it: Episode and EpisodeSource."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np

from anyvla.actions.spec import ActionSpec

Coding = Literal["jpeg", "avif"]  # of image files


@dataclass(frozen=True)
class Problem:
    """An episode that was skipped because it cannot be used."""

    episode: str
    reason: str


class Episode(Protocol):
    """One recorded episode of T frames.

    An episode may also have, where its format knows them, a property ``recording`` (see ``recording_of``) and a method
    ``read_coded`` (see ``stored_images``).
    """

    @property
    def name(self) -> str:
        """Unique in its source, and the same whenever the source is opened."""

    @property
    def fingerprint(self) -> str:
        """Changes when the stored data change."""

    @property
    def length(self) -> int:
        """T."""

    @property
    def fps(self) -> float:
        """Control steps per second."""

    @property
    def instruction(self) -> str: ...

    @property
    def task(self) -> str:
        """Name of the task, by which results and counts are grouped; empty where the format has none."""

    @property
    def actions(self) -> np.ndarray:
        """(T, A) float32 in robot units: the command given while frame t was seen."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """S names; those that the source was asked for, in that order."""

    @property
    def state(self) -> np.ndarray | None:
        """(T, S) float32, the state of the robot as measured when frame t was seen; None without names."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those of the source's cameras that this episode has."""

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        """Camera -> (stop - start, H, W, 3) uint8 RGB as stored; touches only these frames.

        Raises DataError, naming the file and the key, when they cannot be read.
        """


def recording_of(episode: Episode) -> tuple[str, int]:
    """The recording that an episode is cut from, and which of its frames is the episode's first.

    Episodes of one recording share frames where they overlap, as the annotated windows of CALVIN do: frame t of the episode is
    frame ``first + t`` of the recording. An episode without a property ``recording`` is a recording of its own.
    """
    recording: tuple[str, int] = getattr(episode, "recording", (episode.name, 0))
    return recording


def stored_images(episode: Episode, start: int, stop: int, camera: str, coding: Coding) -> list[bytes] | None:
    """The files of these frames where the format holds them coded so, and nothing is lost by coding them again; else None."""
    read = getattr(episode, "read_coded", None)
    return None if read is None else read(start, stop, camera, coding)


class EpisodeSource(Protocol):
    """A set of episodes in one format. Picklable: it holds no open file."""

    @property
    def name(self) -> str:
        """Where the data are, for messages and the cache."""

    @property
    def spec(self) -> ActionSpec: ...

    @property
    def cameras(self) -> tuple[str, ...]:
        """All that any episode has."""

    @property
    def problems(self) -> list[Problem]:
        """Episodes left out because they are damaged."""

    @property
    def ready(self) -> Mapping[str, tuple[int, int]]:
        """Camera -> (H, W) of frames that lie there raw, so that reading them costs nothing."""

    def __len__(self) -> int: ...

    def episode(self, index: int) -> Episode: ...


@dataclass(frozen=True)
class ArrayEpisode:
    """An episode in memory: what a simulator or a robot has recorded, on its way to a writer."""

    name: str
    instruction: str
    actions: np.ndarray  # (T, A) float32
    images: dict[str, np.ndarray]  # camera -> (T, H, W, 3) uint8 RGB
    fps: float
    task: str = ""
    state_names: tuple[str, ...] = ()
    state: np.ndarray | None = None  # (T, S) float32

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.actions.tobytes())
        for frames in self.images.values():
            digest.update(frames.tobytes())
        return digest.hexdigest()[:16]

    @property
    def length(self) -> int:
        return len(self.actions)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.images)

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        return {camera: self.images[camera][start:stop] for camera in cameras}


class EpisodeWriter(Protocol):
    """Writes episodes in one format into a folder. Interrupted at any moment, only the episode under way is lost.

    A folder that holds episodes is added to; ``close`` (or the end of a ``with`` block) leaves what other software can read.
    """

    path: Path
    spec: ActionSpec

    def __len__(self) -> int:
        """Episodes that the folder holds."""

    def __contains__(self, name: object) -> bool:
        """Whether the folder holds the episode of this name."""

    def add(self, episode: Episode) -> None:
        """Append one episode. Raises DataError where the format cannot hold it, or the disk is full."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
