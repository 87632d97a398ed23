"""Sentences: two disjoint sets, the side always said, the same template for both sides."""

from __future__ import annotations

import re

import numpy as np
import pytest

from anyvla.data.scenarios import SCENARIOS
from anyvla.errors import ConfigError
from anyvla.simulation.env import CHARSET
from anyvla.simulation.sentences import HELD_OUT, TRAIN, all_sentences, sentence
from anyvla.simulation.world import TARGETS

KOREAN = {"left": ("왼쪽", "좌측"), "right": ("오른쪽", "우측")}


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_sentence_names_its_side_and_target(name: str) -> None:
    scenario = SCENARIOS[name]
    other = "right" if scenario.side == "left" else "left"
    for target in TARGETS:
        for text in all_sentences(scenario, target, "train") | all_sentences(scenario, target, "held_out"):
            assert "{" not in text
            assert set(text) <= set(CHARSET)
            if text.isascii():
                assert words(text) >= {scenario.side, target}
                assert other not in words(text)
                assert ("obstacles" in words(text)) == (scenario.boxes == 2)
            else:
                assert any(side in text for side in KOREAN[scenario.side])
                assert not any(side in text for side in KOREAN[other])
                assert ("장애물들" in text) == (scenario.boxes == 2)


def test_training_and_held_out_sentences_are_disjoint() -> None:
    for scenario in SCENARIOS.values():
        for target in TARGETS:
            assert not all_sentences(scenario, target, "train") & all_sentences(scenario, target, "held_out")
    assert len(set(TRAIN["en"])) >= 10
    assert len(set(HELD_OUT["en"])) >= 6


def test_held_out_words_are_mostly_known() -> None:
    known = set().union(*(words(text) for text in TRAIN["en"]))
    for text in HELD_OUT["en"]:
        assert len(words(text) & known) >= 0.6 * len(words(text)), text


@pytest.mark.parametrize("language", ["en", "ko", "any"])
@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_draw_is_reproducible_and_within_the_set(language: str, split: str) -> None:
    scenario = SCENARIOS["1box_hori_left"]
    said = [sentence(scenario, "ball", np.random.default_rng(k), split, language) for k in range(60)]
    assert said == [sentence(scenario, "ball", np.random.default_rng(k), split, language) for k in range(60)]
    assert set(said) <= all_sentences(scenario, "ball", split)
    assert any(text.isascii() for text in said) == (language != "ko")
    assert any(not text.isascii() for text in said) == (language != "en")


def test_unknown_split_and_language_are_refused() -> None:
    with pytest.raises(ConfigError, match="held_out"):
        sentence(SCENARIOS["1box_hori_left"], "ball", np.random.default_rng(0), "heldout")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="language"):
        sentence(SCENARIOS["1box_hori_left"], "ball", np.random.default_rng(0), "train", "fr")  # type: ignore[arg-type]
