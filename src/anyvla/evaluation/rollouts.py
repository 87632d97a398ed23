"""Rollouts in closed loop: several worlds at a time in worker processes, one policy that answers them in batches.

Each worker renders and simulates its worlds; while one works, the policy answers the other. Which worlds share a batch depends
on the number of workers and never on timing. Worlds render only when the policy looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

from anyvla.errors import SimulationError
from anyvla.evaluation.workers import Driver, Task, Worlds, work
from anyvla.policies.policy import Policy, Session
from anyvla.processes import interrupts_held
from anyvla.simulation.gl import choose_backend

OnResult = Callable[[dict[str, Any]], None]


def rollout_policy(
    policy: Policy,
    tasks: Sequence[Task],
    worlds: Worlds,
    *,
    workers: int = 2,
    keep_frames: bool = False,
    on_result: OnResult = lambda result: None,
) -> None:
    """Drive every task with ``policy``; ``on_result`` gets what happened as each episode ends.

    A result is what the world says (see ``World.result``) and ``index``, ``steps``, ``stops`` of the safety filter,
    ``latency_ms`` of every step, and ``frames`` of the first camera if ``keep_frames``.

    Raises:
        SimulationError: the worlds cannot be simulated here.
    """
    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    _run("policy", worlds, tasks, workers, keep_frames, on_result, _Answers(policy))


def rollout_expert(
    tasks: Sequence[Task], worlds: Worlds, *, workers: int = 2, on_result: OnResult = lambda result: None
) -> None:
    """Drive every task with the scripted expert."""
    _run("expert", worlds, tasks, workers, False, on_result, None)


class _Answers:
    """The policy's side: one session per running episode."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._takes_state = bool(policy.spec().state)
        self._sessions: dict[int, Session] = {}
        self._stops: dict[int, int] = {}
        self._latency_ms: dict[int, list[float]] = {}

    def __call__(self, observations: list[dict[str, Any]]) -> list[tuple[np.ndarray, bool]]:
        """The action for each, and whether the policy will look at what comes next."""
        for observation in observations:
            if observation["first"]:
                self._sessions[observation["index"]] = self._policy.start(observation["instruction"])
                self._stops[observation["index"]] = 0
                self._latency_ms[observation["index"]] = []
        sessions = [self._sessions[observation["index"]] for observation in observations]
        states = [observation["state"] for observation in observations] if self._takes_state else None
        began = time.perf_counter()
        actions = self._policy.act_batch(sessions, [observation["images"] for observation in observations], states=states)
        elapsed = round(1e3 * (time.perf_counter() - began), 3)
        for observation, session in zip(observations, sessions, strict=True):
            self._stops[observation["index"]] += session.last is not None and session.last.stop is not None
            self._latency_ms[observation["index"]].append(elapsed)
        return [(action, self._policy.looks(session)) for action, session in zip(actions, sessions, strict=True)]

    def finish(self, index: int) -> dict[str, Any]:
        """Forget an episode; what its result says about the policy's side."""
        del self._sessions[index]
        return {"stops": self._stops.pop(index), "latency_ms": self._latency_ms.pop(index)}


def _run(
    driver: Driver,
    worlds: Worlds,
    tasks: Sequence[Task],
    workers: int,
    keep_frames: bool,
    on_result: OnResult,
    answers: _Answers | None,
) -> None:
    workers = max(1, min(workers, len(tasks)))
    shares = [list(tasks[i::workers]) for i in range(workers)]
    with _started([(driver, worlds, share, keep_frames) for share in shares]) as connections:
        open_ones = list(connections)
        while open_ones:
            for connection in wait(open_ones):
                assert isinstance(connection, Connection)
                try:
                    kind, content = connection.recv()
                except EOFError as error:
                    raise SimulationError("a simulation process died; its message, if any, is above") from error
                if kind == "error":
                    raise SimulationError(content)
                if kind == "done":
                    open_ones.remove(connection)
                elif kind == "result":
                    on_result({**content, **(answers.finish(content["index"]) if answers else {})})
                elif answers is not None:
                    connection.send(answers(content))


@contextmanager
def _started(shares: list[tuple[Driver, Worlds, list[Task], bool]]) -> Iterator[list[Connection]]:
    """Worker processes, ended at exit whatever happens."""
    context = get_context("spawn")
    connections, processes = [], []
    try:
        for share in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, *share), daemon=True)
            with interrupts_held():
                process.start()
            theirs.close()
            connections.append(ours)
            processes.append(process)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
                process.join()
