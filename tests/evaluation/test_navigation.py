from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyvla.cli import app
from anyvla.config import load_config
from anyvla.config.tree import RecedingHorizonConfig
from anyvla.errors import CheckpointError, ConfigError
from anyvla.evaluation.comparison import compare_files
from anyvla.evaluation.navigation import evaluate_nav, film_nav
from anyvla.evaluation.results import read_results
from anyvla.evaluation.tasks import EpisodeResult, nav_tasks
from anyvla.policies.policy import Policy
from anyvla.simulation.collect import collect_nav
from anyvla.training.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has seen a few episodes of the real simulator, for two steps."""
    folder = tmp_path_factory.mktemp("nav")
    collect_nav(folder / "data", "1box", 4, 0, (32, 48), workers=1)
    return _train(folder, folder / "run", f"{{type: mobile_h5, path: {folder / 'data'}}}")


def _train(folder: Path, out: Path, source: str) -> Path:
    overrides = [
        f"out={out}",
        f"data={{source: {source}, cache: {folder / 'cache'}}}",
        "observation.image_size=[32,48]",
        "model.backbone={type: tiny, width: 32, vision_layers: 1, language_layers: 1}",
        "model.head={type: lstm, hidden: 16, trunk: [16]}",
        "training={steps: 2, batch_size: 4}",
    ]
    return train(load_config("nav-tiny", overrides))


def _evaluate(run: Path | None, **options):
    return evaluate_nav(run, **{"episodes": 4, "seed": 3, "image_size": (32, 48), **options})


def test_tasks_are_unseen_worlds_half_of_them_with_held_out_sentences() -> None:
    tasks = nav_tasks("1box", 100, seed=7)
    assert len({task.seed for task in tasks}) == 100
    assert sum(task.split == "held_out" for task in tasks) == 50
    for scenario in {task.scenario for task in tasks}:
        splits = [task.split for task in tasks if task.scenario == scenario]
        assert abs(splits.count("held_out") - splits.count("train")) <= 1
    assert nav_tasks("1box", 100, seed=7) == tasks
    swapped = nav_tasks("1box", 100, seed=7, probe="swapped")
    for task, other in zip(tasks, swapped, strict=True):
        assert (task.seed, task.split) == (other.seed, other.split)
        assert {task.scenario.rsplit("_", 1)[1], other.scenario.rsplit("_", 1)[1]} == {"left", "right"}
    assert all(task.blind for task in nav_tasks("1box", 3, seed=7, probe="blind"))
    with pytest.raises(ConfigError, match="did you mean 'blind'"):
        nav_tasks("1box", 3, seed=7, probe="blnd")
    with pytest.raises(ConfigError, match="at least 1"):
        nav_tasks("1box", 0, seed=7)
    with pytest.raises(ConfigError, match="1000000"):
        nav_tasks("1box", 3, seed=1_000_000)


def test_the_result_file_has_the_promised_fields(run: Path) -> None:
    result = _evaluate(run)
    json.dumps(result)
    assert result["episodes"] == 4 == len(result["seeds"]) == len(result["results"])
    assert result["successes"] + sum(result["failures"].values()) == 4
    assert result["wilson95"][0] <= result["successes"] / 4 <= result["wilson95"][1]
    assert sum(rate["episodes"] for rate in result["per_task"].values()) == 4
    assert {"p50", "p95", "p99"} == result["step_latency_ms"].keys()
    assert all(len(episode["latency_ms"]) == episode["steps"] for episode in result["results"])
    assert result["wall_time_s"] > 0
    assert result["machine"]["torch"]


def test_the_same_evaluation_gives_the_same_result(run: Path) -> None:
    first, second = ([EpisodeResult.from_dict(r) for r in _evaluate(run)["results"]] for _ in range(2))
    assert first == second  # all but the latencies


def test_the_expert_drives_through_the_same_door() -> None:
    result = _evaluate(None, episodes=8, scenario="all")
    assert result["successes"] == 8
    assert result["policy"] == "expert"


def test_an_interrupted_evaluation_goes_on(run: Path, tmp_path: Path, monkeypatch) -> None:
    whole = _evaluate(run)
    log = tmp_path / "log.jsonl"
    _evaluate(run, log_file=log)
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:3]) + "\n" + lines[3][: len(lines[3]) // 2])  # killed in the middle of the third line
    driven = []
    from anyvla.evaluation import driving

    original = driving.rollout_policy

    def count(policy, tasks, *rest, **options):
        driven.extend(tasks)
        return original(policy, tasks, *rest, **options)

    monkeypatch.setattr(driving, "rollout_policy", count)
    again = _evaluate(run, log_file=log)
    assert len(driven) == 2
    assert again["step_latency_ms"].keys() == whole["step_latency_ms"].keys()
    assert again["wall_time_s"] > 0
    assert _evaluate(run, log_file=log)["wall_time_s"] == again["wall_time_s"]  # nothing driven, nothing added
    assert [r["index"] for r in again["results"]] == [0, 1, 2, 3]
    assert [r["seed"] for r in again["results"]] == whole["seeds"]
    driven.clear()
    _evaluate(run, log_file=log, seed=4)  # another evaluation does not take over what this one found
    assert len(driven) == 4


def test_films_hold_what_the_policy_saw(run: Path) -> None:
    result = _evaluate(run)
    films = film_nav(run, result, indices=[2])
    assert [film.index for film in films] == [2]
    assert len(films[0].frames) == films[0].steps
    assert films[0].frames[0].shape == (32, 48, 3)
    assert len(film_nav(run, result, each=1)) == (result["successes"] > 0) + (result["successes"] < 4)


def test_execution_can_be_chosen(run: Path) -> None:
    result = _evaluate(run, execution=RecedingHorizonConfig(steps=3))
    assert result["execution"] == {"type": "receding", "steps": 3}
    assert result["safety"]["max_observation_age"] == 1.0
    with pytest.raises(ConfigError, match="steps is 11, but the policy predicts 10"):
        _evaluate(run, execution=RecedingHorizonConfig(steps=11))
    with pytest.raises(ConfigError, match="the expert predicts no chunks"):
        _evaluate(None, execution=RecedingHorizonConfig(steps=3))


def test_a_policy_of_a_mixture_is_evaluated_in_the_scale_of_the_source_that_is_named(run: Path, tmp_path: Path) -> None:
    one = f"{{type: mobile_h5, path: {run.parent / 'data'}}}"
    mixed = _train(run.parent, tmp_path / "run", f"{{type: mixture, weights: {{a: 1, b: 1}}, sources: {{a: {one}, b: {one}}}}}")
    with pytest.raises(ConfigError, match=r"several sources.*a, b"):
        _evaluate(mixed, episodes=1)
    assert _evaluate(mixed, episodes=1, source="b")["source"] == "b"
    result = CliRunner().invoke(app, ["eval", str(mixed), "--source", "c", "--episodes", "1"])
    assert result.exit_code == 1


def test_results_with_probes_pair_and_other_seeds_do_not(tmp_path: Path) -> None:
    paths = []
    for i, options in enumerate([{}, {"probe": "swapped"}, {"probe": "randomised"}, {"seed": 9}]):
        paths.append(tmp_path / f"{i}.json")
        paths[-1].write_text(json.dumps(_evaluate(None, **options)))
    first, *others = read_results(paths)
    assert first.successes == 4
    assert [compare_files(first, other).worlds for other in others] == [4, 4, None]


def test_shuffled_language_says_another_sentence_in_the_same_world() -> None:
    from anyvla.simulation.env import BoxNav

    env = BoxNav("all", observe_images=False)
    plain, shuffled = nav_tasks("1box", 12, seed=7), nav_tasks("1box", 12, seed=7, probe="shuffled-language")
    for task, other in zip(plain, shuffled, strict=True):
        assert (task.scenario, task.seed, task.split) == (other.scenario, other.seed, other.split)
        _, info = env.reset(seed=task.seed, options={"scenario": task.scenario})
        layout = env.layout()
        _, probed = env.reset(seed=task.seed, options={"scenario": task.scenario, "sentence_of": other.sentence_of})
        assert env.layout() == layout
        assert probed["scenario"] == info["scenario"]  # by which success is judged
        told = {side for side in ("left", "right") if side in probed["instruction"]}
        assert told == {"left", "right"} - {task.scenario.rsplit("_", 1)[1]}
    assert len({task.sentence_of for task in shuffled}) > 2


def test_randomised_starts_elsewhere_in_the_same_world() -> None:
    from anyvla.simulation.env import BoxNav

    env = BoxNav("all", observe_images=False)
    for task in nav_tasks("all", 16, seed=7, probe="randomised"):
        env.reset(seed=task.seed, options={"scenario": task.scenario})
        before = env.layout()
        env.reset(seed=task.seed, options={"scenario": task.scenario, "new_start": task.new_start})
        after = env.layout()
        start, other = before.pop("start"), after.pop("start")
        assert before == after
        assert start != other
        assert abs(other[0]) <= 0.1
        assert abs(other[1]) <= 0.25
        assert abs(other[2]) <= 4 * 3.1416 / 180


def test_every_probe_is_driven(run: Path) -> None:
    for probe in ("shuffled-language", "randomised"):
        result = _evaluate(run, probe=probe, episodes=2)
        assert result["probe"] == probe
        assert {"index", "task", "world", "success", "score", "steps"} <= result["results"][0].keys()
    assert "replans_every" in result


def test_a_policy_of_another_robot_is_refused(run: Path, monkeypatch) -> None:
    from dataclasses import replace

    from anyvla.evaluation import navigation

    original = Policy.load

    def slow(*args, **options):
        policy = original(*args, **options)
        policy.transforms = replace(policy.transforms, fps=5.0)
        return policy

    monkeypatch.setattr(navigation.Policy, "load", slow)
    with pytest.raises(ConfigError, match=r"takes 2\.5 actions a second, the policy was trained for 5"):
        _evaluate(run)


def test_simulation_processes_do_not_load_the_libraries_of_the_models() -> None:
    code = "import sys, anyvla.evaluation.workers, anyvla.simulation.env; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a run nor a checkpoint"):
        _evaluate(tmp_path)


def test_a_result_survives_json() -> None:
    result = EpisodeResult(0, "1box_hori_left", 1, "train", "go", True, None, ["left"], 3, 0.1, [[0.0, 0.0, 0.0]], {}, 0)
    assert EpisodeResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert result.passed_as_told
