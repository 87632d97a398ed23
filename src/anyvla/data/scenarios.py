"""The eight navigation scenarios: one or two boxes, across or along the way, to be passed on the left or on the right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from anyvla.errors import ConfigError, did_you_mean

Side = Literal["left", "right"]

_NAME = re.compile(r"(?<![A-Za-z0-9])(?P<boxes>[12])box_(?P<layout>hori|vert)_(?P<side>left|right)(?![A-Za-z0-9])")


@dataclass(frozen=True)
class Scenario:
    """``boxes`` boxes laid across (``hori``) or along (``vert``) the way; the robot passes them on ``side``."""

    boxes: int
    layout: Literal["hori", "vert"]
    side: Side

    @property
    def name(self) -> str:
        """As in file names: ``1box_hori_left``."""
        return f"{self.boxes}box_{self.layout}_{self.side}"

    def instruction(self, language: Literal["en", "ko"] = "en") -> str:
        """The sentence for an episode that stores none; the English one is the published one."""
        if language == "ko":
            side, plural = ("왼쪽" if self.side == "left" else "오른쪽"), ("들" if self.boxes > 1 else "")
            return f"장애물{plural}을 {side}으로 돌아서 병 앞에 멈춰."
        obstacle = "obstacle" if self.boxes == 1 else "obstacles"
        return f"Navigate around the {obstacle} on the {self.side} and stop in front of the bottle."


def other_side(side: Side) -> Side:
    return "right" if side == "left" else "left"


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for boxes in (1, 2)
    for layout in ("hori", "vert")
    for side in ("left", "right")
    for scenario in [Scenario(boxes, layout, side)]
}


def scenario_in(name: str) -> Scenario | None:
    """The scenario that a file name or attribute contains, or None.

    >>> scenario_in("episode_20260129_010422_1box_hori_left_core_medium.h5").name
    '1box_hori_left'
    """
    match = _NAME.search(name.replace("-", "_"))
    return SCENARIOS[match.group(0)] if match else None


def select_scenarios(pattern: str) -> list[Scenario]:
    """The scenarios whose names contain all the ``_``-separated words of ``pattern``; ``all`` selects the eight.

    >>> [scenario.name for scenario in select_scenarios("1box_left")]
    ['1box_hori_left', '1box_vert_left']
    """
    if pattern == "all":
        return list(SCENARIOS.values())
    words = pattern.split("_")
    chosen = [scenario for name, scenario in SCENARIOS.items() if set(words) <= set(name.split("_"))]
    if not chosen:
        known = ["all", "1box", "2box", *SCENARIOS]
        raise ConfigError(f"no scenario matches {pattern!r}{did_you_mean(pattern, known)}")
    return chosen
