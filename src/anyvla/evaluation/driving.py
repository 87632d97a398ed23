"""What every environment that is driven here shares: planned episodes, driven by a policy or an expert, counted, filmed."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import anyvla
from anyvla.checkpoint import Which, resolve_checkpoint
from anyvla.config.tree import ExecutionConfig
from anyvla.evaluation.log import EpisodeLog, R, drive_the_rest
from anyvla.evaluation.results import rate, summarize_episodes
from anyvla.evaluation.rollouts import OnResult, rollout_expert, rollout_policy
from anyvla.evaluation.statistics import percentiles
from anyvla.policies.execution import replans_every
from anyvla.policies.policy import Policy
from anyvla.progress import progress_bar

WorldsFor = Callable[[Policy | None, tuple[int, int]], Any]  # those of a policy, or of the expert; images of (height, width)
Read = Callable[[dict[str, Any]], R]


def evaluate_tasks(
    run: Path | None,
    tasks: Sequence[Any],
    about: dict[str, Any],
    worlds_for: WorldsFor,
    read: Read[R],
    *,
    checkpoint: Which,
    execution: ExecutionConfig | None,
    source: str | None,
    image_size: tuple[int, int],
    workers: int,
    log_file: Path | None,
    description: str,
) -> dict[str, Any]:
    """Drive ``tasks`` with the policy of ``run`` (None: the expert); the result file's content, ``about`` included.

    Args:
        about: what makes this evaluation another one than others. read: a result from its JSON values.
        source: see ``Policy.load``. log_file: gets every finished episode; those of this very evaluation are not done again.
    """
    about = {
        "policy": "expert" if run is None else str(run),
        "checkpoint": None if run is None else fingerprint(resolve_checkpoint(run, checkpoint)),
        **about,
    }
    policy = None
    if run is not None:
        policy = Policy.load(run, checkpoint=checkpoint, execution=execution, source=source)
        about |= {
            "source": source,
            "execution": policy.config.execution.model_dump(),
            "replans_every": replans_every(policy.config.execution),
            "safety": policy.config.safety.model_dump(),
            "image_size": list(image_size),
        }
    planned = hashlib.sha256(json.dumps([asdict(task) for task in tasks]).encode()).hexdigest()[:16]
    log = EpisodeLog(log_file, {**about, "policy": None, "worlds": planned, "anyvla": anyvla.__version__}, read)

    def drive(rest: list[Any], on_result: OnResult) -> None:
        worlds = worlds_for(policy, image_size)
        if policy is not None:
            rollout_policy(policy, rest, worlds, workers=workers, on_result=on_result)
        else:
            rollout_expert(rest, worlds, workers=workers, on_result=on_result)

    drive_the_rest(tasks, log, drive, description)
    return {**about, **summarize(log.results), "wall_time_s": log.seconds}


def film_tasks(
    run: Path,
    result: dict[str, Any],
    tasks: Sequence[Any],
    worlds_for: WorldsFor,
    read: Read[R],
    *,
    checkpoint: Which,
    each: int,
    indices: list[int] | None,
) -> list[R]:
    """Drive some of ``tasks`` again, and keep what the cameras saw in ``frames``.

    Args:
        result: what ``evaluate_tasks`` returned for them. each: successes, and failures, to film; the first ones.
        indices: film these episodes instead.
    """
    if indices is None:
        outcomes = [[r["index"] for r in result["results"] if r["success"] == success] for success in (True, False)]
        indices = outcomes[0][:each] + outcomes[1][:each]
    films: list[R] = []
    if not indices:
        return films
    execution = TypeAdapter(ExecutionConfig).validate_python(result["execution"])
    policy = Policy.load(run, checkpoint=checkpoint, execution=execution, source=result.get("source"))
    with progress_bar("film", len(indices)) as bar:

        def on_result(content: dict[str, Any]) -> None:
            films.append(read(content))
            bar.advance()

        worlds = worlds_for(policy, tuple(result["image_size"]))
        rollout_policy(policy, [tasks[i] for i in indices], worlds, keep_frames=True, on_result=on_result)
    return sorted(films, key=lambda film: film.index)


def summarize(results: list[Any]) -> dict[str, Any]:
    """Counts, intervals and the episodes themselves, in the order of their indices."""
    results = sorted(results, key=lambda result: result.index)
    episodes = [result.to_dict() for result in results]
    splits = sorted({result.split for result in results})
    return {
        **summarize_episodes(episodes),
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
