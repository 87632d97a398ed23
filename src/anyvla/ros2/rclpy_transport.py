"""ROS 2 topics through rclpy, the robot's own ROS. rclpy comes with ROS (``source /opt/ros/.../setup.bash``), not from PyPI.

It runs in the Python of that ROS; a policy that needs another environment stays behind a policy server.
"""

from __future__ import annotations

import array
import time
from collections.abc import Callable
from importlib import import_module
from threading import Lock, Thread, current_thread
from typing import Any

import numpy as np

from anyvla.errors import AnyVLAError, DataError
from anyvla.ros2.messages import ROS_TYPES, Maker, build, content, stamp_of
from anyvla.ros2.transport import Kind, Message, sent_at

_LATCHED_DEPTH = 1
_DEPTH = 10


class RclpyTransport:
    """See ``anyvla.ros2.transport.Transport``. All callbacks run on one thread, that of the executor."""

    def __init__(self, domain: int | None = None, *, name: str = "anyvla") -> None:
        """``domain``: that of ROS_DOMAIN_ID if None. ``name``: of the node. Raises AnyVLAError without ROS."""
        try:
            import rclpy
            import rclpy.executors
        except ImportError as error:
            raise AnyVLAError(
                "no rclpy in this Python: source the setup.bash of your ROS 2 and use its python3, or --transport dds"
            ) from error
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=domain)
        self._node = rclpy.create_node(name, context=self._context)
        self._executor = rclpy.executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._began = time.time() - time.monotonic()
        self._lock = Lock()
        self._publishers: dict[tuple[str, Kind], Any] = {}
        self._open = True
        self._thread = Thread(target=self._spin, name="rclpy", daemon=True)
        self._thread.start()

    def now(self) -> float:
        return self._began + time.monotonic()

    def subscribe(self, topic: str, kind: Kind, callback: Callable[[Message], None]) -> None:
        """See ``Transport``. A message that cannot be decoded is logged and left out."""
        last: list[Any] = [None]  # what a volatile and a durable subscription both hear is told once

        def heard(message: Any, source_timestamp: int | None = None) -> None:
            received = self.now()
            sent = None if source_timestamp is None else sent_at(source_timestamp, received)
            try:
                data, stamp = content(kind, message), stamp_of(kind, message)
            except (DataError, ValueError) as error:
                self._node.get_logger().warning(f"{topic}: a message is left out: {error}")
                return
            callback(Message(kind, data, stamp, received, sent))

        def heard_once(message: Any, info: dict[str, Any]) -> None:
            if info["source_timestamp"] != last[0]:
                last[0] = info["source_timestamp"]
                heard(message, info["source_timestamp"])

        with self._lock:
            if kind == "string":
                for durable in (False, True):
                    self._node.create_subscription(_message_class(ROS_TYPES[kind]), topic, heard_once, _quality(True, durable))
            else:
                self._node.create_subscription(_message_class(ROS_TYPES[kind]), topic, heard, _quality(False, False))

    def publish(self, topic: str, kind: Kind, data: Any) -> None:
        """See ``Transport``. The last string stays for those who join later (latched)."""
        message = build(kind, data, self.now(), Maker(lambda name, /, **fields: _message_class(name)(**fields), _numbers))
        with self._lock:
            if not self._open:
                raise DataError("the rclpy transport is closed")
            if (topic, kind) not in self._publishers:
                quality = _quality(True, kind == "string")
                self._publishers[topic, kind] = self._node.create_publisher(_message_class(ROS_TYPES[kind]), topic, quality)
            self._publishers[topic, kind].publish(message)

    def close(self) -> None:
        with self._lock:
            if not self._open:
                return
            self._open = False
        self._executor.shutdown()
        if self._thread is not current_thread():
            self._thread.join()
        self._node.destroy_node()
        self._context.try_shutdown()

    def _spin(self) -> None:
        while self._open and self._context.ok():
            self._executor.spin_once(timeout_sec=0.1)


def _message_class(ros_type: str) -> Any:
    package, folder, name = ros_type.split("/")
    return getattr(import_module(f"{package}.{folder}"), name)


def _numbers(values: np.ndarray) -> array.array[Any]:
    # an ndarray is checked number by number: 140 ms for a frame of 720p, against 1 ms
    made = array.array("B" if values.dtype == np.uint8 else "d")
    made.frombytes(values.tobytes())
    return made


def _quality(reliable: bool, durable: bool) -> Any:
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=_LATCHED_DEPTH if durable else _DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if durable else DurabilityPolicy.VOLATILE,
    )
