"""Arms are driven by a mapping file: the numbers that are published, and what a stop means for velocities and for targets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from anyvla.actions.rotations import euler_to_matrix, matrix_to_axis_angle, matrix_to_quaternion, quaternion_to_matrix
from anyvla.actions.spec import ARM7, DELTA7, NAV3, POSE7, ActionDim, ActionSpec
from anyvla.cli.ros2 import run_command
from anyvla.errors import ConfigError
from anyvla.ros2.arm import ArmCommands
from anyvla.ros2.cdr import deserialize, serialize
from anyvla.ros2.episodes import Rules
from anyvla.ros2.mapping import MappingConfig, read_mapping
from anyvla.ros2.node import drive
from anyvla.ros2.record import keep_settings, open_writer
from anyvla.ros2.sources import Failure
from anyvla_client.supervisor import Proposal, Supervisor, Watch
from tests.ros2.simulated_arm import ARRAY, GRIPPER, JOINTS, NAMES, POSE, START, TARGET, TICK, TWIST, ArmDrive
from tests.ros2.simulated_drive import FAST, TELEOP

IN_TIME = 0.3  # s
AXES = ("position.x", "position.y", "position.z", "orientation.roll", "orientation.pitch", "orientation.yaw")
TWIST_AXES = ("linear.x", "linear.y", "linear.z", "angular.x", "angular.y", "angular.z")
GRIPPER_LINE = f"  - {{name: gripper, topic: /hand, field: data.0, kind: binary, low: 0.0, high: 0.04, command: {GRIPPER}}}\n"


def servo_mapping(spec: ActionSpec = DELTA7) -> str:
    lines = [
        f"  - {{name: {dim.name}, topic: {POSE}, field: {field}, mode: delta, "
        f"command: {TWIST}, command_field: {twist}, command_message: twist_stamped}}\n"
        for dim, field, twist in zip(spec.dims, AXES, TWIST_AXES, strict=False)
    ]
    return "actions:\n" + "".join(lines) + GRIPPER_LINE


def pose_mapping(spec: ActionSpec = DELTA7, mode: str = "delta", more: str = "") -> str:
    lines = [
        f"  - {{name: {dim.name}, topic: {POSE}, field: {field}, mode: {mode}, command: {TARGET}{more}}}\n"
        for dim, field in zip(spec.dims, AXES, strict=False)
    ]
    return "actions:\n" + "".join(lines) + GRIPPER_LINE


JOINT_SPEC = ActionSpec("joints", tuple(ActionDim(name, unit="rad", low=-2.0, high=2.0, rate=0.5) for name in NAMES))
JOINT_MAPPING = "actions:\n" + "".join(
    f"  - {{name: {name}, topic: {JOINTS}, field: position.{name}, unit: rad, command: {ARRAY}, command_field: data.{i}}}\n"
    for i, name in enumerate(NAMES)
)
DELTA = np.array([0.004, -0.006, 0.002, 0.01, -0.02, 0.03, 1.0])  # a policy step
WORLDS: dict[str, dict[str, Any]] = {
    "servo": {"spec": DELTA7, "mapping": servo_mapping(), "action": DELTA},
    "joints": {"spec": JOINT_SPEC, "mapping": JOINT_MAPPING, "action": np.array([1.2, 0.8])},
    "pose": {"spec": DELTA7, "mapping": pose_mapping(), "action": DELTA},
    "joint changes": {
        "spec": ActionSpec("joints", tuple(ActionDim(name, unit="rad", low=-0.1, high=0.1) for name in NAMES)),
        "mapping": JOINT_MAPPING.replace("unit: rad", "unit: rad, mode: delta"),
        "action": np.array([0.05, -0.02]),
    },
    "absolute pose": {
        "spec": POSE7,
        "mapping": pose_mapping(POSE7, "absolute", ", rate: 0.5"),
        "action": np.array([0.8, 0.1, 0.5, -2.5, 0.3, 0.2, 1.0]),
    },
}
MEASURED_ON = {ARRAY: JOINTS, TARGET: POSE}


def world_of(name: str, log: Path, **changes: Any) -> ArmDrive:
    return ArmDrive(log, **{**WORLDS[name], **changes})


def standing(topic: str, measured: dict[str, Any]) -> np.ndarray:
    """What a stop publishes."""
    if topic == TWIST:
        return np.zeros(6)
    if topic == ARRAY:
        return np.array([measured[JOINTS][name][0] for name in NAMES])
    return measured[POSE]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fps", [5.0, 10.0])
def test_changes_become_the_velocity_that_makes_them_in_a_step(fps: float, seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    action = np.append(rng.uniform(-0.02, 0.02, 6), float(rng.integers(2)))
    world = world_of("servo", tmp_path / "log", action=action, fps=fps)
    world.run(TICK)
    assert not world.sent[TWIST].any()  # it waits
    assert GRIPPER not in world.sent  # and tells the gripper nothing
    world.drive()
    world.run(1)
    np.testing.assert_allclose(world.sent[TWIST], action[:6] * fps)
    assert world.sent[GRIPPER].tolist() == [0.04 if action[6] else 0.0]
    before = world.pose[:3].copy()
    world.run(1 / fps)
    np.testing.assert_allclose(world.pose[:3] - before, action[:3], atol=1e-9)


def test_units_of_the_policy_are_those_of_its_spec(tmp_path: Path) -> None:
    world = ArmDrive(tmp_path / "log", ARM7, servo_mapping(ARM7), np.array([0.5, 0, 0, 0, 0, -0.2, 0.0]))
    world.drive()
    np.testing.assert_allclose(world.sent[TWIST], [0.5 * 0.02 * 10, 0, 0, 0, 0, -0.2 * 0.05 * 10])


def test_velocities_are_sent_as_they_are_and_other_units_converted() -> None:
    spec = ActionSpec(
        "v", (ActionDim("lift", unit="cm/s", low=-50, high=50), ActionDim("bend", unit="deg/s", low=-90, high=90))
    )
    made = commands_of(
        spec,
        "- {name: lift, topic: /servo, field: linear.z, message: twist_stamped, command: /servo}\n"
        "- {name: bend, topic: /joint_states, field: velocity.elbow, command: /elbow}\n",
    )
    (_, _, twist), (_, kind, joints) = made.drive(np.array([20.0, 90.0]))
    assert twist.tolist() == [0, 0, 0.2, 0, 0, 0]
    assert kind == "joint_state"
    np.testing.assert_allclose(joints["elbow"], [np.nan, np.pi / 2, np.nan])
    received, _ = deserialize("joint_state", serialize("joint_state", joints, 1.0))
    np.testing.assert_allclose(received["elbow"], joints["elbow"])
    (_, _, twist), (_, _, joints) = made.stop()
    assert not twist.any()
    assert joints["elbow"][1] == 0
    assert made.measures == []


def test_joint_targets_are_approached_from_where_the_arm_is(tmp_path: Path) -> None:
    world = world_of("joints", tmp_path / "log")
    world.run(TICK)
    first = standing(ARRAY, world.measured)
    assert world.sent[ARRAY].tolist() == first.tolist()  # it waits where it is
    world.run(0.04, until=lambda: world.node.driving)
    world.drive()
    targets = [standing(ARRAY, world.history[-1][3]), world.sent[ARRAY]]
    while len(targets) < 400:
        world.run(TICK)
        targets.append(world.sent[ARRAY])
    changes = np.abs(np.diff(targets, axis=0))
    assert changes.max() <= JOINT_SPEC.rate[0] * TICK + 1e-9
    assert changes.max() > 0.99 * JOINT_SPEC.rate[0] * TICK
    np.testing.assert_allclose(world.sent[ARRAY], [1.2, 0.8])
    world.policy.action = np.array([9.0, -9.0])
    world.run(12)
    assert world.sent[ARRAY].tolist() == [2.0, -2.0]  # the limits of the spec


def test_changes_of_a_pose_add_up_to_what_the_policy_says(tmp_path: Path) -> None:
    world = world_of("pose", tmp_path / "log")
    world.drive()
    start = world.measured[POSE].copy()
    share = 10.0 * TICK
    np.testing.assert_allclose(world.sent[TARGET][:3], start[:3] + share * DELTA[:3], atol=1e-12)
    world.run(1 - TICK)  # ten steps of the policy, with the first control step
    np.testing.assert_allclose(world.sent[TARGET][:3], start[:3] + 10 * DELTA[:3], atol=1e-9)
    turned = np.linalg.matrix_power(euler_to_matrix(DELTA[3:6]), 10) @ quaternion_to_matrix(start[3:])
    np.testing.assert_allclose(quaternion_to_matrix(world.sent[TARGET][3:]), turned, atol=1e-9)
    assert world.sent[GRIPPER].tolist() == [0.04]


def _drop_camera(world: ArmDrive) -> Callable[[], None]:
    world.camera_on = False
    return lambda: setattr(world, "camera_on", True)


def _nan(world: ArmDrive) -> Callable[[], None]:
    def spoil(actions: np.ndarray) -> np.ndarray:
        actions[:, 1] = np.nan
        return actions

    world.policy.spoil = spoil
    return lambda: setattr(world.policy, "spoil", lambda actions: actions)


def _server_death(world: ArmDrive) -> Callable[[], None]:
    world.policy.dead = Failure("server_lost", "ConnectionResetError")
    return lambda: setattr(world.policy, "dead", None)


def _operator(world: ArmDrive) -> Callable[[], None]:
    world.operator("stop")
    return lambda: None


FAULTS: dict[str, tuple[Callable[[ArmDrive], Callable[[], None]], str, float]] = {  # cause, seconds until it can be seen
    "drop camera": (_drop_camera, "stale_camera", 0.0),
    "NaN action": (_nan, "non_finite_action", 0.2),  # in the next answer
    "server death": (_server_death, "server_lost", 0.0),
    "operator": (_operator, "operator", 0.0),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", WORLDS)
def test_every_fault_leaves_the_arm_standing_until_a_reset(name: str, fault: str, seed: int, tmp_path: Path) -> None:
    inject, cause, unseen = FAULTS[fault]
    world = world_of(name, tmp_path / "log", seed=seed)
    world.drive()
    world.run(world.rng.uniform(0.3, 1.0))
    gripper = world.sent.get(GRIPPER)
    world.history.clear()
    began = world.steady
    mend = inject(world)
    world.run(1)
    at = next(i for i, row in enumerate(world.history) if row[1])
    assert world.history[at][0] - began <= IN_TIME + unseen + 1e-9
    assert world.node.stopped.cause == cause
    topics = [topic for topic in world.sent if topic != GRIPPER]
    for topic in topics:
        expected = standing(topic, world.history[at][3])
        assert np.array_equal(world.history[at][2][topic], expected)

    mend()
    world.follows = False  # and someone pushes the arm away
    world.pose[:3] += 0.2
    world.joints += 0.4
    counts = dict(world.counts)
    world.run(1)
    for topic in topics:
        held = world.history[at][2][topic]
        assert all(np.array_equal(row[2][topic], held) for row in world.history[at:]), "the target moves"
        assert world.counts[topic] - counts[topic] == 50, "nothing is published any more"
    assert gripper is None or np.array_equal(world.sent[GRIPPER], gripper)

    world.follows = True
    world.operator("reset")
    world.history.clear()
    world.drive()
    for topic in topics:
        first, measured = world.sent[topic], standing(topic, world.measured)
        if topic == TWIST:
            np.testing.assert_allclose(first, DELTA[:6] * 10)
        elif name == "joint changes":
            np.testing.assert_allclose(first, measured + 0.2 * np.array([0.05, -0.02]), atol=1e-12)
        elif name == "absolute pose":
            turn = quaternion_to_matrix(first[3:]) @ quaternion_to_matrix(measured[3:]).T
            assert np.abs(first[:3] - measured[:3]).max() <= 0.5 * TICK + 1e-12
            assert 0 < np.linalg.norm(matrix_to_axis_angle(turn)) <= 0.5 * TICK + 1e-9
        elif topic == TARGET:
            np.testing.assert_allclose(first[:3], measured[:3] + 0.2 * DELTA[:3], atol=1e-12)
        else:
            assert np.abs(first - measured).max() <= JOINT_SPEC.rate[0] * TICK + 1e-12
    world.run(0.5)
    assert world.node.driving


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("name", WORLDS)
def test_the_last_messages_are_the_stop(name: str, broken: bool, tmp_path: Path) -> None:
    world = world_of(name, tmp_path / "log")
    world.drive()
    world.run(0.5)
    before = dict(world.counts)
    if broken:
        publish, errors = world.transport.publish, [OSError("the network is gone")]

        def fails_once(*message: Any) -> None:
            if errors and message[0] in (TWIST, TARGET, ARRAY):
                raise errors.pop()
            publish(*message)

        world.transport.publish = fails_once
        world.pass_time()
        before = dict(world.counts)
        with pytest.raises(OSError, match="the network is gone"):
            drive(world.node)
    else:
        world.pass_time()  # measured after the last control step
        world.node.close()
    for topic in world.sent:
        assert world.counts[topic] - before[topic] == 5
        if topic != GRIPPER:
            assert np.array_equal(world.sent[topic], standing(topic, world.measured))


@pytest.mark.parametrize("name", ["joints", "pose"])
def test_targets_need_fresh_measurements(name: str, tmp_path: Path) -> None:
    world = world_of(name, tmp_path / "log")
    world.measures = False
    world.run(1)
    assert not world.node.driving
    assert not world.sent  # nobody knows where it is
    world.measures = True
    world.drive()
    world.run(0.3)
    world.measures = False
    world.run(IN_TIME)
    assert world.node.stopped.cause == "stale_state"
    topic = next(topic for topic in world.sent if topic != GRIPPER)
    assert np.array_equal(world.sent[topic], standing(topic, world.measured))
    world.operator("reset")
    world.run(1)
    assert not world.node.driving


def test_a_measurement_that_arrives_during_a_step_stops_nothing(tmp_path: Path) -> None:
    world = world_of("joints", tmp_path / "log")
    world.drive()
    now = world.transport.now

    def measures_meanwhile() -> float:
        before = now()
        world.transport.advance(0.001)
        world.transport.publish(JOINTS, "joint_state", dict.fromkeys(NAMES, (0.0, np.nan, np.nan)))
        world.transport.advance(-0.001)
        return before

    for _ in range(5):
        world.pass_time()
        world.transport.now = measures_meanwhile
        world.node.step()
        world.transport.now = now
    assert world.node.driving


def test_messages_that_say_nonsense_are_not_measurements(tmp_path: Path) -> None:
    for name in ("joints", "pose"):
        world = world_of(name, tmp_path / "log")
        world.drive()
        for _ in range(20):
            for joints in ({}, {"shoulder": (np.nan, 0.0, 0.0)}, {"elbow": (np.inf, np.nan, np.nan)}):
                world.transport.publish(JOINTS, "joint_state", joints)
            for pose in (np.full(7, np.nan), np.zeros(7)):
                world.transport.publish(POSE, "pose_stamped", pose)
            world.node.step()
            world.pass_time()
        assert world.node.driving
        world.operator("stop")
        for pose in (np.full(7, np.nan), np.zeros(7)):
            world.transport.publish(POSE, "pose_stamped", pose)
        world.node.step()
        if name == "pose":
            assert np.array_equal(world.sent[TARGET], world.measured[POSE])
        assert all(np.isfinite(data).all() for data in world.sent.values())


def test_a_human_steers_an_arm_that_a_twist_commands(tmp_path: Path) -> None:
    world = world_of("servo", tmp_path / "log", settings={"teleop_topic": TELEOP})
    world.drive()
    world.run(0.5)
    human = np.array([0.0, 0.1, 0, 0, 0, -0.2])
    for _ in range(10):
        world.transport.publish(TELEOP, "twist", human)
        world.run(TICK)
        assert np.array_equal(world.sent[TWIST], human)
        assert world.sent[GRIPPER].tolist() == [0.04]
    world.run(0.5)
    assert world.node.stopped.cause == "teleop"
    assert not world.sent[TWIST].any()
    for name in ("joints", "pose", "absolute pose"):
        with pytest.raises(ConfigError, match="--teleop-topic"):
            world_of(name, tmp_path / "log", settings={"teleop_topic": TELEOP})


@pytest.mark.parametrize(("action", "stops"), [((1.2, 0.8), True), ((0.2, -0.5), False)])
def test_the_same_image_again_matters_while_targets_change(action: tuple, stops: bool, tmp_path: Path) -> None:
    world = world_of("joints", tmp_path / "log", action=np.array(action), frozen=True)
    world.drive()
    world.run(1.5)
    assert (world.node.stopped is not None) == stops
    assert not stops or world.node.stopped.cause == "frozen_camera"


def commands_of(spec: ActionSpec, actions: str, state: str = "[]", fps: float = 10.0) -> ArmCommands:
    tree = {"actions": yaml.safe_load(actions), "state": yaml.safe_load(state)}
    made = MappingConfig.model_validate(tree)
    return ArmCommands(spec.to_dict(), made.actions, made.state, fps=fps, period=TICK)


def lines_of(mapping: str) -> str:
    return yaml.safe_dump(yaml.safe_load(mapping)["actions"])


@pytest.mark.parametrize("seed", range(5))
def test_an_orientation_is_approached_the_shortest_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = commands_of(POSE7, lines_of(pose_mapping(POSE7, "absolute", ", rate: 0.5")))
    start = matrix_to_quaternion(euler_to_matrix([3.1, *rng.uniform(-0.1, 0.1, 2)]))
    made.measure(POSE, np.array([0.4, 0, 0.3, *start]), 0.0)
    goal = np.array([0.4, 0, 0.3, -3.1, *rng.uniform(-0.1, 0.1, 2), 1.0])
    there = euler_to_matrix(goal[3:6])
    rotations = [quaternion_to_matrix(start)] + [quaternion_to_matrix(made.drive(goal)[0][2][3:]) for _ in range(100)]
    steps = [np.linalg.norm(matrix_to_axis_angle(b @ a.T)) for a, b in pairwise(rotations)]
    assert max(steps) <= 0.5 * TICK + 1e-9
    distance = np.linalg.norm(matrix_to_axis_angle(there @ rotations[0].T))
    assert sum(steps) == pytest.approx(distance, abs=1e-6)  # no way round
    np.testing.assert_allclose(rotations[-1], there, atol=1e-6)
    assert made.turns  # of these no mean is taken


@pytest.mark.parametrize("decay", [None, 0.0])
def test_a_hand_that_points_down_is_not_turned_over(decay: float | None, tmp_path: Path) -> None:
    world = world_of("absolute pose", tmp_path / "log", decay=decay)
    chunks = 0

    def alternate(actions: np.ndarray) -> np.ndarray:  # the same roll, said in two ways: a mean of both would be 0
        nonlocal chunks
        chunks += 1
        return np.tile([0.4, 0.1, 0.3, np.pi - 0.01 if chunks % 2 else -np.pi + 0.01, 0.0, 0.0, 1.0], (10, 1))

    world.policy.spoil = alternate
    world.drive()
    for _ in range(100):
        world.run(TICK)
        turn = quaternion_to_matrix(world.sent[TARGET][3:]) @ quaternion_to_matrix(START[3:]).T
        assert np.linalg.norm(matrix_to_axis_angle(turn)) < 0.03
    assert chunks > 10


def test_what_the_policy_does_not_command_of_a_pose_stays_as_measured() -> None:
    spec = ActionSpec("push", (ActionDim("dx", unit="cm"), ActionDim("dy", unit="cm")))
    made = commands_of(spec, lines_of("actions:\n" + pose_lines("dx", "dy")), fps=50.0)
    measured = np.array([0.4, 0.1, 0.3, 0.6, 0, 0.8, 0])
    assert made.stop() == []
    made.measure(POSE, measured, 1.0)
    assert made.measured_at() == 1.0
    for i in range(1, 4):
        target = made.drive(np.array([1.0, -0.5]))[0][2]
        np.testing.assert_allclose(target, measured + np.array([0.01 * i, -0.005 * i, 0, 0, 0, 0, 0]), atol=1e-12)
        made.measure(POSE, measured + 0.001 * i, 1.0)  # it lags behind; the target goes on from itself


def pose_lines(*names: str) -> str:
    return "".join(
        f"  - {{name: {name}, topic: {POSE}, field: position.{name[-1]}, mode: delta, command: {TARGET}}}\n" for name in names
    )


def test_a_target_may_be_measured_in_the_state_and_in_other_units() -> None:
    spec = ActionSpec("one", (ActionDim("elbow", unit="deg", low=-90, high=90, rate=10.0),))
    line = "- {name: elbow, topic: /leader, field: data.0, unit: deg, command: /elbow}"
    made = commands_of(spec, line, "- {name: elbow, topic: /joint_states, field: position.elbow}")
    assert made.measures == [("/joint_states", "joint_state")]
    assert made.measured_at() == -np.inf
    made.measure("/joint_states", {"elbow": (np.pi / 6, np.nan, np.nan)}, 5.0)
    np.testing.assert_allclose(made.at(), [30.0])
    np.testing.assert_allclose(made.stop()[0][2], [30.0])
    np.testing.assert_allclose(made.drive(np.array([40.0]))[0][2], [40.0])
    line = "- {name: elbow, topic: /joint_states, field: position.elbow, command: /elbow}"
    made = commands_of(spec, line)  # JointState is in radians
    made.measure("/joint_states", {"elbow": (np.pi / 6, np.nan, np.nan)}, 5.0)
    np.testing.assert_allclose(made.at(), [30.0])
    np.testing.assert_allclose(made.drive(np.array([45.0]))[0][2]["elbow"], [np.pi / 4, np.nan, np.nan])


def test_a_mapping_tightens_the_rate_of_a_spec_and_never_widens_it() -> None:
    for rate, used in ((0.1, 0.1), (9.0, 0.5)):
        made = commands_of(JOINT_SPEC, lines_of(JOINT_MAPPING.replace("unit: rad", f"unit: rad, rate: {rate}")))
        assert made.limits.rate.tolist() == [used, used]


ONE = ActionSpec("one", (ActionDim("a", unit="rad", rate=1.0),))


@pytest.mark.parametrize(
    ("spec", "actions", "says"),
    [
        (ONE, "- {name: b, topic: /j, field: position.a, command: /c}", "'a'.*not there.*write - {name: a, topic: TOPIC"),
        (ONE, "- {name: a, topic: /j, field: position.a}", "'a'.*write command: TOPIC"),
        (ONE, "- {name: a, topic: /j, field: position.a, kind: binary, command: /c}", "'a'.*write kind: continuous"),
        (
            ONE,
            "- {name: a, topic: /j, field: position.a, mode: velocity, command: /c}",
            "'a'.*velocity does not fit position.a",
        ),
        (
            ONE,
            "- {name: a, topic: /p, field: orientation.roll, command: /c, command_field: angular.x}",
            "'a'.*write mode: delta",
        ),
        (ONE, "- {name: a, topic: /j, field: effort.a, command: /c}", "'a'.*cannot be stopped; command_field"),
        (ONE, "- {name: a, topic: /j, field: position.a, command: /c, command_field: angular.q}", "no field 'angular.q'"),
        (ONE, "- {name: a, topic: /j, field: position.a, command: /c, command_message: twist}", "no field 'position.a'"),
        (ONE, "- {name: a, topic: /p, field: position.x, command: /c}", "'a'.*in 'rad', but /c takes m"),
        (ONE, "- {name: a, topic: /c, field: data.0, unit: '%', command: /d}", "'a'.*'rad', not '%'; write unit:"),
        (ONE, "- {name: a, topic: /c, field: data.0, command: /c}", "'a'.*measured on /c.*in state:, with name: a"),
        (ONE, "- {name: a, topic: /t, field: angular.x, mode: delta, command: /c, command_field: data.0}", "is no position"),
        (ONE, "- {name: a, topic: /j, field: position.a, command: /c, command_field: data.1}", "no action says what data.0"),
        (
            ONE,
            "- {name: a, topic: /p, field: orientation.roll, command: /c}",
            "'a'.*roll, pitch and yaw together",
        ),
        (
            replace(ONE, dims=(ActionDim("a", unit="rad"),)),
            "- {name: a, topic: /j, field: position.a, command: /c}",
            "'a'.*write rate: NUMBER, in rad per second",
        ),
        (
            JOINT_SPEC,
            "- {name: shoulder, topic: /j, field: position.a, command: /c}\n"
            "- {name: elbow, topic: /j, field: position.a, command: /c}",
            "'elbow'.*commanded twice",
        ),
        (
            JOINT_SPEC,
            "- {name: shoulder, topic: /j, field: position.a, command: /c}\n"
            "- {name: elbow, topic: /j, field: position.b, command: /c, command_field: data.0}",
            "'elbow'.*as joint_state and float64_array",
        ),
    ],
)
def test_mistakes_in_a_mapping_are_named(spec: ActionSpec, actions: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        commands_of(spec, actions)


def test_keys_of_driving_need_a_command(tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text("actions: [{name: a, topic: /j, field: position.a, command_field: data.0}]")
    with pytest.raises(ConfigError, match="command_field, but no command: TOPIC"):
        read_mapping(path)


def test_what_commands_an_arm_says_nothing_of_how_it_was_recorded(tmp_path: Path) -> None:
    with_limits = JOINT_MAPPING.replace("unit: rad", "unit: rad, low: -2.0, high: 2.0")
    driven = MappingConfig.model_validate(yaml.safe_load(with_limits))
    recorded = [item.model_copy(update={"command": None, "command_field": None}) for item in driven.actions]
    kept = []
    with open_writer(tmp_path / "out", "mobile_h5", NAV3, 5.0, video=False) as writer:
        for mapping in (MappingConfig(actions=recorded), driven):
            keep_settings(writer, {"front": "/image"}, mapping, Rules(5.0))
            kept.append(json.loads((writer.path / "recording.json").read_text())["mapping"])
    assert kept[0] == kept[1]
    assert (kept[0]["actions"][0]["field"], kept[0]["actions"][0]["low"]) == ("position.shoulder", -2.0)


def test_options_of_bases_do_not_go_with_commands(tmp_path: Path) -> None:
    path = tmp_path / "arm.yaml"
    path.write_text(JOINT_MAPPING)
    with pytest.raises(ConfigError, match="--cmd-vel and --stamped are for bases"):
        run_command(camera=["/image"], cmd_vel="/twist", mapping=path, instruction="go")


def test_a_supervisor_leaves_what_was_measured_no_faster_than_allowed() -> None:
    limits = commands_of(JOINT_SPEC, lines_of(JOINT_MAPPING)).limits
    supervisor = Supervisor(limits, Watch(), (), period=TICK, targets=limits.rate)
    wanted = Proposal(np.array([2.0, -2.0]), 10.0)
    assert supervisor.step(10.0, 10.0, None, np.array([0.7, np.nan])).tolist() == [0.7, 0.0]
    first = supervisor.step(10.02, 10.02, wanted, np.array([0.8, 3.0]))  # the second one is outside of its limits
    np.testing.assert_allclose(first, [0.81, 2.99])
    supervisor.stop("operator", "", 10.03)
    assert supervisor.step(10.04, 10.04, wanted, np.array([0.5, 0.6])).tolist() == [0.5, 0.6]


def test_two_steps_at_the_same_time_command_numbers() -> None:
    limits = replace(commands_of(JOINT_SPEC, lines_of(JOINT_MAPPING)).limits, rate=np.array([np.inf, 0.5]))
    supervisor = Supervisor(limits, Watch(), (), period=TICK)
    for _ in range(2):  # no limit of change, and no time
        command = supervisor.step(10.0, 10.0, Proposal(np.array([0.3, 0.3]), 10.0))
    np.testing.assert_allclose(command, [0.3, 0.01])


def test_the_mapping_of_the_documentation_drives_an_arm(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "ros2.md").read_text()
    section = page[page.index("## Driving an arm") :]
    block = section[section.index("    # arm.yaml") :].split("\n\n")[0]
    mapping = "\n".join(line.removeprefix("    ") for line in block.splitlines())
    path = tmp_path / "arm.yaml"
    path.write_text(mapping)
    assert read_mapping(path).actions
    world = ArmDrive(tmp_path / "log", DELTA7, mapping, DELTA, settings={"watch": FAST})
    world.drive()
    np.testing.assert_allclose(world.sent[TWIST], DELTA[:6] * 10)
    world.operator("stop")
    world.run(0.1)
    assert not world.sent[TWIST].any()
    assert json.loads((tmp_path / "log").read_text().splitlines()[-1])["cause"] == "operator"
