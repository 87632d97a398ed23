"""The policy server and its client over a real socket: the robot gets what the policy computes, whoever else is connected."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from anyvla.cli import app
from anyvla.errors import ConfigError, MissingExtraError
from anyvla.policies.policy import Policy
from anyvla.serving.monitor import Monitor
from anyvla.serving.server import PolicyServer, ServerSettings, read_key, running
from tests.serving.arm_policy import SIZE, arm_policy

pytest.importorskip("websockets", reason="needs the extra serve")
pytest.importorskip("msgpack", reason="needs the extra serve")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from anyvla_client.client import ClientError, PolicyClient, RefusedError
from anyvla_client.wire import pack, unpack

FPS = 10.0


def frame(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def observation(seed: int, prompt: str = "Go left.", **further: Any) -> dict[str, Any]:
    return {"images": {"rgb_static": frame(seed)}, "prompt": prompt, **further}


def alone(policy: Policy, seeds: list[int], prompt: str = "Go left.", states: Any = None) -> list[np.ndarray]:
    """The chunks of one episode without any server."""
    policy.reset(prompt)
    low, high = policy.transforms.spec.low, policy.transforms.spec.high
    states = states or [None] * len(seeds)
    return [np.clip(policy.chunk({"rgb_static": frame(i)}, state=s), low, high) for i, s in zip(seeds, states, strict=True)]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return arm_policy(fps=FPS)


@pytest.fixture
def serve(policy: Policy) -> Iterator[Callable[..., tuple[PolicyServer, str]]]:
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(served: Policy = policy, **settings: Any) -> tuple[PolicyServer, str]:
            server = PolicyServer(served, ServerSettings(**{"port": 0, "send_timeout": 1.0, **settings}))
            return server, stack.enter_context(running(server))

        yield start


def raw(uri: str, **settings: Any) -> ClientConnection:
    """A connection of which the metadata are read."""
    connection = connect(uri, compression=None, max_size=None, close_timeout=1, **settings).__enter__()
    connection.recv(timeout=10)
    return connection


def page(uri: str, path: str) -> str:
    with urllib.request.urlopen(uri.replace("ws:", "http:") + path, timeout=10) as answer:
        text: str = answer.read().decode()
        return text


def counted(uri: str, name: str) -> float:
    found = re.search(rf"^anyvla_{re.escape(name)} (\S+)$", page(uri, "/metrics"), re.MULTILINE)
    assert found, name
    return float(found[1])


@contextmanager
def held(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The model waits: gives (it was asked, let it go on)."""
    asked, go, original = threading.Event(), threading.Event(), policy.chunk_batch

    def wait(*arguments: Any, **named: Any) -> Any:
        asked.set()
        assert go.wait(30)
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(policy, "chunk_batch", wait)
        try:
            yield asked, go
        finally:
            go.set()


# ------------------------------------------------------------------------------------------------------------- what is answered


def test_a_robot_gets_the_chunks_of_the_policy_in_robot_units(policy: Policy, serve) -> None:
    _, uri = serve()
    with PolicyClient(uri) as client:
        for i, expected in enumerate(alone(policy, [0, 1, 2, 3, 4, 5])):
            answer = client.infer(observation(i, request_id=f"r{i}"))
            np.testing.assert_allclose(answer["actions"], expected, atol=1e-5)
            assert answer["actions"].shape == (3, 7)
            assert answer["request_id"] == f"r{i}"
            assert ("prev_total_ms" in answer["server_timing"]) == (i > 0)
            assert 0 < answer["policy_timing"]["infer_ms"] <= answer["server_timing"]["infer_ms"] + 0.1


def test_the_metadata_say_exactly_what_to_send(serve) -> None:
    policy = arm_policy(state=("x", "y"), cameras=("front", "wrist"))
    _, uri = serve(policy)
    with PolicyClient(uri) as client:
        metadata = client.metadata
        spec = policy.spec().to_dict()
        assert {key: metadata[key] for key in spec} == json.loads(json.dumps(spec))
        assert (metadata["server"], metadata["needs_every_frame"]) == ("anyvla", True)
        assert re.fullmatch("[0-9a-f]{64}", metadata["fingerprint"])
        height, width = metadata["image_size"]
        images = {camera: np.zeros((height, width, 3), np.uint8) for camera in metadata["cameras"]}
        answer = client.infer({"images": images, "state": np.zeros(len(metadata["state"])), "prompt": "go"})
        assert answer["actions"].shape == (metadata["chunk"], len(metadata["action"]["dims"]))


