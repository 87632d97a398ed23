"""``anyvla compare``: two or more result files against the first, pair by pair where they are of the same worlds.

Success is compared with the exact McNemar test and the interval of paired proportions, other scores with a paired bootstrap;
worlds that differ give two independent samples: Newcombe's interval, or a bootstrap of both. All intervals are 95 %.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyvla.errors import ConfigError
from anyvla.evaluation.results import PROBES, Episode, ResultFile
from anyvla.evaluation.statistics import (
    bootstrap_difference,
    bootstrap_interval,
    compare_paired,
    newcombe_interval,
    wilson_interval,
)
from anyvla.evaluation.tables import Format, Table, render

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """``other`` minus ``baseline``.

    Attributes:
        worlds: pairs, or None where the samples are independent. p_value: of McNemar's exact test, where success was paired.
        how: one sentence on what was done.
    """

    value: float
    interval: Interval
    worlds: int | None
    p_value: float | None
    how: str


def compare_files(baseline: ResultFile, other: ResultFile) -> Difference:
    """The difference of their success rates; of their mean scores where a score says more than success.

    They are paired if every world of one is a world of the other.

    Raises:
        ConfigError: they are of different environments.
    """
    if baseline.about["env"] != other.about["env"]:
        raise ConfigError(
            f"{other.path} is of {other.about['env']}, {baseline.path} of {baseline.about['env']}: only results of one "
            "environment can be compared"
        )
    binary = baseline.binary and other.binary
    pairs = _paired(baseline.episodes, other.episodes)
    if pairs is None:
        shared = len({episode.world for episode in baseline.episodes} & {episode.world for episode in other.episodes})
        how = f"not paired ({shared} worlds in common): two independent samples, "
        if binary:
            counts = [(file.successes, len(file.episodes)) for file in (baseline, other)]
            value = counts[1][0] / counts[1][1] - counts[0][0] / counts[0][1]
            return Difference(value, newcombe_interval(*counts), None, None, how + "Newcombe's interval")
        scores = [_scores(file.episodes) for file in (baseline, other)]
        value = float(scores[1].mean() - scores[0].mean())
        return Difference(value, bootstrap_difference(*scores), None, None, how + "bootstrap interval")
    a, b = ([pair[i] for pair in pairs] for i in (0, 1))
    left_out = len(baseline.episodes) + len(other.episodes) - 2 * len(pairs)
    how = f"paired in {len(pairs)} worlds" + (f" ({left_out} episodes left out)" if left_out else "")
    if not binary:
        differences = _scores(b) - _scores(a)
        interval = bootstrap_interval(differences)
        return Difference(float(differences.mean()), interval, len(pairs), None, f"{how}: bootstrap interval")
    result = compare_paired([episode.success for episode in a], [episode.success for episode in b])
    how += (
        f": both {result.both}, only {baseline.name} {result.only_a}, only {other.name} {result.only_b}, neither "
        f"{result.neither}; exact McNemar p = {result.p_value:.3g}"
    )
    return Difference(result.difference, result.interval, len(pairs), result.p_value, how)


def _scores(episodes: Sequence[Episode]) -> np.ndarray:
    return np.array([episode.score for episode in episodes], dtype=np.float64)


def _paired(a: Sequence[Episode], b: Sequence[Episode]) -> list[tuple[Episode, Episode]] | None:
    """The episodes of the same worlds (k-th with k-th), or None if neither holds all the other's."""
    first, second = _by_world(a), _by_world(b)
    if not (first.keys() <= second.keys() or second.keys() <= first.keys()):
        return None
    return [(first[key], second[key]) for key in first if key in second]


def _by_world(episodes: Sequence[Episode]) -> dict[tuple[str, int], Episode]:
    seen: dict[str, int] = {}
    found = {}
    for episode in sorted(episodes, key=lambda episode: episode.index):
        seen[episode.world] = seen.get(episode.world, -1) + 1
        found[episode.world, seen[episode.world]] = episode
    return found


# ------------------------------------------------------------------------------------------------------------------- tables


def compare(files: Sequence[ResultFile], form: Format = "text", *, per_task: bool = False) -> str:
    """The tables of ``anyvla compare``. The first file is the baseline; files that differ by their probe alone share a row.

    Raises:
        ConfigError: fewer than two files, or files of different environments.
    """
    if len(files) < 2:
        raise ConfigError("anyvla compare wants two result files or more")
    for file in files[1:]:
        compare_files(files[0], file)  # refuses what cannot be compared before anything is shown
    groups = _groups(files)
    tables = []
    if groups is None:
        tables.append(_comparison(files))
    else:
        same_probe = [file for group in groups for file in group if file.probe == files[0].probe]
        if len(same_probe) > 1:
            tables.append(_comparison(same_probe))
        if any(len(group) > 1 for group in groups):
            tables.append(_probe_table(groups))
    if per_task:
        tables.append(_task_table(files))
    return "\n\n".join(render(table, form) for table in tables)


