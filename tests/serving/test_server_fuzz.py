"""Malformed frames at the server: each costs its connection, and the robot beside it gets the right answers all the time."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from anyvla.policies.policy import Policy
from anyvla.serving.server import PolicyServer, ServerSettings, running
from tests.client.malformed import malformed_frames
from tests.serving.arm_policy import arm_policy

pytest.importorskip("websockets", reason="needs the extra serve")
pytest.importorskip("msgpack", reason="needs the extra serve")

from anyvla_client.client import PolicyClient
from anyvla_client.wire import unpack
from tests.serving.test_server import alone, observation

TEXT = 0x81


class Plain:
    """The least of a WebSocket client, without threads: thousands of connections are made here."""

    def __init__(self, uri: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", int(uri.rpartition(":")[2])), timeout=20)
        self.socket.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        self._file = self.socket.makefile("rb")
        while self._file.readline() != b"\r\n":
            pass
        self._read()  # metadata

    def ask(self, frame: bytes) -> tuple[int, bytes]:
        """(first byte, content) of what comes back."""
        self.socket.sendall(b"\x82\xff" + len(frame).to_bytes(8, "big") + bytes(4) + frame)  # a mask of zeros changes nothing
        return self._read()

    def _read(self) -> tuple[int, bytes]:
        first, size = self._file.read(2)
        if size >= 126:
            size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
        return first, self._file.read(size)


@pytest.fixture
def quick_threads() -> Iterator[None]:
    """Server, model, robot and attacker are threads here, and hand over to each other thousands of times."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_threads")
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_malformed_frames_disturb_nobody(count: int) -> None:
    policy: Policy = arm_policy()
    server = PolicyServer(policy, ServerSettings(port=0, send_timeout=1.0))
    expected = alone(policy, list(range(8)))
    over, wrong, right = threading.Event(), [], [0]

    def healthy(uri: str) -> None:
        with PolicyClient(uri, timeout=20) as client:
            while not over.is_set():
                for step in range(8):
                    over.wait(0.02)  # a control rate
                    chunk = client.infer(observation(step, reset=step == 0))["actions"]
                    if not np.allclose(chunk, expected[step], atol=1e-5):
                        wrong.append(step)
                right[0] += 1
            if client.connections != 1:
                wrong.append(-client.connections)

    refused = answered = 0
    with running(server) as uri:
        robot = threading.Thread(target=healthy, args=(uri,))
        robot.start()
        connection = Plain(uri)
        for frame in malformed_frames(count, seed=count):
            kind, answer = connection.ask(frame)
            if kind == TEXT:
                refused += 1
                assert answer.startswith((b"malformed_frame: ", b"bad_observation: ")), answer
                connection.socket.close()
                connection = Plain(uri)
            else:  # a flipped bit in a pixel or in the sentence is an observation all the same
                answered += 1
                assert np.isfinite(unpack(answer)["actions"]).all()
        connection.socket.close()
        over.set()
        robot.join(60)
        assert not robot.is_alive()
    assert not wrong
    assert right[0] > 1
    assert refused + answered == count
    assert refused > 0.6 * count
