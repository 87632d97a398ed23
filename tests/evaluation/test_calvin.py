"""The CALVIN driver, against a checkout in miniature; on the real one if ANYVLA_CALVIN_ROOT (and _PYTHON) name it."""

from __future__ import annotations

import ast
import io
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from anyvla.actions import DELTA7, POSE7
from anyvla.actions.frames import world_to_tcp
from anyvla.checkpoint import load_checkpoint
from anyvla.cli import app
from anyvla.config.tree import RecedingHorizonConfig
from anyvla.doctor import examine_calvin
from anyvla.errors import ConfigError, SimulationError
from anyvla.evaluation.calvin import worker
from anyvla.evaluation.calvin.chains import ROBOT_OBS, evaluation_chains, initial_observations
from anyvla.evaluation.calvin.checkout import read_sentences, read_surfaces
from anyvla.evaluation.calvin.drivers import PolicyDriver
from anyvla.evaluation.calvin.evaluate import evaluate_calvin, summarize_chains
from anyvla.evaluation.calvin.probes import make_jobs
from anyvla.evaluation.calvin.rollouts import ChainResult, Command, Job, Observation, drive_chains
from anyvla.evaluation.calvin.simulator import Simulator
from anyvla.policies.policy import Policy
from tests.evaluation.arm_policy import make_arm_policy
from tests.evaluation.fake_calvin import write_fake_calvin

FORWARD = np.array([1.0, 0, 0, 0, 0, 0, 1])


