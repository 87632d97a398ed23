"""The rclpy back end against a small stand-in of rclpy; it has not been run with the real one here."""

from __future__ import annotations

import array
import sys
import time
import types
from typing import Any

import numpy as np
import pytest

from anyvla.errors import AnyVLAError, ConfigError, DataError
from anyvla.ros2.messages import ROS_TYPES
from anyvla.ros2.opening import open_transport

NAMES = (
    *ROS_TYPES.values(),
    "std_msgs/msg/Header",
    "std_msgs/msg/MultiArrayLayout",
    "builtin_interfaces/msg/Time",
    *(f"geometry_msgs/msg/{name}" for name in ("Vector3", "Point", "Quaternion", "Pose")),
)


class Record:
    """A message class as rclpy's are: made of keyword arguments."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class Node:
    def __init__(self) -> None:
        self.subscriptions: list[tuple[type, str, Any, Any]] = []
        self.sent: list[tuple[str, Any, Any]] = []
        self.warnings: list[str] = []
        self.destroyed = False

    def create_subscription(self, kind: type, topic: str, callback: Any, quality: Any) -> None:
        self.subscriptions.append((kind, topic, callback, quality))

    def create_publisher(self, kind: type, topic: str, quality: Any) -> Any:
        return types.SimpleNamespace(publish=lambda message: self.sent.append((topic, message, quality)))

    def get_logger(self) -> Any:
        return types.SimpleNamespace(warning=self.warnings.append)

    def destroy_node(self) -> None:
        self.destroyed = True


class Context:
    def ok(self) -> bool:
        return True

    def try_shutdown(self) -> None: ...


class Executor:
    def __init__(self, context: Any) -> None: ...

    def add_node(self, node: Any) -> None: ...

    def shutdown(self) -> None: ...

    def spin_once(self, timeout_sec: float) -> None:
        time.sleep(0.001)


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node()

    def module(name: str, **content: Any) -> None:
        made_module = types.ModuleType(name)
        made_module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, made_module)

    names = {"KEEP_LAST": "last", "RELIABLE": "reliable", "BEST_EFFORT": "best", "TRANSIENT_LOCAL": "durable"}
    policy = types.SimpleNamespace(**names, VOLATILE="volatile")
    module("rclpy.executors", SingleThreadedExecutor=Executor)
    module("rclpy.qos", DurabilityPolicy=policy, HistoryPolicy=policy, ReliabilityPolicy=policy, QoSProfile=Record)
    module(
        "rclpy",
        Context=Context,
        init=lambda context, domain_id: None,
        create_node=lambda name, context: made,
        executors=sys.modules["rclpy.executors"],
    )
    for package in {name.split("/")[0] for name in NAMES}:
        classes = {n.split("/")[2]: type(n.split("/")[2], (Record,), {}) for n in NAMES if n.startswith(f"{package}/")}
        module(package)
        module(f"{package}.msg", **classes)
    return made


def test_without_ros_it_is_said_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rclpy", None)
    with pytest.raises(AnyVLAError, match=r"source the setup.bash .* or --transport dds"):
        open_transport("rclpy")
    with pytest.raises(ConfigError, match="ROS_AUTOMATIC_DISCOVERY_RANGE"):
        open_transport("rclpy", loopback=True)


def test_messages_go_both_ways(node: Node) -> None:
    line = open_transport("rclpy")
    heard: list[Any] = []
    for kind in ("image", "joint_state", "string"):
        line.subscribe(f"/{kind}", kind, heard.append)  # type: ignore[arg-type]
    frame = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    line.publish("/image", "image", frame)
    line.publish("/joint_state", "joint_state", {"a": (0.5, float("nan"), float("nan"))})
    line.publish("/string", "string", "go")
    line.publish("/string", "string", "on")
    assert isinstance(node.sent[0][1].data, array.array)  # an ndarray would cost 140 ms
    (image, image_topic, on_image, image_quality), (_, _, on_joints, _), *strings = node.subscriptions
    assert (image.__name__, image_topic, image_quality.reliability) == ("Image", "/image", "best")
    assert [quality.durability for *_, quality in strings] == ["volatile", "durable"]
    on_image(node.sent[0][1])
    on_joints(node.sent[1][1])
    for number, (_, message, quality) in enumerate(node.sent[2:]):
        assert (quality.durability, quality.reliability) == ("durable", "reliable")
        for _, _, callback, _ in strings:  # both subscriptions hear it
            callback(message, {"source_timestamp": number})
    assert np.array_equal(heard[0].data, frame)
    assert heard[0].stamp is not None
    assert abs(heard[0].received - heard[0].stamp) < 5
    assert heard[1].data["a"][0] == 0.5
    assert [m.data for m in heard[2:]] == ["go", "on"]
    node.sent[0][1].encoding = "bayer_rggb8"
    on_image(node.sent[0][1])
    assert "bayer_rggb8" in node.warnings[0]
    assert len(heard) == 4
    line.close()
    line.close()
    assert node.destroyed
    with pytest.raises(DataError, match="closed"):
        line.publish("/string", "string", "late")
