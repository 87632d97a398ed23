"""Collect -> train -> evaluate on Meta-World, as small as it can be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anyvla.config import load_config
from anyvla.config.tree import FirstActionConfig
from anyvla.data.sources.lerobot import LeRobotSource
from anyvla.errors import AnyVLAError, ConfigError
from anyvla.evaluation.metaworld_worlds import ArmResult, arm_tasks
from anyvla.simulation.gl import choose_backend
from anyvla.simulation.metaworld_tasks import DEMO_TASKS, SENTENCES, wordings
from anyvla.simulation.seeds import collection_seed

TASKS = "handle-press-v3,faucet-open-v3"


def test_worlds_are_unseen_and_the_same_for_every_probe() -> None:
    plain = arm_tasks(DEMO_TASKS, 20, seed=7)
    assert len({task.seed for task in plain}) == 60
    assert min(task.seed for task in plain) > collection_seed(999_999, 999_999, 999)
    for name in DEMO_TASKS:
        splits = [task.split for task in plain if task.task == name]
        assert (splits.count("held_out"), splits.count("train")) == (10, 10)
    assert all(task.instruction in wordings(task.task, task.split) for task in plain)
    for probe in ("blind", "shuffled-language", "randomised"):
        probed = arm_tasks(DEMO_TASKS, 20, seed=7, probe=probe)
        assert [(task.task, task.seed, task.split) for task in probed] == [(task.task, task.seed, task.split) for task in plain]
        assert all(task.new_start == (probe == "randomised") for task in probed)
        if probe == "blind":
            assert {task.instruction for task in probed} == {""}
        if probe == "shuffled-language":
            others = {name: [line for other in DEMO_TASKS if other != name for line in _all(other)] for name in DEMO_TASKS}
            assert all(task.instruction in others[task.task] for task in probed)
    (alone,) = arm_tasks(["reach-v3"], 1, seed=0, probe="shuffled-language")
    assert alone.instruction in {said for name, said in SENTENCES.items() if name != "reach-v3"} | {
        line for name in DEMO_TASKS for line in _all(name)
    }
    with pytest.raises(ConfigError, match="no probe 'swapped'"):
        arm_tasks(DEMO_TASKS, 1, 0, "swapped")
    with pytest.raises(ConfigError, match="1000000"):
        arm_tasks(DEMO_TASKS, 1, 1_000_000)


def _all(task: str) -> tuple[str, ...]:
    return (*wordings(task, "train"), *wordings(task, "held_out"))


def test_a_result_survives_json() -> None:
    result = ArmResult(3, "reach-v3", 5, "train", "go", True, None, 40, [0.1, 0.2, 0.3], 0, [1.5])
    entry = result.to_dict()
    assert (entry["world"], entry["score"]) == ("reach-v3:5", 1.0)
    assert ArmResult.from_dict(json.loads(json.dumps(entry))) == result


def test_simulation_processes_do_not_load_the_libraries_of_the_models() -> None:
    choose_backend()
    code = "import sys, anyvla.evaluation.metaworld_worlds, anyvla.simulation.metaworld; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("metaworld")
    choose_backend()
    folder = tmp_path_factory.mktemp("metaworld") / "data"
    _collect(folder, 2)
    _collect(folder, 4)  # an interrupted collection goes on
    return folder


def _collect(out: Path, episodes: int, **options):
    from anyvla.simulation.metaworld_collect import collect_metaworld

    return collect_metaworld(out, TASKS, episodes, 0, (24, 32), **{"workers": 0, **options})


def test_a_collection_is_a_dataset_of_successes(data: Path, tmp_path: Path) -> None:
    source = LeRobotSource(data)
    assert len(source) == 4
    assert source.cameras == ("corner",)
    assert source.spec.names == ("dx", "dy", "dz", "gripper")
    again = tmp_path / "again"
    assert _collect(again, 4, workers=2).written == 4
    other = LeRobotSource(again)
    for i in range(4):
        episode = source.episode(i)
        assert episode.fps == 80
        assert episode.instruction in wordings(TASKS.split(",")[i % 2])
        assert episode.state_names == ("hand_x", "hand_y", "hand_z", "gripper")
        assert np.abs(episode.actions).max() <= 1
        np.testing.assert_array_equal(other.episode(i).actions, episode.actions)
        frames = [one.read(0, episode.length, ["corner"])["corner"] for one in (episode, other.episode(i))]
        assert frames[0].shape == (episode.length, 24, 32, 3)
        np.testing.assert_array_equal(*frames)
    with pytest.raises(AnyVLAError, match="new_starts"):
        _collect(again, 5, new_starts=0.25)


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A policy of two steps of training."""
    from anyvla.training.loop import train

    overrides = [
        f"out={data.parent / 'run'}",
        f"data.source.path={data}",
        f"data.cache={data.parent / 'cache'}",
        "observation.image_size=[32,32]",
        "model.backbone={type: tiny, width: 32, vision_layers: 1, language_layers: 1}",
        "model.head={type: fc, hidden: 16, trunk: [16]}",
        "training={steps: 2, batch_size: 4}",
    ]
    return train(load_config("metaworld-tiny", overrides))


