from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anyvla.config.model import ModelConfig, PoolingConfig, PretrainedBackboneConfig, ResamplerConfig, TinyBackboneConfig
from anyvla.errors import CheckpointError, ConfigError, DataError
from anyvla.models.backbones.adapter import TOWERS, Backbone
from anyvla.models.backbones.load import build_backbone
from anyvla.models.backbones.tiny import tiny_tokenizer
from tests.tiny_models import image_size, make_tiny

SHORT, LONG = "Stop.", "Pass the box on the left, and then stop in front of the green bottle. 병 앞에 멈춰."
SIZE = (32, 48)


def _build(
    config: TinyBackboneConfig | PretrainedBackboneConfig,
    size: tuple[int, int] = SIZE,
    definition: Path | None = None,
    state_size: int = 0,
    **settings,
) -> Backbone:
    return build_backbone(ModelConfig(backbone=config, **settings), size, definition, state_size=state_size)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    # double precision: what is compared differs by rounding only, on any processor
    return _build(TinyBackboneConfig(width=32, vision_layers=1, language_layers=2), queries=2).double().eval()


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
    sequence = backbone.sequence([SHORT, LONG], [[1], [1]])
    ids, mask, slots = sequence.ids, sequence.mask, sequence.queries[:, 0]
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
    again = _build(TinyBackboneConfig(), definition=tmp_path, queries=2).double().eval()
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again.encode(_images(1), [LONG]), backbone.encode(_images(1), [LONG]), atol=0, rtol=0)


def test_a_pretrained_folder_goes_through_the_same_adapter(backbone: Backbone, tmp_path: Path) -> None:
    backbone.save_definition(tmp_path)
    backbone.model.save_pretrained(tmp_path)
    loaded = _build(PretrainedBackboneConfig(path=str(tmp_path)), queries=2).double().eval()
    loaded.queries.data = backbone.queries.data
    torch.testing.assert_close(loaded.encode(_images(1), [LONG]), backbone.encode(_images(1), [LONG]), atol=1e-6, rtol=0)


def test_weights_stored_in_half_precision_are_trained_in_full(backbone: Backbone, tmp_path: Path) -> None:
    backbone.save_definition(tmp_path)
    backbone.model.to(torch.bfloat16).save_pretrained(tmp_path)
    for random_weights in (False, True):
        config = PretrainedBackboneConfig(path=str(tmp_path), random_weights=random_weights)
        loaded = _build(config)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_what_cannot_be_built_is_said() -> None:
    with pytest.raises(ConfigError, match="multiples of 16"):
        _build(TinyBackboneConfig(), (60, 112))
    with pytest.raises(ConfigError, match="multiple of 2 x attention_heads"):
        _build(TinyBackboneConfig(width=30))
    with pytest.raises(CheckpointError, match="no usable vision-language model"):
        _build(PretrainedBackboneConfig(path="/nowhere/at/all"))


def test_an_instruction_with_the_image_token_is_refused(backbone: Backbone) -> None:
    with pytest.raises(DataError, match="the token that stands for an image"):
        backbone.encode(_images(1), ["Stop at the <image>."])


@pytest.mark.parametrize("tokens", ["all", "text", "vision"])
@pytest.mark.parametrize("reduce", ["max", "mean"])
@torch.no_grad()
def test_features_pooled_over_tokens(tokens: str, reduce: str) -> None:
    torch.manual_seed(0)
    config = TinyBackboneConfig(width=32, vision_layers=1, language_layers=2)
    pooled = _build(config, pooling=PoolingConfig(tokens=tokens, reduce=reduce)).double().eval()
    images = _images(2)
    together = pooled.encode(images, [SHORT, LONG])
    assert together.shape == (2, 1, 32)
    alone = torch.cat([pooled.encode(images[:1], [SHORT]), pooled.encode(images[1:], [LONG])])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    # images stand before the words: their hidden states know nothing of these
    same = torch.allclose(pooled.encode(images[:1], [SHORT]), pooled.encode(images[:1], [LONG]), atol=1e-9)
    assert same == (tokens == "vision")


