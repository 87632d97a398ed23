"""``evaluate_nav``: a policy or the expert in unseen navigation worlds, counted, resumable."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import anyvla
from anyvla.checkpoint import Which, resolve_checkpoint
from anyvla.config import ExecutionConfig
from anyvla.errors import ConfigError
from anyvla.evaluation.log import EpisodeLog
from anyvla.evaluation.results import rate, summarize_episodes
from anyvla.evaluation.rollouts import rollout_expert, rollout_policy
from anyvla.evaluation.statistics import percentiles
from anyvla.evaluation.tasks import EpisodeResult, Probe, nav_tasks
from anyvla.policies.execution import replans_every
from anyvla.policies.policy import Policy
from anyvla.progress import progress_bar

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
    began = time.perf_counter()
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
    done = {result.index for result in log.results}
    with progress_bar(description, len(tasks), done=len(done)) as bar:

        def on_result(result: EpisodeResult) -> None:
            log.add(result)
            bar.advance(note=f"{sum(r.success for r in log.results)}/{len(log.results)}")

        rest = [task for task in tasks if task.index not in done]
        try:
            if rest and policy is not None:
                rollout_policy(policy, rest, image_size=image_size, workers=workers, on_result=on_result)
            elif rest:
                rollout_expert(rest, workers=workers, on_result=on_result)
        finally:
            if rest:
                log.add_seconds(time.perf_counter() - began)
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

        def on_result(film: EpisodeResult) -> None:
            films.append(film)
            bar.advance()

        chosen = [tasks[i] for i in indices]
        rollout_policy(policy, chosen, image_size=tuple(result["image_size"]), keep_frames=True, on_result=on_result)
    return sorted(films, key=lambda film: film.index)


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
