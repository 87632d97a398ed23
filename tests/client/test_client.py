"""PolicyClient against servers that are not ours, that come and go, and that misbehave."""

from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anyvla_client
from anyvla_client.safety import Limits, SafetyFilter

pytest.importorskip("websockets", reason="needs the extra serve")
pytest.importorskip("msgpack", reason="needs the extra serve")

import msgpack
from websockets.sync.server import ServerConnection, serve

from anyvla_client.client import AnswerTimeoutError, ClientError, PolicyClient, RefusedError, ServerLostError
from anyvla_client.fake import main
from anyvla_client.wire import WireError, pack, unpack

SPEC = {
    "name": "nav2",
    "dims": [
        {"name": "linear_x", "kind": "continuous", "unit": "m/s", "low": -1.0, "high": 1.0, "rate": 3.0},
        {"name": "grip", "kind": "binary", "unit": "", "low": 0.0, "high": 1.0, "rate": None},
    ],
}
METADATA = {"cameras": ["front"], "image_size": [4, 6], "state": ["x"], "action": SPEC, "fps": 50.0}


@contextmanager
def serving(talk: Callable[[ServerConnection], None], port: int = 0) -> Iterator[str]:
    """A server of ``talk`` on a thread."""

    def quietly(connection: ServerConnection) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            talk(connection)
        except ConnectionClosed:
            return

    with serve(quietly, "127.0.0.1", port, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def openpi(connection: ServerConnection) -> None:
    """As openpi's own server talks, and its codec written by hand: the state comes back as actions; an error is a traceback."""
    connection.send(msgpack.packb({"model": "pi0"}))
    while True:
        observation = msgpack.unpackb(connection.recv())
        state = observation["observation/state"]
        if observation["prompt"] == "fail":
            connection.send("Traceback (most recent call last):\n  KeyError: 'observation/image'")
            connection.close(1011, "Internal server error. Traceback included in previous frame.")
            return
        actions = {b"__ndarray__": True, b"data": state[b"data"], b"dtype": state[b"dtype"], b"shape": [1, *state[b"shape"]]}
        connection.send(msgpack.packb({"actions": actions, "server_timing": {"infer_ms": 1.5}}))


def robot(value: float = 0.0, prompt: str = "go") -> dict[str, Any]:
    return {"observation/state": np.array([value, 2.0]), "prompt": prompt}


def test_any_server_of_openpis_protocol_is_spoken_to() -> None:
    with serving(openpi) as uri, PolicyClient(uri, timeout=10) as client:
        assert client.metadata == {"model": "pi0"}
        for i in range(3):
            np.testing.assert_array_equal(client.infer(robot(i))["actions"], [[i, 2.0]])
        with pytest.raises(RefusedError, match="KeyError: 'observation/image'"):
            client.infer(robot(prompt="fail"))
        np.testing.assert_array_equal(client.infer(robot(9))["actions"], [[9, 2.0]])  # connected anew
        assert client.connections == 2
        with pytest.raises(WireError):
            client.infer({"a": object()})
    with pytest.raises(ClientError, match="closed"):
        client.infer(robot())


def test_a_server_that_is_started_again_is_found_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uri = f"ws://127.0.0.1:{port}"
    with pytest.raises(ServerLostError, match=f"no policy server at {uri}"):
        PolicyClient(uri, timeout=0.2)
    with serving(openpi, port):
        client = PolicyClient(uri, timeout=20)
        client.infer(robot())
    with pytest.raises(ServerLostError):
        client.infer(robot(1), timeout=0.3)
    with serving(openpi, port):
        np.testing.assert_array_equal(client.infer(robot(2), timeout=20)["actions"], [[2, 2.0]])
    assert client.connections == 2
    result: list[Any] = []
    waiting = threading.Thread(target=lambda: result.append(client.infer(robot(3), timeout=30)["actions"]))
    waiting.start()  # asks while there is no server, and has its answer when there is one
    time.sleep(0.2)
    with serving(openpi, port):
        waiting.join(30)
    np.testing.assert_array_equal(result, [[[3, 2.0]]])
    client.close()


def test_an_answer_that_is_late_is_never_taken_for_the_next_one() -> None:
    go = threading.Event()

    def slow(connection: ServerConnection) -> None:
        connection.send(pack({}))
        while True:
            observation = unpack(connection.recv())
            if observation["prompt"] == "slow":
                go.wait(20)
            connection.send(pack({"actions": observation["observation/state"][None]}))

    with serving(slow) as uri, PolicyClient(uri, timeout=20) as client:
        with pytest.raises(AnswerTimeoutError, match="did not answer in time"):
            client.infer(robot(1, "slow"), timeout=0.1)
        np.testing.assert_array_equal(client.infer(robot(2))["actions"], [[2, 2]])
        go.set()
        np.testing.assert_array_equal(client.infer(robot(3))["actions"], [[3, 2]])
        assert client.connections == 2


def test_a_server_that_does_not_read_is_given_up() -> None:
    over = threading.Event()

    def deaf(connection: ServerConnection) -> None:
        connection.send(pack({}))
        over.wait(30)

    with serving(deaf) as uri:
        client = PolicyClient(uri, timeout=10)
        began = time.monotonic()
        with pytest.raises((AnswerTimeoutError, ServerLostError)):
            client.infer({"image": np.zeros(30_000_000, np.uint8)}, timeout=0.3)
        assert time.monotonic() - began < 9  # it does not hang; how long exactly is the system's
        over.set()
        client.close()


@pytest.mark.parametrize("first", [b"\xc1", pack({"a": np.ones(2)}).replace(b"<f8", b"|O8")])
def test_what_is_not_the_protocol_is_told(first: bytes) -> None:
    with (
        serving(lambda connection: (connection.send(first), connection.recv())) as uri,
        pytest.raises(ClientError, match="not openpi's protocol"),
    ):
        PolicyClient(uri, timeout=5)
    with pytest.raises(ClientError, match="isn't a valid URI"):
        PolicyClient("http://127.0.0.1", timeout=1)


def test_threads_take_turns() -> None:
    with serving(openpi) as uri, PolicyClient(uri, timeout=20) as client:
        wrong: list[int] = []

        def ask(number: int) -> None:
            for i in range(20):
                value = 100 * number + i
                if client.infer(robot(value))["actions"][0, 0] != value:
                    wrong.append(value)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not wrong
        assert client.connections == 1


# ------------------------------------------------------------------------------------------------------------- the fake robot


def nav(connection: ServerConnection) -> None:
    connection.send(pack(METADATA))
    while True:
        observation = unpack(connection.recv())
        assert observation["images"]["front"].shape == (4, 6, 3)
        assert observation["state"].shape == (1,)
        connection.send(pack({"actions": np.full((50, 2), 0.25)}))


def test_the_fake_robot_says_how_quickly_a_server_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(nav) as uri:
        assert main(["--uri", uri, "--fake", "--seconds", "0.2", "--rate", "50"]) == 0
    said = capsys.readouterr().out
    metadata, end = json.JSONDecoder().raw_decode(said)
    assert metadata == METADATA
    found = json.loads(said[end:])
    assert found["control_steps"] == 10
    assert 1 <= found["answers"] <= 10
    assert found["connections"] == 1
    assert set(found["latency_ms"]) == {"p50", "p95", "p99"}


def test_the_command_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--uri", "ws://127.0.0.1:9", "--timeout", "0.1"]) == 1
    assert "error: no policy server at ws://127.0.0.1:9" in capsys.readouterr().err
    assert main(["--api-key-file", str(tmp_path / "key")]) == 1
    assert "No such file" in capsys.readouterr().err
    with serving(openpi) as uri:
        assert main(["--uri", uri, "--fake"]) == 1
    assert "metadata do not say what it wants" in capsys.readouterr().err


def test_the_safety_filter_takes_its_limits_from_the_metadata() -> None:
    guard = SafetyFilter(Limits.from_spec(SPEC), period=0.1)
    np.testing.assert_allclose(guard.filter(np.array([5.0, 1.0])).action, [0.3, 1.0], atol=1e-6)
    assert guard.filter(np.array([np.nan, 0.0])).stop == "non_finite_action"


# ------------------------------------------------------------------------------------------------------------- a light package


def test_the_client_is_light_and_for_old_pythons() -> None:
    folder = Path(anyvla_client.__file__).parent
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.partition(".")[0]
                assert top in (*sys.stdlib_module_names, "numpy", "msgpack", "websockets", "anyvla_client"), (path, name)
    code = "import sys, anyvla_client.client, anyvla_client.fake; print([m for m in ('torch', 'anyvla') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
