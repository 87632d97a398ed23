"""Every recipe parses, and its model is built at full size, without weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anyvla.actions.spec import action_spec
from anyvla.config import load_config, recipe_names
from anyvla.models.backbones.load import resolve_image_size
from anyvla.models.objectives.objectives import make_objectives
from anyvla.models.tuning import apply_tuning
from anyvla.models.vla import build_vla
from tests.official import CHECKPOINTS, make_official

EXPECTED = {
    *[f"calvin-{name}" for name in ("kosmos2", "paligemma", "llava", "qwen", "moondream", "uform", "flamingo")],
    *[f"calvin-kosmos2-{name}" for name in ("discrete", "interleaved", "one-step", "flow", "cotraining")],
    "openx-kosmos2",
    "nav-kosmos2-lora",
}


def test_the_recipes_are_there() -> None:
    assert set(recipe_names()) >= EXPECTED


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_builds_at_full_size(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    millions = None
    if config.model.backbone.type == "pretrained":
        _, millions = CHECKPOINTS[config.model.backbone.path]
        folder = make_official(config.model.backbone.path, tmp_path / "official")
        config = load_config(name, [f"model.backbone={{type: pretrained, path: {folder}, random_weights: true}}"])
    size = resolve_image_size(config).observation.image_size
    assert size is not None
    with torch.device("meta"):
        model = build_vla(
            config.model,
            action_spec(config.actions.spec),
            window=config.actions.window,
            chunk=config.actions.chunk,
            image_size=size,
            bounded=True,
        )
        apply_tuning(model, config.tuning)
        cameras = config.observation.cameras or ["front"]
        model.objectives = make_objectives(config.objectives, model.backbone, cameras, size)
    assert (model.objectives is not None) == ("cotraining" in name)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained > 0
    if millions is not None:
        lora = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
        assert sum(p.numel() for p in model.backbone.model.parameters()) - lora == pytest.approx(1e6 * millions, rel=2e-3)
