"""The real vla-eval package drives small worlds with a policy of ours, and its adapters get what their simulators take."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from anyvla.config.tree import EnsembleConfig, RecedingHorizonConfig
from anyvla.errors import ConfigError, MissingExtraError
from anyvla.evaluation.results import read_results
from anyvla.policies.policy import Policy
from anyvla.serving.conventions import CONVENTIONS, convention
from anyvla.serving.vla_eval import Bridge, make_server, serve
from tests.serving.arm_policy import arm_policy

pytest.importorskip("vla_eval", reason="needs the extra vla-eval")

import anyio
from vla_eval import api
from vla_eval.connection import Connection
from vla_eval.recording import NullEpisodeRecorder

from tests.serving.point_world import RECEIVED, PointWorld

CONFIGS = Path(__file__).parents[2] / "integrations" / "vla-eval"
STATE = ("x", "y", "yaw", "gripper_width")


@contextmanager
def serving(server: Any) -> Iterator[api.ServerHandle]:
    """On a free port of this machine. vla-eval leaves the streams of its queue open when a server ends."""
    with api.serve_background(server) as served:
        yield served
    for stream in (server._send_stream, server._receive_stream):
        if stream is not None:
            stream.close()


def evaluate(url: str, out: Path, seed: int, **params: Any) -> dict[str, Any]:
    """vla-eval's own run of the small benchmark: two tasks, two episodes each."""
    entry = {
        "benchmark": "tests.serving.point_world:PointWorld",
        "episodes_per_task": 2,
        "params": {"seed": seed, **params},
    }
    config = {"server": {"url": url, "timeout": 60}, "benchmarks": [entry], "output_dir": str(out / str(seed))}
    return api.run(config, docker=False, no_save=True)[0]


def drive(policy: Policy, bridge: Bridge, seed: int, task: str, episode: int) -> list[np.ndarray]:
    """The same episode with the policy alone."""
    world = PointWorld(seed, send_state=bool(bridge.state))
    one = {"name": task, "episode_idx": episode}
    world.reset(one)
    session, sentence, actions = None, "", []
    while True:
        observation = world.make_obs(None, one)
        if session is None or observation["task_description"] != sentence:
            sentence = observation["task_description"]
            session = policy.start(sentence)
        state = observation["states"][[0, 1, 5, 6]] if bridge.state else None
        action = policy.act_batch([session], [observation["images"]], states=[state])[0]
        actions.append(bridge.translate(action))
        if world.step({"actions": actions[-1]}).done:
            return actions


@pytest.mark.parametrize(
    "execution", [None, RecedingHorizonConfig(steps=2), EnsembleConfig()], ids=["first", "receding", "ensemble"]
)
def test_a_benchmark_gets_the_actions_of_the_policy_alone(execution: Any, tmp_path: Path) -> None:
    policy = arm_policy(state=STATE, execution=execution)
    bridge = Bridge(policy, convention("calvin"))
    RECEIVED.clear()
    with serving(make_server(bridge)) as served, ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda seed: evaluate(served.url, tmp_path, seed), range(3)))
    assert all(result["tasks"][0]["episodes"][0]["steps"] == 6 for result in results)
    assert len(RECEIVED) == 12
    received = dict(RECEIVED)
    for key, actions in received.items():
        expected = drive(policy, bridge, *key)
        np.testing.assert_allclose(np.stack(actions), np.stack(expected), atol=1e-5, err_msg=str(key))
    firsts = np.stack([actions[0] for actions in received.values()])
    assert len(np.unique(firsts.round(6), axis=0)) == 12  # they do tell worlds and sentences apart


def test_observations_that_wait_share_a_forward_pass() -> None:
    policy = arm_policy()
    bridge = Bridge(policy, convention("calvin"))
    server = make_server(bridge, wait=0.2)
    sizes: list[int] = []
    arrived, all_arrived = [], threading.Event()
    answer, receive = policy.act_batch, server.on_observation

    def counted(sessions: Any, *rest: Any, **options: Any) -> Any:
        sizes.append(len(sessions))
        assert all_arrived.wait(30)
        return answer(sessions, *rest, **options)

    async def noted(obs: Any, ctx: Any) -> None:
        arrived.append(1)
        if len(arrived) == 4:
            all_arrived.set()
        await receive(obs, ctx)

    policy.act_batch, server.on_observation = counted, noted  # type: ignore[method-assign]

    async def one(url: str, i: int) -> None:
        async with Connection(url) as client:
            await client.start_episode({})
            await client.act(observation(i))

    async def clients(url: str) -> None:
        async with anyio.create_task_group() as group:
            for i in range(4):
                group.start_soon(one, url, i)

    with serving(server) as served:
        anyio.run(clients, served.url)
    assert sum(sizes) == 4
    assert max(sizes) > 1


