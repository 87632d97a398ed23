"""The result file of an evaluation, the same for every environment; ``anyvla compare`` works from its keys alone.

    {"env", "policy", "checkpoint", "seed", "probe", "execution", "replans_every", ...,
     "successes": k, "episodes": n, "wilson95": [low, high], "per_task": {task: {"successes", "episodes", "wilson95"}},
     "failures": {cause: count}, "results": [{"index", "task", "world", "success", "score", "steps", ...}, ...]}

``world`` names the initial state and its goal: two files pair where it agrees. ``score`` is 1.0 or 0.0, or for instance the
number of subtasks solved in a row.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from anyvla.errors import DataError
from anyvla.evaluation.statistics import wilson_interval

PROBES = {  # in the order in which tables show them
    "none": "score",
    "blind": "blind",
    "shuffled-language": "shuffled language",
    "randomised": "randomised start",
    "swapped": "sides swapped",
}


@dataclass(frozen=True)
class Episode:
    """What every environment says of one episode."""

    index: int
    task: str
    world: str
    success: bool
    score: float
    steps: int


@dataclass(frozen=True)
class ResultFile:
    """A result file as it was read; ``name`` is how tables call it. ``about``: everything but the episodes."""

    name: str
    path: Path
    about: dict[str, Any]
    episodes: tuple[Episode, ...]

    @property
    def probe(self) -> str:
        return self.about["probe"]

    @property
    def successes(self) -> int:
        return sum(episode.success for episode in self.episodes)

    @property
    def binary(self) -> bool:
        """Whether the scores say no more than success."""
        return all(episode.score == float(episode.success) for episode in self.episodes)


def rate(outcomes: Sequence[bool]) -> dict[str, Any]:
    """``successes``, ``episodes`` and ``wilson95``."""
    successes = sum(outcomes)
    return {"successes": successes, "episodes": len(outcomes), "wilson95": list(wilson_interval(successes, len(outcomes)))}


def summarize_episodes(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The counts of a result file from its ``results``; a cause of failure is their key ``failure``, where they have it."""
    tasks: dict[str, list[bool]] = {}
    for result in results:
        tasks.setdefault(result["task"], []).append(result["success"])
    causes = Counter(cause for result in results if (cause := result.get("failure")))
    return {
        **rate([result["success"] for result in results]),
        "per_task": {task: rate(tasks[task]) for task in sorted(tasks)},
        "failures": dict(causes.most_common()),
    }


def read_results(paths: Sequence[Path]) -> list[ResultFile]:
    """Result files, ours and vla-eval's, each named as its file, with the folder where file names repeat.

    Raises:
        DataError: a file is no result file; it names the file and the key.
    """
    stems = [path.stem for path in paths]
    names = [f"{path.parent.name}/{path.stem}" if stems.count(path.stem) > 1 else path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [_read(path, name) for path, name in zip(paths, names, strict=True)]


def _read(path: Path, name: str) -> ResultFile:
    try:
        content = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: no result file of `anyvla eval --json` ({error})") from error
    from anyvla.evaluation.vla_eval_results import from_vla_eval, is_vla_eval  # which shares the counting here

    if is_vla_eval(content):
        try:
            content = from_vla_eval(content, policy=name)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("results"), list):
        raise DataError(f"{path}: no result file of `anyvla eval --json`: it has no list `results`")
    about = {key: value for key, value in content.items() if key != "results"}
    for key in ("env", "policy", "probe"):
        if not isinstance(about.get(key), str):
            raise DataError(f"{path}: key `{key}` is missing or no text: evaluate again with this version of anyvla")
    episodes = tuple(_episode(path, i, entry) for i, entry in enumerate(content["results"]))
    if not episodes:
        raise DataError(f"{path}: key `results` holds no episode")
    counted = (sum(episode.success for episode in episodes), len(episodes))
    if counted != (about.get("successes"), about.get("episodes")):
        raise DataError(
            f"{path}: keys `successes` and `episodes` say {about.get('successes')}/{about.get('episodes')}, its `results` "
            f"{counted[0]}/{counted[1]}: the file was changed or cut"
        )
    return ResultFile(name, path, about, episodes)


def _episode(path: Path, i: int, entry: Any) -> Episode:
    types: dict[str, type | tuple[type, ...]] = {
        "index": int,
        "task": str,
        "world": str,
        "success": bool,
        "score": (int, float),
        "steps": int,
    }
    if not isinstance(entry, dict):
        raise DataError(f"{path}: entry {i} of `results` is no episode")
    for key, expected in types.items():
        if not isinstance(entry.get(key), expected) or (isinstance(entry[key], bool) and key != "success"):
            raise DataError(f"{path}: entry {i} of `results` has no valid `{key}`: evaluate again with this version of anyvla")
    if not isfinite(entry["score"]):
        raise DataError(f"{path}: the score of entry {i} of `results` is {entry['score']}")
    return Episode(**{key: entry[key] for key in types})
