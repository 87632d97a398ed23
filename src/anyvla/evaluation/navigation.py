"""``evaluate_nav``: a policy or the expert in unseen navigation worlds, counted, resumable."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import anyvla
from anyvla.actions import NAV2, NAV3
from anyvla.checkpoint import Which, resolve_checkpoint
from anyvla.config import ExecutionConfig
from anyvla.errors import ConfigError
from anyvla.evaluation.log import EpisodeLog, drive_the_rest
from anyvla.evaluation.nav_worlds import NavWorlds
from anyvla.evaluation.results import rate, summarize_episodes
from anyvla.evaluation.rollouts import OnResult, rollout_expert, rollout_policy
from anyvla.evaluation.statistics import percentiles
from anyvla.evaluation.tasks import EpisodeResult, NavTask, Probe, nav_tasks
from anyvla.policies.execution import replans_every
from anyvla.policies.policy import Policy
from anyvla.progress import progress_bar
from anyvla.simulation.gl import choose_backend

IMAGE_SIZE = (126, 224)  # rendered, then brought to the policy's size by its transforms


def evaluate_nav(
    run: Path | None,
    *,
    scenario: str = "1box",
    episodes: int = 100,
    seed: int = 0,
    probe: Probe = "none",
    checkpoint: Which = "last",
    execution: ExecutionConfig | None = None,
    image_size: tuple[int, int] = IMAGE_SIZE,
    workers: int = 2,
    log_file: Path | None = None,
    description: str = "evaluate",
) -> dict[str, Any]:
    """Evaluate the policy of ``run`` (None: the expert) and return the result file's content.

    Args:
        scenario: see ``select_scenarios``. seed: of the worlds, see ``nav_tasks``.
        execution: instead of the run's own. workers: simulation processes.
        log_file: gets every finished episode at once; if it holds episodes of this very evaluation already, they are not
            driven again.

    Raises:
        CheckpointError, SimulationError, ConfigError.
    """
    tasks = nav_tasks(scenario, episodes, seed, probe)
    about: dict[str, Any] = {
        "policy": "expert" if run is None else str(run),
        "checkpoint": None if run is None else fingerprint(resolve_checkpoint(run, checkpoint)),
        "env": "nav",
        "scenario": scenario,
        "episodes": episodes,
        "seed": seed,
        "probe": probe,
    }
    policy = None
    if run is None and execution is not None:
        raise ConfigError("the expert predicts no chunks: --execution is for policies")
    if run is not None:
        policy = Policy.load(run, checkpoint=checkpoint, execution=execution)
        about |= {
            "execution": policy.config.execution.model_dump(),
            "replans_every": replans_every(policy.config.execution),
            "safety": policy.config.safety.model_dump(),
            "image_size": list(image_size),
        }
    worlds = hashlib.sha256(json.dumps([asdict(task) for task in tasks]).encode()).hexdigest()[:16]
    header = {**about, "policy": None, "worlds": worlds, "anyvla": anyvla.__version__}
    log = EpisodeLog(log_file, header, EpisodeResult.from_dict)

    def drive(rest: list[NavTask], on_result: OnResult) -> None:
        if policy is not None:
            rollout_policy(policy, rest, _worlds_for(policy, image_size), workers=workers, on_result=on_result)
        else:
            rollout_expert(rest, NavWorlds(), workers=workers, on_result=on_result)

    drive_the_rest(tasks, log, drive, description)
    return {**about, **summarize(log.results), "wall_time_s": log.seconds}


def film_nav(
    run: Path, result: dict[str, Any], checkpoint: Which = "last", *, each: int = 3, indices: list[int] | None = None
) -> list[EpisodeResult]:
    """Drive some episodes of an evaluation again, and keep what the policy saw in ``frames``.

    Args:
        result: what ``evaluate_nav`` returned for ``run``. each: successes, and failures, to film; the first ones.
        indices: film these episodes instead.
    """
    if indices is None:
        outcomes = [[r["index"] for r in result["results"] if r["success"] == success] for success in (True, False)]
        indices = outcomes[0][:each] + outcomes[1][:each]
    tasks = nav_tasks(result["scenario"], result["episodes"], result["seed"], result["probe"])
    films: list[EpisodeResult] = []
    if not indices:
        return films
    policy = Policy.load(
        run, checkpoint=checkpoint, execution=TypeAdapter(ExecutionConfig).validate_python(result["execution"])
    )
    with progress_bar("film", len(indices)) as bar:

        def on_result(content: dict[str, Any]) -> None:
            films.append(EpisodeResult.from_dict(content))
            bar.advance()

        chosen = [tasks[i] for i in indices]
        worlds = _worlds_for(policy, tuple(result["image_size"]))
        rollout_policy(policy, chosen, worlds, keep_frames=True, on_result=on_result)
    return sorted(films, key=lambda film: film.index)


def _worlds_for(policy: Policy, image_size: tuple[int, int]) -> NavWorlds:
    """Worlds that ``policy`` can drive in; raises ConfigError if it is one for another robot."""
    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    from anyvla.simulation.env import FPS

    spec, fps = policy.transforms.spec, policy.transforms.fps
    if spec not in (NAV2, NAV3):
        raise ConfigError(f"the navigation world is driven with nav2 or nav3, not with the policy's actions {spec.describe()}")
    if abs(fps - FPS) > 0.01:
        raise ConfigError(f"the navigation world takes {FPS:g} actions a second, the policy was trained for {fps:g}")
    return NavWorlds(spec.name, image_size)


def summarize(results: list[EpisodeResult]) -> dict[str, Any]:
    """Counts, intervals and the episodes themselves, in the order of their indices."""
    results = sorted(results, key=lambda result: result.index)
    episodes = [result.to_dict() for result in results]
    splits = sorted({result.split for result in results})
    return {
        **summarize_episodes(episodes),
        "passed_as_told": sum(result.passed_as_told for result in results),
        "per_split": {split: rate([result.success for result in results if result.split == split]) for split in splits},
        "step_latency_ms": percentiles([ms for result in results for ms in result.latency_ms]),
        "safety_stops": sum(result.stops for result in results),
        "seeds": [result.seed for result in results],
        "results": episodes,
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Versions and hardware that a number was measured with."""
    import os
    from importlib.metadata import version

    import psutil

    packages = ("anyvla", "torch", "transformers", "mujoco", "numpy", "gymnasium")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        **{package: version(package) for package in packages},
    }


def fingerprint(folder: Path) -> str:
    """Of a checkpoint's weights."""
    digest = hashlib.sha256()
    with (folder / "model.safetensors").open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]
