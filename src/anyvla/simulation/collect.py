"""Collect demonstrations of the navigation expert as ``mobile_h5`` files, one per successful episode.

Episode i is a function of (arguments, i) alone, so the result doesn't depend on the number of workers, and a run that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import anyvla
from anyvla.data.scenarios import select_scenarios
from anyvla.data.writers import write_mobile_h5
from anyvla.errors import AnyVLAError
from anyvla.processes import interrupts_held, leave_interrupts_to_the_main_process, render_in_one_thread
from anyvla.progress import progress_bar
from anyvla.simulation.env import FPS, BoxNav
from anyvla.simulation.expert import Expert
from anyvla.simulation.gl import choose_backend
from anyvla.simulation.seeds import collection_seed
from anyvla.simulation.sentences import Language

MAX_ATTEMPTS = 20  # worlds tried for one episode; the expert fails in far less than one in twenty


@dataclass(frozen=True)
class CollectReport:
    """What a collection did: ``episodes`` asked for = ``written`` now + ``skipped`` because they were there."""

    out: Path
    episodes: int
    written: int
    skipped: int
    given_up: int  # worlds in which the expert failed; each was replaced by another world
    frames: int  # of the episodes written now
    seconds: float


@dataclass(frozen=True)
class _Job:
    """One episode."""

    index: int
    scenario: str
    path: Path


@dataclass(frozen=True)
class _Setup:
    """What all episodes of a collection share; goes to every worker."""

    seed: int
    size: tuple[int, int]
    disturbances: float
    language: Language

    def env(self, observe_images: bool = True) -> BoxNav:
        return BoxNav(
            "all",
            "nav3",
            self.size,
            observe_images=observe_images,
            split="train",
            language=self.language,
            disturbances=self.disturbances,
        )


class _StopRequested(Exception):  # noqa: N818  (no error: it is what was asked for)
    """The parent asked to stop in the middle of an episode."""


def collect_nav(
    out: Path,
    scenarios: str = "1box",
    episodes: int = 400,
    seed: int = 0,
    size: tuple[int, int] = (720, 1280),
    *,
    workers: int = 2,
    disturbances: float = 0.15,
    language: Language = "any",
    on_progress: Callable[[int, int], None] | None = None,
) -> CollectReport:
    """Drive the expert through ``episodes`` worlds and write every success into the folder ``out``.

    Args:
        out: created if needed. A collection with the same arguments is gone on with: finished files are kept; ``episodes``
            may grow.
        scenarios: which ones, taken in turn: a name or a pattern, see ``anyvla.data.scenarios.select_scenarios``.
        seed: from 0 to 999 999; no seed leads to a world of an evaluation.
        size: (height, width) of the images.
        workers: processes; 0 collects in this process.
        disturbances: probability per step that the robot is pushed, so that the data shows how to recover.
        language: of the training sentences: ``en``, ``ko`` or ``any``.
        on_progress: called with (episodes finished, episodes); without it a progress bar is shown.

    Raises:
        AnyVLAError: an argument is wrong, ``out`` holds a collection made with others, the disk is full, or it
            cannot render here.
        KeyboardInterrupt: after the workers have stopped; ``out`` holds complete files only.
    """
    began = time.perf_counter()
    if episodes < 1 or workers < 0:
        raise AnyVLAError(f"episodes must be at least 1 and workers at least 0, not {episodes} and {workers}")
    chosen = select_scenarios(scenarios)
    setup = _Setup(seed, (int(size[0]), int(size[1])), disturbances, language)
    try:
        collection_seed(seed, episodes - 1)
    except ValueError as error:
        raise AnyVLAError(str(error)) from None
    setup.env(observe_images=False).close()  # checks size, language and disturbances before anything is started
    choose_backend()

    arguments = {"scenarios": scenarios, "seed": seed, "size": list(setup.size)}
    record = _Record(out, {**arguments, "disturbances": disturbances, "language": language}, episodes)
    jobs = []
    for i in range(episodes):
        scenario = chosen[i % len(chosen)].name
        jobs.append(_Job(i, scenario, out / f"episode_{i:06d}_{scenario}_seed{seed}.h5"))
    missing = [job for job in jobs if not job.path.exists()]
    skipped = len(jobs) - len(missing)

    bar = progress_bar("collecting", episodes, skipped) if on_progress is None else nullcontext()
    written = frames = given_up = 0
    try:
        with bar as shown:
            for attempts, length in _run(setup, missing, workers):
                written += 1
                frames += length
                given_up += attempts
                if shown is not None:
                    shown.advance(note=f"{given_up} worlds given up" if given_up else "")
                if on_progress is not None:
                    on_progress(skipped + written, episodes)
    except OSError as error:
        raise AnyVLAError(f"{out}: cannot write episodes: {error}") from error
    except BrokenProcessPool:
        raise AnyVLAError("a collecting process died, perhaps for lack of memory: run again with fewer workers") from None
    finally:
        record.save(given_up)
    return CollectReport(out, episodes, written, skipped, given_up, frames, time.perf_counter() - began)


class _Record:
    """``collect.json``: the arguments that make the episodes, counts, and the versions that made them."""

    def __init__(self, out: Path, arguments: dict[str, Any], episodes: int) -> None:
        """Refuses a folder with other arguments, or with episodes of unknown origin; then begins the record."""
        self._path = out / "collect.json"
        self._arguments = arguments
        self._episodes = episodes
        self._given_up = 0
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AnyVLAError(f"{out}: cannot make this folder: {error.strerror}") from None
        if self._path.exists():
            try:
                before = json.loads(self._path.read_text())
                old, self._given_up = before["arguments"], before["worlds_given_up"]
            except (ValueError, KeyError, TypeError) as error:
                raise AnyVLAError(f"{self._path} cannot be read ({error!r}): use another folder, or remove it") from None
            for key, value in arguments.items():
                if old.get(key) != value:
                    raise AnyVLAError(
                        f"{out} was collected with {key}={old.get(key)!r}, not {value!r}: use another folder or that value"
                    )
        elif any(out.glob("*.h5")):
            raise AnyVLAError(f"{out} holds episodes but no collect.json that says how they were made: use another folder")
        for partial in out.glob(".episode_*.partial"):  # of a run that was killed
            partial.unlink(missing_ok=True)
        self.save(given_up=0)

    def save(self, given_up: int) -> None:
        """Write it, complete or not at all; ``given_up`` counts this run's, earlier runs' are added."""
        import mujoco

        content = {
            "arguments": self._arguments,
            "episodes": self._episodes,
            "episodes_on_disk": len(list(self._path.parent.glob("episode_*.h5"))),
            "worlds_given_up": self._given_up + given_up,
            "versions": {
                "anyvla": anyvla.__version__,
                "mujoco": mujoco.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        partial = self._path.with_suffix(".json.partial")
        try:
            partial.write_text(json.dumps(content, indent=2) + "\n")
            os.replace(partial, self._path)
        except OSError as error:
            raise AnyVLAError(f"{self._path}: cannot be written: {error.strerror}") from error


def _run(setup: _Setup, jobs: list[_Job], workers: int) -> Iterator[tuple[int, int]]:
    """Do ``jobs``; yields (worlds given up, frames) of each as it is finished, in any order."""
    if workers == 0:
        env = setup.env()
        try:
            for job in jobs:
                yield _episode(env, setup, job, stop=None)
        finally:
            env.close()
        return
    if not jobs:
        return
    spawn = multiprocessing.get_context("spawn")  # a forked child would share this process's OpenGL
    stop = spawn.Event()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), spawn, initializer=_start_worker, initargs=(setup, stop))
    try:
        with interrupts_held():  # the workers inherit it: Ctrl-C goes to every process of the terminal, only we answer
            running: set[Future] = {pool.submit(_work, job) for job in jobs}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[BoxNav, _Setup, Any] | None = None  # of a worker process: its environment, the setup, the stop event


def _start_worker(setup: _Setup, stop: Any) -> None:
    """Runs first in each worker process."""
    global _worker
    leave_interrupts_to_the_main_process()
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed parent sends no word, and the pool would wait for it for ever
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    render_in_one_thread()
    _worker = (setup.env(), setup, stop)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(job: _Job) -> tuple[int, int]:
    assert _worker is not None
    env, setup, stop = _worker
    return _episode(env, setup, job, stop)


def _episode(env: BoxNav, setup: _Setup, job: _Job, stop: Any) -> tuple[int, int]:
    """Drive until a success, write it; returns (worlds given up before it, frames)."""
    expert = Expert(env)
    for attempt in range(MAX_ATTEMPTS):
        world = collection_seed(setup.seed, job.index, attempt)
        observation, info = env.reset(seed=world, options={"scenario": job.scenario})
        images, actions = [observation["image"]], [expert.act()]
        over = False
        while not over:
            if stop is not None and stop.is_set():
                raise _StopRequested
            observation, _, terminated, truncated, info = env.step(actions[-1])
            over = terminated or truncated
            # the last frame too: it shows where to stand, and its action is to stay there
            images.append(observation["image"])
            actions.append(expert.act())
        if info["success"]:
            write_mobile_h5(
                job.path,
                np.stack(images),
                np.stack(actions),
                info["instruction"],
                fps=FPS,
                events=["episode_start"] + ["start_action"] * (len(images) - 1),
                robot="AnyVLA/BoxNav-v0",
                scenario=job.scenario,
            )
            return attempt, len(images)
    raise AnyVLAError(f"episode {job.index} ({job.scenario}): the expert failed in {MAX_ATTEMPTS} worlds in a row")