def observation(i: int, sentence: str = "Push the red block.") -> dict[str, Any]:
    image = np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return {"images": {"rgb_static": image}, "task_description": sentence}


def alone(policy: Policy, bridge: Bridge, seeds: list[int]) -> list[np.ndarray]:
    session = policy.start("Push the red block.")
    return [bridge.translate(policy.act_batch([session], [observation(i)["images"]])[0]) for i in seeds]


def test_a_client_that_dies_or_errs_disturbs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    policy = arm_policy()
    bridge = Bridge(policy, convention("calvin"))
    server = make_server(bridge)
    caplog.set_level(logging.CRITICAL, "vla_eval")  # a record of an error would keep its frames, and they the session
    got: list[np.ndarray] = []
    begun: list[weakref.ref] = []
    start = policy.start

    def noted(sentence: str) -> Any:
        session = start(sentence)
        begun.append(weakref.ref(session))
        return session

    policy.start = noted  # type: ignore[method-assign]

    async def clients(url: str) -> None:
        async with Connection(url) as good, Connection(url, max_retries=1) as wrong:
            dying = Connection(url)
            await dying.connect()
            for client in (good, dying, wrong):
                await client.start_episode({})
            await dying.act(observation(50))
            got.append((await good.act(observation(0)))["actions"])
            await dying.send_observation(observation(51))
            dying._ws.transport.abort()  # in the middle of a step
            await dying.close()
            with pytest.raises(RuntimeError, match="lacks the camera 'rgb_static'"):
                await wrong.act({"images": {}, "task_description": "x"})
            with pytest.raises(RuntimeError, match="no `task_description`"):
                await wrong.act({"images": observation(1)["images"]})
            got.append((await good.act(observation(1)))["actions"])
            # an episode that ended with an error is followed by another one on the same connection
            await wrong.start_episode({})
            np.testing.assert_allclose((await wrong.act(observation(7)))["actions"], alone(policy, bridge, [7])[0], atol=1e-5)
            got.append((await good.act(observation(2)))["actions"])
            async with Connection(url) as late:
                with pytest.raises(RuntimeError, match="no episode was begun"):
                    await late.act(observation(3))

    with serving(server) as served:
        anyio.run(clients, served.url)
    np.testing.assert_allclose(np.stack(got), np.stack(alone(policy, bridge, [0, 1, 2])), atol=1e-5)
    gc.collect()
    assert [session() for session in begun] == [None] * len(begun)  # nothing is kept of episodes that are over


def test_a_world_that_loses_its_camera_fails_and_the_others_go_on(tmp_path: Path) -> None:
    policy = arm_policy()
    bridge = Bridge(policy, convention("calvin"))
    with serving(make_server(bridge)) as served, ThreadPoolExecutor(2) as pool:
        broken = pool.submit(evaluate, served.url, tmp_path, 11, images_until=3)
        whole = pool.submit(evaluate, served.url, tmp_path, 12)
    for result, reasons in ((broken.result(), {"model_act"}), (whole.result(), {None})):
        assert {episode.get("failure_reason") for task in result["tasks"] for episode in task["episodes"]} == reasons


def test_what_it_writes_can_be_compared(tmp_path: Path) -> None:
    entry = {"benchmark": "tests.serving.point_world:PointWorld", "episodes_per_task": 1, "params": {"seed": 0}}
    with serving(make_server(Bridge(arm_policy(), convention("calvin")))) as served:
        api.run({"server": {"url": served.url}, "benchmarks": [entry], "output_dir": str(tmp_path)}, docker=False)
    (file,) = read_results(list(tmp_path.glob("*_aggregate.json")))
    assert file.about["env"] == "PointWorld"
    assert {(episode.task, episode.steps) for episode in file.episodes} == {("red", 6), ("blue", 6)}
    assert {episode.world for episode in file.episodes} == {"red:0:0", "blue:0:0"}


def test_the_google_robot_gripper_remembers_its_own_episode() -> None:
    policy = arm_policy(spec="delta7", fps=3.0, cameras=("primary",))
    grippers = iter([1, 0, 1, 0])
    policy.act_batch = lambda sessions, *_, **__: [np.array([0] * 6 + [next(grippers)]) for _ in sessions]  # type: ignore
    sent: list[float] = []

    async def client(url: str) -> None:
        async with Connection(url) as connection:
            for _ in range(2):
                await connection.start_episode({})
                for i in range(2):
                    seen = {"images": {"primary": observation(i)["images"]["rgb_static"]}, "task_description": "pick"}
                    sent.append(float((await connection.act(seen))["actions"][6]))

    with serving(make_server(Bridge(policy, convention("simpler-google")))) as served:
        anyio.run(client, served.url)
    assert sent == [0.5, 0.0, 0.5, 0.0]


