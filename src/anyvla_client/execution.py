"""From the chunks that a model predicts, one at each step, to the actions that are executed. One object per episode."""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np


def ensemble(predictions: np.ndarray, ages: np.ndarray, decay: float, binary: np.ndarray) -> np.ndarray:
    """The mean of what was predicted for one moment, weighted exp(-decay * age).

    Args:
        predictions: (N, A), made ``ages`` (N,) ago, in steps. binary: (A,), dimensions that take the value of more weight.
    """
    weights = np.exp(-decay * ages)
    mean = weights @ predictions / weights.sum()
    return np.where(binary, mean >= 0.5, mean).astype(predictions.dtype)


class Execution(Protocol):
    """Takes the chunk predicted at every step (None at a step where the model did not run) and gives the action for it."""

    def needs_chunk(self) -> bool:
        """Whether the next ``action`` call needs a new chunk."""

    def action(self, chunk: np.ndarray | None) -> np.ndarray:
        """(L, A) predicted now -> (A,) to execute now."""

    def age(self) -> int:
        """Steps since the newest prediction that the last action came from."""


class FirstAction:
    """The first action of the newest chunk."""

    def needs_chunk(self) -> bool:
        return True

    def action(self, chunk: np.ndarray | None) -> np.ndarray:
        assert chunk is not None
        return chunk[0]

    def age(self) -> int:
        return 0


class RecedingHorizon:
    """``steps`` actions of a chunk, one after the other, before the next chunk is taken."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._chunk = np.empty(0)
        self._next = steps

    def needs_chunk(self) -> bool:
        return self._next >= self._steps

    def action(self, chunk: np.ndarray | None) -> np.ndarray:
        if self.needs_chunk():
            assert chunk is not None
            self._chunk, self._next = chunk, 0
        self._next += 1
        return self._chunk[self._next - 1]

    def age(self) -> int:
        return self._next - 1


class TemporalEnsemble:
    """The weighted mean of everything predicted for this moment, weight exp(-decay * age in steps).

    Newer predictions weigh more (ACT, arXiv 2304.13705, weighs the oldest most); decay 0 is the plain mean. Binary dimensions
    take the value that has more weight.
    """

    def __init__(self, decay: float, binary: np.ndarray) -> None:
        self._decay = decay
        self._binary = binary
        self._chunks: deque[np.ndarray] = deque()  # newest first

    def needs_chunk(self) -> bool:
        return True

    def action(self, chunk: np.ndarray | None) -> np.ndarray:
        assert chunk is not None
        self._chunks.appendleft(chunk)
        while len(self._chunks) > len(chunk):
            self._chunks.pop()
        predictions = np.stack([past[age] for age, past in enumerate(self._chunks)])
        return ensemble(predictions, np.arange(len(predictions)), self._decay, self._binary)

    def age(self) -> int:
        return 0
