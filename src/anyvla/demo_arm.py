"""``anyvla demo --arm``: three manipulation tasks of Meta-World by one policy that is told which one to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyvla.demo import Demo, DemoResult, Row, carry_out, minutes
from anyvla.evaluation.report import Filmed

_ROWS = (
    Row("policy", "Policy"),
    Row("blind", "No sentence", probe="blind"),
    Row("shuffled", "Another task's sentence", probe="shuffled-language"),
    Row("randomised", "Hand starts elsewhere", probe="randomised"),
    Row("expert", "Expert"),
)


def run_arm_demo(
    out: Path,
    *,
    seed: int = 0,
    demonstrations: int = 300,
    steps: int | None = None,
    episodes: int = 50,
    workers: int = 2,
) -> DemoResult:
    """The arm's demo in ``out``; what an earlier run has finished is taken as it is.

    Args:
        demonstrations: expert episodes to train on, over all tasks. steps: optimiser steps, the recipe's if None.
        episodes: unseen worlds of each task per evaluation.

    Raises:
        MissingExtraError: Meta-World is not installed.
    """
    from anyvla.simulation.gl import choose_backend

    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    from anyvla.evaluation.metaworld import IMAGE_SIZE, evaluate_metaworld, film_metaworld
    from anyvla.simulation.metaworld_collect import collect_metaworld

    def evaluate(row: Row, run: Path | None, log_file: Path) -> dict[str, Any]:
        return evaluate_metaworld(
            run,
            probe=row.probe,  # type: ignore[arg-type]  # none of the rows has navigation's own
            episodes=episodes,
            seed=seed,
            workers=workers,
            log_file=log_file,
            description=f"evaluate: {row.name.lower()}",
        )

    def film(run: Path, results: dict[str, dict[str, Any]]) -> dict[str, Sequence[Filmed]]:
        return {key: film_metaworld(run, results[key]) for key in ("policy", "shuffled")}

    demo = Demo(
        title="AnyVLA demo: a robot arm",
        settings={"demo": "arm", "seed": seed, "demonstrations": demonstrations, "steps": steps, "episodes": episodes},
        collect=lambda folder: collect_metaworld(folder, "demo", demonstrations, seed, IMAGE_SIZE, workers=workers),
        recipe="metaworld-tiny",
        rows=_ROWS,
        evaluate=evaluate,
        film=film,
        line=_line,
    )
    return carry_out(demo, out)


def _line(summary: dict[str, Any]) -> str:
    rows = summary["evaluations"]
    tasks = ", ".join(
        f"{task} {counts['successes']}/{counts['episodes']}" for task, counts in rows["policy"]["per_task"].items()
    )
    probes = ", ".join(f"{row.name.lower()} {_count(rows[row.key])}" for row in _ROWS if row.key != "policy")
    return f"success {_count(rows['policy'])}: {tasks}; {probes}; {minutes(summary)}"


def _count(result: dict[str, Any]) -> str:
    return f"{result['successes']}/{result['episodes']}"
