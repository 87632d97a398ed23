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

from anyvla.data.sources.mobile_h5 import CAMERA
from anyvla.errors import AnyVLAError, SimulationError
from anyvla.evaluation.tasks import EpisodeResult, NavTask
from anyvla.policies.policy import Policy, Session
from anyvla.simulation.gl import choose_backend

SLOTS = 8  # worlds per worker


def rollout_policy(
    policy: Policy,
    tasks: list[NavTask],
    *,
    image_size: tuple[int, int],
    workers: int = 2,
    keep_frames: bool = False,
    on_result: Callable[[EpisodeResult], None] = lambda result: None,
) -> list[float]:
    """Drive every task with ``policy``; ``on_result`` is called as each episode ends.

    Args:
        image_size: (height, width) that the camera renders. keep_frames: leave the observed images in the results.

    Returns:
        Seconds per policy call, each answering up to ``SLOTS`` worlds.
    """
    choose_backend()
    settings = {
        "image_size": image_size,
        "action_spec": policy.transforms.spec.name,
        "keep_frames": keep_frames,
        "language": "any",
    }
    return _run("policy", settings, tasks, workers, on_result, _Answers(policy))


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
        self.seconds: list[float] = []

    def __call__(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
        for observation in observations:
            if observation["first"]:
                self._sessions[observation["index"]] = self._policy.start(observation["instruction"])
                self._stops[observation["index"]] = 0
        sessions = [self._sessions[observation["index"]] for observation in observations]
        began = time.perf_counter()
        actions = self._policy.act_batch(sessions, [{CAMERA: observation["image"]} for observation in observations])
        self.seconds.append(time.perf_counter() - began)
        for observation, session in zip(observations, sessions, strict=True):
            self._stops[observation["index"]] += session.last is not None and session.last.stop is not None
        return actions

    def finish(self, index: int) -> int:
        """Forget an episode; how often its safety filter stopped it."""
        del self._sessions[index]
        return self._stops.pop(index)


def _run(
    driver: Literal["policy", "expert"],
    settings: dict[str, Any],
    tasks: list[NavTask],
    workers: int,
    on_result: Callable[[EpisodeResult], None],
    answers: _Answers | None,
) -> list[float]:
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
                    result = EpisodeResult(**content)
                    if answers is not None:
                        result = EpisodeResult(**{**content, "stops": answers.finish(result.index)})
                    on_result(result)
                elif answers is not None:
                    connection.send(answers(content))
    return answers.seconds if answers is not None else []


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
            process = context.Process(target=_work, args=(theirs, driver, settings, share), daemon=True)
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


def _work(connection: Connection, driver: str, settings: dict[str, Any], tasks: list[NavTask]) -> None:
    """A worker process."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process, which then closes the pipe
    keep_frames = settings.pop("keep_frames", False)
    try:
        if driver == "expert":
            _drive_expert(connection, settings, tasks)
        else:
            _drive_policy(connection, settings, tasks, keep_frames)
        connection.send(("done", None))
    except (BrokenPipeError, EOFError, ConnectionResetError):
        return  # the main process has gone
    except (AnyVLAError, ImportError, RuntimeError) as error:  # the last two from MuJoCo and OpenGL
        connection.send(("error", str(error)))


def _drive_expert(connection: Connection, settings: dict[str, Any], tasks: list[NavTask]) -> None:
    from anyvla.simulation.env import BoxNav
    from anyvla.simulation.expert import Expert

    env = BoxNav(**settings)
    expert = Expert(env)
    for task in tasks:
        episode = _Running(env, task, keep_frames=False)
        while not episode.over:
            episode.step(expert.act())
        connection.send(("result", episode.result()))
    env.close()


def _drive_policy(connection: Connection, settings: dict[str, Any], tasks: list[NavTask], keep_frames: bool) -> None:
    from anyvla.simulation.env import BoxNav

    waiting = list(reversed(tasks))
    envs = [BoxNav(**settings) for _ in range(min(SLOTS, len(tasks)))]
    slots: list[_Running | None] = [None] * len(envs)
    while True:
        for i, env in enumerate(envs):
            if slots[i] is None and waiting:
                slots[i] = _Running(env, waiting.pop(), keep_frames)
        running = [episode for episode in slots if episode is not None]
        if not running:
            break
        connection.send(("observations", [episode.observe() for episode in running]))
        for episode, action in zip(running, connection.recv(), strict=True):
            episode.step(action)
            if episode.over:
                connection.send(("result", episode.result()))
        slots = [None if episode is None or episode.over else episode for episode in slots]
    for env in envs:
        env.close()


class _Running:
    """An episode under way in a worker."""

    def __init__(self, env: Any, task: NavTask, keep_frames: bool) -> None:
        self._env, self._task = env, task
        self._observation, self._info = env.reset(seed=task.seed, options={"scenario": task.scenario, "split": task.split})
        self._path = [list(env.pose)]
        self._frames: list[np.ndarray] = []
        self._keep_frames = keep_frames
        self._steps = 0
        self.over = False

    def observe(self) -> dict[str, Any]:
        image = self._observation["image"]
        if self._keep_frames:
            self._frames.append(image)
        return {
            "index": self._task.index,
            "first": self._steps == 0,
            "instruction": "" if self._task.blind else self._info["instruction"],
            "image": image,
        }

    def step(self, action: np.ndarray) -> None:
        self._observation, _, terminated, truncated, self._info = self._env.step(action)
        self._path.append(list(self._env.pose))
        self._steps += 1
        self.over = terminated or truncated

    def result(self) -> dict[str, Any]:
        info = self._info
        return {
            "index": self._task.index,
            "scenario": self._task.scenario,
            "seed": self._task.seed,
            "split": self._task.split,
            "instruction": "" if self._task.blind else info["instruction"],
            "success": info["success"],
            "failure": info["failure"],
            "passed": info["passed"],
            "steps": self._steps,
            "distance_to_goal": info["distance_to_goal"],
            "path": [[round(value, 4) for value in pose] for pose in self._path],
            "layout": self._env.layout(),
            "frames": self._frames,
        }
