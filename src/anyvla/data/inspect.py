"""Looking at data before training on it: counts, tasks, lengths, histograms, pictures, and what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from anyvla.actions.spec import ActionSpec
from anyvla.data.episode import Episode, EpisodeSource, Problem
from anyvla.data.pictures import Histogram, contact_sheet, film, histograms, task_bars
from anyvla.data.stats import Statistics, action_statistics, state_statistics, statistics_to_dict
from anyvla.errors import DataError
from anyvla.progress import progress_bar

_BINS = 60
_ROWS = 1 << 16  # of actions, that are looked at together
_TASKS = 20  # shown
_BLOCK = 16  # frames read together


@dataclass(frozen=True)
class DataReport:
    """What ``inspect_data`` found, and the files it made."""

    summary: dict[str, Any]
    problems: list[Problem]
    warnings: list[str]
    pictures: list[Path]


@runtime_checkable
class Checksummed(Protocol):
    """A source whose format has checksums."""

    def verify(self) -> list[Problem]:
        """Read everything, and list the episodes that have changed since they were written."""


@dataclass(frozen=True)
class _Values:
    """The actions, or states, of all episodes that have them, without holding them."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    episodes: list[Episode]
    statistics: Statistics
    is_state: bool

    def blocks(self) -> Iterator[np.ndarray]:
        """(N, len(names)), of many frames each."""
        waiting: list[np.ndarray] = []
        for episode in self.episodes:
            part = episode.state if self.is_state else episode.actions
            waiting += [] if part is None else [part]
            if sum(map(len, waiting)) >= _ROWS:
                yield np.concatenate(waiting)
                waiting = []
        if waiting:
            yield np.concatenate(waiting)

    def histograms(self) -> list[Histogram]:
        edges = []
        for low, high in zip(self.statistics["min"], self.statistics["max"], strict=True):
            # constant values get a bin of some width, and float32 ones lie inside their limits in float64
            spread = max(high - low, 1e-6 * max(1.0, abs(low)))
            edges.append(np.linspace(low, low + spread, _BINS + 1))
        counts = np.zeros((len(self.names), _BINS), dtype=np.int64)
        for block in self.blocks():
            for dim, edge in enumerate(edges):
                counts[dim] += np.histogram(np.clip(block[:, dim], edge[0], edge[-1]), edge)[0]
        labels = [f"{name} [{unit}]" if unit else name for name, unit in zip(self.names, self.units, strict=True)]
        quantiles = zip(self.statistics["q01"], self.statistics["q99"], strict=True)
        return [Histogram(*parts) for parts in zip(labels, counts, edges, *zip(*quantiles, strict=True), strict=True)]


