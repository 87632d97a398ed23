"""The simulation side of rollouts, one process of them. It never loads the libraries of the models."""

from __future__ import annotations

from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from anyvla.errors import AnyVLAError
from anyvla.evaluation.tasks import NavTask
from anyvla.processes import leave_interrupts_to_the_main_process, render_in_one_thread

SLOTS = 8  # worlds at a time


def work(connection: Connection, driver: str, settings: dict[str, Any], tasks: list[NavTask]) -> None:
    """A worker process."""
    leave_interrupts_to_the_main_process()  # which then closes the pipe
    render_in_one_thread()
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
        options = {"scenario": task.scenario, "split": task.split, "sentence_of": task.sentence_of, "new_start": task.new_start}
        self._observation, self._info = env.reset(seed=task.seed, options=options)
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
