"""What holds for every vision-language model that is defined in this project."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, DynamicCache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from anyvla.models.backbones.load import register_own_models
from tests.models.own import CONFIGS, batch, build, pixels, row

CLOSE = {"atol": 1e-7, "rtol": 0}  # in double precision, but Mpt takes the softmax in single


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(name: str) -> PreTrainedModel:
    return build(name)


def hidden(model: PreTrainedModel, rows: list[list[int]], images: torch.Tensor) -> torch.Tensor:
    ids, mask = batch(rows)
    return model.base_model(input_ids=ids, pixel_values=images, attention_mask=mask).last_hidden_state


def test_it_looks_like_a_model_of_transformers(model: PreTrainedModel) -> None:
    assert model.base_model is model.model
    assert model.get_decoder() is model.model.language_model
    assert model.get_encoder("image") is model.model.vision_tower
    assert model.get_input_embeddings() is model.get_decoder().get_input_embeddings()
    assert model.get_output_embeddings() is model.lm_head
    ids, mask = batch([row(model, 5, 6, 7)])
    output = model(input_ids=ids, pixel_values=pixels(1), attention_mask=mask, labels=ids.clamp(max=59))
    assert output.logits.shape == (1, ids.shape[1], 60)
    assert output.loss.ndim == 0
    assert output.past_key_values is None
    last = model(input_ids=ids, pixel_values=pixels(1), logits_to_keep=1)
    torch.testing.assert_close(last.logits, output.logits[:, -1:], **CLOSE)


def test_padded_equals_alone(model: PreTrainedModel) -> None:
    short, long = row(model, 5), row(model, 6, 7, 8, 9, 10)
    together = hidden(model, [short, long], pixels(2))
    torch.testing.assert_close(together[:1, : len(short)], hidden(model, [short], pixels(2)[:1]), **CLOSE)
    torch.testing.assert_close(together[1:], hidden(model, [long], pixels(2)[1:]), **CLOSE)


def test_words_do_not_see_what_follows(model: PreTrainedModel) -> None:
    one, other = row(model, 5, 6, 7, 8), row(model, 5, 6, 7, 9)
    first, second = (hidden(model, [ids], pixels(1)) for ids in (one, other))
    torch.testing.assert_close(first[:, :-1], second[:, :-1], **CLOSE)
    assert (first[:, -1] - second[:, -1]).abs().max() > 1e-4


def test_images_matter_in_their_order(model: PreTrainedModel) -> None:
    ids = row(model, 5, 6, images=2)
    base = hidden(model, [ids], pixels(2))[:, -1]
    assert (base - hidden(model, [ids], pixels(2).flip(0))[:, -1]).abs().max() > 1e-5
    assert (base - hidden(model, [ids], pixels(2, seed=1))[:, -1]).abs().max() > 1e-5


def test_decoding_with_the_cache_equals_the_full_pass(name: str, model: PreTrainedModel) -> None:
    rows = [row(model, 5, 6), row(model, 7, 8, 9)]
    if name == "openflamingo-mpt":  # ALiBi counts places, padding included
        rows[0].append(10)
    ids, mask = batch(rows)
    output = model.base_model(input_ids=ids, pixel_values=pixels(2), attention_mask=mask, use_cache=True)
    assert isinstance(output.past_key_values, DynamicCache)
    steps, cache = [], output.past_key_values
    for word in (11, 12, 13):
        mask = torch.cat((mask, mask.new_ones(2, 1)), dim=1)
        output = model.base_model(
            input_ids=torch.full((2, 1), word), attention_mask=mask, past_key_values=cache, use_cache=True
        )
        steps.append(output.last_hidden_state)
    for i, ids_of_row in enumerate(rows):
        full = hidden(model, [[*ids_of_row, 11, 12, 13]], pixels(2)[i : i + 1])
        torch.testing.assert_close(torch.cat(steps, dim=1)[i], full[0, -3:], **CLOSE)


def test_generate_takes_the_likeliest_words(model: PreTrainedModel) -> None:
    ids, mask = batch([row(model, 5, 6)])
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    generated = model.generate(input_ids=ids, pixel_values=pixels(1), attention_mask=mask, **options)
    for _ in range(3):
        word = model(input_ids=ids, pixel_values=pixels(1)).logits[:, -1:].argmax(-1)
        ids = torch.cat((ids, word), dim=1)
    assert generated.tolist() == ids.tolist()


def test_image_features_can_be_computed_before(model: PreTrainedModel) -> None:
    ids, _ = batch([row(model, 5, 6)])
    image = model.get_image_features(pixels(1))
    assert image.pooler_output.shape[:2] == (1, 16 if "moondream" in model.config.model_type else 3)
    torch.testing.assert_close(
        model(input_ids=ids, mm_encoder_outputs={"image": image}).logits,
        model(input_ids=ids, pixel_values=pixels(1)).logits,
        **CLOSE,
    )


def test_a_wrong_number_of_images_is_said(model: PreTrainedModel) -> None:
    ids, _ = batch([row(model, 5, 6)])
    with pytest.raises(ValueError, match=r"image tokens.* 2 images"):
        model(input_ids=ids, pixel_values=pixels(2))


def test_images_of_another_size_are_taken(model: PreTrainedModel) -> None:
    images = torch.nn.functional.interpolate(pixels(1), size=(24, 20))
    assert model.get_encoder("image")(images).shape[1] in (6 * 5, 1 + 6 * 5)


def test_gradients_reach_every_parameter(model: PreTrainedModel) -> None:
    hidden(model, [row(model, 5, 6), row(model, 7)], pixels(2)).square().sum().backward()
    untouched = [n for n, p in model.base_model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not [n for n in untouched if not n.endswith("k_proj.bias")]  # the same for all keys: softmax doesn't see it


def test_saved_and_loaded_it_is_the_same(model: PreTrainedModel, tmp_path: Path) -> None:
    register_own_models()
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, mask = batch([row(model, 5, 6)])
    torch.testing.assert_close(
        loaded(input_ids=ids, pixel_values=pixels(1), attention_mask=mask).logits,
        model(input_ids=ids, pixel_values=pixels(1), attention_mask=mask).logits,
        **CLOSE,
    )


def test_gradient_checkpointing_is_on_and_changes_nothing(model: PreTrainedModel) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    def gradients() -> list[torch.Tensor | None]:
        nonlocal calls
        calls = 0
        model.zero_grad()
        hidden(model, [row(model, 5, 6)], pixels(1)).square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    model.train()
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    for norm in {m for layer in layers for m in layer.modules() if "Norm" in type(m).__name__}:
        norm.register_forward_hook(count)
    plain, forward_calls = gradients(), calls
    model.gradient_checkpointing_enable()
    checkpointed = gradients()
    assert calls == 2 * forward_calls
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "openflamingo-mpt"])  # Mpt has one way to attend
def test_ways_to_attend_agree(name: str) -> None:
    models = [build(name, attn_implementation=way) for way in ("eager", "sdpa")]
    assert [model.get_decoder().config._attn_implementation for model in models] == ["eager", "sdpa"]
    one, other = (hidden(model, [row(model, 5, 6), row(model, 7)], pixels(2)) for model in models)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)  # eager takes the softmax in single precision


def test_it_computes_in_bfloat16(model: PreTrainedModel) -> None:
    ids, mask = batch([row(model, 5, 6), row(model, 7)])
    logits = model.bfloat16()(input_ids=ids, pixel_values=pixels(2), attention_mask=mask).logits
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()
