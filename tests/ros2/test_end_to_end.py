"""A simulated robot, driven over topics: in lockstep through memory, and in real time over DDS."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.actions import NAV2
from anyvla.config import load_config
from anyvla.evaluation.simulated_robot import SimulatedRobot, Topics
from anyvla.evaluation.tasks import nav_tasks
from anyvla.policies.policy import Policy
from anyvla.ros2.drive_settings import DriveSettings
from anyvla.ros2.in_process import in_process
from anyvla.ros2.memory import MemoryTransport
from anyvla.ros2.node import DriveNode
from anyvla.ros2.sources import ActionSource, Answers, DrivenBy, Observation
from anyvla.simulation.collect import collect_nav
from anyvla.simulation.env import FPS, BoxNav
from anyvla.simulation.expert import Expert
from anyvla.training.loop import train
from anyvla_client.stops import StopLog
from anyvla_client.supervisor import Watch

TOPICS = Topics()
SLOW_CAMERA = Watch(camera_age=0.9, action_age=1.5)  # an image every 0.4 s


def settings(**changes: Any) -> DriveSettings:
    options = {"instruction_topic": TOPICS.instruction, "operator_topic": TOPICS.reset, "watch": SLOW_CAMERA, **changes}
    return DriveSettings({"front": TOPICS.camera}, TOPICS.command, **options)


class NoCamera(SimulatedRobot):
    """Of an environment that does not render: noise, as every camera has."""

    def _picture(self, observation: dict[str, Any]) -> np.ndarray:
        return np.random.default_rng(self.heard).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def expert_source(env: BoxNav, **options: Any) -> Answers:
    """The expert as a policy that looks at nothing: one action, said ten times."""
    expert = Expert(env)

    def infer(observation: Observation) -> np.ndarray:
        return np.tile(expert.act()[:2], (10, 1))

    return Answers(DrivenBy(NAV2.to_dict(), ("front",), (), (), FPS), infer, **options)


class Lockstep:
    """The robot, the node and one clock."""

    def __init__(self, robot: type[SimulatedRobot], env: BoxNav, source: ActionSource, log: Path) -> None:
        self.transport = MemoryTransport(start=1000.0)
        clock = self.transport.now
        self.node = DriveNode(self.transport, source, settings(), log=StopLog(log), steady=clock, rest=self.transport.advance)
        self.robot = robot(self.transport, env)

    def rest(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.02)):
            self.transport.advance(0.02)
            self.node.step()


def test_the_expert_drives_through_topics_as_well_as_directly(tmp_path: Path) -> None:
    env = BoxNav("all", observe_images=False)
    lockstep = Lockstep(NoCamera, env, expert_source(env, background=False), tmp_path / "log")
    ends = [lockstep.robot.drive(task, lockstep.rest) for task in nav_tasks("all", 16, seed=5)]
    assert [end["failure"] for end in ends] == [None] * 16
    summary = lockstep.node.close()
    assert summary["chunks"] >= sum(end["steps"] for end in ends) - 16  # one for every image, except perhaps the last
    assert summary["control_hz"] == pytest.approx(50, rel=1e-3)
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [event["cause"] for event in events if event["event"] == "stop"] == ["exit"]
    assert len([event for event in events if event["event"] == "instruction"]) == 31


def test_a_policy_sees_through_topics_what_it_sees_directly(tmp_path: Path) -> None:
    run = _train(tmp_path, [])
    tasks = nav_tasks("1box", 2, seed=3)
    policy = Policy.load(run)
    source = in_process(policy, background=False)
    seen: list[np.ndarray] = []
    infer = source.infer
    source.infer = lambda observation: (seen.append(observation.images["front"]), infer(observation))[1]
    env = BoxNav("all", image_size=(32, 48), language="any")
    lockstep = Lockstep(SimulatedRobot, env, source, tmp_path / "log")
    ends = [lockstep.robot.drive(task, lockstep.rest) for task in tasks]
    env.close()
    assert len(seen) >= sum(end["steps"] for end in ends) - 2
    assert all(end["steps"] > 3 for end in ends)
    env = BoxNav("all", image_size=(32, 48), language="any")
    observation, info = env.reset(seed=tasks[0].seed, options={"scenario": tasks[0].scenario, "split": tasks[0].split})
    env.close()
    assert ends[0]["instruction"] == info["instruction"]
    np.testing.assert_array_equal(seen[0], observation["image"])


def _train(folder: Path, overrides: list[str], data: Path | None = None) -> Path:
    if data is None:
        data = folder / "data"
        collect_nav(data, "1box", 3, 0, (32, 48), workers=1)
    tiny = [
        f"out={folder / 'run'}",
        f"data={{source: {{type: mobile_h5, path: {data}}}, cache: {folder / 'cache'}}}",
        "observation.image_size=[32,48]",
        "model.backbone={type: tiny, width: 32, vision_layers: 1, language_layers: 1}",
        "model.head={type: lstm, hidden: 16, trunk: [16]}",
        "training={steps: 2, batch_size: 4}",
    ]
    return train(load_config("nav-tiny", [*tiny, *overrides]))


@pytest.mark.slow
def test_driven_over_dds_recorded_to_a_bag_converted_and_trained_on(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedds")
    from anyvla.ros2.bag import BagWriter
    from anyvla.ros2.dds import DdsTransport

    robots, brain, ears = (DdsTransport(77, loopback=True) for _ in range(3))
    env = BoxNav("all", image_size=(32, 48))
    node = DriveNode(brain, expert_source(env), settings(), log=StopLog(tmp_path / "log"))
    robot = SimulatedRobot(robots, env)
    lock = threading.Lock()
    with BagWriter(tmp_path / "bag") as bag:

        def keep(topic: str) -> Callable[[Any], None]:
            def write(message: Any) -> None:
                with lock:
                    bag.write(topic, message.kind, message.data, message.received, message.stamp)

            return write

        ears.subscribe(TOPICS.camera, "image", keep(TOPICS.camera))
        ears.subscribe(TOPICS.command, "twist", keep(TOPICS.command))
        ears.subscribe(TOPICS.instruction, "string", keep(TOPICS.instruction))
        loop = threading.Thread(target=node.run)
        loop.start()
        time.sleep(2)  # discovery
        ends = [robot.drive(task, time.sleep) for task in nav_tasks("1box", 3, seed=5)]
        node.end("exit")
        loop.join()
        for transport in (robots, ears):
            transport.close()
    summary = node.close()
    brain.close()
    env.close()
    assert sum(end["success"] for end in ends) == 3, (ends, (tmp_path / "log").read_text())
    assert summary["chunks"] >= sum(end["steps"] for end in ends) - 3

    from typer.testing import CliRunner

    from anyvla.cli import app

    done = CliRunner().invoke(app, CONVERT.format(bag=tmp_path / "bag", out=tmp_path / "data").split())
    assert done.exit_code == 0, done.output
    assert (_train(tmp_path, [], tmp_path / "data") / "checkpoints").exists()


CONVERT = "convert {bag} {out} fps=2.5 max_age=0.6 --to mobile_h5 --spec nav2 --workers 1"