def inspect_data(source: EpisodeSource, out: Path, *, video: bool = False) -> DataReport:
    """Describe ``source``, opened with ``on_bad_episode="skip"``.

    ``contact_sheet.png``, ``actions.png``, ``state.png`` (where there is one), ``tasks.png`` (where there are some),
    ``preview.mp4`` (with ``video``) and ``report.json`` go to ``out``. Images of a few episodes only are read.
    """
    episodes = [source.episode(i) for i in range(len(source))]
    lengths = np.array([episode.length for episode in episodes])
    instructions = Counter(episode.instruction for episode in episodes)
    tasks = Counter(episode.task for episode in episodes if episode.task)
    units = tuple(dim.unit for dim in source.spec.dims)
    actions = _Values(source.spec.names, units, episodes, action_statistics(episodes), is_state=False)
    state = _state(episodes)
    summary = {
        "episodes": len(episodes),
        "frames": int(lengths.sum()),
        "lengths": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
        "fps": dict(Counter(f"{episode.fps:g}" for episode in episodes)),
        "cameras": {camera: sum(camera in episode.cameras for episode in episodes) for camera in source.cameras},
        "instructions": {"different": len(instructions), "most_common": instructions.most_common(5)},
        "tasks": {"different": len(tasks), "most_common": tasks.most_common(_TASKS)},
        "actions": statistics_to_dict(actions.statistics),
        "state": None
        if state is None
        else {"names": list(state.names), "episodes": len(state.episodes), **statistics_to_dict(state.statistics)},
    }
    out.mkdir(parents=True, exist_ok=True)
    unreadable = contact_sheet(episodes, out / "contact_sheet.png")
    pictures = [out / "contact_sheet.png", out / "actions.png"]
    histograms(actions.histograms(), lengths, pictures[1])
    if state is not None:
        pictures.append(out / "state.png")
        histograms(state.histograms(), np.array([episode.length for episode in state.episodes]), pictures[-1])
    if tasks:
        pictures.append(out / "tasks.png")
        task_bars(tasks.most_common(_TASKS), len(tasks), pictures[-1])
    if video:
        preview, not_shown = film(episodes, out)
        pictures.append(preview)
        unreadable += not_shown
    problems = list(dict.fromkeys([*source.problems, *unreadable]))
    warnings = _warnings(source, episodes, actions)
    report = {"source": source.name, **summary, "warnings": warnings, "problems": [asdict(problem) for problem in problems]}
    (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    return DataReport(summary, problems, warnings, pictures)


def verify_data(source: EpisodeSource) -> list[Problem]:
    """Read every frame of every episode, and compare checksums where the format has some; what is wrong."""
    if isinstance(source, Checksummed):
        return source.verify()
    problems = []
    with progress_bar("read all episodes", len(source)) as bar:
        for episode in map(source.episode, range(len(source))):
            try:
                for start in range(0, episode.length, _BLOCK):
                    episode.read(start, min(start + _BLOCK, episode.length), episode.cameras)
            except DataError as error:
                problems.append(Problem(episode.name, str(error)))
            bar.advance()
    return problems


def _state(episodes: list[Episode]) -> _Values | None:
    """The robot's state, of the episodes that have the numbers which most episodes have."""
    counted = Counter(episode.state_names for episode in episodes if episode.state_names)
    if not counted:
        return None
    ((names, _),) = counted.most_common(1)
    having = [episode for episode in episodes if episode.state_names == names]
    return _Values(names, ("",) * len(names), having, state_statistics(having), is_state=True)


def _warnings(source: EpisodeSource, episodes: Sequence[Episode], actions: _Values) -> list[str]:
    found = []
    rates = sorted({round(episode.fps, 3) for episode in episodes})
    if len(rates) > 1:
        found.append(f"episodes have different control rates: {', '.join(f'{rate:g}' for rate in rates)} fps")
    low, high = actions.statistics["min"], actions.statistics["max"]
    for dim, share in zip(range(len(source.spec)), _at_limits(actions, source.spec), strict=True):
        name = source.spec.names[dim]
        if high[dim] - low[dim] < 1e-6:
            found.append(f"action {name} never changes: it is {low[dim]:g} in every frame")
        if source.spec.dims[dim].kind == "continuous" and share > 0.25:
            found.append(f"action {name} is at its limit in {share:.0%} of the frames: recorded clipped, or in another unit?")
    still = [e.name for e in episodes if not np.abs(e.actions[:, ~source.spec.binary]).max(initial=0) > 1e-6]
    if still:
        found.append(f"{len(still)} episodes command no motion at all, such as {still[0]}")
    if len({episode.instruction for episode in episodes}) == 1 and len(episodes) > 1:
        found.append("all episodes have the same instruction: a policy will learn to ignore it")
    states = Counter(episode.state_names for episode in episodes)
    if len(states) > 1:
        kinds = "; ".join(f"{count} have {', '.join(names) or 'none'}" for names, count in states.most_common())
        found.append(f"episodes have different states of the robot ({kinds}): observation.state needs its names in all of them")
    for camera in source.cameras:
        lacking = [episode.name for episode in episodes if camera not in episode.cameras]
        if lacking:
            found.append(
                f"{len(lacking)} episodes lack the camera {camera}, such as {lacking[0]}: see observation.optional_cameras"
            )
    short = [e.name for e in episodes if e.length < 3]
    if short:
        found.append(f"{len(short)} episodes have fewer than 3 frames, such as {short[0]}")
    return found


def _at_limits(actions: _Values, spec: ActionSpec) -> np.ndarray:
    """(A,): share of the frames in which each dimension is at one of its limits."""
    count, rows = np.zeros(len(spec)), 0
    for block in actions.blocks():
        count += ((block <= spec.low + 1e-4) | (block >= spec.high - 1e-4)).sum(0)
        rows += len(block)
    return count / rows
