"""Frames of a recording under way: those that a tick may need, raw in a file, so that they do not fill the memory."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anyvla.errors import DataError
from anyvla.ros2.mapping import Track
from anyvla.ros2.synchronize import MAX_DELAY
from anyvla.ros2.transport import Message

NOT_KEPT = -1
_SLACK = 1e-6  # ticks


@dataclass
class FrameSpool:
    """The frames of one camera: the times of all in ``track``, whose data are numbers of frames in the file, or NOT_KEPT.

    A frame is kept if there is a tick from its time until that of the next one; of both clocks, as it is not known yet which
    of them counts.
    """

    path: Path
    fps: float
    anchor: float  # a tick
    track: Track = field(default_factory=lambda: Track("image"))
    shape: tuple[int, ...] | None = None
    _kept: int = 0
    _last: Message | None = None

    def __post_init__(self) -> None:
        try:
            self._file = self.path.open("wb", buffering=0)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error})") from error

    def add(self, message: Message) -> None:
        """Raises DataError where the size changes or the disk is full."""
        shape = message.data.shape
        if self.shape not in (None, shape):
            raise DataError(f"the camera's frames have changed from {self.shape} to {shape}")
        self.shape = shape
        if self._last is not None and self._needed(self._last, message):
            self._keep(self._last)
        self.track.received.append(message.received)
        self.track.stamps.append(math.nan if message.stamp is None else message.stamp)
        self.track.data.append(NOT_KEPT)
        self._last = message

    def finish(self) -> None:
        """Nothing comes any more."""
        if self._last is not None:
            self._keep(self._last)
            self._last = None
        self._file.close()

    def frames(self) -> np.ndarray:
        """(N, H, W, 3) uint8, all that were kept, mapped from the file."""
        if self.shape is None or self._kept == 0:
            raise DataError("the camera has no frames")
        return np.memmap(self.path, np.uint8, "r", shape=(self._kept, *self.shape))

    def remove(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _keep(self, message: Message) -> None:
        data = memoryview(message.data.tobytes())
        try:
            while data:
                data = data[os.write(self._file.fileno(), data) :]
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error})") from error
        self.track.data[-1] = self._kept
        self._kept += 1

    def _needed(self, message: Message, following: Message) -> bool:
        (begin, begin_most), (end_least, end) = _times(message), _times(following)
        if end_least < begin_most and end_least != end:
            return True  # stamps that overtake each other
        first = math.ceil((begin - self.anchor) * self.fps - _SLACK)
        return first <= math.floor((end - self.anchor) * self.fps + _SLACK)


def _times(message: Message) -> tuple[float, float]:
    """The earliest and the latest time that the message may be given."""
    if message.stamp is None or not 0 <= message.received - message.stamp <= MAX_DELAY:
        return message.received, message.received
    return message.stamp, message.received
