"""Exact statistics of the actions, and of the states, of a set of episodes."""

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
    return _statistics([episode.actions for episode in episodes])


def state_statistics(episodes: Iterable[Episode]) -> Statistics:
    """As ``action_statistics``, of the episodes' states: name -> (S,). All of them must have one, of the same names."""
    return _statistics([episode.state for episode in episodes if episode.state is not None])


def _statistics(parts: list[np.ndarray]) -> Statistics:
    if not parts:
        raise DataError("statistics of no episodes")
    values = np.concatenate(parts).astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    return {
        "min": values.min(0),
        "max": values.max(0),
        "mean": values.mean(0),
        "std": values.std(0),
        "q01": q01,
        "q99": q99,
    }


def statistics_to_dict(statistics: Statistics) -> dict[str, Any]:
    return {name: value.tolist() for name, value in statistics.items()}
