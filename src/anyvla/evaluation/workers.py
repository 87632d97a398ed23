"""The simulation side of rollouts, one process of them, for any environment. It never loads the libraries of the models.

An environment takes part with a ``World`` (one simulated world) and ``Worlds``, which makes them and can be pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any, Literal, Protocol

import numpy as np

from anyvla.errors import AnyVLAError
from anyvla.processes import leave_interrupts_to_the_main_process, render_in_one_thread

SLOTS = 8  # worlds at a time
FILMED_EVERY = 3  # steps, in films, where the policy looks less often

Driver = Literal["policy", "expert"]


class Task(Protocol):
    """One episode of an evaluation."""

    @property
    def index(self) -> int: ...


class World(Protocol):
    """One simulated world of a worker process, used for one episode after the other."""

    def reset(self, task: Any) -> str:
        """Begin the episode ``task``; returns the sentence that the policy is told."""

    def images(self) -> dict[str, np.ndarray]:
        """Camera -> (H, W, 3) uint8 RGB as seen now; called only where somebody looks."""

    def state(self) -> np.ndarray | None:
        """(S,) float32 measured now, or None where the environment has none."""

    def expert(self) -> np.ndarray:
        """(A,) what the scripted expert does now."""

    def step(self, action: np.ndarray) -> bool:
        """Execute (A,) for one control step; returns whether the episode is over."""

    def result(self) -> dict[str, Any]:
        """What happened in the episode, but for its index, number of steps, and the policy's side."""


class Worlds(Protocol):
    """The worlds of one environment with their settings. Picklable: it goes to the worker processes."""

    def open(self, count: int, images: bool) -> AbstractContextManager[list[World]]:
        """``count`` worlds that live as long as the block; ``images``: whether they will be looked at."""


def work(connection: Connection, driver: Driver, worlds: Worlds, tasks: list[Task], keep_frames: bool) -> None:
    """A worker process."""
    leave_interrupts_to_the_main_process()  # which then closes the pipe
    render_in_one_thread()
    try:
        if driver == "expert":
            _drive_expert(connection.send, worlds, tasks)
        else:
            _drive_policy(connection, worlds, tasks, keep_frames)
        connection.send(("done", None))
    except (BrokenPipeError, EOFError, ConnectionResetError):
        return  # the main process has gone
    except (AnyVLAError, ImportError, RuntimeError) as error:  # the last two from MuJoCo and OpenGL
        connection.send(("error", str(error)))


def _drive_expert(send: Callable[[Any], None], worlds: Worlds, tasks: list[Task]) -> None:
    with worlds.open(1, images=False) as (world,):
        for task in tasks:
            episode = _Running(world, task, keep_frames=False)
            while not episode.over:
                episode.step(world.expert())
            send(("result", episode.result()))


def _drive_policy(connection: Connection, worlds: Worlds, tasks: list[Task], keep_frames: bool) -> None:
    waiting = list(reversed(tasks))
    with worlds.open(min(SLOTS, len(tasks)), images=True) as opened:
        slots: list[_Running | None] = [None] * len(opened)
        while True:
            for i, world in enumerate(opened):
                if slots[i] is None and waiting:
                    slots[i] = _Running(world, waiting.pop(), keep_frames)
            running = [episode for episode in slots if episode is not None]
            if not running:
                break
            connection.send(("observations", [episode.observe() for episode in running]))
            for episode, (action, looks) in zip(running, connection.recv(), strict=True):
                episode.step(action, looks)
                if episode.over:
                    connection.send(("result", episode.result()))
            slots = [None if episode is None or episode.over else episode for episode in slots]


class _Running:
    """An episode under way in a worker."""

    def __init__(self, world: World, task: Task, keep_frames: bool) -> None:
        self._world, self._task = world, task
        self._instruction = world.reset(task)
        self._frames: list[np.ndarray] = []  # of the first camera
        self._keep_frames = keep_frames
        self._looks = True  # whether the policy will look at the next images
        self._steps = 0
        self.over = False

    def observe(self) -> dict[str, Any]:
        """What the policy gets: ``images`` is None where it does not look."""
        filmed = self._keep_frames and (self._looks or self._steps % FILMED_EVERY == 0)
        images = self._world.images() if self._looks or filmed else None
        if images is not None and filmed:
            self._frames.append(next(iter(images.values())))
        return {
            "index": self._task.index,
            "first": self._steps == 0,
            "instruction": self._instruction,
            "images": images if self._looks else None,
            "state": self._world.state(),
        }

    def step(self, action: np.ndarray, looks: bool = False) -> None:
        self.over = self._world.step(action)
        self._looks = looks
        self._steps += 1

    def result(self) -> dict[str, Any]:
        return {**self._world.result(), "index": self._task.index, "steps": self._steps, "frames": self._frames}
