"""One action for now out of chunks that were predicted, late, from what was seen before."""

from __future__ import annotations

from collections import deque

import numpy as np

from anyvla.ros2.sources import Chunk

_ALMOST = 1e-3  # of a control step: so much before its moment an action is due already


class Stitcher:
    """Puts every chunk where its observation's stamp says, so that what was predicted for a past moment is left out.

    Action k of a chunk is for the moments from ``stamp + k / fps`` to ``stamp + (k + 1) / fps``. Where chunks overlap the
    newest counts alone, or all of them with weights exp(-decay * age in control steps), newer ones weighing more.
    """

    def __init__(self, fps: float, binary: np.ndarray, decay: float | None) -> None:
        self._fps, self._binary, self._decay = fps, binary, decay
        self._chunks: deque[Chunk] = deque(maxlen=64)  # newest first

    def clear(self) -> None:
        self._chunks.clear()

    def add(self, chunk: Chunk) -> bool:
        """False if it is known, or older than one that is."""
        if self._chunks and chunk.stamp <= self._chunks[0].stamp:
            return False
        if self._decay is None:
            self._chunks.clear()
        self._chunks.appendleft(chunk)
        return True

    def action(self, now: float) -> tuple[np.ndarray, float] | None:
        """(A,) for ``now`` and the stamp of the newest chunk in it; None where none reaches to now."""
        while self._chunks and self._index(self._chunks[-1], now) >= len(self._chunks[-1].actions):
            self._chunks.pop()
        if not self._chunks:
            return None
        newest = self._chunks[0]
        steps = [self._index(chunk, now) for chunk in self._chunks]
        if min(steps) < 0:
            return None  # the clock went back
        predictions = np.stack([chunk.actions[step] for chunk, step in zip(self._chunks, steps, strict=True)])
        if len(predictions) == 1 or self._decay is None:
            return predictions[0], newest.stamp
        ages = np.array([newest.stamp - chunk.stamp for chunk in self._chunks]) * self._fps
        weights = np.exp(-self._decay * ages)
        mean = weights @ predictions / weights.sum()
        return np.where(self._binary, mean >= 0.5, mean), newest.stamp

    def _index(self, chunk: Chunk, now: float) -> int:
        return int(np.floor((now - chunk.stamp) * self._fps + _ALMOST))
