from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from anyvla.errors import CheckpointError
from anyvla.models.backbones.parts import VisionTower, VisionTowerConfig
from anyvla.models.backbones.uform import (
    UFormGenConfig,
    UFormGenForConditionalGeneration,
    keys_from_published,
    load_published,
    uform_gen,
)
from tests.models.own import build, pixels, row, uform_config

V, D, INNER, VOCABULARY = 24, 32, 48, 60  # widths of the vision tower and the language model


def published(generation: int) -> dict[str, torch.Tensor]:
    """A checkpoint with the names of the published ones; the width of the pooler is what tells the generations apart."""
    pooler = D if generation == 1 else V
    shapes: dict[str, tuple[int, ...]] = {
        "image_encoder.pos_embed": (1, 16, V),
        "image_encoder.cls_token": (1, 1, V),
        "image_encoder.patch_embed.weight": (V, 3, 4, 4),
        "image_encoder.patch_embed.bias": (V,),
        "image_encoder.norm.weight": (V,),
        "image_encoder.norm.bias": (V,),
        "image_pooler.image_latents": (1, 3, pooler),
        "image_pooler.projection.weight": (D, V),
        "image_pooler.projection.bias": (D,),
        "image_pooler.pooler.linear1.weight": (20, pooler),
        "image_pooler.pooler.linear1.bias": (20,),
        "image_pooler.pooler.linear2.weight": (pooler, 20),
        "image_pooler.pooler.linear2.bias": (pooler,),
        "text_decoder.model.embed_tokens.weight": (VOCABULARY, D),
        "text_decoder.model.norm.weight": (D,),
    }
    if generation == 1:
        shapes["image_encoder.embedding_projection.weight"] = (8, V)
        shapes["text_decoder.lm_head.weight"] = (VOCABULARY, D)
        shapes["text_decoder.model.layers.0.self_attn.rotary_emb.inv_freq"] = (8,)
    for attention in ("self_attn", "multihead_attn"):
        shapes |= {
            f"image_pooler.pooler.{attention}.in_proj_weight": (3 * pooler, pooler),
            f"image_pooler.pooler.{attention}.in_proj_bias": (3 * pooler,),
            f"image_pooler.pooler.{attention}.out_proj.weight": (pooler, pooler),
            f"image_pooler.pooler.{attention}.out_proj.bias": (pooler,),
        }
    for i in (1, 2, 3):
        shapes |= {f"image_pooler.pooler.norm{i}.{kind}": (pooler,) for kind in ("weight", "bias")}
    for i in range(2):
        block = f"image_encoder.blocks.{i}"
        for linear in ("attn.query", "attn.key", "attn.value", "attn.out"):
            shapes |= {f"{block}.{linear}.weight": (V, V), f"{block}.{linear}.bias": (V,)}
        shapes |= {f"{block}.mlp.hidden_layer.weight": (40, V), f"{block}.mlp.hidden_layer.bias": (40,)}
        shapes |= {f"{block}.mlp.output_layer.weight": (V, 40), f"{block}.mlp.output_layer.bias": (V,)}
        shapes |= {f"{block}.{norm}.{kind}": (V,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
        shapes |= {f"{block}.ls1.weight": (V,), f"{block}.ls2.{'weight' if generation == 1 else 'gamma'}": (V,)}
    for i in range(4):
        layer = f"text_decoder.model.layers.{i}"
        for linear in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{layer}.self_attn.{linear}.weight"] = (D, D)
            if generation == 2 and linear != "o_proj":
                shapes[f"{layer}.self_attn.{linear}.bias"] = (D,)
        shapes |= {f"{layer}.mlp.gate_proj.weight": (INNER, D), f"{layer}.mlp.up_proj.weight": (INNER, D)}
        shapes |= {f"{layer}.mlp.down_proj.weight": (D, INNER)}
        shapes |= {f"{layer}.{norm}.weight": (D,) for norm in ("input_layernorm", "post_attention_layernorm")}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("generation", [1, 2])
def test_a_published_checkpoint_loads_strictly(generation: int, tmp_path: Path) -> None:
    state = published(generation)
    save_file(state, tmp_path / "model.safetensors")
    model = load_published(tmp_path, uform_config(generation))
    torch.testing.assert_close(model.model.vision_tower.position_embedding, state["image_encoder.pos_embed"][0])
    second = state["image_pooler.pooler.multihead_attn.in_proj_weight"].chunk(3)[1]
    torch.testing.assert_close(model.model.multi_modal_projector.pooler.cross_attention.k_proj.weight, second)
    torch.testing.assert_close(model.get_input_embeddings().weight, state["text_decoder.model.embed_tokens.weight"])


@pytest.mark.parametrize("generation", [1, 2])
def test_a_name_too_few_or_too_many_is_told(generation: int) -> None:
    state = published(generation)
    del state["image_encoder.blocks.1.attn.key.bias"]
    with pytest.raises(CheckpointError, match=r"missing: model\.vision_tower\.layers\.1\.attention\.k_proj\.bias"):
        load_published(state, uform_config(generation))
    with pytest.raises(CheckpointError, match=r"unknown: image_pooler\.surprise"):
        load_published(published(generation) | {"image_pooler.surprise": torch.zeros(1)}, uform_config(generation))


def test_a_tied_head_may_be_listed_but_not_differ() -> None:
    state = published(2)
    state["text_decoder.lm_head.weight"] = state["text_decoder.model.embed_tokens.weight"].clone()
    load_published(state, uform_config(2))
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        load_published(state | {"text_decoder.lm_head.weight": torch.zeros(VOCABULARY, D)}, uform_config(2))


def test_the_generation_is_told_by_the_latents() -> None:
    for latents, heads in ((196, r"\(32003, 2048\)"), (256, r"\(151936, 1024\)")):
        state = {
            "image_pooler.image_latents": torch.zeros(1, latents, 4),
            "text_decoder.model.embed_tokens.weight": torch.zeros(1),
        }
        with torch.device("meta"), pytest.raises(CheckpointError, match=heads):
            load_published(state)


def test_the_order_of_projection_and_pooling() -> None:
    """Both generations are the same three parts; only the order, and with it the width of the pooler, differs."""
    for name, generation in (("uform-1", 1), ("uform-2", 2)):
        connector = build(name).model.multi_modal_projector
        assert connector.pooler.latents.shape == (3, D if generation == 1 else V)
        assert connector(torch.zeros(2, 17, V, dtype=torch.float64)).shape == (2, 3, D)


def test_the_pooler_does_not_care_where_a_patch_stands() -> None:
    pooler = build("uform-2").model.multi_modal_projector.pooler
    patches = torch.randn(1, 17, V, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooler(patches), pooler(patches.flip(1)), atol=1e-9, rtol=0)


def test_positions_of_a_larger_image_lie_between_the_learned_ones() -> None:
    tower = VisionTower(VisionTowerConfig(hidden_size=1, num_hidden_layers=0, patch_size=4, position_grid=4))
    ramp = torch.arange(4.0).repeat(4, 1)
    tower.position_embedding.data = ramp.view(16, 1)
    large = tower._positions(6, 6).view(6, 6)
    torch.testing.assert_close(large[0], large[5], atol=1e-5, rtol=0)  # the ramp is the same in every row
    assert (large.diff(dim=1) > 0).all()
    plain = F.interpolate(ramp[None, None], size=(6, 6), mode="bicubic")[0, 0]
    assert 0 < (large - plain).abs().max() < 0.1  # the factor is 6.1 / 4 and not 6 / 4


def test_two_images_are_merged_in_order() -> None:
    model = build("uform-2")
    ids = torch.tensor([row(model, 5, images=2)])
    images = model.get_image_features(pixels(2)).pooler_output
    merged = model.model.merge(ids, images)
    torch.testing.assert_close(merged[0, 1:7], images.flatten(0, 1), atol=0, rtol=0)
    torch.testing.assert_close(merged[0, [0, 7]], model.get_input_embeddings()(ids[0, [0, 7]]), atol=0, rtol=0)


def test_the_published_sizes() -> None:
    for config, millions in ((uform_gen(), 1489), (UFormGenConfig(), 1118)):
        with torch.device("meta"):
            model = UFormGenForConditionalGeneration(config)
        assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_unknown_names_stay_as_they_are() -> None:
    assert set(keys_from_published({"else.weight": torch.zeros(1)})) == {"else.weight"}
