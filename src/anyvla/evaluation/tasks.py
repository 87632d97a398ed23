"""What is evaluated: the worlds, the sentences said in them, and what came out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from anyvla.data.scenarios import SCENARIOS, Scenario, other_side, select_scenarios
from anyvla.errors import ConfigError, did_you_mean
from anyvla.simulation.seeds import evaluation_seed

# none: the sentence as it is. blind: the policy gets an empty sentence. shuffled-language: it gets what is said in another
# scenario, one of the other side, and is judged by its own. randomised: the robot starts elsewhere, where the training data
# could start too. swapped: left and right exchanged in the sentence; success means passing on the other side.
Probe = Literal["none", "blind", "shuffled-language", "randomised", "swapped"]


@dataclass(frozen=True)
class NavTask:
    """One episode of navigation: the world of (``scenario``, ``seed``), and a sentence drawn from ``split``.

    Attributes:
        blind: the policy gets an empty sentence. sentence_of: the scenario whose sentence is said, if not its own.
        new_start: the robot starts elsewhere in that world.
    """

    index: int
    scenario: str
    seed: int
    split: Literal["train", "held_out"]
    blind: bool = False
    sentence_of: str | None = None
    new_start: bool = False


def nav_tasks(scenarios: str, episodes: int, seed: int, probe: Probe = "none") -> list[NavTask]:
    """``episodes`` unseen worlds, in turn over the matching scenarios; every second one of each says a held-out sentence.

    The same arguments give the same worlds whatever the probe, so that its results pair with those without it.
    """
    if probe not in get_args(Probe):
        raise ConfigError(f"unknown probe {probe!r}{did_you_mean(probe, get_args(Probe))}")
    if episodes < 1:
        raise ConfigError(f"the number of episodes must be at least 1, not {episodes}")
    chosen = select_scenarios(scenarios)
    try:
        evaluation_seed(seed, episodes - 1)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    tasks = []
    for i in range(episodes):
        scenario = chosen[i % len(chosen)]
        if probe == "swapped":
            # the two sides of a scenario share their worlds, so this changes the sentence and what counts as success
            scenario = SCENARIOS[Scenario(scenario.boxes, scenario.layout, other_side(scenario.side)).name]
        split: Literal["train", "held_out"] = "held_out" if (i // len(chosen) + i % len(chosen)) % 2 else "train"
        world = evaluation_seed(seed, i)
        other = _another_sentence(scenario, world) if probe == "shuffled-language" else None
        tasks.append(NavTask(i, scenario.name, world, split, probe == "blind", other, probe == "randomised"))
    return tasks


def _another_sentence(scenario: Scenario, seed: int) -> str:
    """A scenario whose sentences ask for something else: sentences name the side, never how a box lies."""
    others = [name for name, other in SCENARIOS.items() if other.side != scenario.side]
    return others[int(np.random.default_rng(seed).integers(len(others)))]


@dataclass(frozen=True)
class EpisodeResult:
    """What happened in one episode.

    Attributes:
        failure: None or the cause. passed: per box, the side on which the robot passed it, or None.
        path: [x, y, yaw] at every step, metres and radians. layout: the geometry of the world. stops: of the safety filter.
        latency_ms: of every step: from images to action; the policy answers several worlds in one call, and each waits for all.
    """

    index: int
    scenario: str
    seed: int
    split: str
    instruction: str
    success: bool
    failure: str | None
    passed: list[str | None]
    steps: int
    distance_to_goal: float
    path: list[list[float]]
    layout: dict[str, Any]
    stops: int = 0
    latency_ms: list[float] = field(default_factory=list, compare=False)
    frames: list[Any] = field(default_factory=list, compare=False)  # (H, W, 3) uint8 as observed; kept for a few

    @property
    def task(self) -> str:
        return self.scenario

    @property
    def world(self) -> str:
        """The two sides of a scenario share their worlds."""
        return f"{self.scenario.rsplit('_', 1)[0]}:{self.seed}"

    @property
    def score(self) -> float:
        return float(self.success)

    @property
    def passed_as_told(self) -> bool:
        """Whether every box was passed on the side that the scenario names."""
        return all(side == SCENARIOS[self.scenario].side for side in self.passed)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with what every result file says of an episode; without the frames."""
        value = asdict(self)
        del value["frames"]
        return {**value, "task": self.task, "world": self.world, "score": self.score}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> EpisodeResult:
        return cls(**{key: entry for key, entry in value.items() if key not in ("task", "world", "score")})
