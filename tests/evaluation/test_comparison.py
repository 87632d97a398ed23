"""Result files and their comparison: what is paired, what the tables say, and which files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla.config.tree import EnsembleConfig, FirstActionConfig, RecedingHorizonConfig
from anyvla.errors import ConfigError, DataError
from anyvla.evaluation.comparison import compare, compare_files
from anyvla.evaluation.results import read_results, summarize_episodes
from anyvla.evaluation.statistics import bootstrap_difference, bootstrap_interval, newcombe_interval
from anyvla.evaluation.tables import Table, render
from anyvla.policies.execution import replans_every


def write(path: Path, scores: list[float], *, worlds: str = "w{}", full: float = 1.0, **about: Any) -> Path:
    """A result file; a score of ``full`` is a success."""
    results = [
        {
            "index": i,
            "task": f"t{i % 2}",
            "world": worlds.format(i),
            "success": s == full,
            "score": s,
            "steps": 9,
            "failure": None,
        }
        for i, s in enumerate(scores)
    ]
    head = {"env": "nav", "policy": path.stem, "checkpoint": None, "seed": 0, "probe": "none", "execution": {"type": "first"}}
    path.write_text(json.dumps({**head, "replans_every": 1, **summarize_episodes(results), "results": results, **about}))
    return path


def files(*paths: Path) -> Any:
    return read_results(paths)


A = [1.0] * 6 + [0.0] * 8 + [1.0] * 2
B = [1.0] * 14 + [0.0] * 2


def test_the_same_worlds_are_paired_in_any_order(tmp_path: Path) -> None:
    a, b = files(write(tmp_path / "a.json", A), write(tmp_path / "b.json", B))
    difference = compare_files(a, b)
    assert difference.value == pytest.approx(6 / 16)
    assert difference.worlds == 16
    assert difference.p_value == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert "both 6, only a 2, only b 8, neither 0" in difference.how
    content = json.loads(b.path.read_text())
    content["results"].reverse()
    b.path.write_text(json.dumps(content))
    assert compare_files(a, files(b.path)[0]) == difference
    back = compare_files(b, a)
    assert back.value == -difference.value
    assert back.interval == pytest.approx((-difference.interval[1], -difference.interval[0]))


def test_more_episodes_of_the_same_worlds_pair_where_both_are(tmp_path: Path) -> None:
    a, b = files(write(tmp_path / "a.json", A), write(tmp_path / "b.json", B[:10]))
    difference = compare_files(a, b)
    assert difference.worlds == 10
    assert "6 episodes left out" in difference.how
    # a world that is visited twice pairs visit by visit
    c, d = files(write(tmp_path / "c.json", A, worlds="same"), write(tmp_path / "d.json", B, worlds="same"))
    assert compare_files(c, d).worlds == 16


def test_other_worlds_are_two_samples(tmp_path: Path) -> None:
    paths = (
        write(tmp_path / "a.json", [1.0] * 48 + [0.0] * 32),
        write(tmp_path / "b.json", [1.0] * 56 + [0.0] * 14, worlds="v{}"),
    )
    difference = compare_files(*files(*paths))
    assert (difference.worlds, difference.p_value) == (None, None)
    assert difference.interval == pytest.approx((0.0524, 0.3339), abs=5e-5)  # Newcombe 1998, table II, example (a), method 10
    assert "not paired (0 worlds in common)" in difference.how


def test_scores_are_compared_by_bootstrap(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 60).astype(float)
    second = np.minimum(first + rng.integers(0, 2, 60), 5)
    a = write(tmp_path / "a.json", first.tolist(), full=5.0)
    b = write(tmp_path / "b.json", second.tolist(), full=5.0)
    c = write(tmp_path / "c.json", second.tolist(), full=5.0, worlds="v{}")
    paired, apart = compare_files(*files(a, b)), compare_files(*files(a, c))
    assert paired.value == pytest.approx(float((second - first).mean())) == apart.value
    assert (paired.worlds, apart.worlds) == (60, None)
    width, width_apart = (d.interval[1] - d.interval[0] for d in (paired, apart))
    assert width < 0.6 * width_apart  # pairing is worth its name
    assert paired.interval[0] < paired.value < paired.interval[1]
    text = compare(files(a, b))
    assert "mean score" in text
    assert compare(files(a, b)) == text  # deterministic


def test_bootstrap_agrees_with_the_normal_interval_on_many_values() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, 400)
    spread = 1.96 * values.std() / 20
    assert bootstrap_interval(values) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.01)
    assert bootstrap_interval(values[::-1]) == bootstrap_interval(values)
    low, high = bootstrap_difference(values, values)
    assert (low, high) == pytest.approx((-spread * 2**0.5, spread * 2**0.5), abs=0.015)
    assert bootstrap_interval([3.0, 3.0]) == (3.0, 3.0)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_newcombe_intervals_hold_the_difference_and_mirror(n: int, m: int, data: st.DataObject) -> None:
    a, b = (data.draw(st.integers(0, n)), n), (data.draw(st.integers(0, m)), m)
    low, high = newcombe_interval(a, b)
    assert -1 - 1e-12 <= low <= b[0] / m - a[0] / n <= high <= 1 + 1e-12
    assert newcombe_interval(b, a) == pytest.approx((-high, -low))


def test_probes_become_columns_of_one_row(tmp_path: Path) -> None:
    paths = [write(tmp_path / "policy.json", B, policy="runs/p")]
    for probe, scores in (("randomised", A), ("blind", A), ("shuffled-language", [0.0] * 16)):
        paths.append(write(tmp_path / f"{probe}.json", scores, policy="runs/p", probe=probe))
    text = compare(files(*paths))
    heading, row = text.splitlines()[1:3]
    order = [heading.index(name) for name in ("policy", "score", "blind", "shuffled language", "randomised start")]
    assert order == sorted(order)
    assert row.startswith("policy")
    assert row.count("[") == 7  # a rate each, and what three probes changed
    assert "0.875" in row
    assert "-0.375" in row
    assert "-0.875" in row
    assert "blind against policy: paired in 16 worlds" in text
    # a second policy gives a second row, and the comparison of the two without probes before it
    paths.append(write(tmp_path / "other.json", A, policy="runs/o"))
    both = compare(files(*paths))
    assert "other: paired in 16 worlds" in both
    assert [line for line in both.splitlines() if line.startswith("other ")][-1].count("–") == 3


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    a = write(tmp_path / "a.json", A)
    b = write(tmp_path / "b.json", B, seed=3, replans_every=5)
    text = compare(files(a, b))
    assert "different seeds: a 0, b 3" in text
    assert "different steps between predictions: a 1, b 5" in text
    c = write(tmp_path / "c.json", B, probe="blind", policy="other")
    assert "different probes: a none, c blind" in compare(files(a, c))
    three = compare(files(a, b, write(tmp_path / "d.json", A)))
    assert "not corrected for 2 comparisons" in three


def test_success_by_task(tmp_path: Path) -> None:
    text = compare(files(write(tmp_path / "a.json", A), write(tmp_path / "b.json", B)), per_task=True)
    assert "4/8" in text.split("Success by task.")[1].splitlines()[2]


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    named = files(write(tmp_path / "x" / "r.json", A), write(tmp_path / "y" / "r.json", B))
    assert [file.name for file in named] == ["x/r", "y/r"]


@pytest.mark.parametrize("form", ["text", "markdown", "latex"])
def test_a_table_has_all_its_cells(form: Any) -> None:
    table = Table("Title", {"policy": ["a_b", "c"], "rate": ["50 %", "-0.1 [-0.2, 0.0]"]}, ["a note"])
    text = render(table, form)
    for part in ("Title", "policy", "rate", "c", "0.1", "a note"):
        assert part in text
    if form == "latex":
        assert r"a\_b & 50 \% \\" in text
        assert r"c & $-0.1$ [$-0.2$, 0.0] \\" in text
        assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    if form == "markdown":
        assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {3}


def test_mistakes_name_the_file_and_the_key(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", A)
    content = json.loads(good.read_text())

    def broken(**changes: Any) -> Path:
        path = tmp_path / "broken.json"
        path.write_text(json.dumps({**content, **changes}))
        return path

    for changes, message in (
        ({"results": "x"}, "no list `results`"),
        ({"results": []}, "holds no episode"),
        ({"results": [1]}, "entry 0 of `results` is no episode"),
        ({"probe": None}, "key `probe` is missing"),
        ({"successes": 3}, "say 3/16, its `results` 8/16"),
        *(({"results": [{**content["results"][0], key: None}]}, f"no valid `{key}`") for key in ("task", "world", "score")),
        ({"results": [{**content["results"][0], "score": float("nan")}]}, "score of entry 0"),
    ):
        with pytest.raises(DataError, match=rf"broken\.json.*{message}"):
            files(good, broken(**changes))
    with pytest.raises(DataError, match=r"missing\.json"):
        files(good, tmp_path / "missing.json")
    with pytest.raises(ConfigError, match="is of calvin"):
        compare(files(good, write(tmp_path / "c.json", A, env="calvin")))
    with pytest.raises(ConfigError, match="two result files"):
        compare(files(good))


def vla_eval(path: Path, solved: list[list[int]], full: int = 5, **about: Any) -> Path:
    """A result as vla-eval 0.8 writes it, of two tasks."""
    tasks = [
        {
            "task": f"seq_{t}",
            "episodes": [
                {"episode_id": i, "metrics": {"success": n == full, "completed_subtasks": n}, "steps": 10 * n}
                for i, n in enumerate(scores)
            ],
        }
        for t, scores in enumerate(solved)
    ]
    content = {"benchmark": "CALVINBenchmark", "harness_version": "0.8.0", "seed": 0, "config": {}, "tasks": tasks, **about}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_results_of_vla_eval_are_compared_too(tmp_path: Path) -> None:
    a, b = files(
        vla_eval(tmp_path / "a" / "CALVIN_aggregate.json", [[5, 3, 0], [1, 2, 2]]),
        vla_eval(tmp_path / "b" / "CALVIN_aggregate.json", [[5, 5, 0], [1, 2, 3]]),
    )
    assert (a.name, a.successes, b.successes, len(a.episodes)) == ("a/CALVIN_aggregate", 1, 2, 6)
    difference = compare_files(a, b)
    assert difference.worlds == 6
    assert difference.value == pytest.approx(3 / 6)
    other_seed = files(vla_eval(tmp_path / "c.json", [[5, 3, 0], [1, 2, 2]], seed=1))[0]
    assert compare_files(a, other_seed).worlds is None
    damaged = vla_eval(tmp_path / "d.json", [[5]], tasks=[{"task": "t", "episodes": [{"episode_id": 0}]}])
    with pytest.raises(DataError, match=r"d\.json: episode 0 of vla-eval's result"):
        files(damaged)


def test_how_often_a_policy_looks() -> None:
    assert replans_every(FirstActionConfig()) == replans_every(EnsembleConfig()) == 1
    assert replans_every(RecedingHorizonConfig(steps=7)) == 7
