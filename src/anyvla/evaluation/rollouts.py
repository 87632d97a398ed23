"""Rollouts in closed loop: several worlds at a time in worker processes, one policy that answers them in batches.

Each worker renders and simulates its worlds; while one works, the policy answers the other. Which worlds share a batch depends
on the number of workers and never on timing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

import numpy as np

from anyvla.actions import NAV2, NAV3
from anyvla.data.sources.mobile_h5 import CAMERA
from anyvla.errors import ConfigError, SimulationError
from anyvla.evaluation.tasks import EpisodeResult, NavTask
from anyvla.evaluation.workers import work
from anyvla.policies.policy import Policy, Session
from anyvla.processes import interrupts_held
from anyvla.simulation.gl import choose_backend


def rollout_policy(
    policy: Policy,
    tasks: list[NavTask],
    *,
    image_size: tuple[int, int],
    workers: int = 2,
    keep_frames: bool = False,
    on_result: Callable[[EpisodeResult], None] = lambda result: None,
) -> None:
    """Drive every task with ``policy``; ``on_result`` is called as each episode ends.

    Args:
        image_size: (height, width) that the camera renders. keep_frames: leave the observed images in the results.

    Raises:
        ConfigError: the policy is one for another robot. SimulationError: the worlds cannot be simulated here.
    """
    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    from anyvla.simulation.env import FPS

    spec, fps = policy.transforms.spec, policy.transforms.fps
    if spec not in (NAV2, NAV3):
        raise ConfigError(f"the navigation world is driven with nav2 or nav3, not with the policy's actions {spec.describe()}")
    if abs(fps - FPS) > 0.01:
        raise ConfigError(f"the navigation world takes {FPS:g} actions a second, the policy was trained for {fps:g}")
    settings = {
        "image_size": image_size,
        "action_spec": spec.name,
        "keep_frames": keep_frames,
        "language": "any",
    }
    _run("policy", settings, tasks, workers, on_result, _Answers(policy))


def rollout_expert(
    tasks: list[NavTask], *, workers: int = 2, on_result: Callable[[EpisodeResult], None] = lambda result: None
) -> None:
    """Drive every task with the scripted expert."""
    _run("expert", {"observe_images": False, "action_spec": "nav3", "language": "any"}, tasks, workers, on_result, None)


class _Answers:
    """The policy's side: one session per running episode."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._sessions: dict[int, Session] = {}
        self._stops: dict[int, int] = {}
        self._latency_ms: dict[int, list[float]] = {}

    def __call__(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
        for observation in observations:
            if observation["first"]:
                self._sessions[observation["index"]] = self._policy.start(observation["instruction"])
                self._stops[observation["index"]] = 0
                self._latency_ms[observation["index"]] = []
        sessions = [self._sessions[observation["index"]] for observation in observations]
        began = time.perf_counter()
        actions = self._policy.act_batch(sessions, [{CAMERA: observation["image"]} for observation in observations])
        elapsed = round(1e3 * (time.perf_counter() - began), 3)
        for observation, session in zip(observations, sessions, strict=True):
            self._stops[observation["index"]] += session.last is not None and session.last.stop is not None
            self._latency_ms[observation["index"]].append(elapsed)
        return actions

    def finish(self, index: int) -> dict[str, Any]:
        """Forget an episode; what its result says about the policy's side."""
        del self._sessions[index]
        return {"stops": self._stops.pop(index), "latency_ms": self._latency_ms.pop(index)}


def _run(
    driver: Literal["policy", "expert"],
    settings: dict[str, Any],
    tasks: list[NavTask],
    workers: int,
    on_result: Callable[[EpisodeResult], None],
    answers: _Answers | None,
) -> None:
    workers = max(1, min(workers, len(tasks)))
    shares = [tasks[i::workers] for i in range(workers)]
    with _started(driver, settings, shares) as connections:
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
                    on_result(EpisodeResult(**content, **(answers.finish(content["index"]) if answers else {})))
                elif answers is not None:
                    connection.send(answers(content))


@contextmanager
def _started(
    driver: Literal["policy", "expert"], settings: dict[str, Any], shares: list[list[NavTask]]
) -> Iterator[list[Connection]]:
    """Worker processes, ended at exit whatever happens."""
    context = get_context("spawn")
    connections, processes = [], []
    try:
        for share in shares:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, driver, settings, share), daemon=True)
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