def test_openpis_flat_keys_and_states_are_understood(serve) -> None:
    policy = arm_policy(state=("x", "y"))
    _, uri = serve(policy)
    expected = alone(policy, [0, 1, 2], states=[[0.1, 0.2]] * 3)
    with PolicyClient(uri) as client:
        flat = {"observation/rgb_static": frame(0), "observation/state": np.array([0.1, 0.2]), "prompt": "Go left."}
        np.testing.assert_allclose(client.infer(flat)["actions"], expected[0], atol=1e-5)
        np.testing.assert_allclose(client.infer(observation(1, state=[0.1, 0.2]))["actions"], expected[1], atol=1e-5)
        later = {**observation(2, state=np.array([0.1, 0.2], np.float32))}
        del later["prompt"]  # stays what it was
        np.testing.assert_allclose(client.infer(later)["actions"], expected[2], atol=1e-5)


def test_a_new_episode_begins_with_a_reset_another_sentence_or_another_connection(policy: Policy, serve) -> None:
    _, uri = serve()
    first, second = alone(policy, [0, 1])
    assert np.abs(second - alone(policy, [1])[0]).max() > 1e-3  # the past matters
    with PolicyClient(uri) as client:
        for further in ({}, {"reset": True}, {"prompt": "Go right."}, {}):
            asked = observation(0, **further)
            expected = alone(policy, [0, 1], asked["prompt"])
            np.testing.assert_allclose(client.infer(asked)["actions"], expected[0], atol=1e-5)
            np.testing.assert_allclose(client.infer(observation(1, asked["prompt"]))["actions"], expected[1], atol=1e-5)
    with PolicyClient(uri) as client:
        np.testing.assert_allclose(client.infer(observation(0))["actions"], first, atol=1e-5)


def test_stamps_tell_control_steps(policy: Policy, serve) -> None:
    """A stamp that is not newer is answered from memory, one within the same step takes its place, gaps are counted."""
    _, uri = serve()
    with PolicyClient(uri) as client:

        def ask(seed: int, stamp: float) -> dict[str, Any]:
            return client.infer(observation(seed, stamp=stamp))

        zero = ask(0, 5.0)
        again = ask(9, 5.0)
        assert again["stale"]
        np.testing.assert_array_equal(again["actions"], zero["actions"])
        ask(8, 5.1)
        fresher = ask(1, 5.1 + 0.03)  # instead of frame 8
        np.testing.assert_allclose(fresher["actions"], alone(policy, [0, 1])[1], atol=1e-5)
        late = ask(2, 5.4)  # 5.2 and 5.3 are missing
        np.testing.assert_allclose(late["actions"], alone(policy, [0, 1, 2])[2], atol=1e-5)
        assert (late["policy_timing"]["missed_frames"], late["stamp"]) == (2, 5.4)
        client.infer(observation(0, stamp=5.5, reset=True))
        assert (counted(uri, "stale_drops_total"), counted(uri, "missed_frames_total")) == (1, 2)


