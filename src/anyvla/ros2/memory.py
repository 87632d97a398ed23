"""Topics inside one process, with a clock in the caller's hand: a robot for tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from threading import RLock
from typing import Any

from anyvla.ros2.messages import STAMPED
from anyvla.ros2.transport import Kind, Message


class MemoryTransport:
    """See ``anyvla.ros2.transport.Transport``. A message is delivered at once, by the thread that publishes it.

    The last string of a topic is kept for whoever subscribes later, as ROS does with a latched topic.
    """

    def __init__(self, start: float = 1.0) -> None:
        """``start``: what the clock shows first, in seconds."""
        self._now = start
        self._lock = RLock()  # a callback may publish
        self._callbacks: dict[tuple[str, Kind], list[Callable[[Message], None]]] = defaultdict(list)
        self._latched: dict[str, Message] = {}
        self._open = True

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Set the clock forward, or back with a negative number, as a robot's clock may jump."""
        with self._lock:
            self._now += seconds

    def subscribe(self, topic: str, kind: Kind, callback: Callable[[Message], None]) -> None:
        with self._lock:
            self._callbacks[topic, kind].append(callback)
            latched = self._latched.get(topic)
            if latched is not None and latched.kind == kind:
                callback(latched)

    def publish(self, topic: str, kind: Kind, data: Any) -> None:
        self.inject(topic, kind, data, self._now if kind in STAMPED else None)

    def inject(self, topic: str, kind: Kind, data: Any, stamp: float | None, sent: float | None = None) -> None:
        """Publish with this stamp in the header, None for one that nobody has set; ``sent`` long ago, or now."""
        with self._lock:
            if not self._open:
                return
            message = Message(kind, data, stamp, self._now, self._now if sent is None else sent)
            if kind == "string":
                self._latched[topic] = message
            for callback in tuple(self._callbacks[topic, kind]):
                callback(message)

    def close(self) -> None:
        with self._lock:
            self._open = False
            self._callbacks.clear()