# -------------------------------------------------------------------------------------- vla-eval's own adapters and settings


class Recording:
    """Stands in for a simulator: keeps what it is told."""

    def __init__(self, observation: Any = None) -> None:
        self.told: list[np.ndarray] = []
        self._observation = observation

    def step(self, action: Any) -> tuple[Any, ...]:
        self.told.append(np.asarray(action, dtype=np.float64))
        return self._observation, 0.0, False, {} if self._observation else False, {}


def adapter(cls: Any, simulator: Any, **params: Any) -> Any:
    benchmark = cls(**params)
    benchmark._env, benchmark._recorder = simulator, NullEpisodeRecorder()
    return benchmark


def sent(benchmark: str, grippers: list[float], spec: str = "delta7") -> list[dict[str, np.ndarray]]:
    row = convention(benchmark)
    translate = Bridge(arm_policy(spec=spec, fps=row.rate, cameras=row.cameras[:1]), row).translate
    pose = [0.02, 0, 0, 0, 0, 0.05]
    return [
        {"actions": translate(np.array([*pose, now]), previous)}
        for now, previous in zip(grippers, [None, *grippers], strict=False)
    ]


def test_simpler_gets_open_as_plus_one_for_widowx() -> None:
    from vla_eval.benchmarks.simpler.benchmark import SimplerEnvBenchmark

    simulator = Recording()
    benchmark = adapter(SimplerEnvBenchmark, simulator, **convention("simpler-widowx").params)
    for action in sent("simpler-widowx", [1, 0]):
        benchmark.step(action)
    np.testing.assert_allclose(simulator.told, [[0.02, 0, 0, 0, 0, 0.05, g] for g in (1, -1)], atol=1e-7)


def test_simpler_gets_sticky_changes_for_the_google_robot() -> None:
    from vla_eval.benchmarks.simpler.benchmark import SimplerEnvBenchmark

    simulator = Recording()
    benchmark = adapter(SimplerEnvBenchmark, simulator, **convention("simpler-google").params)
    for action in sent("simpler-google", [1, 1, *[0] * 20, 1]):
        benchmark.step(action)
    grippers = [told[6] for told in simulator.told]
    assert grippers == [0, 0, *[1] * 15, *[0] * 5, -1]  # +1 closes, kept for 15 steps


def test_libero_gets_close_as_plus_one_and_its_own_units() -> None:
    from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark

    eye = {"robot0_eef_pos": np.zeros(3), "robot0_eef_quat": np.array([0, 0, 0, 1.0]), "robot0_gripper_qpos": np.zeros(2)}

    class Simulator(Recording):
        def step(self, action: Any) -> tuple[Any, ...]:
            super().step(action)
            return eye, 0.0, False, {}

    simulator = Simulator()
    benchmark = adapter(LIBEROBenchmark, simulator, **convention("libero").params)
    for action in sent("libero", [1, 0]):
        benchmark.step(action)
    np.testing.assert_allclose(simulator.told, [[0.4, 0, 0, 0, 0, 0.1, g] for g in (-1, 1)], atol=1e-6)
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    seen = benchmark.make_obs({"agentview_image": image}, {"name": "pick"})["images"]["agentview"]
    policy = arm_policy(spec="delta7", fps=20.0, cameras=("agentview",))
    policy.transforms = SimpleNamespace(spec=policy.transforms.spec, images=lambda images: images, **_rest(policy))  # type: ignore
    turned = Bridge(policy, convention("libero"), turn_images=True)
    np.testing.assert_array_equal(turned.images({"images": {"agentview": seen}})["agentview"], image)  # as the simulator's
    np.testing.assert_array_equal(
        Bridge(policy, convention("libero")).images({"images": {"agentview": seen}})["agentview"], seen
    )


def _rest(policy: Policy) -> dict[str, Any]:
    transforms = policy.transforms
    names = ("cameras", "optional_cameras", "state", "image_size", "prompt", "window", "chunk", "fps")
    return {name: getattr(transforms, name) for name in names}


