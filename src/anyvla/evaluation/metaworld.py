"""``evaluate_metaworld``: a policy or the scripted expert in unseen worlds of Meta-World, counted, resumable."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import anyvla
from anyvla.actions import METAWORLD4
from anyvla.checkpoint import Which, resolve_checkpoint
from anyvla.config import ExecutionConfig
from anyvla.errors import ConfigError
from anyvla.evaluation.log import EpisodeLog, drive_the_rest
from anyvla.evaluation.metaworld_worlds import ArmProbe, ArmResult, ArmTask, ArmWorlds, arm_tasks
from anyvla.evaluation.navigation import fingerprint, machine
from anyvla.evaluation.results import rate, summarize_episodes
from anyvla.evaluation.rollouts import OnResult, rollout_expert, rollout_policy
from anyvla.evaluation.statistics import percentiles
from anyvla.policies.execution import replans_every
from anyvla.policies.policy import Policy
from anyvla.progress import progress_bar
from anyvla.simulation.gl import choose_backend
from anyvla.simulation.metaworld_tasks import select_tasks

IMAGE_SIZE = (96, 96)  # rendered, then brought to the policy's size by its transforms


def evaluate_metaworld(
    run: Path | None,
    *,
    tasks: str = "demo",
    episodes: int = 50,
    seed: int = 0,
    probe: ArmProbe = "none",
    checkpoint: Which = "last",
    execution: ExecutionConfig | None = None,
    image_size: tuple[int, int] = IMAGE_SIZE,
    workers: int = 2,
    log_file: Path | None = None,
    description: str = "evaluate",
) -> dict[str, Any]:
    """Evaluate the policy of ``run`` (None: the experts) and return the result file's content.

    Success is Meta-World's, at any step of the episode; an episode ends with it, or after 250 steps.

    Args:
        tasks: see ``select_tasks``. episodes: of each task. seed: of the worlds, see ``arm_tasks``.
        execution: instead of the run's own. workers: simulation processes.
        log_file: gets every finished episode at once; if it holds episodes of this very evaluation already, they are not
            done again.

    Raises:
        CheckpointError, SimulationError, ConfigError, MissingExtraError.
    """
    if run is None and (execution is not None or probe in ("blind", "shuffled-language")):
        raise ConfigError("the expert predicts no chunks and reads no sentences: --execution and these probes are for policies")
    chosen = select_tasks(tasks)
    planned = arm_tasks(chosen, episodes, seed, probe)
    about: dict[str, Any] = {
        "policy": "expert" if run is None else str(run),
        "checkpoint": None if run is None else fingerprint(resolve_checkpoint(run, checkpoint)),
        "env": "metaworld",
        "tasks": list(chosen),
        "episodes_per_task": episodes,
        "seed": seed,
        "probe": probe,
        "success_when": "at any step",
    }
    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    from anyvla.simulation.metaworld import MAX_STEPS

    about["max_steps"] = MAX_STEPS
    policy = None
    if run is not None:
        policy = Policy.load(run, checkpoint=checkpoint, execution=execution)
        about |= {
            "execution": policy.config.execution.model_dump(),
            "replans_every": replans_every(policy.config.execution),
            "safety": policy.config.safety.model_dump(),
            "image_size": list(image_size),
        }
    worlds = hashlib.sha256(json.dumps([asdict(task) for task in planned]).encode()).hexdigest()[:16]
    header = {**about, "policy": None, "worlds": worlds, "anyvla": anyvla.__version__}
    log = EpisodeLog(log_file, header, ArmResult.from_dict)

    def drive(rest: list[ArmTask], on_result: OnResult) -> None:
        if policy is not None:
            rollout_policy(policy, rest, worlds_for(policy, image_size), workers=workers, on_result=on_result)
        else:
            rollout_expert(rest, ArmWorlds(), workers=workers, on_result=on_result)

    drive_the_rest(planned, log, drive, description)
    return {**about, **summarize(log.results), "wall_time_s": log.seconds}


def film_metaworld(
    run: Path, result: dict[str, Any], checkpoint: Which = "last", *, each: int = 3, indices: list[int] | None = None
) -> list[ArmResult]:
    """Do some episodes of an evaluation again, and keep what the camera saw in ``frames``.

    Args:
        result: what ``evaluate_metaworld`` returned for ``run``. each: successes, and failures, to film; the first ones.
        indices: film these episodes instead.
    """
    if indices is None:
        outcomes = [[r["index"] for r in result["results"] if r["success"] == success] for success in (True, False)]
        indices = outcomes[0][:each] + outcomes[1][:each]
    planned = arm_tasks(result["tasks"], result["episodes_per_task"], result["seed"], result["probe"])
    films: list[ArmResult] = []
    if not indices:
        return films
    execution = TypeAdapter(ExecutionConfig).validate_python(result["execution"])
    policy = Policy.load(run, checkpoint=checkpoint, execution=execution)
    with progress_bar("film", len(indices)) as bar:

        def on_result(content: dict[str, Any]) -> None:
            films.append(ArmResult.from_dict(content))
            bar.advance()

        worlds = worlds_for(policy, tuple(result["image_size"]))
        rollout_policy(policy, [planned[i] for i in indices], worlds, keep_frames=True, on_result=on_result)
    return sorted(films, key=lambda film: film.index)


def worlds_for(policy: Policy, image_size: tuple[int, int]) -> ArmWorlds:
    """Worlds that ``policy`` can act in; raises ConfigError if it is one for another robot."""
    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    from anyvla.simulation.metaworld import CAMERAS, FPS, STATE_NAMES

    spec, transforms = policy.spec(), policy.transforms
    if transforms.spec != METAWORLD4:
        raise ConfigError(f"Meta-World is driven with metaworld4, not with the policy's actions {transforms.spec.describe()}")
    if abs(transforms.fps - FPS) > 0.01:
        raise ConfigError(f"Meta-World takes {FPS:g} actions a second, the policy was trained for {transforms.fps:g}")
    if spec.state not in ((), STATE_NAMES):
        raise ConfigError(f"Meta-World measures {', '.join(STATE_NAMES)}; the policy wants {', '.join(spec.state)}")
    for camera in spec.cameras:
        if camera not in CAMERAS:
            raise ConfigError(f"Meta-World has the cameras {', '.join(CAMERAS)}; the policy wants {camera!r}")
    return ArmWorlds(spec.cameras, image_size)


def summarize(results: list[ArmResult]) -> dict[str, Any]:
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
