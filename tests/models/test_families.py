"""What the adapter gives a model equals what the family's own processor makes of the same prompt and images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from anyvla.config import parse_config
from anyvla.config.model import PretrainedBackboneConfig
from anyvla.errors import CheckpointError, ConfigError
from anyvla.models.backbones.adapter import Backbone
from anyvla.models.backbones.load import build_backbone, resolve_image_size
from tests.family_inputs import reference_inputs
from tests.tiny_models import FAMILIES, family_prompt, image_size, make_tiny

TEXT = "go left now"
# inputs that the adapter gives in addition: positions, computed rather than remembered by the model
ADDED = {"position_ids"}
# a robot's image is not split into tiles, a single image of this processor always is
SPLITS_ONE = ("llava_onevision",)
# the processor lets words see the last image only, the adapter all images of the same moment
SEES_ONE = ("idefics",)


def _build(folder: Path, family: str) -> Backbone:
    config = parse_config("{}", [f"model.backbone={{type: pretrained, path: {folder}}}"])
    backbone = build_backbone(config.model, image_size(family)).eval()
    backbone.queries = None  # the prompt and its images alone
    return backbone


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_equal_those_of_the_familys_own_processor(family: str, count: int, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family)
    backbone = _build(folder, family)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*image_size(family), 3), dtype=np.uint8) for _ in range(count)]
    expected = reference_inputs(folder, family_prompt(family, TEXT, count), images)
    pixels = backbone.pixels(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2))
    inputs = backbone.family.inputs(backbone.sequence([TEXT], [[count]]), pixels)
    if (family in SPLITS_ONE and count == 1) or (family in SEES_ONE and count == 2):
        assert inputs["pixel_values"].shape[:2] != (1, 2) or family in SEES_ONE
        return
    assert set(inputs) - ADDED == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(inputs[name].double(), value.double(), atol=1e-5, rtol=0, msg=name)
    hidden = backbone.family.hidden(backbone.model, inputs)
    torch.testing.assert_close(hidden, backbone.family.hidden(backbone.model, expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_image_size_is_the_models_own_unless_it_takes_any(family: str, tmp_path: Path) -> None:
    folder = make_tiny(family, tmp_path / family)
    config = parse_config("{}", [f"model.backbone={{type: pretrained, path: {folder}}}"])
    size = resolve_image_size(config).observation.image_size
    assert size is not None
    build_backbone(config.model, size)
    if family != "llava_next":  # cuts images of any size into tiles
        with pytest.raises(ConfigError, match=r"image_size"):
            build_backbone(config.model, (size[0] + 3, size[1]))


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    def load(path: Path) -> None:
        config = parse_config("{}").model.model_copy(update={"backbone": PretrainedBackboneConfig(path=str(path))})
        build_backbone(config, (32, 32))

    with pytest.raises(CheckpointError, match="no folder, and no model of the hub that can be reached"):
        load(Path("some-org/some-model"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="no usable vision-language model"):
        load(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    with pytest.raises(CheckpointError, match="no support for models of type 'bert'"):
        load(tmp_path)
    folder = make_tiny("llava", tmp_path / "llava")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="no usable vision-language model"):
        load(folder)
