"""The contract between a data format and everything behind it: Episode and EpisodeSource."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from anyvla.actions.spec import ActionSpec


@dataclass(frozen=True)
class Problem:
    """An episode that was skipped because it cannot be used."""

    episode: str
    reason: str


class Episode(Protocol):
    """One recorded episode of T frames."""

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
    def actions(self) -> np.ndarray:
        """(T, A) float32 in robot units: the command given while frame t was seen."""

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        """Camera -> (stop - start, H, W, 3) uint8 RGB as stored; touches only these frames.

        Raises DataError, naming the file and the key, when they cannot be read.
        """


class EpisodeSource(Protocol):
    """A set of episodes in one format. Picklable: it holds no open file."""

    name: str  # where the data are, for messages and the cache
    spec: ActionSpec
    cameras: tuple[str, ...]
    problems: list[Problem]  # episodes left out because they are damaged

    def __len__(self) -> int: ...

    def episode(self, index: int) -> Episode: ...
