"""Collect demonstrations of Meta-World's scripted experts as one LeRobotDataset v3.

Episode i is a function of (arguments, i) alone, and episodes are written in order: the result doesn't depend on the number of
workers, and a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from anyvla.actions.spec import METAWORLD4
from anyvla.data.episode import ArrayEpisode
from anyvla.data.writers.lerobot import LeRobotWriter
from anyvla.errors import AnyVLAError
from anyvla.progress import progress_bar
from anyvla.simulation.collect import MAX_ATTEMPTS, CollectReport
from anyvla.simulation.gl import choose_backend
from anyvla.simulation.metaworld import FPS, MAX_STEPS, STATE_NAMES, ArmCameras, MetaWorld
from anyvla.simulation.metaworld_tasks import select_tasks, sentence
from anyvla.simulation.pool import Stopped, run_jobs
from anyvla.simulation.record import CollectRecord
from anyvla.simulation.seeds import collection_seed

AFTER = 10  # frames that go on after the success, so that a policy finishes what it does


@dataclass(frozen=True)
class _Job:
    """One episode."""

    index: int
    task: str


@dataclass(frozen=True)
class _Setup:
    """What all episodes of a collection share; goes to every worker."""

    seed: int
    size: tuple[int, int]
    cameras: tuple[str, ...]
    disturbances: float
    new_starts: float

    def simulator(self) -> _Simulator:
        return _Simulator(self)


class _Simulator:
    """See ``anyvla.simulation.pool``."""

    def __init__(self, setup: _Setup) -> None:
        self._setup = setup
        self._cameras = ArmCameras()
        self._world = MetaWorld(self._cameras, setup.cameras, setup.size, setup.disturbances)

    def run(self, job: _Job, stopped: Callable[[], bool]) -> tuple[int, ArrayEpisode]:
        """Act until a success; returns (worlds given up before it, episode)."""
        for attempt in range(MAX_ATTEMPTS):
            seed = collection_seed(self._setup.seed, job.index, attempt)
            words = np.random.default_rng([seed, 3])
            self._world.reset(job.task, seed, new_start=words.uniform() < self._setup.new_starts)
            episode = self._record(job, sentence(job.task, words), stopped)
            if episode is not None:
                return attempt, episode
        raise AnyVLAError(f"episode {job.index} ({job.task}): the expert failed in {MAX_ATTEMPTS} worlds in a row")

    def _record(self, job: _Job, instruction: str, stopped: Callable[[], bool]) -> ArrayEpisode | None:
        """One episode, its actions those of the undisturbed expert; None if it was no success."""
        world = self._world
        images: dict[str, list[np.ndarray]] = {camera: [] for camera in self._setup.cameras}
        actions, states = [], []
        left = AFTER
        while left:
            if stopped():
                raise Stopped
            if world.success:
                left -= 1
            elif world.steps >= MAX_STEPS:
                return None
            for camera, image in world.images().items():
                images[camera].append(image)
            states.append(world.state())
            actions.append(world.expert())
            world.step(actions[-1])
        return ArrayEpisode(
            f"episode_{job.index:06d}_{job.task}_seed{self._setup.seed}",
            instruction,
            np.stack(actions),
            {camera: np.stack(frames) for camera, frames in images.items()},
            FPS,
            job.task,
            STATE_NAMES,
            np.stack(states),
        )

    def close(self) -> None:
        self._cameras.close()


def collect_metaworld(
    out: Path,
    tasks: str = "demo",
    episodes: int = 300,
    seed: int = 0,
    size: tuple[int, int] = (96, 96),
    *,
    cameras: tuple[str, ...] = ("corner",),
    workers: int = 2,
    disturbances: float = 0.02,
    new_starts: float = 0.5,
) -> CollectReport:
    """Let the experts do ``episodes`` tasks and write every success into the LeRobotDataset ``out``.

    Args:
        out: created if needed. A collection with the same arguments is gone on with; ``episodes`` may grow.
        tasks: taken in turn, see ``select_tasks``. seed: from 0 to 999 999; no seed leads to a world of an evaluation.
        size: (height, width) of the images of ``cameras``, see ``anyvla.simulation.metaworld.CAMERAS``.
        workers: processes; 0 collects in this process.
        disturbances: probability per step that the hand is pushed aside; the action recorded is what the expert wants.
        new_starts: share of the episodes in which the hand begins elsewhere than usual.

    Raises:
        AnyVLAError: an argument is wrong, ``out`` holds a collection made with others, the disk is full, or it
            cannot render here.
        KeyboardInterrupt: after the workers have stopped; ``out`` holds complete episodes only.
    """
    began = time.perf_counter()
    if episodes < 1 or workers < 0:
        raise AnyVLAError(f"episodes must be at least 1 and workers at least 0, not {episodes} and {workers}")
    if not 0.0 <= new_starts <= 1.0:
        raise AnyVLAError(f"new_starts is a share of the episodes, from 0 to 1, not {new_starts}")
    chosen = select_tasks(tasks)
    setup = _Setup(seed, (int(size[0]), int(size[1])), tuple(cameras), disturbances, new_starts)
    try:
        collection_seed(seed, episodes - 1)
    except ValueError as error:
        raise AnyVLAError(str(error)) from None
    MetaWorld(None, setup.cameras, setup.size, disturbances)  # checks the arguments before anything is started
    choose_backend()

    written = frames = given_up = 0
    with LeRobotWriter(out, METAWORLD4, FPS, state_names=STATE_NAMES, robot_type="sawyer") as writer:
        arguments = {**asdict(setup), "size": list(setup.size), "cameras": list(setup.cameras), "tasks": list(chosen)}
        record = CollectRecord(out, arguments, episodes, lambda: len(writer))
        skipped = min(len(writer), episodes)
        jobs = [_Job(i, chosen[i % len(chosen)]) for i in range(skipped, episodes)]
        bar = progress_bar("collecting", episodes, skipped) if workers else nullcontext()
        try:
            with bar as shown:
                for attempts, episode in run_jobs(setup.simulator, jobs, workers, ordered=True):
                    writer.add(episode)
                    written += 1
                    frames += episode.length
                    given_up += attempts
                    if shown is not None:
                        shown.advance(note=f"{given_up} worlds given up" if given_up else "")
        finally:
            record.save(given_up)
    return CollectReport(out, episodes, written, skipped, given_up, frames, time.perf_counter() - began)
