"""Chains in closed loop: one environment per process, one driver that answers them together.

Environments render only when the driver looks. What happens between two looks needs no model, so each environment goes through
it at its own pace; then all wait for each other, and the driver answers them in one batch. So which chains share a batch
depends on the number of environments and never on timing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from selectors import EVENT_READ, DefaultSelector
from typing import Any, Protocol

import numpy as np

from anyvla.errors import SimulationError
from anyvla.evaluation.calvin.chains import Chain
from anyvla.evaluation.calvin.simulator import Simulator

MAX_STEPS = 360  # of a subtask
FILM_FRAMES = 60  # kept of a subtask


@dataclass(frozen=True)
class Job:
    """A chain to drive: where it starts, and the sentence said for each subtask."""

    chain: Chain
    robot_obs: np.ndarray  # (15,) metres and radians
    scene_obs: np.ndarray  # (24,)
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Observation:
    """What a driver gets at one step. ``images``: None unless it looks. ``scene_obs`` is the truth, for scripts only."""

    task: str
    instruction: str
    step: int  # of the subtask
    robot_obs: np.ndarray  # (15,), see ROBOT_OBS
    scene_obs: np.ndarray  # (24,)
    images: dict[str, np.ndarray] | None  # rgb_static (200, 200, 3), rgb_gripper (84, 84, 3), uint8


@dataclass(frozen=True)
class Command:
    """What the environment gets: relative (x 0.02 m, x 0.05 rad) or a pose in the world (metres, radians); gripper -1 or 1."""

    values: np.ndarray  # (7,) float64
    absolute: bool = False


class Driver(Protocol):
    """Drives several chains at a time; each has a slot."""

    cameras: tuple[str, ...]  # to be rendered

    def begin(self, slot: int, instruction: str) -> None:
        """A subtask begins, with a fresh history."""

    def looks(self, slot: int) -> bool:
        """Whether the next action depends on images."""

    def act(self, slots: Sequence[int], observations: Sequence[Observation]) -> list[Command]: ...

    def finish(self, slot: int) -> dict[str, Any]:
        """The chain is over; ``stops`` and ``latency_ms`` of its result, where there are any."""


@dataclass(frozen=True)
class ChainResult:
    """What happened in one chain.

    Attributes:
        solved: subtasks in a row, 0 to 5. subtasks: of each that was begun: ``task``, ``instruction``, ``success``, ``steps``.
        stops: of the safety filter. latency_ms: of every look, from images to action; the policy answers all environments in
        one call, and each waits for all. frames: of the last subtask, as the static camera saw it, if they were asked for.
    """

    index: int
    world: str
    tasks: tuple[str, ...]
    solved: int
    steps: int
    subtasks: list[dict[str, Any]]
    stops: int = 0
    latency_ms: list[float] = field(default_factory=list, compare=False)
    frames: list[np.ndarray] = field(default_factory=list, compare=False)  # (H, W, 3) uint8

    @property
    def success(self) -> bool:
        return self.solved == len(self.tasks)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; without the frames."""
        value = {name: item for name, item in asdict(self).items() if name != "frames"}
        failure = None if self.success else self.tasks[self.solved]
        return {
            **value,
            "tasks": list(self.tasks),
            "task": " > ".join(self.tasks),
            "success": self.success,
            "score": float(self.solved),
            "failure": failure,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> ChainResult:
        derived = ("task", "success", "score", "failure")
        known = {name: item for name, item in value.items() if name not in derived}
        return cls(**{**known, "tasks": tuple(known["tasks"])})


def drive_chains(
    simulators: Sequence[Simulator],
    jobs: Iterable[Job],
    driver: Driver,
    on_result: Callable[[ChainResult], None] = lambda result: None,
    *,
    keep_frames: bool = False,
    max_steps: int = MAX_STEPS,
) -> None:
    """Drive every job; ``on_result`` is called as each chain ends.

    Raises SimulationError if an environment dies.
    """
    waiting = list(jobs)[::-1]
    running: dict[int, _Running] = {}
    while True:
        for slot, simulator in enumerate(simulators):
            if slot not in running and waiting:
                running[slot] = _Running(slot, simulator, waiting.pop(), driver, keep_frames, max_steps)
        if not running:
            return
        _until_all_look(list(running.values()))
        batch = [one for one in running.values() if not one.over]
        if batch:
            commands = driver.act([one.slot for one in batch], [one.observation for one in batch])
            for one, command in zip(batch, commands, strict=True):
                one.step(command)
        for slot in [slot for slot, one in running.items() if one.over]:
            on_result(running.pop(slot).result())


def _until_all_look(running: Sequence[_Running]) -> None:
    """Let every chain go on until it is over, or its driver looks."""
    with DefaultSelector() as selector:
        for one in running:
            selector.register(one.simulator, EVENT_READ, one)
        while selector.get_map():
            for key, _ in selector.select():
                if not key.data.proceed():
                    selector.unregister(key.fileobj)


class _Running:
    """A chain under way; its environment always has one request to answer, except while its driver looks."""

    observation: Observation
    over = False

    def __init__(self, slot: int, simulator: Simulator, job: Job, driver: Driver, keep_frames: bool, max_steps: int) -> None:
        self.slot, self.simulator = slot, simulator
        self._job, self._driver = job, driver
        self._keep_frames, self._max_steps = keep_frames, max_steps
        self._subtasks: list[dict[str, Any]] = []
        simulator.request({"type": "reset"}, robot_obs=job.robot_obs, scene_obs=job.scene_obs)
        self._begin()

    def step(self, command: Command) -> None:
        """Send an action."""
        current = self._subtasks[-1]
        current["steps"] += 1
        # nobody sees what the last step leads to
        render = current["steps"] < self._max_steps and self._driver.looks(self.slot)
        self.simulator.send({"type": "step", "render": render, "absolute": command.absolute}, action=command.values)

    def proceed(self) -> bool:
        """Take the environment's answer; False if the driver must look, or the chain is over."""
        answer, arrays = self.simulator.receive()
        try:
            robot_obs, scene_obs = arrays.pop("robot_obs"), arrays.pop("scene_obs")
            success = bool(answer["success"])
        except KeyError as error:
            raise SimulationError(f"the process of the CALVIN environment leaves out {error}") from error
        current = self._subtasks[-1]
        if success:
            current["success"] = True
            self.over = len(self._subtasks) == len(self._job.chain.tasks)
            if not self.over:
                self._begin()
            return not self.over
        if current["steps"] == self._max_steps:
            self.over = True
            return False
        looks = self._driver.looks(self.slot)
        self.observation = Observation(
            current["task"], current["instruction"], current["steps"], robot_obs, scene_obs, arrays if looks else None
        )
        if looks:
            self._keep(arrays)
            return False
        self.step(self._driver.act([self.slot], [self.observation])[0])
        return True

    def result(self) -> ChainResult:
        chain = self._job.chain
        solved = sum(subtask["success"] for subtask in self._subtasks)
        steps = sum(subtask["steps"] for subtask in self._subtasks)
        driven = self._driver.finish(self.slot)
        return ChainResult(chain.index, chain.world, chain.tasks, solved, steps, self._subtasks, **driven, frames=self._frames)

    def _begin(self) -> None:
        number = len(self._subtasks)
        task, said = self._job.chain.tasks[number], self._job.sentences[number]
        self._subtasks.append({"task": task, "instruction": said, "success": False, "steps": 0})
        self._frames: list[np.ndarray] = []
        self._looks, self._every = 0, 1
        self._driver.begin(self.slot, said)
        self.simulator.send({"type": "begin", "task": task, "render": self._driver.looks(self.slot)})

    def _keep(self, images: dict[str, np.ndarray]) -> None:
        """Pictures for a film, half of them dropped whenever there are too many."""
        if not self._keep_frames or "rgb_static" not in images:
            return
        if self._looks % self._every == 0:
            self._frames.append(images["rgb_static"])
            if len(self._frames) > 2 * FILM_FRAMES:
                del self._frames[1::2]
                self._every *= 2
        self._looks += 1
