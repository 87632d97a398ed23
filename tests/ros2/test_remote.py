"""The node with a policy behind a server: what is asked, and what a server that goes away does to the robot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="needs the extra serve")
pytest.importorskip("msgpack", reason="needs the extra serve")

from websockets.sync.server import ServerConnection, serve

from anyvla.actions import NAV2
from anyvla.errors import ConfigError
from anyvla.ros2.drive_settings import DriveSettings
from anyvla.ros2.memory import MemoryTransport
from anyvla.ros2.node import DriveNode
from anyvla.ros2.remote import behind_server
from anyvla_client.client import ClientError, PolicyClient
from anyvla_client.stops import StopLog
from anyvla_client.supervisor import Watch
from anyvla_client.wire import pack, unpack

METADATA: dict[str, Any] = {
    "action": NAV2.to_dict(),
    "cameras": ["front"],
    "optional_cameras": [],
    "state": [],
    "fps": 10.0,
    "execution": {"type": "ensemble", "decay": 0.5},
    "training_range": [[-0.2, -0.8], [0.8, 0.8]],
}


class Server:
    """Speaks openpi's protocol; ``answer`` makes the chunks."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: Callable[[], Any] = lambda: np.full((10, 2), 0.5, np.float32)
        self.server = serve(self._talk, "127.0.0.1", 0, compression=None)
        self.port = self.server.socket.getsockname()[1]
        self._connections: list[ServerConnection] = []
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()

    def _talk(self, connection: ServerConnection) -> None:
        self._connections.append(connection)
        connection.send(pack(METADATA))
        for frame in connection:
            assert isinstance(frame, bytes)
            self.asked.append(unpack(frame))
            connection.send(pack({"actions": self.answer()}))

    def drop(self) -> None:
        """As when the process is killed: the sockets end without a word."""
        for connection in self._connections:
            with suppress(OSError):  # it has ended already
                connection.socket.shutdown(2)
        self._connections.clear()

    def close(self) -> None:
        self.server.shutdown()
        self.drop()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


class Robot:
    """A node over memory that asks the server; simulated time, a real socket."""

    def __init__(self, server: Server, log: Path) -> None:
        self.transport = MemoryTransport()
        self.client = PolicyClient(f"ws://127.0.0.1:{server.port}", timeout=20)
        patient = Watch(camera_age=0.2, action_age=1e3, inference=1e3)  # simulated seconds, of which a busy machine uses many
        settings = DriveSettings({"front": "/front"}, instruction="go", operator_topic="/op", watch=patient)
        source = behind_server(self.client, timeout=2.0)
        self.node = DriveNode(
            self.transport, source, settings, log=StopLog(log), steady=self.transport.now, rest=self.transport.advance
        )
        self.sent: list[np.ndarray] = []
        self.transport.subscribe("/cmd_vel", "twist", lambda message: self.sent.append(message.data))
        self._rng = np.random.default_rng(0)
        self._pause = threading.Event()

    def run_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(10_000):
            self.transport.publish("/front", "image", self._rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            self.transport.advance(0.02)
            self.node.step()
            if condition():
                return
            self._pause.wait(0.002)
        raise AssertionError(f"it never came: {self.node.stopped}")

    def close(self) -> None:
        self.node.close()
        self.client.close()


@pytest.fixture
def robot(server: Server, tmp_path: Path) -> Iterator[Robot]:
    one = Robot(server, tmp_path / "log")
    yield one
    one.close()


def test_it_drives_with_what_the_server_says(server: Server, robot: Robot) -> None:
    robot.run_until(lambda: len(server.asked) > 3 and bool(np.allclose(robot.sent[-1][:2], 0.5)))
    first, *rest = server.asked
    assert first["reset"]
    assert not any(one["reset"] for one in rest)
    assert {one["prompt"] for one in server.asked} == {"go"}
    assert first["images"]["front"].shape == (4, 4, 3)
    assert np.all(np.diff([one["stamp"] for one in server.asked]) > 0)


def test_a_server_that_dies_stops_the_robot_before_it_is_asked_again(server: Server, robot: Robot) -> None:
    robot.run_until(lambda: bool(robot.sent[-1].any()))
    server.drop()
    robot.run_until(lambda: robot.node.stopped is not None)
    assert robot.node.stopped is not None
    assert robot.node.stopped.cause == "server_lost"
    assert not robot.sent[-1].any()
    robot.transport.publish("/op", "string", "reset")  # the server is there again: connected anew, a new episode
    asked = len(server.asked)
    robot.run_until(lambda: bool(robot.sent[-1].any()))
    assert any(one["reset"] for one in server.asked[asked:])


def test_a_connection_that_is_made_again_at_once_is_a_lost_server_too(server: Server, robot: Robot) -> None:
    robot.run_until(lambda: bool(robot.sent[-1].any()))
    server.drop()
    while robot.client.connections < 2 or not robot.client.connected:  # the node was not looking
        with suppress(ClientError):
            robot.client.infer({})
    robot.run_until(lambda: robot.node.stopped is not None)
    assert robot.node.stopped is not None
    assert robot.node.stopped.cause == "server_lost"


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (lambda: np.full((10, 2), np.nan), "non_finite_action"),
        (lambda: np.full((10, 2), 1.1), "out_of_distribution"),
        (lambda: np.zeros((10, 3)), "malformed_action"),
        (lambda: "text", "malformed_action"),
    ],
)
def test_a_server_that_answers_nonsense_stops_the_robot(server: Server, robot: Robot, answer: Any, cause: str) -> None:
    robot.run_until(lambda: bool(robot.sent[-1].any()))
    server.answer = answer
    robot.run_until(lambda: robot.node.stopped is not None)
    assert robot.node.stopped is not None
    assert robot.node.stopped.cause == cause
    assert not robot.sent[-1].any()


def test_a_server_that_does_not_say_what_it_needs_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(METADATA, "fps")
    with PolicyClient(f"ws://127.0.0.1:{server.port}") as client, pytest.raises(ConfigError, match=r"\(fps\)"):
        behind_server(client, timeout=1.0)