def test_clients_that_wait_together_are_answered_together_each_from_its_own_episode(
    policy: Policy, serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, uri = serve()
    prompts = [f"Go {i} metres." for i in range(4)]
    clients = [raw(uri) for _ in prompts]
    expected = [alone(policy, [i, i + 1], prompt) for i, prompt in enumerate(prompts)]
    batches = []
    for step in range(2):
        with held(policy, monkeypatch) as (asked, go):
            clients[0].send(pack(observation(step, prompts[0])))
            assert asked.wait(10)
            for i in range(1, 4):
                clients[i].send(pack(observation(i + step, prompts[i])))
            while counted(uri, "queue") < 3:
                pass
            go.set()
            for i, client in enumerate(clients):
                answer = unpack(client.recv(timeout=30))
                np.testing.assert_allclose(answer["actions"], expected[i][step], atol=1e-5)
                batches.append(answer["policy_timing"]["batch"])
    assert batches == [1, 3, 3, 3] * 2
    for client in clients:
        client.close()


# -------------------------------------------------------------------------------------------------------- what goes wrong there

BAD = [
    ("text", "malformed_frame: expected a binary frame, got str"),
    (b"\xc1", "malformed_frame: not one msgpack value"),
    (pack({"images": {}, "prompt": "go"}), "bad_observation: the observation lacks the camera 'rgb_static'"),
    (
        pack({"images": {"rgb_statik": frame(0)}, "prompt": "go"}),
        "bad_observation: the policy has no camera 'rgb_statik'; did you",
    ),
    (pack({"images": [1], "prompt": "go"}), "bad_observation: `images` must be a map"),
    (pack({"images": {"rgb_static": frame(0)[:, :, 0]}, "prompt": "go"}), r"bad_observation: camera 'rgb_static': expected"),
    (pack({"images": {"rgb_static": frame(0) / 255}, "prompt": "go"}), r"bad_observation: camera 'rgb_static': expected"),
    (
        pack({"images": {"rgb_static": np.zeros((1, 999, 3), np.uint8)}, "prompt": "go"}),
        "bad_observation: .* no image for a policy",
    ),
    (
        pack({"images": {"rgb_static": np.zeros((0, 9, 3), np.uint8)}, "prompt": "go"}),
        "bad_observation: .* no image for a policy",
    ),
    (pack({"images": {"rgb_static": frame(0)}}), "bad_observation: the first observation of an episode needs a `prompt`"),
    (pack(observation(0, "x" * 5000)), "bad_observation: `prompt` must be"),
    (pack(observation(0, prompt=3)), "bad_observation: `prompt` must be"),
    (pack(observation(0, state=[1.0])), "bad_observation: a state is given, and the policy was trained without one"),
    (pack(observation(0, state="up")), "bad_observation: `state` must be"),
    (pack(observation(0, reset=1)), "bad_observation: `reset` must be"),
    (pack(observation(0, stamp=float("nan"))), "bad_observation: `stamp` must be"),
    (pack(observation(0, stamp="now")), "bad_observation: `stamp` must be"),
]


def test_whatever_is_wrong_is_told_with_a_code_and_a_sentence(serve) -> None:
    _, uri = serve()
    for sent, message in BAD:
        connection = raw(uri)
        connection.send(sent)
        said = connection.recv(timeout=10)
        assert isinstance(said, str)
        assert re.match(message, said), said
        assert "Traceback" not in said
        with pytest.raises(ConnectionClosed) as ended:
            connection.recv(timeout=10)
        assert ended.value.rcvd is not None
        assert (ended.value.rcvd.code, ended.value.rcvd.reason) == (1011, message.split(":")[0])
    assert counted(uri, 'errors_total{code="malformed_frame"}') == 2
    assert counted(uri, 'errors_total{code="bad_observation"}') == len(BAD) - 2
    with PolicyClient(uri) as client:
        assert client.infer(observation(0))["actions"].shape == (3, 7)


def test_one_wrong_observation_in_a_batch_is_the_problem_of_its_sender_alone(
    policy: Policy, serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, uri = serve()
    expected = alone(policy, [0])[0]
    original = policy.chunk_batch

    def fragile(sessions: Any, images: Any, **named: Any) -> Any:
        if any(session.prompt == "break" for session in sessions):
            raise RuntimeError("out of memory")
        chunks = original(sessions, images, **named)
        return [chunk * np.nan if session.prompt == "nan" else chunk for session, chunk in zip(sessions, chunks, strict=True)]

    monkeypatch.setattr(policy, "chunk_batch", fragile)
    clients = {prompt: raw(uri) for prompt in ("break", "nan", "Go left.", "no image")}
    with held(policy, monkeypatch) as (asked, go):
        first = raw(uri)
        first.send(pack(observation(5)))
        assert asked.wait(10)
        for prompt, client in clients.items():
            client.send(pack({"images": {}, "prompt": "x"} if prompt == "no image" else observation(0, prompt)))
        while counted(uri, "queue") < 4:
            pass
        go.set()
        answer = unpack(clients["Go left."].recv(timeout=30))
        np.testing.assert_allclose(answer["actions"], expected, atol=1e-5)
        assert clients["break"].recv(timeout=30).startswith("internal_error: the policy failed")
        assert clients["nan"].recv(timeout=30).startswith("unsafe_action: ")
        assert clients["no image"].recv(timeout=30).startswith("bad_observation: ")
        assert unpack(first.recv(timeout=30))["actions"].shape == (3, 7)
    assert "never retrieved" not in caplog.text
    assert "out of memory" in caplog.text  # the log says what the client is not told
    for client in (*clients.values(), first):
        client.close()


def test_a_client_that_went_away_is_not_computed_for(policy: Policy, serve, monkeypatch: pytest.MonkeyPatch) -> None:
    _, uri = serve()
    with held(policy, monkeypatch) as (asked, go), PolicyClient(uri) as healthy:
        first = raw(uri)
        first.send(pack(observation(0)))
        assert asked.wait(10)
        gone = raw(uri)
        gone.send(pack(observation(1)))
        while counted(uri, "queue") < 1:
            pass
        gone.socket.shutdown(socket.SHUT_RDWR)
        while counted(uri, "clients") > 2:
            pass
        go.set()
        assert unpack(first.recv(timeout=30))["actions"].shape == (3, 7)
        assert healthy.infer(observation(0))["actions"].shape == (3, 7)
        assert counted(uri, "stale_drops_total") == 1
        first.close()


def test_bad_clients_of_every_kind_do_not_disturb_another(policy: Policy, serve) -> None:
    """While each of them does its worst, the episode of a healthy client goes on, and its answers stay right."""
    server, uri = serve(max_bytes=300_000, send_timeout=0.3)
    port = int(uri.rpartition(":")[2])
    open_still: list[Any] = []

    def nothing_but_noise() -> None:
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(np.random.default_rng(0).bytes(5000))

    def never_finishes_its_handshake() -> None:
        plain = socket.create_connection(("127.0.0.1", port))
        plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        open_still.append(plain)

    def a_huge_frame() -> None:
        with raw(uri) as connection:
            connection.send(bytes(400_000))
            with pytest.raises(ConnectionClosed) as ended:
                connection.recv(timeout=10)
            assert ended.value.rcvd is not None
            assert ended.value.rcvd.code == 1009

    def half_a_frame() -> None:
        connection = raw(uri)
        connection.socket.sendall(b"\x82\xff" + (200_000).to_bytes(8, "big") + bytes(1000))
        open_still.append(connection)

    def a_sudden_end() -> None:
        connection = raw(uri)
        connection.send(pack(observation(3)))
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.socket.shutdown(socket.SHUT_RDWR)
        connection.close()

    def a_forged_array() -> None:
        with raw(uri) as connection:
            connection.send(pack(observation(0)).replace(b"|u1", b"|O1"))
            assert connection.recv(timeout=10).startswith("malformed_frame")

    def never_reads() -> None:
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        plain.connect(("127.0.0.1", port))
        connection = connect(
            uri, sock=plain, compression=None, max_queue=1
        ).__enter__()  # its thread stops reading after a few frames
        big = "x" * 250_000  # comes back with every answer
        message = pack(observation(0, request_id=big))
        open_still.append(connection)
        threading.Thread(target=lambda: [_ignoring_its_end(connection.send, message) for _ in range(40)], daemon=True).start()

    expected = iter(alone(policy, list(range(40))))
    with PolicyClient(uri) as healthy:
        step = 0
        for misbehave in (
            nothing_but_noise,
            never_finishes_its_handshake,
            a_huge_frame,
            half_a_frame,
            a_sudden_end,
            a_forged_array,
            never_reads,
        ):
            misbehave()
            for _ in range(5):
                np.testing.assert_allclose(healthy.infer(observation(step))["actions"], next(expected), atol=1e-5)
                step += 1
        while not server.metrics.errors["slow_reader"]:
            healthy.infer(observation(0, reset=True))
        assert healthy.connections == 1
    for one in open_still:
        (one.socket if isinstance(one, ClientConnection) else one).close()


def _ignoring_its_end(send: Callable[[bytes], None], message: bytes) -> None:
    try:
        send(message)
    except (ConnectionClosed, OSError):
        return


# --------------------------------------------------------------------------------------------------- who may connect, and pages


def test_pages_and_who_may_connect(serve, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("s3cret\n")
    _, uri = serve(api_key=read_key(key_file), max_clients=1)
    assert page(uri, "/healthz") == "OK\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        page(uri, "/else")
    for headers in (
        {},
        {"Authorization": "Api-Key s3cre"},
        {"Authorization": "s3cret"},
        {"Authorization": "Api-Key s3cret\u00e9"},
    ):
        with pytest.raises(InvalidStatus) as refused:
            connect(uri, additional_headers=headers)
        assert refused.value.response.status_code == 401
    with pytest.raises(RefusedError, match="this server wants the header") as wrong:
        PolicyClient(uri, "wrong", timeout=10)
    assert wrong.value.code == "wrong_key"
    with PolicyClient(uri, "s3cret") as client:
        assert client.infer(observation(0))["actions"].shape == (3, 7)
        with pytest.raises(ClientError, match="too_many_clients: 1 are connected"):
            PolicyClient(uri, "s3cret", timeout=0.3)
    with pytest.raises(InvalidStatus, match="403"):  # a page in a browser
        connect(uri, additional_headers={"Authorization": "Api-Key s3cret"}, origin="http://evil.example")
    text = page(uri, "/metrics")
    assert 'anyvla_answer_seconds{quantile="0.99"} ' in text
    assert 'anyvla_errors_total{code="wrong_key"} 5' in text
    assert counted(uri, "requests_total") == 1
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) anyvla_\w+ .+|anyvla_\w+(\{\w+="[\w.]+"\})? [-+.\de]+', line), line


@pytest.mark.parametrize("content", ["", " \n", "a\nb", "schl\u00fcssel"])
def test_a_key_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "key").write_text(content)
    with pytest.raises(ConfigError, match="one line of ASCII"):
        read_key(tmp_path / "key")
    with pytest.raises(ConfigError, match="missing"):
        read_key(tmp_path / "missing")


def test_a_port_that_is_taken_is_told(policy: Policy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=f"cannot serve at 127.0.0.1:{port}"),
            running(PolicyServer(policy, ServerSettings(port=port))),
        ):
            pass


