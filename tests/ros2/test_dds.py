"""Over real DDS on this machine's loopback: two participants, or two processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("cyclonedds")

from anyvla.errors import ConfigError, DataError
from anyvla.ros2.dds import DdsTransport
from anyvla.ros2.dds_entities import domain_number, quality, wire_class, wire_topic, wire_type
from anyvla.ros2.messages import ROS_TYPES
from anyvla.ros2.transport import Kind, Message

DOMAIN = 100 + os.getpid() % 100  # tests that run at the same time do not hear each other


class Ear:
    """Keeps what it hears, and waits for it."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self._news = threading.Condition()

    def __call__(self, message: Message) -> None:
        with self._news:
            self.heard.append(message)
            self._news.notify_all()

    def wait(self, count: int, timeout: float = 10.0) -> list[Message]:
        with self._news:
            self._news.wait_for(lambda: len(self.heard) >= count, timeout)
        return self.heard


@pytest.fixture
def pair() -> Iterator[tuple[DdsTransport, DdsTransport]]:
    a, b = DdsTransport(DOMAIN, loopback=True), DdsTransport(DOMAIN, loopback=True)
    yield a, b
    a.close()
    b.close()
    a.close()


def test_twists_there_and_back(pair: tuple[DdsTransport, DdsTransport]) -> None:
    robot, brain = pair
    ear = Ear()
    brain.subscribe("/cmd_vel_in", "twist", lambda m: brain.publish("/cmd_vel", "twist_stamped", 2 * m.data))
    robot.subscribe("/cmd_vel", "twist_stamped", ear)
    robot.publish("/cmd_vel_in", "twist", np.zeros(6))
    brain.publish("/cmd_vel", "twist_stamped", np.zeros(6))
    assert robot.wait_for_partners(10)
    assert brain.wait_for_partners(10)
    for i in range(1, 21):
        count = sum(m.data[0] > 0 for m in ear.heard)
        robot.publish("/cmd_vel_in", "twist", np.full(6, float(i)))
        ear.wait(len(ear.heard) - count + i)
    heard = [m for m in ear.heard if m.data[0] > 0]
    assert [m.data[0] for m in heard] == [2.0 * i for i in range(1, 21)]
    assert all(m.stamp is not None and -0.05 < m.received - m.stamp < 5 for m in heard)


def test_a_latched_string_reaches_who_comes_later_once(pair: tuple[DdsTransport, DdsTransport]) -> None:
    first, late = pair
    first.publish("/instruction", "string", "Go to the ball.")
    time.sleep(0.2)
    ear = Ear()
    late.subscribe("/instruction", "string", ear)
    assert [m.data for m in ear.wait(1)] == ["Go to the ball."]
    assert late.wait_for_partners(10)
    first.publish("/instruction", "string", "Now back.")
    ear.wait(2)
    time.sleep(0.2)
    assert [m.data for m in ear.heard] == ["Go to the ball.", "Now back."]


def test_every_kind_arrives(pair: tuple[DdsTransport, DdsTransport]) -> None:
    from tests.ros2.test_messages import DATA

    a, b = pair
    ears = {kind: Ear() for kind in ROS_TYPES}
    for kind, ear in ears.items():
        b.subscribe(f"/{kind}", kind, ear)
        a.publish(f"/{kind}", kind, DATA[kind])
    assert a.wait_for_partners(10)
    for kind, ear in ears.items():
        a.publish(f"/{kind}", kind, DATA[kind])
        assert ear.wait(1)[0].kind == kind


def test_what_robots_expect_on_the_wire() -> None:
    from cyclonedds.qos import Policy

    assert wire_topic("/camera/image_raw") == "rt/camera/image_raw"
    assert wire_topic("cmd_vel") == "rt/cmd_vel"
    for kind, ros_type in ROS_TYPES.items():
        package, _, name = ros_type.split("/")
        assert wire_type(ros_type) == f"{package}::msg::dds_::{name}_"
        made = wire_class(kind)
        assert made.__idl_typename__.replace(".", "::") == wire_type(ros_type)
        assert made.__idl_annotations__["extensibility"] == "final"
        for writing in (True, False):
            described = quality(kind, writing, durable=False)
            assert described[Policy.DataRepresentation].use_cdrv0_representation
            assert not described[Policy.DataRepresentation].use_xcdrv2_representation
    # of geometry_msgs/msg/Twist in ROS 2 Jazzy
    twist = b"typehash=RIHS01_9c45bf16fe0983d80e3cfe750d6835843d265a9a6c46bd2e609fcddde6fb8d2a;"
    assert bytes(quality("twist", writing=True, durable=False)[Policy.Userdata].data) == twist


