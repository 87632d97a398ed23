"""Exact statistics of the actions of a set of episodes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from anyvla.data.episode import Episode
from anyvla.errors import DataError

Statistics = dict[str, np.ndarray]


def action_statistics(episodes: Iterable[Episode]) -> Statistics:
    """``min``, ``max``, ``mean``, ``std``, ``q01``, ``q99`` of every action dimension: name -> (A,) float64.

    Quantiles are true quantiles of all frames, linearly interpolated.
    """
    parts = [episode.actions for episode in episodes]
    if not parts:
        raise DataError("statistics of no episodes")
    actions = np.concatenate(parts).astype(np.float64)
    q01, q99 = np.quantile(actions, [0.01, 0.99], axis=0)
    return {
        "min": actions.min(0),
        "max": actions.max(0),
        "mean": actions.mean(0),
        "std": actions.std(0),
        "q01": q01,
        "q99": q99,
    }


def statistics_to_dict(statistics: Statistics) -> dict[str, Any]:
    return {name: value.tolist() for name, value in statistics.items()}