class Script:
    """Always the same command; looks at every ``every``-th step of a subtask, or never."""

    cameras: tuple[str, ...] = ("rgb_static",)

    def __init__(self, values: np.ndarray = FORWARD, every: int = 0) -> None:
        self.values, self.every = values, every
        self.seen: list[tuple[int, Observation]] = []
        self.said: list[str] = []
        self.batches: list[tuple[int, ...]] = []
        self._steps: dict[int, int] = {}

    def begin(self, slot: int, instruction: str) -> None:
        self.said.append(instruction)
        self._steps[slot] = 0

    def looks(self, slot: int) -> bool:
        return bool(self.every) and self._steps[slot] % self.every == 0

    def act(self, slots: Sequence[int], observations: Sequence[Observation]) -> list[Command]:
        self.seen += zip(slots, observations, strict=True)
        if any(self.looks(slot) for slot in slots):
            self.batches.append(tuple(slots))
        for slot in slots:
            self._steps[slot] += 1
        return [Command(self.values) for _ in slots]

    def finish(self, slot: int) -> dict[str, Any]:
        return {}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_calvin(tmp_path_factory.mktemp("calvin"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_arm_policy(tmp_path_factory.mktemp("arm") / "run", state=("gripper_width", "tcp_z"))


def _jobs(root: Path, count: int = 3, probe: Any = "none") -> list[Job]:
    return make_jobs(evaluation_chains(count), read_sentences(root), read_surfaces(root), probe)


def test_subtasks_follow_from_the_state_that_the_last_one_left(root: Path) -> None:
    driver, results = Script(), []
    with Simulator(root, driver.cameras) as simulator:
        drive_chains([simulator], _jobs(root, 2), driver, results.append, max_steps=20)
    assert [(result.index, result.solved, result.steps) for result in results] == [(0, 5, 25), (1, 5, 25)]
    first = [observation for _, observation in driver.seen[:25]]
    start, _ = initial_observations(evaluation_chains(1)[0].state)
    np.testing.assert_allclose([seen.robot_obs[0] for seen in first], start[0] + 0.02 * np.arange(25))
    assert [seen.step for seen in first] == [0, 1, 2, 3, 4] * 5
    assert driver.said[:5] == [f"now {task}" for task in evaluation_chains(1)[0].tasks]
    assert all(subtask["success"] and subtask["steps"] == 5 for subtask in results[0].subtasks)


def test_nothing_of_a_chain_is_left_in_the_next_one(root: Path) -> None:
    driver = Script(np.array([1.0, 0, 0, 0, 0, 0, -1]))
    with Simulator(root, ()) as simulator:
        drive_chains([simulator], _jobs(root, 2), driver)
    for first in (driver.seen[0][1], driver.seen[25][1]):
        np.testing.assert_array_equal(first.robot_obs, initial_observations(evaluation_chains(1)[0].state)[0])
    assert driver.seen[1][1].robot_obs[14] == -1


def test_the_first_failure_ends_the_chain_at_the_last_step_allowed(tmp_path: Path) -> None:
    chain = evaluation_chains(1)[0]
    root = write_fake_calvin(tmp_path, hard=(chain.tasks[2],))
    for max_steps, solved, steps in ((14, 2, 10 + 14), (15, 5, 10 + 15 + 10)):
        driver, results = Script(), []
        with Simulator(root, ()) as simulator:
            drive_chains([simulator], _jobs(root, 1), driver, results.append, max_steps=max_steps)
        assert (results[0].solved, results[0].steps) == (solved, steps)
        assert len(results[0].subtasks) == min(5, solved + 1)
        assert results[0].to_dict()["failure"] == (chain.tasks[2] if solved < 5 else None)
        assert ChainResult.from_dict(json.loads(json.dumps(results[0].to_dict()))) == results[0]


def test_pictures_are_rendered_only_when_the_driver_looks(root: Path) -> None:
    driver = Script(every=3)
    with Simulator(root, driver.cameras) as simulator:
        drive_chains([simulator], _jobs(root, 1), driver)
    renders = [seen.images["rgb_static"][0, 0, 0] for _, seen in driver.seen if seen.images is not None]
    assert [seen.step for _, seen in driver.seen if seen.images is not None] == [0, 3] * 5
    assert list(renders) == list(range(1, 11))  # the camera counts: no picture was made for nobody
    assert all(seen.images.keys() == {"rgb_static"} for _, seen in driver.seen if seen.images is not None)


def test_batches_depend_on_the_number_of_environments_and_not_on_time(root: Path) -> None:
    batches = []
    for _ in range(2):
        driver = Script(every=2)
        with Simulator(root, driver.cameras) as one, Simulator(root, driver.cameras) as two:
            drive_chains([one, two], _jobs(root, 3), driver)
        batches.append(driver.batches)
    assert batches[0] == batches[1]
    assert batches[0][:15] == [(0, 1)] * 15  # both look at the same time, three times in each of five subtasks
    assert set(batches[0][15:]) == {(0,)}


def test_an_environment_that_dies_is_quoted(root: Path) -> None:
    rocket = Script(np.array([0, 0, 9999.0, 0, 0, 0, 1]))
    with pytest.raises(SimulationError, match=r"exit status 3(.|\n)*the table has gone(.|\n)*doctor calvin"):
        evaluate_calvin(rocket, root, chains=1, workers=1)
    with pytest.raises(SimulationError, match="AssertionError"):  # CALVIN wants the gripper to be exactly -1 or 1
        evaluate_calvin(Script(np.zeros(7)), root, chains=1, workers=1)
    with pytest.raises(SimulationError, match="cannot be run"):
        evaluate_calvin(Script(), root, chains=1, python="/no/such/python")
    with pytest.raises(ConfigError, match="no checkout of CALVIN"):
        evaluate_calvin(Script(), root / "calvin_models", chains=1)


def test_a_policy_is_evaluated_from_the_command_line(root: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["eval", str(run), "--env", "calvin", "--calvin-root", str(root), "--chains", "3", "--json", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--videos", str(tmp_path / "videos")])
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert "predicts every 5 steps" in done.output
    assert (result["env"], result["probe"], result["seed"], result["replans_every"]) == ("calvin", "none", 0, 5)
    assert result["episodes"] == 3 == len(result["results"])
    assert result["average_length"] == sum(entry["score"] for entry in result["results"]) / 3
    lengths = [rate["successes"] for rate in result["in_a_row"].values()]
    assert lengths == sorted(lengths, reverse=True)
    assert sum(lengths) == sum(entry["score"] for entry in result["results"])
    low, high = result["average_length95"]
    assert low - 1e-9 <= result["average_length"] <= high
    assert result["successes"] + sum(result["failures"].values()) == 3
    for entry, chain in zip(result["results"], evaluation_chains(3), strict=True):
        assert entry["world"] == chain.world
        assert entry["success"] == (entry["score"] == 5)
        assert entry["steps"] == sum(subtask["steps"] for subtask in entry["subtasks"]) > 0
        assert len(entry["latency_ms"]) == sum(-(-subtask["steps"] // 5) for subtask in entry["subtasks"])
    films = sorted((tmp_path / "videos").glob("*.webp"))
    assert len(films) == sum(not entry["success"] for entry in result["results"])


def test_what_a_policy_sees_and_what_becomes_of_its_actions(tmp_path: Path) -> None:
    _, scene_obs = initial_observations(evaluation_chains(1)[0].state)
    robot_obs = np.arange(15.0) / 10
    images = {"rgb_static": np.zeros((20, 20, 3), np.uint8)}
    seen = Observation("open_drawer", "open it", 0, robot_obs, scene_obs, images)
    world = np.array([0.3, -0.2, 0.5, 0.1, 0.2, -0.3, 0.0])
    given: list[Any] = []
    # (the policy's actions, its frame, what it answers, what the environment gets)
    in_tool = world_to_tcp(world, robot_obs[3:6])
    cases: list[tuple[dict[str, Any], str, np.ndarray, np.ndarray, bool]] = [
        ({}, "world", world, np.array([*world[:6], -1]), False),
        ({}, "world", np.array([*world[:6], 1]), np.array([*world[:6], 1]), False),
        ({}, "tcp", in_tool, np.array([*world[:6], -1]), False),
        ({"spec": DELTA7}, "world", world, np.array([*world[:3] * 50, *world[3:6] * 20, -1]), False),
        ({"spec": POSE7}, "world", world, np.array([*world[:6], -1]), True),
    ]
    for i, (options, frame, answer, expected, absolute) in enumerate(cases):
        folder = make_arm_policy(tmp_path / str(i), cameras=("rgb_static",), state=("tcp_z", "joint_7"), **options)
        policy = Policy.load(folder)
        driver = PolicyDriver(policy, frame)  # type: ignore[arg-type]

        def answers(sessions: Any, images: Any, *, states: Any, answer: np.ndarray = answer) -> list[np.ndarray]:
            given.append((images, states))
            return [answer]

        policy.act_batch = answers  # type: ignore[method-assign,assignment]
        driver.begin(0, "open it")
        (command,) = driver.act([0], [seen])
        np.testing.assert_allclose(command.values, expected, atol=1e-6)
        assert command.values[6] in (-1, 1)
        assert command.absolute == absolute
        assert driver.cameras == ("rgb_static",)
        assert given[-1][0][0] is images
        np.testing.assert_allclose(given[-1][1][0], [robot_obs[2], robot_obs[ROBOT_OBS.index("joint_7")]])


def test_poses_reach_the_environment(root: Path) -> None:
    with Simulator(root, ()) as simulator:
        robot_obs, scene_obs = initial_observations(evaluation_chains(1)[0].state)
        simulator.request({"type": "reset"}, robot_obs=robot_obs, scene_obs=scene_obs)
        simulator.request({"type": "begin", "task": "open_drawer", "render": False})
        pose = np.array([0.1, 0.2, 0.5, 3.0, 0.0, 1.5, -1.0])
        answer, seen = simulator.request({"type": "step", "render": False, "absolute": True}, action=pose)
    np.testing.assert_allclose(seen["robot_obs"][[0, 1, 2, 3, 4, 5, 14]], pose)
    assert not answer["success"]


def test_a_policy_for_another_robot_is_refused(tmp_path: Path) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "30 actions a second": {"fps": 10.0},
        "the camera 'wrist'": {"cameras": ("wrist",)},
        "state 'tcp_w'.*did you mean": {"state": ("tcp_w",)},
    }
    for i, (said, options) in enumerate(wrong.items()):
        with pytest.raises(ConfigError, match=said):
            PolicyDriver(Policy.load(make_arm_policy(tmp_path / str(i), **options)))


def test_an_interrupted_evaluation_goes_on(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    whole = evaluate_calvin(Script(), root, chains=4, log_file=log)
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:3]) + "\n" + lines[3][:40])  # killed in the middle of the third chain's line
    driver = Script()
    again = evaluate_calvin(driver, root, chains=4, log_file=log)
    assert len(driver.said) == 10  # two chains
    assert again["results"] == whole["results"]
    fresh = Script()
    evaluate_calvin(fresh, root, chains=4, log_file=log, seed=1)  # another evaluation takes nothing over
    assert len(fresh.said) == 20


def test_the_same_policy_gives_the_same_result(root: Path, run: Path) -> None:
    first, second = (
        evaluate_calvin(run, root, chains=2, execution=RecedingHorizonConfig(steps=3), max_steps=12) for _ in range(2)
    )
    for result in (first, second):
        for entry in result["results"]:
            del entry["latency_ms"]
    assert first["results"] == second["results"]
    assert first["replans_every"] == 3


def test_probes_change_what_is_said_or_where_it_starts_and_nothing_else(root: Path) -> None:
    plain, blind, shuffled, moved = (_jobs(root, 60, probe) for probe in ("none", "blind", "shuffled-language", "randomised"))
    for job, mute, other, elsewhere in zip(plain, blind, shuffled, moved, strict=True):
        assert job.chain == mute.chain == other.chain == elsewhere.chain
        assert set(mute.sentences) == {""}
        assert all(a != b for a, b in zip(job.sentences, other.sentences, strict=True))
        assert elsewhere.sentences == job.sentences
        for same in (mute, other):
            np.testing.assert_array_equal(job.scene_obs, same.scene_obs)
            np.testing.assert_array_equal(job.robot_obs, same.robot_obs)
        np.testing.assert_array_equal(job.scene_obs[:6], elsewhere.scene_obs[:6])  # doors, switches, lights
        assert np.abs(job.robot_obs - elsewhere.robot_obs)[7:14].max() <= 0.1
        blocks = elsewhere.scene_obs[6:].reshape(3, 6)
        for block, color in zip(blocks, ("red", "blue", "pink"), strict=True):
            low, high = read_surfaces(root)[job.chain.state[f"{color}_block"]]
            assert np.all((block[:3] >= low) & (block[:3] <= high))
        gaps = [np.linalg.norm(blocks[i, :3] - blocks[j, :3]) for i, j in ((0, 1), (0, 2), (1, 2))]
        assert min(gaps) >= 0.1
    assert len({job.sentences for job in shuffled}) == 60
    # a chain's draws do not depend on which others are driven
    np.testing.assert_array_equal(_jobs(root, 1, "randomised")[0].robot_obs, moved[0].robot_obs)
    with pytest.raises(ConfigError, match="did you mean 'blind'"):
        _jobs(root, 1, "blnd")


def test_chains_are_counted() -> None:
    def result(i: int, solved: int) -> ChainResult:
        chain = evaluation_chains(i + 1)[i]
        return ChainResult(i, chain.world, chain.tasks, solved, 10, [])

    nothing = summarize_chains([result(i, 0) for i in range(20)])
    assert nothing["average_length"] == 0
    assert nothing["in_a_row"]["1"]["wilson95"][1] == pytest.approx(0.161, abs=1e-3)
    some = summarize_chains([result(1, 2), result(0, 5)])
    assert [entry["index"] for entry in some["results"]] == [0, 1]
    assert [some["in_a_row"][n]["successes"] for n in "12345"] == [2, 2, 1, 1, 1]
    assert some["average_length"] == 3.5
    assert some["average_length95"] == [2, 5]
    assert some["successes"] == 1


def test_the_frame_of_the_actions_comes_from_the_checkpoint(run: Path, tmp_path: Path) -> None:
    from anyvla.evaluation.calvin.evaluate import _trained_on

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert load_checkpoint(run).folder == run
    sources: dict[str, Any] = {"a": {"type": "mobile_h5"}, "b": {"type": "calvin", "frame": "tcp"}}
    expected: list[tuple[dict[str, Any], Any]] = [
        ({"type": "mobile_h5"}, (None, "world")),
        ({"type": "calvin", "frame": "tcp"}, (None, "tcp")),
        ({"type": "mixture", "sources": sources}, ("b", "tcp")),
    ]
    for source, answer in expected:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, "data": {"source": source}}))
        assert _trained_on(tmp_path) == answer
    both = {"type": "mixture", "sources": {name: {"type": "calvin"} for name in "ab"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": {"source": both}}))
    with pytest.raises(ConfigError, match="2 are of the type calvin"):
        _trained_on(tmp_path)


def test_frames_come_back_as_they_were_and_forged_ones_are_refused() -> None:
    arrays = {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": np.array([0.1, np.inf]), "c": np.zeros((0, 3))}
    stream = io.BytesIO()
    worker.write_frame(stream, {"type": "step", "task": "open \N{GREEK SMALL LETTER ALPHA}"}, arrays)
    data = stream.getvalue()
    header, back = worker.read_frame(io.BytesIO(data))
    assert header == {"type": "step", "task": "open \N{GREEK SMALL LETTER ALPHA}"}
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
    for length in (0, 3, 10, len(data) - 1):
        with pytest.raises(EOFError):
            worker.read_frame(io.BytesIO(data[:length]))
    for described in (["a", "|O", [1]], ["a", "<f8", [-1]], ["a", "<f8", [1 << 40]], ["a", "<f8", ["1"]]):
        text = json.dumps({"arrays": [described]}).encode()
        with pytest.raises(ValueError, match="array 'a'"):
            worker.read_frame(io.BytesIO(struct.pack("<I", len(text)) + text + bytes(64)))
    with pytest.raises(ValueError, match="no frame"):
        worker.read_frame(io.BytesIO(b"b3Warning: noise"))


def test_the_worker_stands_alone_and_runs_on_an_old_python() -> None:
    tree = ast.parse(Path(worker.__file__).read_text(), feature_version=(3, 8))
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("anyvla") for name in top)


def test_the_doctor_says_what_a_checkout_lacks(root: Path, tmp_path: Path) -> None:
    states = {finding.name: finding for finding in examine_calvin(None, None)}
    assert "git clone" in states["checkout"].detail
    write_fake_calvin(tmp_path)
    (tmp_path / "calvin_env/calvin_env/envs/play_table_env.py").unlink()
    problems = [finding.detail for finding in examine_calvin(tmp_path, None) if finding.state == "problem"]
    assert "git submodule" in problems[0]
    missing = CliRunner().invoke(app, ["doctor", "calvin", "--calvin-root", str(tmp_path / "nowhere")])
    assert missing.exit_code == 1
    silent = {finding.name: finding for finding in examine_calvin(root, "/bin/true")}
    assert "does not answer" in silent["its python"].detail


class PressTheButton:
    """Moves the hand over the button of scene D and down."""

    cameras: tuple[str, ...] = ()

    def begin(self, slot: int, instruction: str) -> None:
        self._way = [np.array(place) for place in ((-0.12, -0.12, 0.58), (-0.12, -0.12, 0.4))]

    def looks(self, slot: int) -> bool:
        return False

    def act(self, slots: Sequence[int], observations: Sequence[Observation]) -> list[Command]:
        (seen,) = observations
        away = self._way[0] - seen.robot_obs[:3]
        if len(self._way) > 1 and np.abs(away).max() < 0.02:
            self._way.pop(0)
        return [Command(np.array([*np.clip(away / 0.02, -0.5, 0.5), 0, 0, 0, -1]))]

    def finish(self, slot: int) -> dict[str, Any]:
        return {}


@pytest.fixture
def real() -> tuple[Path, str | None]:
    if "ANYVLA_CALVIN_ROOT" not in os.environ:
        pytest.skip("ANYVLA_CALVIN_ROOT names no checkout of CALVIN")
    return Path(os.environ["ANYVLA_CALVIN_ROOT"]), os.environ.get("ANYVLA_CALVIN_PYTHON")


@pytest.mark.slow
def test_the_real_environment_knows_success_and_failure(real: tuple[Path, str | None]) -> None:
    chains = [chain for chain in evaluation_chains() if chain.tasks[0] in ("turn_on_led", "turn_off_led")][:4]
    jobs = make_jobs(chains, read_sentences(real[0]), read_surfaces(real[0]))
    results: list[ChainResult] = []
    with Simulator(real[0], (), real[1]) as simulator:
        drive_chains([simulator], jobs, PressTheButton(), results.append, max_steps=120)
    assert [result.solved for result in results] == [1] * 4
    assert all(result.subtasks[0]["steps"] < 60 for result in results)


@pytest.mark.slow
def test_the_real_environment_is_driven(real: tuple[Path, str | None]) -> None:
    assert all(finding.state == "ok" for finding in examine_calvin(*real))
    with Simulator(real[0], ("rgb_static", "rgb_gripper"), real[1]) as simulator:
        for chain in evaluation_chains(2):
            robot_obs, scene_obs = initial_observations(chain.state)
            simulator.request({"type": "reset"}, robot_obs=robot_obs, scene_obs=scene_obs)
            answer, seen = simulator.request({"type": "begin", "task": chain.tasks[0], "render": True})
            np.testing.assert_allclose(seen["robot_obs"], robot_obs, atol=1e-3)
            np.testing.assert_allclose(seen["scene_obs"][:6], scene_obs[:6], atol=1e-3)
            assert (seen["rgb_static"].shape, seen["rgb_gripper"].shape) == ((200, 200, 3), (84, 84, 3))
            up = np.array([0.0, 0.0, 0.5, 0.0, 0.0, 0.0, -1.0])
            for _ in range(10):
                answer, after = simulator.request({"type": "step", "render": False, "absolute": False}, action=up)
            assert after["robot_obs"][2] > seen["robot_obs"][2] + 0.05
            assert after["robot_obs"][6] < seen["robot_obs"][6] - 0.05  # the gripper is closed
            assert not answer["success"]
