"""How the node is connected: settings, units, stamps, the robot's state, the workspace, a policy behind a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyvla.actions import ARM7, NAV2, NAV3
from anyvla.errors import ConfigError
from anyvla.ros2.clock import CameraClock
from anyvla.ros2.commands import TwistOf
from anyvla.ros2.drive_settings import DriveSettings
from anyvla.ros2.mapping import StateField
from anyvla.ros2.memory import MemoryTransport
from anyvla.ros2.node import DriveNode, drive
from anyvla.ros2.sources import Answers, DrivenBy, Observation
from anyvla.ros2.transport import Message
from anyvla_client.safety import Limits
from anyvla_client.supervisor import Event, Multiplexer, Proposal, Supervisor, Watch
from tests.ros2.simulated_drive import CMD, FAST, Drive


def about(**changes: Any) -> DrivenBy:
    return DrivenBy(
        **{"action": NAV2.to_dict(), "cameras": ("front",), "optional_cameras": (), "state": (), "fps": 10.0} | changes
    )


def node_of(driven: DrivenBy, settings: DriveSettings, transport: MemoryTransport | None = None, **options: Any) -> DriveNode:
    def infer(observation: Observation) -> np.ndarray:
        asked.append(observation)
        return np.full((10, len(driven.action["dims"])), 0.1)

    asked: list[Observation] = []
    transport = transport or MemoryTransport()
    node = DriveNode(
        transport, Answers(driven, infer, background=False), settings, steady=transport.now, rest=transport.advance, **options
    )
    node.asked = asked  # type: ignore[attr-defined]
    return node


def go(transport: MemoryTransport, node: DriveNode, steps: int = 20, topics: tuple[str, ...] = ("/front",)) -> None:
    rng = np.random.default_rng(int(1000 * transport.now()))
    for _ in range(steps):
        for topic in topics:
            transport.publish(topic, "image", rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        transport.advance(0.02)
        node.step()


@pytest.mark.parametrize(
    ("driven", "settings", "says"),
    [
        ({}, {"cameras": {"frnt": "/a"}}, "no camera 'frnt'; did you mean 'front'"),
        ({}, {"cameras": {}}, "needs the camera 'front'"),
        ({"cameras": (), "optional_cameras": ("front",)}, {"cameras": {}}, "at least one camera"),
        ({}, {"instruction": " "}, "nobody tells the robot"),
        ({"state": ("wheel",)}, {}, "needs 'wheel' of the robot's state"),
        ({}, {"workspace": ((0, 0, 0), (1, 1, 1))}, "a workspace needs --pose-topic"),
        ({}, {"state": [StateField(name="a", topic="/b", field="angular.q")]}, "has no field 'angular.q'"),
        ({}, {"rate": 5.0}, "10 is the least"),
        ({"fps": 0.5}, {}, "gives one every 2 s"),
        ({"action": ARM7.to_dict()}, {}, "'dx' has no place in a Twist"),
    ],
)
def test_settings_that_do_not_fit_the_policy_are_refused(driven: dict, settings: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        node_of(about(**driven), DriveSettings(**{"cameras": {"front": "/front"}, "instruction": "go", **settings}))


def test_units_are_converted_and_dimensions_find_their_place() -> None:
    spec = NAV3.to_dict()
    assert TwistOf(spec)(np.array([1, 2, 3])).tolist() == [1, 2, 0, 0, 0, 3]
    spec["dims"][0]["unit"], spec["dims"][2]["unit"] = "cm/s", "deg/s"
    np.testing.assert_allclose(TwistOf(spec)(np.array([50, 0, 90])), [0.5, 0, 0, 0, 0, np.pi / 2])
    spec["dims"][2]["unit"] = "rpm"
    with pytest.raises(ConfigError, match="is in 'rpm'"):
        TwistOf(spec)
    with pytest.raises(ConfigError, match=r"'dx' has no place in a Twist.*command: TOPIC .* mapping file"):
        TwistOf(ARM7.to_dict())


@pytest.mark.parametrize("stamped", [False, True])
def test_it_publishes_from_the_first_step(stamped: bool) -> None:
    transport, heard = MemoryTransport(), []
    transport.subscribe("/out", "twist_stamped" if stamped else "twist", heard.append)
    node = node_of(about(), DriveSettings({"front": "/front"}, "/out", stamped=stamped, instruction="go"), transport)
    transport.advance(0.02)
    node.step()
    assert len(heard) == 1
    go(transport, node)
    np.testing.assert_allclose(heard[-1].data, [0.1, 0.1, 0, 0, 0, 0])


def test_header_stamps_count_unless_they_are_of_another_clock() -> None:
    def times(*pairs: tuple[float | None, float]) -> list[float]:
        clock = CameraClock()
        return [clock.time(Message("image", None, stamp, received)) for stamp, received in pairs]

    assert times((9.9, 10.0), (10.0, 10.2)) == [9.9, 10.0]
    assert times((None, 10.0)) == [10.0]
    assert times((12.0, 10.0), (13.0, 11.0)) == [10.0, 11.0]
    assert times((1.0, 10.0), (2.0, 11.0)) == [10.0, 11.0]
    assert times((9.9, 10.0), (10.0, 10.1), (5.0, 10.2)) == [9.9, 10.0, 5.0]  # one late image is late, not of another clock


def test_the_robots_state_is_put_in_the_policys_order_and_must_be_fresh() -> None:
    state = (
        StateField(name="turn", topic="/odom_twist", field="angular.z"),
        StateField(name="arm", topic="/joints", field="position.shoulder"),
    )
    transport = MemoryTransport()
    settings = DriveSettings({"front": "/front"}, state=state, instruction="go", watch=FAST)
    node = node_of(about(state=("arm", "turn")), settings, transport)
    go(transport, node)
    assert not node.asked

    def publish() -> None:
        transport.publish("/joints", "joint_state", {"wrist": (9.0, 0.0, 0.0), "shoulder": (0.3, np.nan, np.nan)})
        transport.publish("/odom_twist", "twist", np.array([0, 0, 0, 0, 0, -0.2]))

    for _ in range(5):
        publish()
        go(transport, node, 1)
    assert node.driving
    np.testing.assert_allclose(node.asked[-1].state, [0.3, -0.2])
    for _ in range(20):
        transport.publish("/odom_twist", "twist", np.zeros(6))
        go(transport, node, 1)
    assert node.stopped is not None
    assert node.stopped.cause == "stale_state"


@pytest.mark.parametrize(("leaves", "cause"), [(True, "outside_workspace"), (False, "stale_pose")])
def test_the_workspace_is_not_left(leaves: bool, cause: str) -> None:
    transport = MemoryTransport()
    box = ((-1.0, -1.0, -0.1), (1.0, 1.0, 0.5))
    node = node_of(about(), DriveSettings({"front": "/front"}, instruction="go", pose_topic="/pose", workspace=box), transport)
    x = 0.0
    for _ in range(40):
        x += 0.02
        transport.publish("/pose", "pose_stamped", np.array([x, 0, 0, 0, 0, 0, 1]))
        go(transport, node, 1)
    assert node.driving
    for _ in range(30):
        x += 0.02
        if leaves:
            transport.publish("/pose", "pose_stamped", np.array([x, 0, 0, 0, 0, 0, 1]))
        go(transport, node, 1)
    assert node.stopped is not None
    assert node.stopped.cause == cause


def test_an_optional_camera_that_is_silent_is_left_out() -> None:
    transport = MemoryTransport()
    settings = DriveSettings({"front": "/front", "side": "/side"}, instruction="go", watch=FAST)
    node = node_of(about(optional_cameras=("side",)), settings, transport)
    go(transport, node, topics=("/front", "/side"))
    assert set(node.asked[-1].images) == {"front", "side"}
    go(transport, node, 40)
    assert node.driving
    assert set(node.asked[-1].images) == {"front"}


def test_status_says_what_is_lacking() -> None:
    transport, said = MemoryTransport(), []
    settings = DriveSettings({"front": "/front"}, instruction_topic="/say", operator_topic="/op", watch=FAST)
    node = node_of(about(), settings, transport, on_status=said.append)
    go(transport, node, 2)
    transport.publish("/say", "string", "go")
    go(transport, node, 2)
    transport.publish("/op", "string", "halt!")
    go(transport, node, 2)
    assert said == ["waiting for an instruction", "driving", "stopped: operator"]


def test_the_policy_is_asked_at_its_own_rate_and_chunks_are_stitched(tmp_path: Path) -> None:
    drive_ = Drive(tmp_path / "log", 4, fps=5.0)
    drive_.policy.latency = 0.11
    drive_.say("go")
    drive_.run(6)
    stamps = np.diff([asked.stamp for asked in drive_.policy.asked])
    assert np.median(stamps) == pytest.approx(0.2, abs=0.05)
    assert stamps.mean() == pytest.approx(0.2, rel=0.1)
    # every command is what was predicted for its very moment, from an image of the past, within the limits of change
    commands = np.array([twist for _, twist in drive_.sent])[-100:, 1]
    assert np.abs(np.diff(commands)).max() <= NAV2.rate[1] * 0.02 + 1e-9
    summary = drive_.node.close()
    assert summary["control_hz"] == pytest.approx(50, rel=1e-3)
    assert summary["jitter_ms"]["p99"] < 1e-6
    assert summary["image_to_chunk_ms"]["p50"] >= 110
    assert summary["chunks"] == pytest.approx(6 / 0.2, abs=3)


class TestSupervisor:
    LIMITS = Limits.from_spec(NAV2.to_dict())

    def test_the_first_of_several_causes_counts_and_unknown_ones_are_refused(self) -> None:
        supervisor = Supervisor(self.LIMITS, Watch(), (), period=0.02)
        supervisor.stop("operator", "", 1.0)
        supervisor.stop("signal", "", 2.0)
        assert supervisor.stopped == Event("stop", 1.0, "operator", "")
        supervisor.reset(3.0)
        assert [event.kind for event in supervisor.take_events()] == ["stop", "reset"]
        assert supervisor.take_events() == []
        with pytest.raises(ValueError, match="unknown cause"):
            supervisor.stop("mood", "", 1.0)

    def test_a_gripper_keeps_what_it_holds_when_the_arm_stops(self) -> None:
        supervisor = Supervisor(Limits.from_spec(ARM7.to_dict()), Watch(), (), period=0.02)
        for i in range(3):
            supervisor.step(0.02 * i, 0.02 * i, Proposal(np.array([0.5] * 6 + [1.0]), 0.02 * i))
        supervisor.stop("operator", "", 0.1)
        assert supervisor.step(0.06, 0.06, None).tolist() == [0] * 6 + [1]

    def test_an_old_prediction_does_not_start_it(self) -> None:
        supervisor = Supervisor(self.LIMITS, Watch(action_age=0.5), (), period=0.02)
        assert not supervisor.step(10.0, 10.0, Proposal(np.array([0.5, 0.5]), 9.0)).any()
        assert supervisor.stopped is None
        supervisor.step(10.02, 10.02, Proposal(np.array([0.5, 0.5]), 10.0))
        assert supervisor.driving

    @pytest.mark.parametrize("name", ["camera_age", "frozen_images", "margin"])
    def test_limits_that_are_none_are_refused(self, name: str) -> None:
        for value in (0, -1, float("nan")):
            with pytest.raises(ValueError, match=name):
                Watch(**{name: value})

    def test_a_human_has_the_robot_until_silence(self) -> None:
        multiplexer = Multiplexer(silence=0.25)
        assert multiplexer.human(0.0) is None
        assert multiplexer.teleop(np.ones(6), 1.0)
        assert not multiplexer.teleop(np.full(6, np.nan), 1.1)
        assert multiplexer.human(1.35).tolist() == [0] * 6
        assert multiplexer.human(1.36) is None
        assert multiplexer.teleop(np.ones(6), 2.0)
        assert multiplexer.human(1.0) is None  # whatever the clock does


def test_neither_node_nor_supervisor_loads_what_models_need() -> None:
    code = "import sys, anyvla.ros2.node, anyvla.ros2.remote; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
    code = "import sys, anyvla_client.supervisor, anyvla_client.stops; print('anyvla' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == [
        "False",
        "True",
    ]


def test_what_the_settings_say_is_what_the_loop_does() -> None:
    transport = MemoryTransport()
    node = node_of(about(), DriveSettings({"front": "/front"}, CMD, instruction="go", rate=100.0), transport)
    count = 0

    def enough() -> bool:
        nonlocal count
        count += 1
        return count > 50

    summary = drive(node, until=enough)
    assert summary["control_steps"] == 50
    assert summary["target_hz"] == 100
    assert summary["control_hz"] == pytest.approx(100, rel=1e-6)