def test_cyclonedds_itself_understands_the_bytes() -> None:
    """Our bytes, read by another library's codec, from the fields that it was told."""
    from anyvla.ros2.cdr import serialize

    made = wire_class("twist_stamped")
    made.__idl__.populate()

    class Fields(made):  # type: ignore[valid-type, misc]
        def __init__(self, **fields: Any) -> None:
            self.__dict__.update(fields)

    read = Fields.__idl__.deserialize(serialize("twist_stamped", np.arange(6.0), 12.5))
    assert (read.header.stamp.sec, read.header.stamp.nanosec, read.twist.angular.z) == (12, 500_000_000, 5.0)


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch, pair: tuple[DdsTransport, DdsTransport]) -> None:
    for name in ("/", "/2fast", "/a//b", "/a-b", "/ä", ""):
        with pytest.raises(ConfigError, match="no name of a topic"):
            wire_topic(name)
    for number in (-1, 233):
        with pytest.raises(ConfigError, match="no DDS domain"):
            domain_number(number)
    monkeypatch.setenv("ROS_DOMAIN_ID", "seven")
    with pytest.raises(ConfigError, match="ROS_DOMAIN_ID is 'seven'"):
        domain_number(None)
    monkeypatch.setenv("ROS_DOMAIN_ID", "7")
    assert domain_number(None) == 7
    assert domain_number(3) == 3
    monkeypatch.delenv("ROS_DOMAIN_ID")
    assert domain_number(None) == 0
    a, _ = pair
    a.publish("/x", "twist", np.zeros(6))
    with pytest.raises(ConfigError, match="/x: used as twist and as string"):
        a.publish("/x", "string", "no")
    a.close()
    with pytest.raises(DataError, match="closed"):
        a.publish("/x", "twist", np.zeros(6))


def test_settings_of_the_user_stand_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYCLONEDDS_URI", "<CycloneDDS><Domain><General><Nonsense>1</Nonsense></General></Domain></CycloneDDS>")
    with pytest.raises(ConfigError, match="CYCLONEDDS_URI"):
        DdsTransport(DOMAIN + 1)
    monkeypatch.delenv("CYCLONEDDS_URI")
    DdsTransport(DOMAIN + 1, loopback=True).close()
    assert "CYCLONEDDS_URI" not in os.environ


def test_the_clock_is_the_walls_and_monotonic(pair: tuple[DdsTransport, DdsTransport]) -> None:
    times = [pair[0].now() for _ in range(1000)]
    assert times == sorted(times)
    assert abs(times[-1] - time.time()) < 5


def publish_frames(domain: int, kind: Kind, count: int, ready: Any, done: Any) -> None:
    camera = DdsTransport(domain, loopback=True)
    small = np.random.default_rng(0).integers(0, 256, (45, 80, 3), dtype=np.uint8)
    frame = np.ascontiguousarray(small.repeat(16, axis=0).repeat(16, axis=1))
    camera.publish("/camera", kind, frame)
    camera.wait_for_partners(30)
    ready.wait(30)
    for i in range(count):
        began = time.monotonic()
        frame[:16, :16] = i
        camera.publish("/camera", kind, frame)
        time.sleep(max(0.0, began + 1 / 30 - time.monotonic()))
    done.wait(30)
    camera.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compressed_image", "image"])
def test_720p_at_30_hz_from_another_process(kind: Kind) -> None:
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    brain, seen = DdsTransport(DOMAIN, loopback=True), []
    brain.subscribe("/camera", kind, lambda m: seen.append(round(float(m.data[4:12, 4:12].mean()))))
    process = context.Process(target=publish_frames, args=(DOMAIN, kind, 150, ready, done))
    process.start()
    assert brain.wait_for_partners(60)
    time.sleep(0.5)
    seen.clear()
    ready.set()
    deadline = time.monotonic() + 30
    while len(seen) < 150 and time.monotonic() < deadline:
        time.sleep(0.05)
    done.set()
    process.join(30)
    brain.close()
    if kind == "compressed_image":
        assert seen == list(range(150))
    else:  # on a busy machine the newest raw frames take the place of old ones
        assert len(seen) > 75
        assert seen == sorted(set(seen))


@pytest.mark.slow
@pytest.mark.parametrize("to", ["mobile_h5", "lerobot"])
def test_an_episode_is_recorded_over_dds(tmp_path: Path, to: str) -> None:
    """``anyvla ros2 record`` in a process of its own, told by topic what to do."""
    from anyvla.data.sources.opening import open_source, source_at
    from tests.ros2.made import command_at, frame_at

    out = tmp_path / "out"
    command = [sys.executable, "-m", "anyvla", "ros2", "record", "--camera", "/camera/image_raw/compressed", "--to", to]
    command += ["--out", str(out), "--instruction-topic", "/instruction", "--loopback", "--domain", str(DOMAIN)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    robot = DdsTransport(DOMAIN, loopback=True)
    robot.publish("/instruction", "string", "Go to the ball.")
    robot.publish("/anyvla/record", "string", "discard")
    robot.publish("/cmd_vel", "twist", np.zeros(6))
    robot.publish("/camera/image_raw/compressed", "compressed_image", frame_at(0))
    assert robot.wait_for_partners(60)
    began = time.monotonic()
    for i in range(200):
        if i in (20, 180):
            robot.publish("/anyvla/record", "string", {20: "start", 180: "stop"}[i])
        robot.publish("/cmd_vel", "twist", command_at(i / 50))
        if i % 2 == 0:
            robot.publish("/camera/image_raw/compressed", "compressed_image", frame_at(i / 50))
        time.sleep(max(0.0, began + i / 50 - time.monotonic()))
    time.sleep(1.0)
    robot.publish("/anyvla/record", "string", "start")  # an episode that is left open
    time.sleep(0.5)
    output, _ = process.communicate("q\n", timeout=60)
    robot.close()
    assert process.returncode == 0, output
    assert "written: " in output
    assert "Hz" in output
    assert "the open episode is discarded" in output
    source = open_source(source_at(out), cache=tmp_path / "cache")
    assert len(source) == 1
    episode = source.episode(0)
    assert episode.instruction == "Go to the ball."
    assert 13 <= episode.length <= 17
    assert np.abs(episode.actions).max() > 0.2
    assert episode.read(0, 2, ["front"])["front"].shape == (2, 24, 32, 3)