def test_calvin_adds_metres_and_radians_to_the_last_pose() -> None:
    from vla_eval.benchmarks.calvin.benchmark import CALVINBenchmark

    benchmark = CALVINBenchmark(**convention("calvin").params)
    benchmark._last_act = np.array([0.1, 0.2, 0.5, 0.0, 0.0, 1.5, 1.0])
    row = convention("calvin")
    translate = Bridge(arm_policy(), row).translate
    told = benchmark._process_delta_action({"actions": translate(np.array([1, 0, 0, 0, 0, -1, 0.0]))})
    np.testing.assert_allclose(told, [0.12, 0.2, 0.5, 0, 0, 1.45, -1], atol=1e-6)
    assert benchmark._process_delta_action({"actions": translate(np.array([0, 0, 0, 0, 0, 0, 1.0]))})[6] == 1


@pytest.mark.parametrize("name", sorted(CONVENTIONS))
def test_configurations_are_what_vla_eval_takes(name: str) -> None:
    from vla_eval.cli.config_loader import load_config
    from vla_eval.config import DockerConfig, EvalConfig, ServerConfig
    from vla_eval.orchestrator import _merge_observation_params
    from vla_eval.registry import resolve_import_string
    from vla_eval.specs import check_specs

    config = load_config(str(CONFIGS / f"{name}.yaml"))
    assert ServerConfig.from_dict(config["server"]).url == "ws://localhost:8000"
    assert DockerConfig.from_dict(config["docker"]).image
    entries = [EvalConfig.from_dict(entry) for entry in config["benchmarks"]]
    assert len({entry.resolved_name() for entry in entries}) == len(entries)
    row = convention(name)
    server = make_server(Bridge(arm_policy(fps=row.rate, cameras=row.cameras, state=("x", "y", "z")), row))
    for entry in entries:
        assert "seed" in entry.params
        cls = resolve_import_string(entry.benchmark)
        benchmark = cls(**_merge_observation_params(cls, entry.params, server.get_observation_params()))
        assert benchmark.send_state
        assert getattr(benchmark, "send_wrist_image", len(row.cameras) > 1) == (len(row.cameras) > 1)
        warnings = check_specs(
            server.get_action_spec(),
            benchmark.get_action_spec(),
            server.get_observation_spec(),
            benchmark.get_observation_spec(),
        )
        # SimplerEnv's adapter declares Euler angles and +1 = close, and passes on rotation vectors and takes 1 as open
        expected = ["action [gripper]", "action [rotation]"] if name.startswith("simpler") else []
        assert sorted(warning.split(":")[0] for warning in warnings) == expected


def test_what_does_not_fit_is_said_before_anything_is_served() -> None:
    row = convention("libero")
    with pytest.raises(ConfigError, match="takes 20 actions a second, the policy was trained for 30"):
        Bridge(arm_policy(), row)
    assert Bridge(arm_policy(), row, any_rate=True).cameras == {"rgb_static": "agentview"}  # the only one gets the main one
    two = arm_policy(fps=20.0, cameras=("front", "hand"))
    with pytest.raises(ConfigError, match="say which of them is the policy's front, hand: --camera agentview=front"):
        Bridge(two, row)
    bridge = Bridge(two, row, cameras={"agentview": "front", "wrist": "hand"})
    assert bridge.params() == {"absolute_action": False, "quat_no_antipodal": True, "send_wrist_image": True}
    with pytest.raises(ConfigError, match=r"state has elbow; say which of .*: --state"):
        Bridge(arm_policy(fps=20.0, state=("x", "elbow")), row)
    assert Bridge(arm_policy(fps=20.0, state=("x", "elbow")), row, state={"rz": "elbow"}).state == {"x": "x", "elbow": "rz"}
    with pytest.raises(ConfigError, match="--turn-images"):
        Bridge(arm_policy(), convention("calvin"), turn_images=True)
    assert any("the model predicts every 1 steps" in line for line in bridge.describe())


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    bridge = Bridge(arm_policy(), convention("calvin"))
    monkeypatch.setitem(sys.modules, "vla_eval", None)
    with pytest.raises(MissingExtraError, match=r"anyvla\[vla-eval\]"):
        make_server(bridge)


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    policy = arm_policy(save_to=run)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot serve at 127.0.0.1:{port}"):
            serve(make_server(Bridge(policy, convention("calvin"))), "127.0.0.1", port)
    command = [
        sys.executable,
        "-m",
        "anyvla",
        "serve",
        str(run),
        "--protocol",
        "vla-eval",
        "--benchmark",
        "calvin",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(6)]
        assert said[0] == "benchmark: calvin, 30 actions a second\n"

        async def client() -> np.ndarray:
            async with Connection(f"ws://127.0.0.1:{port}", backoff_base=1.1) as connection:
                await connection.start_episode({})
                return (await connection.act(observation(0)))["actions"]

        expected = alone(policy, Bridge(policy, convention("calvin")), [0])[0]
        np.testing.assert_allclose(anyio.run(client), expected, atol=1e-5)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in complaints
