"""``evaluate_metaworld``: a policy or the scripted expert in unseen worlds of Meta-World, counted, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anyvla.actions import METAWORLD4
from anyvla.checkpoint import Which
from anyvla.config.tree import ExecutionConfig
from anyvla.errors import ConfigError
from anyvla.evaluation.driving import evaluate_tasks, film_tasks
from anyvla.evaluation.metaworld_worlds import ArmProbe, ArmResult, ArmWorlds, arm_tasks
from anyvla.policies.policy import Policy
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
    source: str | None = None,
    image_size: tuple[int, int] = IMAGE_SIZE,
    workers: int = 2,
    log_file: Path | None = None,
    description: str = "evaluate",
) -> dict[str, Any]:
    """Evaluate the policy of ``run`` (None: the experts) and return the result file's content.

    Success is Meta-World's, at any step of the episode; an episode ends with it, or after 250 steps.

    Args:
        tasks: see ``select_tasks``. episodes: of each task. seed: of the worlds, see ``arm_tasks``.
        execution: instead of the run's own. source: see ``Policy.load``. workers: simulation processes.
        log_file: gets every finished episode at once; if it holds episodes of this very evaluation already, they are not
            done again.

    Raises:
        CheckpointError, SimulationError, ConfigError, MissingExtraError.
    """
    if run is None and (execution is not None or probe in ("blind", "shuffled-language")):
        raise ConfigError("the expert predicts no chunks and reads no sentences: --execution and these probes are for policies")
    chosen = select_tasks(tasks)
    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    from anyvla.simulation.metaworld import MAX_STEPS

    about = {
        "env": "metaworld",
        "tasks": list(chosen),
        "episodes_per_task": episodes,
        "seed": seed,
        "probe": probe,
        "success_when": "at any step",
        "max_steps": MAX_STEPS,
    }
    return evaluate_tasks(
        run,
        arm_tasks(chosen, episodes, seed, probe),
        about,
        worlds_for,
        ArmResult.from_dict,
        checkpoint=checkpoint,
        execution=execution,
        source=source,
        image_size=image_size,
        workers=workers,
        log_file=log_file,
        description=description,
    )


def film_metaworld(
    run: Path, result: dict[str, Any], checkpoint: Which = "last", *, each: int = 3, indices: list[int] | None = None
) -> list[ArmResult]:
    """Do some episodes of an evaluation again, and keep what the camera saw in ``frames``.

    Args:
        result: what ``evaluate_metaworld`` returned for ``run``. each: successes, and failures, to film; the first ones.
        indices: film these episodes instead.
    """
    planned = arm_tasks(result["tasks"], result["episodes_per_task"], result["seed"], result["probe"])
    return film_tasks(run, result, planned, worlds_for, ArmResult.from_dict, checkpoint=checkpoint, each=each, indices=indices)


def worlds_for(policy: Policy | None, image_size: tuple[int, int]) -> ArmWorlds:
    """Worlds that ``policy`` (None: the experts) can act in; raises ConfigError if it is one for another robot."""
    if policy is None:
        return ArmWorlds()
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
