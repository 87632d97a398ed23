"""Bags (rosbag2, in sqlite3 or mcap): which topics they hold, their messages in order, replay as a transport, writing."""

from __future__ import annotations

import struct
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Event, Lock, Thread, current_thread
from types import TracebackType
from typing import Any, Literal, Self

from anyvla.errors import ConfigError, DataError, MissingExtraError, did_you_mean
from anyvla.ros2.cdr import deserialize, serialize, typestore
from anyvla.ros2.messages import KINDS, ROS_TYPES, STAMPED
from anyvla.ros2.transport import Kind, Message

Storage = Literal["mcap", "sqlite3"]
_SUFFIXES = (".mcap", ".db3")
_NS = 10**9
# what rosbags lets through, beside its own errors and SQLite's, where bytes are not what they should be
_UNEXPECTED = (
    OSError, EOFError, struct.error, ArithmeticError, LookupError, ValueError, TypeError, AttributeError, AssertionError,
    MemoryError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class BagTopic:
    """A topic of a bag. ``kind`` is None for a type that is not read here."""

    name: str
    ros_type: str
    kind: Kind | None
    count: int


@dataclass(frozen=True)
class Record:
    """A message as it lies in the bag."""

    topic: str
    kind: Kind
    received: int  # nanoseconds
    raw: bytes

    def message(self) -> Message:
        """Raises DataError if it is damaged."""
        data, stamp = deserialize(self.kind, self.raw)
        return Message(self.kind, data, stamp, self.received / _NS)


def find_bags(path: Path) -> list[Path]:
    """The bags at or below ``path``: folders with a metadata.yaml, and single files that belong to none, by name.

    Raises DataError where there is none.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if path.is_file():
        if path.suffix == ".bag":
            raise DataError(f"{path}: a bag of ROS 1; rosbags-convert --src {path} --dst {path.stem} makes one of ROS 2")
        if path.suffix not in _SUFFIXES:
            raise DataError(f"{path}: not a bag: neither {' nor '.join(_SUFFIXES)}")
        return [path]
    folders = {file.parent for file in path.rglob("metadata.yaml")}
    files = {file for suffix in _SUFFIXES for file in path.rglob(f"*{suffix}") if file.parent not in folders}
    if not folders and not files:
        raise DataError(f"{path}: no bag (a folder with a metadata.yaml, or a file *.mcap or *.db3)")
    return sorted(folders | files)


def is_bag(path: Path) -> bool:
    """Whether a bag lies at or below ``path``."""
    if path.is_file():
        return path.suffix in _SUFFIXES
    return any(True for suffix in _SUFFIXES for _ in path.rglob(f"*{suffix}"))


class Bag:
    """A bag to read. Holds no open file; every iteration opens it anew."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if it cannot be opened, MissingExtraError without rosbags."""
        self.path = path
        with self._open() as reader:
            self._topics = _topics_of(reader)

    @property
    def topics(self) -> dict[str, BagTopic]:
        """Name -> topic, in the order of names."""
        return dict(self._topics)

    def topic(self, name: str, kinds: Sequence[Kind] = tuple(ROS_TYPES)) -> BagTopic:
        """The topic, which must be of one of these kinds. Raises ConfigError, naming what the bag has, if it is not."""
        known = {topic.name for topic in self._topics.values() if topic.kind in kinds}
        if name not in self._topics:
            raise ConfigError(f"{self.path}: no topic {name!r}{did_you_mean(name, known)}")
        topic = self._topics[name]
        if topic.kind not in kinds:
            wanted = " or ".join(ROS_TYPES[kind] for kind in kinds)
            raise ConfigError(f"{self.path}: {name} is a {topic.ros_type}, not a {wanted}")
        return topic

    def records(self, topics: Collection[str], start: int | None = None, stop: int | None = None) -> Iterator[Record]:
        """Messages of these topics received from ``start`` on and before ``stop``, nanoseconds, in order of arrival.

        Raises DataError where the bag is damaged.
        """
        with self._open() as reader:
            wanted = [c for c in reader.connections if c.topic in topics and c.msgtype in KINDS]
            if not wanted:
                return
            for connection, received, raw in reader.messages(wanted, start, stop):
                if not isinstance(received, int) or not isinstance(raw, bytes):
                    raise DataError(f"{self.path}: {connection.topic}: holds something that is no message")
                yield Record(connection.topic, KINDS[connection.msgtype], received, raw)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            import apsw
            from rosbags.rosbag2 import Reader, ReaderError
        except ImportError as error:
            raise MissingExtraError("rosbags", "ros2") from error
        broken: tuple[type[Exception], ...] = (ReaderError, apsw.Error, *_UNEXPECTED, *_zstd_errors())
        try:
            with Reader(self.path) as reader:
                yield reader
        except broken as error:
            why = str(error) or type(error).__name__
            raise DataError(f"{self.path}: damaged bag, or none, or cut short while it was written ({why})") from error


def _zstd_errors() -> tuple[type[Exception], ...]:
    zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    return (zstd.ZstdError,)


def _topics_of(reader: Any) -> dict[str, BagTopic]:
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for connection in reader.connections:
        counts[str(connection.topic), str(connection.msgtype)] += int(connection.msgcount)
    topics: dict[str, BagTopic] = {}
    for (name, ros_type), count in sorted(counts.items()):
        topic = BagTopic(name, ros_type, KINDS.get(ros_type), count)
        if name not in topics or topics[name].kind is None:  # two types on one topic: that which is read
            topics[name] = topic
    return topics


class BagTransport:
    """A bag played as if it happened now; see ``anyvla.ros2.transport.Transport``.

    ``now`` is the bag's time. What is published is kept in ``published`` and goes nowhere: the recorded robot cannot be moved.
    """

    def __init__(self, path: Path, *, speed: float | None = 1.0) -> None:
        """``speed``: times real time; None: as fast as the callbacks take it, the clock standing still while they run."""
        if speed is not None and speed <= 0:
            raise ConfigError(f"speed is {speed}, not a positive number")
        self._bag = Bag(path)
        self._speed = speed
        self._callbacks: dict[str, list[tuple[Kind, Callable[[Message], None]]]] = defaultdict(list)
        self._lock = Lock()
        self._stop = Event()
        self._ended = Event()
        self._thread: Thread | None = None
        self._time = 0.0  # of the bag, when the wall's clock showed _wall
        self._wall: float | None = None
        self.published: list[tuple[str, Message]] = []
        self.error: DataError | None = None  # why the replay ended before its end

    def now(self) -> float:
        if self._speed is None or self._wall is None:
            return self._time
        return self._time + self._speed * (time.monotonic() - self._wall)

    def subscribe(self, topic: str, kind: Kind, callback: Callable[[Message], None]) -> None:
        """Before ``play``. Raises ConfigError if the bag has no such topic of this kind."""
        self._bag.topic(topic, (kind,))
        self._callbacks[topic].append((kind, callback))

    def publish(self, topic: str, kind: Kind, data: Any) -> None:
        now = self.now()
        with self._lock:
            self.published.append((topic, Message(kind, data, now if kind in STAMPED else None, now)))

    def play(self) -> None:
        """Deliver all messages of the topics subscribed to, on this thread. Raises DataError where the bag is damaged."""
        try:
            for record in self._bag.records(self._callbacks):
                self._wait_until(record.received / _NS)
                if self._stop.is_set():
                    return
                message = record.message()
                for kind, callback in self._callbacks[record.topic]:
                    if kind == record.kind:
                        callback(message)
        finally:
            self._ended.set()

    def start(self) -> None:
        """Play on a thread of its own; ``wait`` and ``close`` join it."""
        self._thread = Thread(target=self._play_quietly, name="bag", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether the replay has come to its end. Raises DataError if the bag is damaged."""
        ended = self._ended.wait(timeout)
        if self.error is not None:
            raise self.error
        return ended

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None and self._thread is not current_thread():
            self._thread.join()

    def _play_quietly(self) -> None:
        try:
            self.play()
        except DataError as error:
            self.error = error

    def _wait_until(self, moment: float) -> None:
        if self._speed is None or self._wall is None:
            self._time = moment
            self._wall = time.monotonic()
            return
        wait = (moment - self.now()) / self._speed
        if wait > 0:
            self._stop.wait(wait)


class BagWriter:
    """Writes a bag that ROS 2 can play; one that is interrupted is lost. Thread-safe."""

    def __init__(self, path: Path, storage: Storage = "mcap") -> None:
        """``path``: a new folder. Raises DataError if it exists or cannot be made."""
        typestore()
        from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

        plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = Writer(path, version=9, storage_plugin=plugin)
            self._writer.open()
        except (WriterError, OSError) as error:
            raise DataError(f"{path}: cannot be written ({error})") from error
        self.path = path
        self._lock = Lock()
        self._connections: dict[str, tuple[Kind, Any]] = {}

    def write(self, topic: str, kind: Kind, data: Any, received: float, stamp: float | None = None) -> None:
        """Append a message that arrived at ``received`` seconds; its header is stamped ``stamp``, the same if None."""
        raw = serialize(kind, data, received if stamp is None else stamp)
        with self._lock:
            if topic not in self._connections:
                added = self._writer.add_connection(topic, ROS_TYPES[kind], typestore=typestore())
                self._connections[topic] = kind, added
            known, connection = self._connections[topic]
            if known != kind:
                raise ConfigError(f"{self.path}: {topic} holds {known}; a {kind} cannot be added")
            self._writer.write(connection, round(received * _NS), raw)

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._writer.abort()
