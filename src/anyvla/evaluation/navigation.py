"""``evaluate_nav``: a policy or the expert in unseen navigation worlds, counted, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anyvla.actions import NAV2, NAV3
from anyvla.checkpoint import Which
from anyvla.config.tree import ExecutionConfig
from anyvla.errors import ConfigError
from anyvla.evaluation import driving
from anyvla.evaluation.driving import evaluate_tasks, film_tasks
from anyvla.evaluation.nav_worlds import NavWorlds
from anyvla.evaluation.tasks import EpisodeResult, Probe, nav_tasks
from anyvla.policies.policy import Policy
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
    source: str | None = None,
    image_size: tuple[int, int] = IMAGE_SIZE,
    workers: int = 2,
    log_file: Path | None = None,
    description: str = "evaluate",
) -> dict[str, Any]:
    """Evaluate the policy of ``run`` (None: the expert) and return the result file's content.

    Args:
        scenario: see ``select_scenarios``. seed: of the worlds, see ``nav_tasks``.
        execution: instead of the run's own. source: see ``Policy.load``. workers: simulation processes.
        log_file: gets every finished episode at once; if it holds episodes of this very evaluation already, they are not
            driven again.

    Raises:
        CheckpointError, SimulationError, ConfigError.
    """
    if run is None and execution is not None:
        raise ConfigError("the expert predicts no chunks: --execution is for policies")
    about = {"env": "nav", "scenario": scenario, "episodes": episodes, "seed": seed, "probe": probe}
    result = evaluate_tasks(
        run,
        nav_tasks(scenario, episodes, seed, probe),
        about,
        _worlds_for,
        EpisodeResult.from_dict,
        checkpoint=checkpoint,
        execution=execution,
        source=source,
        image_size=image_size,
        workers=workers,
        log_file=log_file,
        description=description,
    )
    return {**result, **_told(result["results"])}


def film_nav(
    run: Path, result: dict[str, Any], checkpoint: Which = "last", *, each: int = 3, indices: list[int] | None = None
) -> list[EpisodeResult]:
    """Drive some episodes of an evaluation again, and keep what the policy saw in ``frames``.

    Args:
        result: what ``evaluate_nav`` returned for ``run``. each: successes, and failures, to film; the first ones.
        indices: film these episodes instead.
    """
    tasks = nav_tasks(result["scenario"], result["episodes"], result["seed"], result["probe"])
    return film_tasks(
        run, result, tasks, _worlds_for, EpisodeResult.from_dict, checkpoint=checkpoint, each=each, indices=indices
    )


def _worlds_for(policy: Policy | None, image_size: tuple[int, int]) -> NavWorlds:
    """Worlds that ``policy`` (None: the expert) can drive in; raises ConfigError if it is one for another robot."""
    if policy is None:
        return NavWorlds()
    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    from anyvla.simulation.env import FPS

    spec, fps = policy.transforms.spec, policy.transforms.fps
    if spec not in (NAV2, NAV3):
        raise ConfigError(f"the navigation world is driven with nav2 or nav3, not with the policy's actions {spec.describe()}")
    if abs(fps - FPS) > 0.01:
        raise ConfigError(f"the navigation world takes {FPS:g} actions a second, the policy was trained for {fps:g}")
    return NavWorlds(spec.name, image_size)


def summarize(results: list[EpisodeResult]) -> dict[str, Any]:
    """See ``driving.summarize``; and how many passed as told."""
    counted = driving.summarize(results)
    return {**counted, **_told(counted["results"])}


def _told(episodes: list[dict[str, Any]]) -> dict[str, int]:
    return {"passed_as_told": sum(EpisodeResult.from_dict(episode).passed_as_told for episode in episodes)}
