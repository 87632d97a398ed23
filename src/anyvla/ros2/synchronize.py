"""From messages, which come when they come, to episodes of a fixed rate: six rules that importer and recorder share.

1. A camera's time is its header's stamp; the time of arrival where there is none, or where the two do not go together.
2. A command without a header has the time of its arrival.
3. At every tick of the clock the newest frame counts, never a later one, which would show what the action led to; no frame
   older than ``max_age``.
4. The action is the command in force at the tick, zero if the last one is older than ``gap``; or the mean of what is in force
   until the next tick.
5. An instruction that arrives after the first frames holds from the episode's first frame on.
6. Gaps and changes of the instruction end an episode.

All functions are pure. Times are seconds in float64; N messages, T ticks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

MAX_DELAY = 1.0  # seconds between stamp and arrival; with more, the two clocks are different ones
CommandRule = Literal["hold", "mean"]


@dataclass(frozen=True)
class Stretch:
    """T ticks in which every camera has a frame, under one instruction."""

    times: np.ndarray  # (T,) float64
    frames: dict[str, np.ndarray]  # camera (and whatever else was required) -> (T,) index of its message
    instruction: str | None  # None where nobody has said anything


def message_times(received: np.ndarray, stamps: np.ndarray) -> np.ndarray:
    """When what the messages say was so (rules 1 and 2).

    Args:
        received: (N,) arrival. stamps: (N,) of the headers, NaN where there is none.

    Returns: (N,) the stamp, or the arrival: of all messages if their median delay is negative or above a second, and else of
    those whose own delay is, as clocks jump.
    """
    delays = received - stamps
    stamped = delays[np.isfinite(delays)]
    if len(stamped) == 0 or not 0 <= np.median(stamped) <= MAX_DELAY:
        return received.copy()
    with np.errstate(invalid="ignore"):
        return np.where((delays >= 0) & (delays <= MAX_DELAY), stamps, received)


def newest(times: np.ndarray, moments: np.ndarray, max_age: float = np.inf) -> np.ndarray:
    """(T,) index of the newest of the sorted ``times`` at each moment, -1 where none is young enough (rule 3)."""
    index = np.searchsorted(times, moments, side="right") - 1
    if len(times) == 0:
        return index
    age = moments - times[np.maximum(index, 0)]
    return np.where((index >= 0) & (age <= max_age), index, -1)


def in_force(times: np.ndarray, values: np.ndarray, moments: np.ndarray, gap: float) -> np.ndarray:
    """(T, D) the last of the commands ``values`` (N, D), zero where it is older than ``gap`` or there is none (rule 4)."""
    index = newest(times, moments, gap)
    if len(times) == 0:
        return np.zeros((len(moments), values.shape[1]))
    return np.where((index >= 0)[:, None], values[np.maximum(index, 0)], 0.0)


def mean_in_force(times: np.ndarray, values: np.ndarray, moments: np.ndarray, gap: float, step: float) -> np.ndarray:
    """(T, D) the mean of what is in force from each moment until ``step`` seconds later (rule 4)."""
    if len(times) == 0:
        return np.zeros((len(moments), values.shape[1]))
    begins = times
    ends = np.minimum(np.append(times[1:], np.inf), times + gap)
    # the integral of what is in force is piecewise linear: it rises while a command holds and stays while none does
    knots = np.stack([begins, ends], axis=1).ravel()
    rises = np.stack([np.zeros_like(values), values * (ends - begins)[:, None]], axis=1).reshape(-1, values.shape[1])
    integral = np.cumsum(rises, axis=0)
    at = [np.interp(when, knots, column) for when in (moments, moments + step) for column in integral.T]
    before, after = np.split(np.stack(at, axis=1), 2, axis=1)
    return (after - before) / step


def cut(
    cameras: Mapping[str, np.ndarray],
    further: Mapping[str, tuple[np.ndarray, float]],
    said: Sequence[tuple[float, str]],
    fps: float,
    max_age: float,
    anchor: float | None = None,
) -> list[Stretch]:
    """The stretches of a recording that are episodes (rules 3, 5 and 6).

    Args:
        cameras: name -> sorted times of its frames; the first one gives the beat. further: what else every tick must have, such
            as joints, with the age up to which it counts. said: sorted times and sentences; an empty one ends a task.
        anchor: a time at which there is a tick; the first frame after each gap if None.
    """
    first = next(iter(cameras.values()))
    required = {**{name: (times, max_age) for name, times in cameras.items()}, **further}
    stretches = []
    for begin, end in _runs(np.diff(first) <= max_age, len(first)):
        ticks = _ticks(first[begin], first[end - 1], fps, anchor)
        index = {name: newest(times, ticks, age) for name, (times, age) in required.items()}
        present = np.all([found >= 0 for found in index.values()], axis=0)
        for start, stop in _true_runs(present):
            sentences = _sentences(said, ticks[start:stop])
            for low, high, sentence in sentences:
                chosen = slice(start + low, start + high)
                stretches.append(Stretch(ticks[chosen], {name: found[chosen] for name, found in index.items()}, sentence))
    return stretches


def _ticks(begin: float, end: float, fps: float, anchor: float | None) -> np.ndarray:
    """All ticks from ``begin`` to ``end``, both included."""
    if anchor is None:
        anchor = begin
    low, high = int(np.ceil((begin - anchor) * fps)), int(np.floor((end - anchor) * fps))
    return anchor + np.arange(low, high + 1) / fps


def _sentences(said: Sequence[tuple[float, str]], ticks: np.ndarray) -> list[tuple[int, int, str | None]]:
    """First tick, last tick + 1 and sentence of every part with one sentence; parts with an empty one are left out."""
    index = newest(np.array([when for when, _ in said]), ticks)
    known = index[index >= 0]
    if len(known) == 0:
        return [(0, len(ticks), None)] if len(ticks) else []
    index[index < 0] = known[0]  # rule 5
    texts = [said[i][1].strip() for i in index]
    changes = [0, *(i for i in range(1, len(texts)) if texts[i] != texts[i - 1]), len(texts)]
    return [(low, high, texts[low]) for low, high in pairwise(changes) if texts[low]]


def _runs(together: np.ndarray, count: int) -> list[tuple[int, int]]:
    """First and last + 1 of the runs of ``count`` things, of which ``together[i]`` says whether i and i + 1 are in one."""
    if count == 0:
        return []
    edges = [0, *(np.flatnonzero(~together) + 1).tolist(), count]
    return list(pairwise(edges))


def _true_runs(flags: np.ndarray) -> list[tuple[int, int]]:
    padded = np.concatenate([[False], flags, [False]])
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
