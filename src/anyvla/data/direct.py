"""Frames straight from the source, decoded whenever a window is drawn: for data that no cache has room for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anyvla.config.settings import Fit
from anyvla.data.episode import EpisodeSource
from anyvla.data.images import resize_frames


class DirectFrames:
    """As ``FrameStore``, without a store. Costs nothing to make; an episode that cannot be read is found when it is drawn."""

    def __init__(self, source: EpisodeSource, cameras: Sequence[str], size: tuple[int, int], fit: Fit) -> None:
        self._source = source
        self._cameras = tuple(cameras)
        self._size = size
        self._fit = fit
        self._numbers = {source.episode(i).name: i for i in range(len(source))}

    def read(self, name: str, start: int, stop: int) -> dict[str, np.ndarray]:
        """Camera -> (stop - start, h, w, 3) uint8; cameras that the episode lacks are left out. Raises DataError."""
        episode = self._source.episode(self._numbers[name])
        there = [camera for camera in self._cameras if camera in episode.cameras]
        frames = episode.read(start, stop, there)
        return {camera: resize_frames(frames[camera], self._size, self._fit) for camera in there}

    def __contains__(self, name: str) -> bool:
        return name in self._numbers
