from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anyvla.config import PretrainedBackboneConfig, TinyBackboneConfig
from anyvla.errors import CheckpointError, ConfigError
from anyvla.models.backbones.adapter import TOWERS, Backbone, build_backbone, load_backbone_definition
from anyvla.models.backbones.tiny import tiny_tokenizer
from tests.tiny_models import image_size, make_tiny

SHORT, LONG = "Stop.", "Pass the box on the left, and then stop in front of the green bottle. 병 앞에 멈춰."
SIZE = (32, 48)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    config = TinyBackboneConfig(width=32, vision_layers=1, language_layers=2)
    # double precision: what is compared differs by rounding only, on any processor
    return build_backbone(config, queries=2, image_size=SIZE).double().eval()


def _images(n: int, cameras: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (n, cameras, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_features_have_a_row_per_query(backbone: Backbone) -> None:
    assert backbone.encode(_images(3), [SHORT] * 3).shape == (3, 2, 32)


def test_padded_equals_alone(backbone: Backbone) -> None:
    images = _images(2)
    together = backbone.encode(images, [SHORT, LONG])
    alone = torch.cat([backbone.encode(images[:1], [SHORT]), backbone.encode(images[1:], [LONG])])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_queries_stand_right_behind_the_last_real_token(backbone: Backbone) -> None:
    ids, mask, slots = backbone._sequence([SHORT, LONG], 1, torch.device("cpu"))
    for row, prompt in enumerate([SHORT, LONG]):
        length = len(backbone.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        start = 1 + backbone.model.config.image_seq_length + length
        assert slots[row].tolist() == [start, start + 1]
        assert mask[row].sum() == start + 2
        assert ids[row, start - 1] == ids[row, start]


def test_image_words_and_queries_all_matter(backbone: Backbone) -> None:
    base = backbone.encode(_images(1), [LONG])
    assert (base - backbone.encode(255 - _images(1), [LONG])).abs().max() > 1e-4
    assert (base - backbone.encode(_images(1), [LONG.replace("left", "right")])).abs().max() > 1e-4
    backbone.queries.data = backbone.queries.data.flip(1)
    assert (base - backbone.encode(_images(1), [LONG])).abs().max() > 1e-4


def test_the_model_is_left_without_hooks(backbone: Backbone) -> None:
    backbone.encode(_images(1), [SHORT])
    assert not backbone.model.get_input_embeddings()._forward_hooks
    with pytest.raises(RuntimeError):
        backbone.encode(_images(1)[..., :16], [SHORT])
    assert not backbone.model.get_input_embeddings()._forward_hooks


def test_gradients_reach_every_tower(backbone: Backbone) -> None:
    backbone.encode(_images(2), [SHORT, LONG]).square().sum().backward()
    for tower, parameters in backbone.towers().items():
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters), tower
    assert backbone.queries.grad.abs().max() > 0


def test_every_parameter_is_in_one_tower(backbone: Backbone) -> None:
    towers = backbone.towers()
    assert tuple(towers) == TOWERS
    ids = [id(p) for parameters in towers.values() for p in parameters]
    assert sorted(ids) == sorted(id(p) for p in backbone.parameters())
    assert all(towers.values())


def test_two_cameras(backbone: Backbone) -> None:
    images = _images(2, cameras=2)
    features = backbone.encode(images, [SHORT, LONG])
    assert (features - backbone.encode(images.flip(1), [SHORT, LONG])).abs().max() > 1e-4


def test_an_empty_prompt_is_a_prompt(backbone: Backbone) -> None:
    assert torch.isfinite(backbone.encode(_images(1), [""])).all()


def test_the_definition_alone_rebuilds_the_model(backbone: Backbone, tmp_path: Path) -> None:
    backbone.save_definition(tmp_path)
    again = load_backbone_definition(tmp_path, queries=2, image_size=SIZE).double().eval()
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again.encode(_images(1), [LONG]), backbone.encode(_images(1), [LONG]), atol=0, rtol=0)


def test_a_pretrained_folder_goes_through_the_same_adapter(backbone: Backbone, tmp_path: Path) -> None:
    backbone.save_definition(tmp_path)
    backbone.model.save_pretrained(tmp_path)
    loaded = build_backbone(PretrainedBackboneConfig(path=str(tmp_path)), queries=2, image_size=SIZE).double().eval()
    loaded.queries.data = backbone.queries.data
    torch.testing.assert_close(loaded.encode(_images(1), [LONG]), backbone.encode(_images(1), [LONG]), atol=1e-6, rtol=0)


def test_a_llava_goes_through_the_same_adapter(tmp_path: Path) -> None:
    make_tiny("llava", tmp_path)
    size = image_size("llava")
    backbone = build_backbone(PretrainedBackboneConfig(path=str(tmp_path)), queries=2, image_size=size).double().eval()
    images = _images(2)[..., : size[0], : size[1]]
    together = backbone.encode(images, [SHORT, LONG])
    alone = torch.cat([backbone.encode(images[:1], [SHORT]), backbone.encode(images[1:], [LONG])])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    together.square().sum().backward()
    for tower, parameters in backbone.towers().items():
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters), tower


def test_weights_stored_in_half_precision_are_trained_in_full(backbone: Backbone, tmp_path: Path) -> None:
    backbone.save_definition(tmp_path)
    backbone.model.to(torch.bfloat16).save_pretrained(tmp_path)
    for random_weights in (False, True):
        config = PretrainedBackboneConfig(path=str(tmp_path), random_weights=random_weights)
        loaded = build_backbone(config, queries=1, image_size=SIZE)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(ConfigError, match="multiples of 16"):
        build_backbone(TinyBackboneConfig(), 1, (60, 112))
    with pytest.raises(ConfigError, match="multiple of 2 x attention_heads"):
        build_backbone(TinyBackboneConfig(width=30), 1, SIZE)
    with pytest.raises(CheckpointError, match="no usable vision-language model"):
        build_backbone(PretrainedBackboneConfig(path="/nowhere/at/all"), 1, SIZE)


def test_the_tokenizer_writes_any_text() -> None:
    tokenizer = tiny_tokenizer()
    for text in ("Pass left!", "왼쪽으로 가", "emoji 🤖, ümlaut, 漢字"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(("text", "side"), [("on the left.", " left"), ("장애물을 왼쪽에 두고", "왼쪽"), ("우측으로", "우측")])
def test_words_for_sides_are_one_token_each_wherever_they_stand(text: str, side: str) -> None:
    tokenizer = tiny_tokenizer()
    (token,) = tokenizer(side)["input_ids"]
    assert token in tokenizer(text)["input_ids"]