def test_whoever_looks_on_sees_what_a_robot_sent_and_got(policy: Policy) -> None:
    monitor = Monitor(policy.transforms.spec, FPS)
    with running(PolicyServer(policy, ServerSettings(port=0), monitor)) as uri, PolicyClient(uri) as client:
        sent = observation(3, "Go right.")
        got = client.infer(sent)["actions"]
    (robot,) = monitor.robots()
    shown = monitor.shown(robot)
    assert shown is not None
    assert shown.moment.instruction == "Go right."
    np.testing.assert_array_equal(shown.moment.chunk, got)
    for camera, image in sent["images"].items():
        np.testing.assert_array_equal(shown.moment.images[camera], image)


# ------------------------------------------------------------------------------------------------------------------- its end


def test_what_is_in_flight_is_finished_before_the_end(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    server = PolicyServer(policy, ServerSettings(port=0))
    ended = threading.Event()

    def life() -> None:
        with running(server) as uri:
            uris.append(uri)
            started.set()
            assert stop.wait(30)
        ended.set()

    uris: list[str] = []
    started, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=life)
    thread.start()
    assert started.wait(60)
    busy, idle = raw(uris[0]), raw(uris[0])
    with held(policy, monkeypatch) as (asked, go):
        busy.send(pack(observation(0)))
        assert asked.wait(10)
        stop.set()
        with pytest.raises(ConnectionClosed) as closed:
            idle.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the system has it
            connect(uris[0], open_timeout=1)
        assert not ended.is_set()
        go.set()
        np.testing.assert_allclose(unpack(busy.recv(timeout=30))["actions"], alone(policy, [0])[0], atol=1e-5)
        with pytest.raises(ConnectionClosed) as closed:
            busy.recv(timeout=10)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001
    thread.join(30)
    assert ended.is_set()


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    policy = arm_policy(save_to=run)
    (tmp_path / "key").write_text("k")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--api-key-file", str(tmp_path / "key"), "--execution", "receding:2"]
    if number == signal.SIGINT:
        options.append("--int8")
    command = [sys.executable, "-m", "anyvla", "serve", str(run), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        assert said == ["warming up\n", f"serving {run} at ws://127.0.0.1:{port}\n"], process.stderr.read()
        with PolicyClient(f"ws://127.0.0.1:{port}", "k") as client:
            assert client.metadata["execution"] == {"type": "receding", "steps": 2}
            answer = client.infer(observation(0))["actions"]
            difference = np.abs(answer - alone(policy, [0])[0])[:, :-1].max()
            assert difference < 1e-5 if number == signal.SIGTERM else 1e-5 < difference < 0.5
            process.send_signal(number)
            _, complaints = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert complaints == ""


def test_a_second_signal_ends_a_server_whose_model_hangs() -> None:
    code = """
import time
from anyvla.serving.server import PolicyServer, ServerSettings, serve_forever
from tests.serving.arm_policy import arm_policy
policy = arm_policy()
def listening(port):
    policy.chunk_batch = lambda *args, **more: print("asked", flush=True) or time.sleep(600)
    print(port, flush=True)
serve_forever(PolicyServer(policy, ServerSettings(port=0)), listening)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        robot = raw(f"ws://127.0.0.1:{process.stdout.readline().strip()}")
        robot.send(pack(observation(0)))
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # what is in flight is waited for
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 128 + signal.SIGINT
    finally:
        process.kill()
        process.communicate()


def test_without_the_extra_its_name_is_told(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    with pytest.raises(MissingExtraError, match=r"anyvla\[serve\]"):
        PolicyServer(policy)


def test_options_of_the_other_protocol_are_refused() -> None:
    for options, message in (
        (["--benchmark", "calvin"], "--benchmark goes with --protocol vla-eval"),
        (["--protocol", "vla-eval", "--int8"], "--int8 goes with --protocol openpi"),
    ):
        result = CliRunner().invoke(app, ["serve", "/nowhere", *options])
        assert result.exit_code == 1
        assert message in result.stderr
