"""Meta-World as an evaluation drives it. Loaded in worker processes, without the libraries of the models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from anyvla.errors import ConfigError, did_you_mean
from anyvla.evaluation.workers import World
from anyvla.simulation.metaworld_tasks import SENTENCES, sentence
from anyvla.simulation.seeds import evaluation_seed

# none: the sentence as it is. blind: an empty one. shuffled-language: the sentence of another of the tasks that are evaluated
# (of any task, where it is only one), judged by its own. randomised: the hand begins elsewhere, as in half of the data.
ArmProbe = Literal["none", "blind", "shuffled-language", "randomised"]


@dataclass(frozen=True)
class ArmTask:
    """One episode: the world of (``task``, ``seed``), and what is said in it.

    Attributes:
        split: of the wording. new_start: the hand begins elsewhere.
    """

    index: int
    task: str
    seed: int
    instruction: str
    split: Literal["train", "held_out"]
    new_start: bool = False


def arm_tasks(tasks: Sequence[str], episodes: int, seed: int, probe: ArmProbe = "none") -> list[ArmTask]:
    """``episodes`` unseen worlds of each of ``tasks``; every second one is worded as no training sentence is.

    The same arguments give the same worlds whatever the probe, so that its results pair with those without it.
    """
    if probe not in get_args(ArmProbe):
        raise ConfigError(f"Meta-World has no probe {probe!r}{did_you_mean(probe, get_args(ArmProbe))}")
    if episodes < 1:
        raise ConfigError(f"the number of episodes must be at least 1, not {episodes}")
    try:
        evaluation_seed(seed, episodes * len(tasks) - 1)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    planned = []
    for index in range(episodes * len(tasks)):
        task, world = tasks[index % len(tasks)], evaluation_seed(seed, index)
        words = np.random.default_rng([world, 3])
        split: Literal["train", "held_out"] = "held_out" if (index // len(tasks)) % 2 else "train"
        spoken = task
        if probe == "shuffled-language":
            others = [other for other in (tasks if len(tasks) > 1 else SENTENCES) if other != task]
            spoken = others[int(words.integers(len(others)))]
        said = "" if probe == "blind" else sentence(spoken, words, split)
        planned.append(ArmTask(index, task, world, said, split, probe == "randomised"))
    return planned


@dataclass(frozen=True)
class ArmResult:
    """What happened in one episode.

    Attributes:
        failure: None or ``not_done``. hand: where the hand was at the end, metres. stops: of the safety filter.
        latency_ms: of every step: from images to action; the policy answers several worlds in one call, and each waits for all.
    """

    index: int
    task: str
    seed: int
    split: str
    instruction: str
    success: bool
    failure: str | None
    steps: int
    hand: list[float]
    stops: int = 0
    latency_ms: list[float] = field(default_factory=list, compare=False)
    frames: list[Any] = field(default_factory=list, compare=False)  # (H, W, 3) uint8 of the first camera; kept for a few

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with what every result file says of an episode; without the frames."""
        value = asdict(self)
        del value["frames"]
        return {**value, "world": f"{self.task}:{self.seed}", "score": float(self.success)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ArmResult:
        return cls(**{key: entry for key, entry in value.items() if key not in ("world", "score")})


@dataclass(frozen=True)
class ArmWorlds:
    """Worlds seen by ``cameras`` in pictures of ``image_size`` (height, width)."""

    cameras: tuple[str, ...] = ("corner",)
    image_size: tuple[int, int] = (96, 96)

    @contextmanager
    def open(self, count: int, images: bool) -> Iterator[list[World]]:
        from anyvla.simulation.metaworld import ArmCameras, MetaWorld

        shared = ArmCameras() if images else None
        try:
            yield [ArmWorld(MetaWorld(shared, self.cameras, self.image_size)) for _ in range(count)]
        finally:
            if shared is not None:
                shared.close()


class ArmWorld:
    """See ``anyvla.evaluation.workers.World``."""

    def __init__(self, world: Any) -> None:
        self._world = world

    def reset(self, task: ArmTask) -> str:
        self._task = task
        self._world.reset(task.task, task.seed, new_start=task.new_start)
        return task.instruction

    def images(self) -> dict[str, np.ndarray]:
        return self._world.images()

    def state(self) -> np.ndarray:
        return self._world.state()

    def expert(self) -> np.ndarray:
        return self._world.expert()

    def step(self, action: np.ndarray) -> bool:
        self._world.step(action)
        return self._world.over

    def result(self) -> dict[str, Any]:
        task = self._task
        return {
            **{key: getattr(task, key) for key in ("task", "seed", "split", "instruction")},
            "success": self._world.success,
            "failure": None if self._world.success else "not_done",
            "hand": [round(float(value), 4) for value in self._world.state()[:3]],
        }
