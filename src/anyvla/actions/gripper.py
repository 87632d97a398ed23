"""Gripper commands of many conventions as one: 0 or 1 at every step, 1 = open.

Datasets record positions or changes, and either open or closed as 1. A flip in both training and evaluation cancels and hides.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_OPEN, _CLOSED = 0.95, 0.05  # beyond these a gripper is fully open or closed
_STILL = 0.1  # a smaller change is none


def open_from_position(values: np.ndarray) -> np.ndarray:
    """(T,) positions, 1 = open and 0 (or -1) = closed -> (T,) float32 of 0 and 1.

    Above 0.95 is open and below 0.05 closed. A value between, as a gripper on its way has, takes the state that it arrives at;
    at the end of an episode the one that it came from. Where neither is ever reached, 0.5 separates.
    """
    known = np.flatnonzero((values > _OPEN) | (values < _CLOSED))
    if len(known) == 0:
        return (values > 0.5).astype(np.float32)
    nearest = np.minimum(np.searchsorted(known, np.arange(len(values))), len(known) - 1)
    return (values[known[nearest]] > _OPEN).astype(np.float32)


def open_from_closedness(values: np.ndarray) -> np.ndarray:
    """As ``open_from_position``, of positions with 1 = closed and 0 (or -1) = open."""
    return open_from_position(1 - np.clip(values, 0, 1))


def open_from_closing(values: np.ndarray) -> np.ndarray:
    """(T,) changes, above 0.1 closes, below -0.1 opens, 0 leaves it as it is -> (T,) float32 of 0 and 1.

    Before its first change a gripper was in the other state; one that never changes is open.
    """
    changes = np.flatnonzero(np.abs(values) > _STILL)
    if len(changes) == 0:
        return np.ones(len(values), dtype=np.float32)
    opens = values[changes] < 0
    last = np.searchsorted(changes, np.arange(len(values)), side="right") - 1
    return np.where(last < 0, ~opens[0], opens[np.maximum(last, 0)]).astype(np.float32)


GRIPPER_RULES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "open": open_from_position,
    "closed": open_from_closedness,
    "closing": open_from_closing,
    "always_open": lambda values: np.ones(len(values), dtype=np.float32),
    "always_closed": lambda values: np.zeros(len(values), dtype=np.float32),
}
