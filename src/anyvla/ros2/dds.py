"""ROS 2 topics over plain DDS: CycloneDDS carries the bytes, rosbags makes them; no ROS is installed.

What ROS 2 adds to DDS are conventions, and a participant that breaks one is not refused, it only hears nothing: the topic
/cmd_vel is "rt/cmd_vel" on the wire, the type geometry_msgs/msg/Twist is "geometry_msgs::msg::dds_::Twist_", types are final
and encoded as XCDR1, and the hash of the type stands in the endpoint's user data.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event, Lock, Thread, current_thread
from typing import Any

from anyvla.errors import ConfigError, DataError
from anyvla.ros2.cdr import deserialize, serialize
from anyvla.ros2.dds_entities import domain_number, join, quality, wire_class, wire_topic
from anyvla.ros2.transport import Kind, Message, sent_at

_log = logging.getLogger(__name__)
_POLL = 100_000_000  # nanoseconds after which a waiting thread looks whether it should end
_TAKEN = 16  # samples at a time
_SEEN = 64  # samples remembered of a topic that is read twice


class DdsTransport:
    """See ``anyvla.ros2.transport.Transport``. Every subscription has a thread, on which its callback runs.

    The clock is that of the wall when the transport was made, and runs on monotonically: stamps of other programs compare with
    it, and it never jumps.
    """

    def __init__(self, domain: int | None = None, *, loopback: bool = False) -> None:
        """Join a DDS domain.

        Args:
            domain: 0 to 232; that of ROS_DOMAIN_ID if None, or 0. loopback: talk to programs on this machine only.

        Raises:
            MissingExtraError: cyclonedds is not installed (it has no wheels for aarch64: a Jetson uses rclpy).
            ConfigError: no such domain or network. The file or text in CYCLONEDDS_URI stands before all settings here.
        """
        self._participant = join(domain_number(domain), loopback)
        self._began = time.time() - time.monotonic()
        self._stop = Event()
        self._lock = Lock()
        self._threads: list[Thread] = []
        self._writers: dict[tuple[str, Kind], Any] = {}
        self._readers: list[tuple[Any, ...]] = []
        self._topics: dict[str, tuple[Kind, Any]] = {}

    def now(self) -> float:
        return self._began + time.monotonic()

    def subscribe(self, topic: str, kind: Kind, callback: Callable[[Message], None]) -> None:
        """See ``Transport``. A message that cannot be decoded is logged and left out."""
        from cyclonedds.sub import DataReader

        with self._lock:
            self._check_open()
            made = self._topic(topic, kind)
            # a durable reader does not hear writers that are not, so strings, which may be either, are read twice
            readers = tuple(
                DataReader(self._participant, made, quality(kind, writing=False, durable=durable))
                for durable in ((False, True) if kind == "string" else (False,))
            )
            self._readers.append(readers)
            thread = Thread(target=self._receive, args=(readers, topic, kind, callback), name=f"dds {topic}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def publish(self, topic: str, kind: Kind, data: Any) -> None:
        """See ``Transport``. The last string stays for those who join later (latched)."""
        from cyclonedds.core import DDSException
        from cyclonedds.pub import DataWriter

        raw = serialize(kind, data, self.now())
        with self._lock:
            self._check_open()
            if (topic, kind) not in self._writers:
                qos = quality(kind, writing=True, durable=kind == "string")
                self._writers[topic, kind] = DataWriter(self._participant, self._topic(topic, kind), qos)
            writer = self._writers[topic, kind]
        try:
            writer.write(wire_class(kind)(raw))
        except DDSException as error:
            raise DataError(f"{topic}: cannot be published ({error})") from error

    def wait_for_partners(self, timeout: float) -> bool:
        """Whether, after ``timeout`` seconds at most, somebody listens to all that is published here and sends all we read."""
        deadline = time.monotonic() + timeout
        while True:
            with self._lock:
                heard = all(writer.get_matched_subscriptions() for writer in self._writers.values())
                fed = all(any(reader.get_matched_publications() for reader in readers) for readers in self._readers)
            if (heard and fed) or time.monotonic() > deadline:
                return heard and fed
            time.sleep(0.01)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread is not current_thread():
                thread.join()
        with self._lock:  # entities go with the last reference to them, children first
            self._threads.clear()
            self._readers.clear()
            self._writers.clear()
            self._topics.clear()
            self._participant = None

    def _check_open(self) -> None:
        if self._stop.is_set():
            raise DataError("the DDS transport is closed")

    def _topic(self, name: str, kind: Kind) -> Any:
        from cyclonedds.topic import Topic

        known = self._topics.get(name)
        if known is None:
            known = self._topics[name] = kind, Topic(self._participant, wire_topic(name), wire_class(kind))
        if known[0] != kind:
            raise ConfigError(f"{name}: used as {known[0]} and as {kind}")
        return known[1]

    def _receive(self, readers: tuple[Any, ...], topic: str, kind: Kind, callback: Callable[[Message], None]) -> None:
        from cyclonedds.core import InstanceState, ReadCondition, SampleState, ViewState, WaitSet

        waitset = WaitSet(self._participant)
        for reader in readers:
            waitset.attach(ReadCondition(reader, SampleState.NotRead | ViewState.Any | InstanceState.Any))
        seen: dict[tuple[int, int], None] = {}
        while not self._stop.is_set():
            if not waitset.wait(_POLL):
                continue
            for reader in readers:
                for sample in reader.take(_TAKEN):
                    info = sample.sample_info
                    key = info.publication_handle, info.source_timestamp
                    if self._stop.is_set() or not info.valid_data or (len(readers) > 1 and key in seen):
                        continue
                    seen[key] = None
                    if len(seen) > _SEEN:
                        del seen[next(iter(seen))]
                    received = self.now()
                    try:
                        data, stamp = deserialize(kind, sample.raw)
                    except DataError as error:
                        _log.warning("%s: a message is left out: %s", topic, error)
                        continue
                    callback(Message(kind, data, stamp, received, sent_at(info.source_timestamp, received)))
