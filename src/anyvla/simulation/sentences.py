"""Paraphrases of the instruction, in English and Korean.

A sentence depends on the scenario and the target, never on the actions. ``{side}`` is the side of the box on which the
robot passes. The held-out sentences are never used for training: they say the same in other words and measure whether a
policy reads.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from anyvla.data.scenarios import Scenario
from anyvla.errors import ConfigError, did_you_mean

Split = Literal["train", "held_out"]
Language = Literal["en", "ko", "any"]

TRAIN: dict[str, list[str]] = {
    "en": [
        "Navigate around the {obstacle} on the {side} and stop in front of the {target}.",
        "Pass the {obstacle} on the {side} and stop at the {target}.",
        "Drive to the {target}, keeping to the {side} of the {obstacle}.",
        "Go {side} around the {obstacle}, then stop before the {target}.",
        "Take the {side} side of the {obstacle} and stop near the {target}.",
        "Avoid the {obstacle} by going {side} and halt at the {target}.",
        "Move past the {obstacle} on the {side} side and wait in front of the {target}.",
        "Head for the {target} and go around the {obstacle} on the {side}.",
        "Please pass on the {side} of the {obstacle} and come to a stop by the {target}.",
        "Steer {side} of the {obstacle} and stop once you reach the {target}.",
        "Use the path on the {side} of the {obstacle} to get to the {target}.",
        "Walk around the {obstacle} from the {side} and stand before the {target}.",
    ],
    "ko": [
        "장애물{plural_ko}을 {side}으로 돌아서 {target} 앞에 멈춰.",
        "{side}으로 장애물{plural_ko}을 피해서 {target}까지 가.",
        "장애물{plural_ko}의 {side}을 지나 {target} 앞에서 정지해 주세요.",
        "{target} 앞으로 가는데 장애물{plural_ko}은 {side}으로 지나가.",
        "장애물{plural_ko} {side}으로 이동한 다음 {target} 앞에 서 주세요.",
        "{side}으로 돌아 장애물{plural_ko}을 통과하고 {target} 앞에서 멈추세요.",
    ],
}

HELD_OUT: dict[str, list[str]] = {
    "en": [
        "Stop in front of the {target} after going around the {obstacle} on the {side}.",
        "Reach the {target}: pass the {obstacle} on the {side}.",
        "Keep {side} when you pass the {obstacle}, and stop by the {target}.",
        "Your goal is the {target}. Drive past the {obstacle}, keeping {side}.",
        "Get to the {target} by moving to the {side} of the {obstacle}.",
        "First go past the {obstacle} on the {side}, then wait at the {target}.",
        "On the {side} of the {obstacle} there is a way to the {target}: take it and stop there.",
    ],
    "ko": [
        "{target} 앞에 멈추되 장애물{plural_ko}의 {side}으로 돌아가세요.",
        "먼저 {side}으로 장애물{plural_ko}을 지나고, 그다음 {target} 앞에서 정지해.",
        "목표는 {target}. 장애물{plural_ko}을 {side}에 있는 길로 피해 가.",
    ],
}

_KOREAN_SIDES = {"left": ("왼쪽", "좌측"), "right": ("오른쪽", "우측")}
_KOREAN_TARGETS = {"bottle": "병", "ball": "공", "can": "캔", "cup": "컵", "plant": "화분", "chair": "의자"}


def sentence(
    scenario: Scenario, target: str, rng: np.random.Generator, split: Split = "train", language: Language = "en"
) -> str:
    """One sentence for ``scenario`` and ``target`` (a key of ``world.TARGETS``), drawn with ``rng``.

    The same generator state gives the same template for left and right. ``any`` draws English twice as often as Korean.

    Raises:
        ConfigError: an unknown split or language.
    """
    templates = {"train": TRAIN, "held_out": HELD_OUT}.get(split)
    if templates is None:
        raise ConfigError(f"unknown sentence split {split!r}{did_you_mean(split, ['train', 'held_out'])}")
    if language not in ("en", "ko", "any"):
        raise ConfigError(f"unknown language {language!r}{did_you_mean(language, ['en', 'ko', 'any'])}")
    spoken = language if language != "any" else ("ko" if rng.uniform() < 1 / 3 else "en")
    template = templates[spoken][rng.integers(len(templates[spoken]))]
    word = int(rng.integers(2))  # drawn for English as well, so that both languages use up the generator alike
    if spoken == "ko":
        side = _KOREAN_SIDES[scenario.side][word]
        return template.format(side=side, target=_KOREAN_TARGETS[target], plural_ko="들" if scenario.boxes > 1 else "")
    obstacle = "obstacle" if scenario.boxes == 1 else "obstacles"
    return template.format(side=scenario.side, target=target, obstacle=obstacle)


def all_sentences(scenario: Scenario, target: str, split: Split) -> set[str]:
    """Every sentence that ``sentence`` can say for ``scenario`` and ``target`` in ``split``."""
    templates = TRAIN if split == "train" else HELD_OUT
    obstacle = "obstacle" if scenario.boxes == 1 else "obstacles"
    english = {t.format(side=scenario.side, target=target, obstacle=obstacle) for t in templates["en"]}
    plural = "들" if scenario.boxes > 1 else ""
    return english | {
        t.format(side=side, target=_KOREAN_TARGETS[target], plural_ko=plural)
        for t in templates["ko"]
        for side in _KOREAN_SIDES[scenario.side]
    }
