"""What is evaluated: the worlds, the sentences said in them, and what came out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from anyvla.data.scenarios import SCENARIOS, Scenario, other_side, select_scenarios
from anyvla.errors import ConfigError, did_you_mean
from anyvla.simulation.seeds import evaluation_seed

Probe = Literal["none", "blind", "swapped"]
PROBES: dict[str, str] = {
    "none": "the sentence as it is",
    "blind": "the policy gets an empty sentence",
    "swapped": "left and right exchanged in the sentence; success means passing on the other side",
}


@dataclass(frozen=True)
class NavTask:
    """One episode of navigation: the world of (``scenario``, ``seed``), and a sentence drawn from ``split``."""

    index: int
    scenario: str
    seed: int
    split: Literal["train", "held_out"]
    blind: bool = False


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
        tasks.append(NavTask(i, scenario.name, evaluation_seed(seed, i), split, probe == "blind"))
    return tasks


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
    def passed_as_told(self) -> bool:
        """Whether every box was passed on the side that the scenario names."""
        return all(side == SCENARIOS[self.scenario].side for side in self.passed)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; without the frames."""
        value = asdict(self)
        del value["frames"]
        return value

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> EpisodeResult:
        return cls(**value)