def test_a_resampler_gives_the_language_model_fewer_visual_tokens() -> None:
    torch.manual_seed(0)
    config = TinyBackboneConfig(width=32, vision_layers=1, language_layers=2)
    backbone = _build(config, resampler=ResamplerConfig(depth=1, latents=3, heads=2))
    sequence = backbone.sequence([SHORT], [[1]])
    assert (sequence.image >= 0).sum() == 3
    backbone.encode(_images(2), [SHORT, LONG]).square().sum().backward()
    for name in ("resampler", "model"):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in backbone.get_submodule(name).parameters()), name


def test_the_state_of_the_robot_is_a_token() -> None:
    torch.manual_seed(0)
    config = TinyBackboneConfig(width=32, vision_layers=1, language_layers=2)
    backbone = _build(config, state_size=3).double().eval()
    images, state = _images(1), torch.ones(1, 3, dtype=torch.float64)
    features = backbone.encode(images, [SHORT], state)
    assert (features - backbone.encode(images, [SHORT], -state)).abs().max() > 1e-4
    features.square().sum().backward()
    assert backbone.state_encoder.weight.grad.abs().max() > 0
    with pytest.raises(ConfigError, match="takes a state, and none is given"):
        backbone.encode(images, [SHORT])
    with pytest.raises(ConfigError, match="takes no state"):
        _build(config).encode(images, [SHORT], state)
    without = backbone.text_loss(images, [SHORT], ["left"])  # a text about images needs no state of a robot
    backbone.state_encoder.weight.data.zero_()
    assert backbone.text_loss(images, [SHORT], ["left"]) == without


@torch.no_grad()
def test_the_loss_of_an_answer_is_that_of_its_tokens(backbone: Backbone) -> None:
    """Against the whole model's logits, computed the plain way."""
    images = _images(2)
    answers = ["left", "the box is on the right"]
    losses = []
    for row, (prompt, answer) in enumerate(zip([SHORT, LONG], answers, strict=True)):
        ids = backbone.family.prompt_ids(prompt, 1)
        tail = [*backbone.tokenizer(answer, add_special_tokens=False)["input_ids"], backbone.tokenizer.eos_token_id]
        whole = torch.tensor([ids + tail])
        logits = backbone.model(whole, backbone.pixels(images[row])).logits[0, len(ids) - 1 : -1]
        losses += torch.nn.functional.cross_entropy(logits, torch.tensor(tail), reduction="none").tolist()
    together = backbone.text_loss(images, [SHORT, LONG], answers)
    assert together.item() == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_the_tokenizer_writes_any_text() -> None:
    tokenizer = tiny_tokenizer()
    for text in ("Pass left!", "왼쪽으로 가", "emoji 🤖, ümlaut, 漢字"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize(("text", "side"), [("on the left.", " left"), ("장애물을 왼쪽에 두고", "왼쪽"), ("우측으로", "우측")])
def test_words_for_sides_are_one_token_each_wherever_they_stand(text: str, side: str) -> None:
    tokenizer = tiny_tokenizer()
    (token,) = tokenizer(side)["input_ids"]
    assert token in tokenizer(text)["input_ids"]


def test_kosmos2_words_may_have_the_ids_of_image_tokens(tmp_path: Path) -> None:
    """Its processor puts the ids behind <unk> into the places of an image; those of real vocabularies are "in", "a", "of"."""
    backbone = _build(PretrainedBackboneConfig(path=str(make_tiny("kosmos2", tmp_path))), image_size("kosmos2"))
    first = backbone.family.placeholder_id
    word = backbone.tokenizer.decode([first])
    sequence = backbone.sequence([f"go {word} on"], [[2]])
    assert first in sequence.ids[sequence.image < 0]
    assert (sequence.image >= 0).sum() == 2 * backbone.family.tokens_per_image
