from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")

from anyvla.config.sources import BagConfig
from anyvla.data.sources.ros2_bag import BagSource
from anyvla.errors import AnyVLAError, ConfigError, DataError
from anyvla.ros2.bag import Bag, BagTransport, BagWriter, Storage, find_bags
from anyvla.ros2.transport import Message
from tests.ros2.made import command_at, seconds_in, write_drive

STORAGES: list[Storage] = ["mcap", "sqlite3"]


@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_written_is_read_in_order(tmp_path: Path, storage: Storage) -> None:
    bag = Bag(write_drive(tmp_path / "bag", 2.0, storage=storage))
    assert {name: (topic.kind, topic.count) for name, topic in bag.topics.items()} == {
        "/camera/image_raw/compressed": ("compressed_image", 40),
        "/cmd_vel": ("twist", 100),
        "/instruction": ("string", 1),
    }
    records = list(bag.records(bag.topics))
    assert len(records) == 141
    assert [r.received for r in records] == sorted(r.received for r in records)
    frames = [r.message() for r in records if r.kind == "compressed_image"]
    assert [seconds_in(m.data) for m in frames] == pytest.approx([i / 20 for i in range(40)], abs=0.03)
    assert np.allclose([m.received - (m.stamp or 0) for m in frames], 0.02)
    some = list(bag.records(["/cmd_vel"], records[50].received, records[60].received))
    assert [r.received for r in some] == [r.received for r in records[50:60] if r.topic == "/cmd_vel"]


def test_single_files_and_folders_of_bags_are_found(tmp_path: Path) -> None:
    write_drive(tmp_path / "all" / "b", 0.2)
    write_drive(tmp_path / "all" / "deeper" / "a", 0.2, storage="sqlite3")
    loose = tmp_path / "all" / "loose.mcap"
    loose.write_bytes((tmp_path / "all" / "b" / "b.mcap").read_bytes())
    found = find_bags(tmp_path / "all")
    assert [path.name for path in found] == ["b", "a", "loose.mcap"]
    assert [sum(t.count for t in Bag(path).topics.values()) for path in found] == [15, 15, 15]


def test_replay_is_the_bag_in_its_own_time(tmp_path: Path) -> None:
    robot = BagTransport(write_drive(tmp_path / "bag", 2.0, start=500.0), speed=None)
    heard: list[tuple[float, Message]] = []
    robot.subscribe("/cmd_vel", "twist", lambda m: heard.append((robot.now(), m)))
    robot.subscribe("/instruction", "string", lambda m: robot.publish("/cmd_vel", "twist_stamped", np.zeros(6)))
    robot.play()
    assert len(heard) == 100
    assert np.allclose([now for now, _ in heard], 500 + np.arange(100) / 50)
    assert all(np.allclose(m.data, command_at(i / 50)) for i, (_, m) in enumerate(heard))
    (topic, said) = robot.published[0]
    assert (topic, said.stamp) == ("/cmd_vel", pytest.approx(500.5))
    robot.close()


def test_replay_on_a_thread_ends_and_can_be_stopped(tmp_path: Path) -> None:
    path = write_drive(tmp_path / "bag", 2.0)
    robot, heard = BagTransport(path, speed=20.0), []
    robot.subscribe("/cmd_vel", "twist", heard.append)
    robot.start()
    assert robot.wait(20)
    assert len(heard) == 100
    robot.close()
    slow, first = BagTransport(path, speed=0.001), threading.Event()
    slow.subscribe("/cmd_vel", "twist", lambda _: first.set())
    slow.start()
    assert first.wait(10)
    slow.close()
    assert not slow.wait(0) or len(heard) == 100


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = write_drive(tmp_path / "bag", 0.2)
    robot = BagTransport(path)
    with pytest.raises(ConfigError, match=r"no topic '/cmd_ve'; did you mean '/cmd_vel'"):
        robot.subscribe("/cmd_ve", "twist", print)
    with pytest.raises(ConfigError, match=r"/cmd_vel is a geometry_msgs/msg/Twist, not a std_msgs/msg/String"):
        robot.subscribe("/cmd_vel", "string", print)
    with pytest.raises(ConfigError, match="speed is 0"):
        BagTransport(path, speed=0)
    with pytest.raises(DataError, match="cannot be written"):
        BagWriter(path)
    with BagWriter(tmp_path / "two") as writer:
        writer.write("/cmd_vel", "twist", np.zeros(6), 1.0)
        with pytest.raises(ConfigError, match="holds twist; a string cannot"):
            writer.write("/cmd_vel", "string", "no", 2.0)
    for name, content, message in (
        ("old.bag", b"#ROSBAG", "a bag of ROS 1; rosbags-convert"),
        ("some.txt", b"", "not a bag"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            find_bags(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        find_bags(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no bag"):
        find_bags(tmp_path / "empty")


def fuzz(path: Path, storage: Storage, count: int, seed: int, as_source: bool = False) -> int:
    """Read ``count`` mutations of a bag; returns how many were refused. Only our own errors may come."""
    file = next(f for f in write_drive(path / "bag", 1.0, storage=storage).iterdir() if f.suffix != ".yaml")
    whole, meta = file.read_bytes(), (file.parent / "metadata.yaml").read_bytes()
    rng = np.random.default_rng(seed)
    refused = 0
    for i in range(count):
        raw = bytearray(meta if i % 8 == 7 else whole)
        # damage spread over the file, or only where its structure lies: at its begin and its end
        low, high = [(0, len(raw)), (0, min(600, len(raw))), (max(0, len(raw) - 3000), len(raw))][i % 3]
        for _ in range(int(rng.integers(1, 9))):
            raw[int(rng.integers(low, high))] = int(rng.integers(256))
        if i % 4 == 0:
            raw = raw[: int(rng.integers(len(raw)))]
        (file.parent / "metadata.yaml").write_bytes(raw if i % 8 == 7 else meta)
        file.write_bytes(whole if i % 8 == 7 else raw)
        try:
            bag = Bag(file.parent if i % 2 else file)
            for record in bag.records(bag.topics):
                record.message()
        except DataError:
            refused += 1
        if as_source:
            try:
                episode = BagSource(BagConfig(path=file.parent if i % 2 else file, shortest=0.2)).episode(0)
                episode.read(0, episode.length, episode.cameras)
            except AnyVLAError:
                refused += 1
    return refused


@pytest.mark.parametrize("storage", STORAGES)
def test_damaged_bags_are_our_errors(tmp_path: Path, storage: Storage) -> None:
    assert fuzz(tmp_path, storage, 100, seed=0) > 20


@pytest.mark.slow
@pytest.mark.parametrize("storage", STORAGES)
def test_a_thousand_damaged_bags_are_our_errors(tmp_path: Path, storage: Storage) -> None:
    assert fuzz(tmp_path, storage, 600, seed=1, as_source=True) > 100
