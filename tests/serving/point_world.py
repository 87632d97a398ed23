"""A small benchmark in vla-eval's format: a point on a table, pushed by the first two numbers of an action."""

from __future__ import annotations

from typing import Any

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult

STEPS = 6
RECEIVED: dict[tuple[int, str, int], list[np.ndarray]] = {}  # (seed, task, episode) -> the actions that came


class PointWorld(StepBenchmark):
    """Half way through, the sentence changes, as CALVIN's do. ``images_until``: the step from which on no image is sent."""

    def __init__(self, seed: int = 0, send_state: bool = False, images_until: int = STEPS) -> None:
        super().__init__()
        self.seed, self.send_state, self.images_until = seed, send_state, images_until

    def get_tasks(self) -> list[dict[str, Any]]:
        return [{"name": name} for name in ("red", "blue")]

    def reset(self, task: dict[str, Any]) -> Any:
        self._name, self._steps = task["name"], 0
        rng = np.random.default_rng([self.seed, len(self._name), task["episode_idx"]])
        self._point = rng.uniform(-1, 1, 2)
        self._floor = rng.integers(0, 100, (40, 48, 3), dtype=np.uint8)
        self._received = RECEIVED[self.seed, self._name, task["episode_idx"]] = []
        return None

    def step(self, action: dict[str, Any]) -> StepResult:
        values = np.asarray(action["actions"])
        self._received.append(values)
        self._point = np.clip(self._point + 20 * values[:2], -1, 1)
        self._steps += 1
        return StepResult(None, 0.0, self._steps >= STEPS, {})

    def make_obs(self, raw_obs: Any, task: dict[str, Any]) -> dict[str, Any]:
        image = self._floor.copy()
        row, column = ((self._point + 1) / 2 * [35, 43]).astype(int)
        image[row : row + 5, column : column + 5] = 255
        second = self._steps >= STEPS // 2
        observation: dict[str, Any] = {
            "images": {"rgb_static": image} if self._steps < self.images_until else {},
            "task_description": f"{'Lift' if second else 'Push'} the {self._name} block.",
        }
        if self._steps == STEPS // 2:
            observation["episode_restart"] = True
        if self.send_state:
            observation["states"] = np.array([*self._point, 0.1, 0.2, 0.3, 0.4, 0.05, 1.0], dtype=np.float32)
        return observation

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        return {"success": bool(self._point[0] > 0)}

    def get_metadata(self) -> dict[str, Any]:
        return {"max_steps": STEPS}
