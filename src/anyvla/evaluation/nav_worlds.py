"""The navigation worlds as an evaluation drives them. Loaded in worker processes, without the libraries of the models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyvla.evaluation.tasks import NavTask
from anyvla.evaluation.workers import World

CAMERA = "front"


@dataclass(frozen=True)
class NavWorlds:
    """Worlds driven with ``action_spec`` and seen in pictures of ``image_size`` (height, width)."""

    action_spec: str = "nav3"
    image_size: tuple[int, int] = (126, 224)

    @contextmanager
    def open(self, count: int, images: bool) -> Iterator[list[World]]:
        from anyvla.simulation.env import BoxNav

        settings: dict[str, Any] = {"image_size": self.image_size} if images else {"observe_images": False}
        envs = [BoxNav(action_spec=self.action_spec, language="any", **settings) for _ in range(count)]
        try:
            yield [NavWorld(env) for env in envs]
        finally:
            for env in envs:
                env.close()


class NavWorld:
    """See ``anyvla.evaluation.workers.World``."""

    def __init__(self, env: Any) -> None:
        from anyvla.simulation.expert import Expert

        self._env = env
        self._expert = Expert(env)

    def reset(self, task: NavTask) -> str:
        self._task = task
        options = {"scenario": task.scenario, "split": task.split, "sentence_of": task.sentence_of, "new_start": task.new_start}
        self._observation, self._info = self._env.reset(seed=task.seed, options=options)
        self._path = [list(self._env.pose)]
        return self._said

    def images(self) -> dict[str, np.ndarray]:
        return {CAMERA: self._observation["image"]}

    def state(self) -> None:
        return None

    def expert(self) -> np.ndarray:
        return self._expert.act()

    def step(self, action: np.ndarray) -> bool:
        self._observation, _, terminated, truncated, self._info = self._env.step(action)
        self._path.append(list(self._env.pose))
        return bool(terminated or truncated)

    def result(self) -> dict[str, Any]:
        info = self._info
        return {
            "scenario": self._task.scenario,
            "seed": self._task.seed,
            "split": self._task.split,
            "instruction": self._said,
            "success": info["success"],
            "failure": info["failure"],
            "passed": info["passed"],
            "distance_to_goal": info["distance_to_goal"],
            "path": [[round(value, 4) for value in pose] for pose in self._path],
            "layout": self._env.layout(),
        }

    @property
    def _said(self) -> str:
        return "" if self._task.blind else self._info["instruction"]
