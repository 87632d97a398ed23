"""Collect demonstrations of the navigation expert as ``mobile_h5`` files, one per successful episode.

Episode i is a function of (arguments, i) alone, so the result doesn't depend on the number of workers, and a run that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anyvla.data.scenarios import select_scenarios
from anyvla.data.writers import write_mobile_h5
from anyvla.errors import AnyVLAError
from anyvla.progress import progress_bar
from anyvla.simulation.env import FPS, BoxNav
from anyvla.simulation.expert import Expert
from anyvla.simulation.gl import choose_backend
from anyvla.simulation.pool import Stopped, run_jobs
from anyvla.simulation.record import CollectRecord
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

    def simulator(self) -> _Simulator:
        return _Simulator(self)

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

    arguments = {"scenarios": scenarios, "seed": seed, "size": list(setup.size), "disturbances": disturbances}
    arguments["language"] = language
    record = CollectRecord(out, arguments, episodes, lambda: len(list(out.glob("episode_*.h5"))))
    for partial in out.glob(".episode_*.partial"):  # of a run that was killed
        partial.unlink(missing_ok=True)
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
            for attempts, length in run_jobs(setup.simulator, missing, workers):
                written += 1
                frames += length
                given_up += attempts
                if shown is not None:
                    shown.advance(note=f"{given_up} worlds given up" if given_up else "")
                if on_progress is not None:
                    on_progress(skipped + written, episodes)
    except OSError as error:
        raise AnyVLAError(f"{out}: cannot write episodes: {error}") from error
    finally:
        record.save(given_up)
    return CollectReport(out, episodes, written, skipped, given_up, frames, time.perf_counter() - began)


class _Simulator:
    """See ``anyvla.simulation.pool``."""

    def __init__(self, setup: _Setup) -> None:
        self._env, self._seed = setup.env(), setup.seed

    def run(self, job: _Job, stopped: Callable[[], bool]) -> tuple[int, int]:
        return _episode(self._env, self._seed, job, stopped)

    def close(self) -> None:
        self._env.close()


def _episode(env: BoxNav, seed: int, job: _Job, stopped: Callable[[], bool]) -> tuple[int, int]:
    """Drive until a success, write it; returns (worlds given up before it, frames)."""
    expert = Expert(env)
    for attempt in range(MAX_ATTEMPTS):
        world = collection_seed(seed, job.index, attempt)
        observation, info = env.reset(seed=world, options={"scenario": job.scenario})
        images, actions = [observation["image"]], [expert.act()]
        over = False
        while not over:
            if stopped():
                raise Stopped
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
