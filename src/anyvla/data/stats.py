"""Exact statistics of the actions, and of the states, of a set of episodes; computed in parallel, in bounded memory, and once.

Quantiles are those of all frames, not of a sample and not put together from those of episodes: the values of a dimension are
gathered, for as many dimensions at a time as the memory allows, and partitioned at the ranks wanted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.data.episode import Episode
from anyvla.errors import DataError

Statistics = dict[str, np.ndarray]

NAMES = ("min", "max", "mean", "std", "q01", "q99")
MEMORY = 2**29  # bytes of values held at a time: 10^8 frames are gone through one dimension at a time
_VERSION = 1  # of what is computed; a change makes old results unused
_BLOCK = 1 << 18  # values summed at a time


def action_statistics(episodes: Iterable[Episode], cache: Path | None = None, key: str = "") -> Statistics:
    """``min``, ``max``, ``mean``, ``std``, ``q01``, ``q99`` of every action dimension: name -> (A,) float64.

    Quantiles are true quantiles of all frames, linearly interpolated.

    Args:
        cache: folder of all caches; nothing is kept if None. What was found for the same episodes by their names and
            fingerprints is read from there.
        key: what else the actions depend on: where the episodes are, the settings of their source, the action spec.

    Raises DataError without episodes, or for an action that is not finite.
    """
    return _cached(list(episodes), lambda episode: episode.actions, cache, f"actions {key}")


def state_statistics(episodes: Iterable[Episode], cache: Path | None = None, key: str = "") -> Statistics:
    """As ``action_statistics``, of the episodes' states: name -> (S,). All of them must have one, of the same names."""
    stateful = [episode for episode in episodes if episode.state_names]
    names = " ".join(stateful[0].state_names) if stateful else ""
    return _cached(stateful, lambda episode: episode.state, cache, f"state {names} {key}")


def exact_statistics(parts: Callable[[], Iterable[np.ndarray]], rows: int, width: int, memory: int = MEMORY) -> Statistics:
    """Of all the rows, as (T, width) arrays, that each call of ``parts`` gives again. See ``action_statistics``."""
    at_a_time = max(1, min(width, memory // (4 * rows)))
    found: list[dict[str, float]] = []
    with ThreadPoolExecutor(min(at_a_time, os.cpu_count() or 1)) as threads:
        for first in range(0, width, at_a_time):
            dims = range(first, min(first + at_a_time, width))
            values = np.empty((len(dims), rows), dtype=np.float32)
            row = 0
            for part in parts():
                values[:, row : row + len(part)] = part[:, dims.start : dims.stop].T
                row += len(part)
            found += threads.map(_of_one_dimension, values)
    return {name: np.array([one[name] for one in found]) for name in NAMES}


def _of_one_dimension(values: np.ndarray) -> dict[str, float]:
    """Of (N,) float32, which are left in another order."""
    blocks = [values[i : i + _BLOCK] for i in range(0, len(values), _BLOCK)]
    mean = sum(float(block.sum(dtype=np.float64)) for block in blocks) / len(values)
    variance = sum(float(np.square(block.astype(np.float64) - mean).sum()) for block in blocks) / len(values)
    places = {name: q * (len(values) - 1) for name, q in (("q01", 0.01), ("q99", 0.99))}
    ranks = sorted({rank for place in places.values() for rank in (int(place), min(int(place) + 1, len(values) - 1))})
    low, high = values.min(), values.max()
    values.partition(ranks)
    quantiles = {}
    for name, place in places.items():
        below, above = float(values[int(place)]), float(values[min(int(place) + 1, len(values) - 1)])
        quantiles[name] = below + (above - below) * (place - int(place))
    return {"min": float(low), "max": float(high), "mean": mean, "std": variance**0.5, **quantiles}


def _cached(
    episodes: Sequence[Episode], values: Callable[[Episode], np.ndarray | None], cache: Path | None, key: str
) -> Statistics:
    if not episodes:
        raise DataError("statistics of no episodes")
    path = None if cache is None else cache / "statistics" / f"{_digest(episodes, key)}.json"
    if path is not None and (known := _read(path)) is not None:
        return known

    def parts() -> Iterable[np.ndarray]:
        for episode in episodes:
            part = values(episode)
            if part is None or part.shape != (episode.length, width):
                shape = None if part is None else part.shape
                raise DataError(f"{episode.name}: {what} of the shape {shape}, not {(episode.length, width)}")
            if not np.isfinite(part).all():
                raise DataError(f"{episode.name}: {what} hold non-finite values")
            yield part

    what = key.split()[0]
    first = values(episodes[0])
    width = 0 if first is None else first.shape[-1]
    statistics = exact_statistics(parts, sum(episode.length for episode in episodes), width)
    if path is not None:
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        with suppress(OSError):  # a cache without room: they are found anew the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(statistics_to_dict(statistics)))
            os.replace(partial, path)
    return statistics


def _digest(episodes: Sequence[Episode], key: str) -> str:
    digest = hashlib.sha256(f"{_VERSION} {key}\n".encode())
    for episode in episodes:
        digest.update(f"{episode.name}\0{episode.fingerprint}\0{episode.length}\n".encode())
    return digest.hexdigest()[:32]


def _read(path: Path) -> Statistics | None:
    """What was kept there, if it is whole."""
    try:
        known = json.loads(path.read_text())
        return {name: np.array(known[name], dtype=np.float64) for name in NAMES}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def statistics_to_dict(statistics: Statistics) -> dict[str, Any]:
    return {name: value.tolist() for name, value in statistics.items()}
