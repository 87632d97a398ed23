"""What vla-eval writes, ``*_aggregate.json``, in the shape of our result files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyvla.errors import DataError
from anyvla.evaluation.results import summarize_episodes


def is_vla_eval(content: Any) -> bool:
    """Whether the JSON value is a result of vla-eval."""
    return isinstance(content, Mapping) and {"harness_version", "tasks", "config"} <= content.keys()


def from_vla_eval(content: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """A result of vla-eval as a result file of ours.

    A world is its task, its episode and the benchmark's seed. An episode that ended with an error counts as failed, as it does
    there. The score is the number of completed subtasks, where there are any.

    Raises:
        DataError: an episode is not as vla-eval 0.8 writes it.
    """
    seed = content.get("seed")
    results: list[dict[str, Any]] = []
    for task in content["tasks"]:
        for episode in task["episodes"]:
            try:
                metrics = episode["metrics"]
                success = bool(metrics["success"])
                results.append(
                    {
                        "index": len(results),
                        "task": task["task"],
                        "world": f"{task['task']}:{episode['episode_id']}:{seed}",
                        "success": success,
                        "score": float(metrics.get("completed_subtasks", success)),
                        "steps": int(episode.get("steps", 0)),
                        "failure": episode.get("failure_reason"),
                    }
                )
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"episode {len(results)} of vla-eval's result is not as expected ({error!r})") from error
    return {
        "env": content["benchmark"],
        "policy": policy,
        "checkpoint": None,
        "seed": seed,
        "probe": "none",
        **summarize_episodes(results),
        "results": results,
    }
