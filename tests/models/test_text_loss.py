"""The loss of an answer, in every family of vision-language models: what captions and conversations train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from anyvla.config.model import ModelConfig, PretrainedBackboneConfig
from anyvla.config.objectives import ObjectivesConfig
from anyvla.errors import ConfigError, DataError
from anyvla.models.backbones.adapter import Backbone
from anyvla.models.backbones.load import build_backbone
from anyvla.models.objectives.objectives import make_objectives
from tests.importing.test_robovlms_own_models import write_vlm
from tests.models.own import SIDE
from tests.models.own import build as build_own
from tests.tiny_models import FAMILIES, image_size, make_tiny

OWN = ("uform-2", "moondream-2025", "openflamingo-neox")
WRITING = [*(family for family in FAMILIES if family != "florence2"), *OWN]
PROMPTS = ["What?", "Where is the box of which the robot was told? On its left?", "And now?"]
ANSWERS = ["a box on the left", "yes", "it stops there"]
PRESENT = torch.tensor([[True], [False], [True]])


@pytest.fixture(scope="module")
def backbone_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    made: dict[str, Path] = {}

    def build(family: str) -> Backbone:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            if family in OWN:
                model = build_own(family).float()
                write_vlm(made[family], model)
                model.save_pretrained(made[family])
            else:
                make_tiny(family, made[family])
        config = ModelConfig(backbone=PretrainedBackboneConfig(path=str(made[family])))
        torch.manual_seed(0)
        return build_backbone(config, (SIDE, SIDE) if family in OWN else image_size(family)).eval()

    return build


@pytest.fixture(params=WRITING)
def backbone(request: pytest.FixtureRequest, backbone_of: Callable[[str], Backbone]) -> Backbone:
    return backbone_of(request.param)


def _images(backbone: Backbone) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 1, 3, *backbone.image_size), dtype=torch.uint8, generator=generator)


def _length(backbone: Backbone, answer: str) -> int:
    return len(backbone.tokenizer(answer, add_special_tokens=False)["input_ids"]) + 1


@torch.no_grad()
def test_it_is_the_plain_cross_entropy_of_the_answer_and_its_end(backbone: Backbone) -> None:
    """Against the logits of the whole sequence, as the model itself gives them."""
    images = _images(backbone)[:1]
    logits = _whole_logits(backbone, images, PROMPTS[1], ANSWERS[0])
    tail = [*backbone.tokenizer(ANSWERS[0], add_special_tokens=False)["input_ids"], backbone.tokenizer.eos_token_id]
    expected = F.cross_entropy(logits[-len(tail) - 1 : -1].float(), torch.tensor(tail))
    torch.testing.assert_close(backbone.text_loss(images, PROMPTS[1:2], ANSWERS[:1]), expected, atol=1e-5, rtol=0)


def _whole_logits(backbone: Backbone, images: torch.Tensor, prompt: str, answer: str) -> torch.Tensor:
    """(T, V) of prompt, answer and end."""
    seen: list[dict[str, torch.Tensor]] = []
    original = backbone.family.hidden
    backbone.family.hidden = lambda model, inputs: seen.append(inputs) or original(model, inputs)  # type: ignore[method-assign]
    backbone.text_loss(images, [prompt], [answer])
    del backbone.family.hidden
    return backbone.model(**seen[0]).logits[0]


@torch.no_grad()
def test_rows_with_and_without_an_image_share_a_batch(backbone: Backbone) -> None:
    images = _images(backbone)
    together = backbone.text_loss(images, PROMPTS, ANSWERS, present=PRESENT)
    lengths = torch.tensor([_length(backbone, answer) for answer in ANSWERS])
    alone = torch.stack(
        [
            backbone.text_loss(images[i : i + 1], PROMPTS[i : i + 1], ANSWERS[i : i + 1], present=PRESENT[i : i + 1])
            for i in range(3)
        ]
    )
    torch.testing.assert_close(together, (alone * lengths).sum() / lengths.sum(), atol=1e-4, rtol=0)
    changed = images.clone()
    changed[1] = 255 - changed[1]  # of the row without an image
    torch.testing.assert_close(backbone.text_loss(changed, PROMPTS, ANSWERS, present=PRESENT), together, atol=0, rtol=0)
    changed[0] = 255 - changed[0]
    assert (backbone.text_loss(changed, PROMPTS, ANSWERS, present=PRESENT) - together).abs() > 1e-5


@pytest.mark.parametrize("family", ["kosmos2", "paligemma", "llava", "qwen2_vl", "idefics", "mllama"])
def test_it_falls_and_trains_vision_and_language_but_not_the_queries(
    family: str, backbone_of: Callable[[str], Backbone]
) -> None:
    backbone = backbone_of(family)
    images = _images(backbone)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=3e-3)
    losses = []
    for step in range(12):
        loss = backbone.text_loss(images, PROMPTS, ANSWERS, present=PRESENT)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            for name in ("vision", "language"):
                assert any(p.grad is not None and p.grad.abs().max() > 0 for p in backbone.towers()[name]), name
            assert backbone.queries.grad is None
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses


def test_an_answer_with_the_token_of_an_image_is_refused(backbone_of: Callable[[str], Backbone]) -> None:
    backbone = backbone_of("llava")
    with pytest.raises(DataError, match="the token that stands for an image"):
        backbone.text_loss(_images(backbone)[:1], ["What?"], ["An <image>."])


def test_a_model_that_does_not_write_is_refused_before_training(backbone_of: Callable[[str], Backbone]) -> None:
    backbone = backbone_of("florence2")
    for section in ({"caption": {}}, {"conversations": {"path": "a.json"}}):
        config = ObjectivesConfig.model_validate_json(json.dumps(section))
        with pytest.raises(ConfigError, match="do not go with florence2"):
            make_objectives(config, backbone, ("front",), backbone.image_size)
