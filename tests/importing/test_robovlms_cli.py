"""``anyvla import-robovlms``: what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

from anyvla.config import load_config
from tests.importing.shapes import shape
from tests.test_cli import anyvla


def test_the_lists_are_printed_and_the_recipe_is_written(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape("kosmos") | {"surprise": 1}))
    result = anyvla("import-robovlms", tmp_path / "config.json", "--steps-per-epoch", 10, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    for line in (
        "  window_size = 5 -> actions.window",
        "  image_mean, image_std: the CLIP statistics are written in the code",
        "  surprise = 1: not a key of the public RoboVLMs",
    ):
        assert line in result.stdout.splitlines()
    recipe = load_config(tmp_path / "run" / "recipe.yaml")
    assert (recipe.training.steps, recipe.model.backbone.layout) == (40, "native")  # type: ignore[union-attr]


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(shape("qwen")))
    result = anyvla("import-robovlms", tmp_path / "config.json", tmp_path / "model.pt", "--out", tmp_path / "run")
    assert result.returncode == 1
    assert "these weights cannot be taken over: the first Qwen-VL is remote code" in result.stderr
    assert "Traceback" not in result.stderr
