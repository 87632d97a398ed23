"""Chunk brokers: which action is executed at which time. No test sleeps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyvla_client.brokers import AsynchronousBroker, BlockingBroker, Timeline
from anyvla_client.execution import TemporalEnsemble

PERIOD = 0.1


def meant(stamp: float, length: int = 8) -> np.ndarray:
    """The chunk (L, 1) whose every action says for which moment it is meant, in periods."""
    return (round(stamp / PERIOD) + np.arange(length, dtype=np.float32))[:, None]


class Later(Executor):
    """Runs what is submitted when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, call: Callable[..., Any], /, *_: Any, **__: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.waiting.append((future, call))
        return future

    def run(self) -> None:
        for future, call in self.waiting:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except (OSError, ValueError) as error:
                future.set_exception(error)
        self.waiting = []


@given(
    latencies=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    jitter=st.floats(-0.4, 0.4),
    every=st.integers(1, 4),
)
def test_every_action_is_executed_at_the_moment_it_is_meant_for(latencies: list[int], jitter: float, every: int) -> None:
    """Whatever the latency: an action for now, or none where every chunk has run out; never one for another moment."""
    later, asked = Later(), []
    broker = AsynchronousBroker(
        lambda request: (asked.append(request), {"actions": meant(request["stamp"])})[1], PERIOD, every=every, executor=later
    )
    waits = iter(latencies)
    ready, newest = 0, None
    for step in range(60):
        if later.waiting and step >= ready:
            later.run()
            newest = round(asked[-1]["stamp"] / PERIOD)
        now = step * PERIOD + (jitter * PERIOD if step % 2 else 0.0)  # the loop is early or late at every other step
        before = len(later.waiting)
        done = broker.step({"prompt": "go"}, now, stamp=step * PERIOD)
        if len(later.waiting) > before:
            ready = step + next(waits, 3)
        if newest is not None and step < newest + 8:
            assert done.action is not None
            assert done.action[0] == step
            assert done.age == pytest.approx(now - newest * PERIOD)
        else:
            assert done.action is None
    assert asked[0]["reset"] is True
    assert not any("reset" in request for request in asked[1:])


def test_a_request_goes_out_every_so_many_steps_and_one_at_a_time() -> None:
    later, stamps = Later(), []
    broker = AsynchronousBroker(
        lambda request: (stamps.append(request["stamp"]), {"actions": meant(0)})[1], PERIOD, every=3, executor=later
    )
    for step in range(9):
        broker.step({}, step * PERIOD)
        assert len(later.waiting) <= 1
        later.run()
    np.testing.assert_allclose(stamps, [0, 0.3, 0.6])
    broker = AsynchronousBroker(lambda request: {"actions": meant(0)}, PERIOD, executor=later)
    for step in range(9):
        broker.step({}, step * PERIOD)
    assert len(later.waiting) == 1


def test_what_the_client_raises_comes_out_and_the_broker_asks_again() -> None:
    later, requests = Later(), []

    def infer(request: Any) -> Any:
        requests.append(request)
        if len(requests) == 2:
            raise OSError("gone")
        return {"actions": meant(request["stamp"])}

    broker = AsynchronousBroker(infer, PERIOD, executor=later)
    broker.step({}, 0.0)
    later.run()
    assert broker.step({}, 0.1).action == 1
    later.run()
    with pytest.raises(OSError, match="gone"):
        broker.step({}, 0.2)
    assert broker.step({}, 0.3).action == 3  # of the first chunk still
    later.run()
    assert broker.step({}, 0.4).new
    assert [request.get("reset") for request in requests] == [True, None, True]


def test_a_new_episode_forgets() -> None:
    later = Later()
    broker = AsynchronousBroker(lambda request: {"actions": meant(request["stamp"])}, PERIOD, executor=later)
    broker.step({}, 0.0)
    later.run()
    assert broker.step({}, 0.1).action is not None
    broker.reset()  # a request is under way
    later.run()
    assert broker.step({}, 0.2).action is None
    later.run()
    assert broker.step({}, 0.3).action == 3


def test_on_its_own_thread_too() -> None:
    with AsynchronousBroker(lambda request: {"actions": meant(request["stamp"])}, PERIOD) as broker:
        broker.step({}, 0.0)
        assert broker._under_way is not None
        broker._under_way[0].result(10)
        assert broker.step({}, 0.2).action == 2


def test_chunks_that_overtake_each_other() -> None:
    line = Timeline(PERIOD)
    assert line.add(meant(0.3), 0.3)
    assert not line.add(meant(0.1) + 100, 0.1)
    assert line.action(0.5) == 5
    assert line.left(0.5) == 6
    assert line.action(0.2) is None  # before it
    assert line.action(1.1) is None  # behind it
    assert line.left(1.1) == 0
    line.clear()
    assert line.action(0.5) is None
    assert line.age(0.5) == np.inf


@given(st.floats(0, 2), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_with_a_chunk_at_every_step_the_timeline_is_the_temporal_ensemble(decay: float, length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    binary = np.array([False, True])
    line, ensemble = Timeline(PERIOD, decay=decay, binary=binary), TemporalEnsemble(decay, binary)
    for step in range(12):
        chunk = rng.uniform(0, 1, (length, 2)).astype(np.float32)
        line.add(chunk, step * PERIOD)
        now = line.action(step * PERIOD)
        expected = ensemble.action(chunk)
        np.testing.assert_allclose(now, expected, atol=1e-5)


@pytest.mark.parametrize(("steps", "asked"), [(None, 2), (1, 6), (2, 3), (9, 2)])
def test_blocking(steps: int | None, asked: int) -> None:
    """Of 3 actions a chunk, ``steps`` are executed, then the next chunk is asked for."""
    observations = []
    broker = BlockingBroker(
        lambda observation: (observations.append(observation["t"]), {"actions": meant(observation["t"] * PERIOD, 3)})[1],
        steps=steps,
    )
    got = []
    for t in range(6):
        assert broker.needs_observation() == (t % min(steps or 3, 3) == 0)
        got.append(float(broker.step({"t": t})[0]))
    assert got == [0, 1, 2, 3, 4, 5]
    assert len(observations) == asked
    broker.reset()
    assert broker.needs_observation()


@pytest.mark.parametrize("actions", [np.zeros(3), np.zeros((0, 2)), np.array([["x"]]), 3])
def test_answers_without_a_chunk_are_refused(actions: Any) -> None:
    with pytest.raises(ValueError, match="not \\(L, A\\) numbers"):
        BlockingBroker(lambda observation: {"actions": actions}).step({})