def _groups(files: Sequence[ResultFile]) -> list[list[ResultFile]] | None:
    """Files that differ by their probe alone, together; None where probes tell nothing apart, or not everything."""
    groups: dict[str, list[ResultFile]] = {}
    for file in files:
        about = file.about
        same = [about.get("checkpoint") or about["policy"], about.get("execution"), about.get("seed"), about.get("scenario")]
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(file)
    for group in groups.values():
        probes = {file.probe for file in group}
        if len(probes) < len(group) or files[0].probe not in probes:
            return None
    return list(groups.values())


def _comparison(files: Sequence[ResultFile]) -> Table:
    baseline, *others = files
    differences = [compare_files(baseline, other) for other in others]
    binary = all(file.binary for file in files)
    columns: dict[str, list[str]] = {"policy": [file.name for file in files]}
    if len({file.probe for file in files}) > 1:
        columns["probe"] = [file.probe for file in files]
    if not binary:
        columns["mean score"] = [_score_cell(file) for file in files]
    columns["success"] = [f"{file.successes}/{len(file.episodes)}" for file in files]
    columns["rate"] = [_rate_cell(file) for file in files]
    columns["difference of scores" if not binary else "difference"] = ["", *map(_difference_cell, differences)]
    if any(difference.p_value is not None for difference in differences):
        p_values = (difference.p_value for difference in differences)
        columns["p"] = ["", *("" if p is None else f"{p:.3g}" for p in p_values)]
    notes = [f"{other.name}: {d.how}" for other, d in zip(others, differences, strict=True)]
    if len(others) > 1 and "p" in columns:
        notes.append(f"the p values are not corrected for {len(others)} comparisons")
    return Table(_title(files), columns, [*notes, *_cautions(files)])


def _probe_table(groups: Sequence[Sequence[ResultFile]]) -> Table:
    """One row for each policy, one column for each probe, below it what the probe took away."""
    found = {file.probe for group in groups for file in group}
    probes = [probe for probe in PROBES if probe in found] + sorted(found - PROBES.keys())
    columns: dict[str, list[str]] = {"policy": [], **{PROBES.get(probe, probe): [] for probe in probes}}
    notes = []
    for group in groups:
        by_probe = {file.probe: file for file in group}
        first = by_probe.get("none", group[0])
        columns["policy"].append(first.name)
        for probe in probes:
            file = by_probe.get(probe)
            if file is None:
                cell = "–"
            else:
                cell = _rate_cell(file) if file.binary else _score_cell(file)
                if file is not first:
                    difference = compare_files(first, file)
                    cell += f"; {_difference_cell(difference)}"
                    notes.append(f"{file.name} against {first.name}: {difference.how}")
            columns[PROBES.get(probe, probe)].append(cell)
    return Table("Is the score real? " + _title([file for group in groups for file in group]), columns, notes)


def _task_table(files: Sequence[ResultFile]) -> Table:
    tasks = sorted({episode.task for file in files for episode in file.episodes})
    columns = {"task": tasks}
    for file in files:
        of = {task: [episode.success for episode in file.episodes if episode.task == task] for task in tasks}
        columns[file.name] = [_counts_cell(sum(of[task]), len(of[task])) if of[task] else "–" for task in tasks]
    return Table("Success by task.", columns, [])


def _title(files: Sequence[ResultFile]) -> str:
    return f"{files[0].about['env']}, 95 % intervals."


def _cautions(files: Sequence[ResultFile]) -> list[str]:
    """What else than the policy differs between the files."""
    cautions = []
    for key, words in (("seed", "seeds"), ("replans_every", "steps between predictions"), ("probe", "probes")):
        values = [file.about.get(key) for file in files]
        if any(value != values[0] for value in values):
            listed = ", ".join(f"{file.name} {value}" for file, value in zip(files, values, strict=True))
            cautions.append(f"different {words}: {listed}")
    return cautions


def _counts_cell(successes: int, episodes: int) -> str:
    low, high = wilson_interval(successes, episodes)
    return f"{successes}/{episodes} [{low:.2f}, {high:.2f}]"


def _rate_cell(file: ResultFile) -> str:
    k, n = file.successes, len(file.episodes)
    return _with_interval(k / n, wilson_interval(k, n))


def _score_cell(file: ResultFile) -> str:
    scores = _scores(file.episodes)
    return _with_interval(float(scores.mean()), bootstrap_interval(scores))


def _with_interval(value: float, interval: Any) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _difference_cell(difference: Difference) -> str:
    low, high = difference.interval
    return f"{difference.value:+.3f} [{low:+.3f}, {high:+.3f}]"