def _evaluate(run: Path | None, **options):
    from anyvla.evaluation.metaworld import evaluate_metaworld

    return evaluate_metaworld(
        run, **{"tasks": TASKS, "episodes": 1, "seed": 3, "image_size": (24, 32), "workers": 1, **options}
    )


def test_a_policy_is_evaluated_and_filmed(run: Path, tmp_path: Path) -> None:
    from anyvla.evaluation.metaworld import film_metaworld
    from anyvla.evaluation.report import Evaluation, ReportContent, write_report
    from anyvla.evaluation.results import read_results

    log = tmp_path / "log.jsonl"
    result = _evaluate(run, log_file=log)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    (read,) = read_results([path])
    assert {episode.task for episode in read.episodes} == set(TASKS.split(","))
    assert (result["episodes"], result["replans_every"], result["max_steps"]) == (2, 8, 250)
    assert all(len(entry["latency_ms"]) == entry["steps"] for entry in result["results"])
    assert _evaluate(run, log_file=log)["wall_time_s"] == result["wall_time_s"]  # it is there already
    again = _evaluate(run)
    assert [ArmResult.from_dict(entry) for entry in again["results"]] == [ArmResult.from_dict(e) for e in result["results"]]

    films = film_metaworld(run, result, indices=[1])
    assert films[0].frames[0].shape == (24, 32, 3)
    assert 0 < len(films[0].frames) <= films[0].steps
    page = write_report(tmp_path / "report.html", ReportContent("Arm", [Evaluation("Policy", result, kept=films)])).read_text()
    assert "handle-press-v3" in page
    assert "Passed on the" not in page
    assert "image/webp" in page


def test_the_expert_acts_through_the_same_door(run: Path) -> None:
    result = _evaluate(None, tasks="handle-press-v3", episodes=3, probe="randomised")
    assert (result["successes"], result["policy"]) == (3, "expert")
    with pytest.raises(ConfigError, match="the expert"):
        _evaluate(None, probe="blind")
    with pytest.raises(ConfigError, match="the expert"):
        _evaluate(None, execution=FirstActionConfig())


def test_a_policy_of_another_robot_is_refused(run: Path) -> None:
    from dataclasses import replace

    from anyvla.actions import ARM7
    from anyvla.evaluation.metaworld import worlds_for
    from anyvla.policies.policy import Policy

    policy = Policy.load(run)
    for change, message in (
        ({"spec": ARM7}, "driven with metaworld4"),
        ({"fps": 10.0}, "80 actions a second, the policy was trained for 10"),
        ({"cameras": ("front",)}, "the policy wants 'front'"),
    ):
        refused = Policy.load(run)
        refused.transforms = replace(policy.transforms, **change)
        with pytest.raises(ConfigError, match=message):
            worlds_for(refused, (24, 32))
