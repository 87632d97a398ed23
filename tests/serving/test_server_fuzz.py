"""Malformed frames at the server: each costs its connection, and the robot beside it gets the right answers all the time."""

from __future__ import annotations

import threading

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
from tests.serving.test_server import alone, observation, raw


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
        connection = raw(uri)
        for frame in malformed_frames(count, seed=count):
            connection.send(frame)
            answer = connection.recv(timeout=20)
            if isinstance(answer, str):
                refused += 1
                assert answer.startswith(("malformed_frame: ", "bad_observation: ")), answer
                connection.close()
                connection = raw(uri)
            else:  # a flipped bit in a pixel or in the sentence is an observation all the same
                answered += 1
                assert np.isfinite(unpack(answer)["actions"]).all()
        connection.close()
        over.set()
        robot.join(60)
        assert not robot.is_alive()
    assert not wrong
    assert right[0] > 1
    assert refused + answered == count
    assert refused > 0.6 * count
