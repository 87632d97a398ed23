from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import DynamicCache, MptConfig

from anyvla.errors import CheckpointError
from anyvla.models.backbones.openflamingo import (
    OpenFlamingoConfig,
    OpenFlamingoForConditionalGeneration,
    load_published,
)
from tests.models.own import build, openflamingo_config, pixels, row

V, D, INNER, VOCABULARY = 24, 32, 48, 60  # widths of the vision tower and the language model
HEADS = 2 * 64  # width inside of the resampler and of the cross-attentions
Shapes = dict[str, tuple[int, ...]]
LANGUAGES = ["gpt_neox", "mpt", "llama"]


def drawn(shapes: Shapes) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def with_bias(*names: str, out: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (out, inputs) for name in names} | {f"{name}.bias": (out,) for name in names}


def norms(*names: str, width: int) -> Shapes:
    return {f"{name}.{kind}": (width,) for name in names for kind in ("weight", "bias")}


def feed_forward(name: str, width: int) -> Shapes:
    linear = {f"{name}.1.weight": (4 * width, width), f"{name}.3.weight": (width, 4 * width)}
    return norms(f"{name}.0", width=width) | linear


def attention(name: str, width: int, memory: int) -> Shapes:
    return {
        f"{name}.to_q.weight": (HEADS, width),
        f"{name}.to_kv.weight": (2 * HEADS, memory),
        f"{name}.to_out.weight": (width, HEADS),
    }


def language_names(kind: str) -> Shapes:
    """The language model alone, as its own checkpoint has it."""
    if kind == "gpt_neox":
        shapes: Shapes = {"gpt_neox.embed_in.weight": (VOCABULARY, D), "embed_out.weight": (VOCABULARY, D)}
        shapes |= norms("gpt_neox.final_layer_norm", width=D)
    elif kind == "mpt":
        shapes = {"transformer.wte.weight": (VOCABULARY, D), "transformer.norm_f.weight": (D,)}
    else:
        shapes = {"model.embed_tokens.weight": (VOCABULARY, D), "lm_head.weight": (VOCABULARY, D), "model.norm.weight": (D,)}
    for i in range(4):
        layer = {"gpt_neox": f"gpt_neox.layers.{i}", "mpt": f"transformer.blocks.{i}", "llama": f"model.layers.{i}"}[kind]
        if kind == "gpt_neox":
            shapes |= norms(f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm", width=D)
            shapes |= with_bias(f"{layer}.attention.query_key_value", out=3 * D, inputs=D)
            shapes |= with_bias(f"{layer}.attention.dense", out=D, inputs=D)
            shapes |= with_bias(f"{layer}.mlp.dense_h_to_4h", out=INNER, inputs=D)
            shapes |= with_bias(f"{layer}.mlp.dense_4h_to_h", out=D, inputs=INNER)
            shapes |= {f"{layer}.attention.bias": (1, 1, 8, 8), f"{layer}.attention.masked_bias": ()}
            shapes |= {f"{layer}.attention.rotary_emb.inv_freq": (8,)}
        elif kind == "mpt":
            shapes |= {f"{layer}.norm_1.weight": (D,), f"{layer}.norm_2.weight": (D,)}
            shapes |= {f"{layer}.attn.Wqkv.weight": (3 * D, D), f"{layer}.attn.out_proj.weight": (D, D)}
            shapes |= {f"{layer}.ffn.up_proj.weight": (4 * D, D), f"{layer}.ffn.down_proj.weight": (D, 4 * D)}
        else:
            shapes |= {f"{layer}.self_attn.{x}_proj.weight": (D, D) for x in "qkvo"}
            shapes |= {f"{layer}.mlp.{x}_proj.weight": (INNER, D) for x in ("gate", "up")}
            shapes |= {f"{layer}.mlp.down_proj.weight": (D, INNER)}
            shapes |= {f"{layer}.{x}_layernorm.weight": (D,) for x in ("input", "post_attention")}
    return shapes


def trained_names(kind: str, every: int) -> Shapes:
    """What a published OpenFlamingo checkpoint holds: resampler, cross-attentions and word embeddings."""
    shapes: Shapes = {"perceiver.latents": (3, V)} | norms("perceiver.norm", width=V)
    for i in range(2):
        layer = f"perceiver.layers.{i}"
        shapes |= norms(f"{layer}.0.norm_media", f"{layer}.0.norm_latents", width=V)
        shapes |= attention(f"{layer}.0", V, V) | feed_forward(f"{layer}.1", V)
    layers = {"gpt_neox": "gpt_neox.layers", "mpt": "transformer.blocks", "llama": "model.layers"}[kind]
    for i in range(every - 1, 4, every):
        cross = f"lang_encoder.{layers}.{i}.gated_cross_attn_layer"
        shapes |= norms(f"{cross}.attn.norm", width=D) | attention(f"{cross}.attn", D, V) | feed_forward(f"{cross}.ff", D)
        shapes |= {f"{cross}.attn_gate": (1,), f"{cross}.ff_gate": (1,)}
    words = {"gpt_neox": ("gpt_neox.embed_in", "embed_out"), "mpt": ("transformer.wte",), "llama": ("model.embed_tokens",)}[
        kind
    ]
    return shapes | {f"lang_encoder.{name}.weight": (VOCABULARY, D) for name in words}


def open_clip_names(prefix: str = "visual.") -> Shapes:
    shapes: Shapes = {
        f"{prefix}class_embedding": (V,),
        f"{prefix}positional_embedding": (17, V),
        f"{prefix}conv1.weight": (V, 3, 4, 4),
        f"{prefix}proj": (V, 8),
    } | norms(f"{prefix}ln_pre", f"{prefix}ln_post", width=V)
    for i in range(2):
        block = f"{prefix}transformer.resblocks.{i}"
        shapes |= norms(f"{block}.ln_1", f"{block}.ln_2", width=V)
        shapes |= {f"{block}.attn.in_proj_weight": (3 * V, V), f"{block}.attn.in_proj_bias": (3 * V,)}
        shapes |= with_bias(f"{block}.attn.out_proj", out=V, inputs=V)
        shapes |= with_bias(f"{block}.mlp.c_fc", out=40, inputs=V) | with_bias(f"{block}.mlp.c_proj", out=V, inputs=40)
    return shapes


def transformers_clip_names() -> Shapes:
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (V,),
        "vision_model.embeddings.patch_embedding.weight": (V, 3, 4, 4),
        "vision_model.embeddings.position_embedding.weight": (17, V),
        "vision_model.embeddings.position_ids": (1, 17),
        "logit_scale": (),
        "visual_projection.weight": (8, V),
        "text_projection.weight": (8, V),
        "text_model.embeddings.position_ids": (1, 77),
        "text_model.encoder.layers.0.self_attn.q_proj.weight": (8, 8),
    } | norms("vision_model.pre_layrnorm", "vision_model.post_layernorm", width=V)
    for i in range(2):
        layer = f"vision_model.encoder.layers.{i}"
        shapes |= with_bias(*[f"{layer}.self_attn.{x}_proj" for x in ("q", "k", "v", "out")], out=V, inputs=V)
        shapes |= norms(f"{layer}.layer_norm1", f"{layer}.layer_norm2", width=V)
        shapes |= with_bias(f"{layer}.mlp.fc1", out=40, inputs=V) | with_bias(f"{layer}.mlp.fc2", out=V, inputs=40)
    return shapes


@pytest.mark.parametrize("kind", LANGUAGES)
@pytest.mark.parametrize("every", [1, 2, 4])
def test_the_published_parts_load_strictly(kind: str, every: int, tmp_path: Path) -> None:
    checkpoint = drawn(trained_names(kind, every))
    torch.save({f"module.{name}": tensor for name, tensor in checkpoint.items()}, tmp_path / "checkpoint.pt")
    language = drawn(language_names(kind))
    embedding = next(name for name in language if "embed_in" in name or "wte" in name or "embed_tokens" in name)
    language[embedding] = torch.zeros(70, D)  # the language model has other words than OpenFlamingo
    save_file(language, tmp_path / "language.safetensors")
    text_tower = {"transformer.resblocks.0.ln_1.weight": (8,), "positional_embedding": (77, 8), "text_projection": (8, 8)}
    clip = drawn(open_clip_names() | text_tower)
    model = load_published(
        tmp_path / "checkpoint.pt", openflamingo_config(kind, every), language=tmp_path / "language.safetensors", vision=clip
    )
    assert list(model.model.cross_attentions) == [str(i) for i in range(every - 1, 4, every)]
    torch.testing.assert_close(model.get_input_embeddings().weight, checkpoint[f"lang_encoder.{embedding}"])
    latest = checkpoint[next(name for name in checkpoint if name.endswith("3.gated_cross_attn_layer.attn.to_kv.weight"))]
    torch.testing.assert_close(model.model.cross_attentions["3"].attention.v_proj.weight, latest.chunk(2)[1])


def test_a_clip_of_transformers_serves_as_well() -> None:
    parts = {"language": drawn(language_names("gpt_neox")), "vision": drawn(transformers_clip_names())}
    tower = load_published(drawn(trained_names("gpt_neox", 2)), openflamingo_config(), **parts).model.vision_tower
    clip = parts["vision"]
    place = clip["vision_model.embeddings.position_embedding.weight"][0]
    torch.testing.assert_close(tower.class_embedding[0], clip["vision_model.embeddings.class_embedding"] + place)


@pytest.mark.parametrize("kind", LANGUAGES)
def test_the_state_of_the_whole_model_loads_strictly(kind: str) -> None:
    """Every layer of the language model is wrapped in it, and listed a second time."""
    layers = ("gpt_neox.layers.", "transformer.blocks.", "model.layers.")
    whole = drawn(trained_names(kind, 2) | open_clip_names("vision_encoder."))
    for name, tensor in drawn(language_names(kind)).items():
        for prefix in layers:
            if name.startswith(prefix):
                index, rest = name.removeprefix(prefix).split(".", 1)
                whole[f"lang_encoder.{prefix}{index}.decoder_layer.{rest}"] = tensor
                whole[f"lang_encoder.old_decoder_blocks.{index}.{rest}"] = tensor
                break
        else:
            whole[f"lang_encoder.{name}"] = tensor
    load_published(whole, openflamingo_config(kind))


def test_a_name_too_few_or_too_many_is_told() -> None:
    parts = {"language": drawn(language_names("gpt_neox")), "vision": drawn(open_clip_names())}
    checkpoint = drawn(trained_names("gpt_neox", 2))
    few = {name: tensor for name, tensor in checkpoint.items() if not name.endswith("3.gated_cross_attn_layer.attn_gate")}
    with pytest.raises(CheckpointError, match=r"missing: model\.cross_attentions\.3\.attention_gate"):
        load_published(few, openflamingo_config(), **parts)
    with pytest.raises(CheckpointError, match=r"unknown: model\.resampler\.frame_embs"):
        load_published(checkpoint | {"perceiver.frame_embs": torch.zeros(1, V)}, openflamingo_config(), **parts)
    with pytest.raises(CheckpointError, match=r"missing: model\.vision_tower"):
        load_published(checkpoint, openflamingo_config(), language=parts["language"])
    with pytest.raises(CheckpointError, match=r"missing: model\.cross_attentions\.0"):
        load_published(checkpoint, openflamingo_config("gpt_neox", every=1), **parts)
    with pytest.raises(CheckpointError, match=r"model\.resampler\.latents: shape \(9, 24\)"):
        load_published(checkpoint | {"perceiver.latents": torch.zeros(9, V)}, openflamingo_config(), **parts)


def test_mpt_1b_is_refused_with_a_reason() -> None:
    norm = {"transformer.blocks.0.attn.q_ln.weight": torch.zeros(D)}
    with pytest.raises(CheckpointError, match="MPT-1B"):
        load_published(drawn(trained_names("mpt", 1)), openflamingo_config("mpt", 1), language=norm)


def _fresh() -> OpenFlamingoForConditionalGeneration:
    torch.manual_seed(0)
    return OpenFlamingoForConditionalGeneration(openflamingo_config()).double().eval()


def test_a_fresh_model_is_the_language_model_alone_and_an_open_gate_sees() -> None:
    model = _fresh().model
    ids = torch.tensor([row(_fresh(), 5, 6)])
    one, other = (model(input_ids=ids, pixel_values=pixels(1, seed)).last_hidden_state for seed in (0, 1))
    torch.testing.assert_close(one, other, atol=0, rtol=0)
    torch.testing.assert_close(one, model.language_model(input_ids=ids).last_hidden_state, atol=1e-12, rtol=0)
    for cross in model.cross_attentions.values():
        cross.attention_gate.data.fill_(1.0)
    one, other = (model(input_ids=ids, pixel_values=pixels(1, seed)).last_hidden_state for seed in (0, 1))
    assert (one[:, 1:] - other[:, 1:]).abs().max() > 1e-9
    torch.testing.assert_close(one[:, 0], other[:, 0], atol=0, rtol=0)  # bos stands before the image


def test_a_closed_gate_learns_to_open() -> None:
    model = _fresh().model
    model(input_ids=torch.tensor([row(_fresh(), 5, 6)]), pixel_values=pixels(1)).last_hidden_state.square().sum().backward()
    assert all(cross.attention_gate.grad.abs() > 0 for cross in model.cross_attentions.values())


# bos, image, word, image, word
TWO_IMAGES = torch.tensor([[0, 59, 5, 59, 6]])


def _first_layer(images: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What the first cross-attention adds for each token (T, D), with words equal: only the images differ between places."""
    model = build("openflamingo-neox").model
    cross = model.cross_attentions["1"]
    seen, default = model._visible(TWO_IMAGES, model.get_image_features(images).pooler_output, None, None)
    x = torch.ones(1, 5, D, dtype=torch.float64)
    return (cross(x, seen, default if mask is None else mask) - x)[0]


def test_text_sees_the_latest_image_before_it() -> None:
    added = _first_layer(pixels(2))
    torch.testing.assert_close(added[1], added[2], atol=1e-9, rtol=0)
    torch.testing.assert_close(added[3], added[4], atol=1e-9, rtol=0)
    for one, other in ((0, 1), (0, 3), (1, 3)):
        assert (added[one] - added[other]).abs().max() > 1e-6
    changed = _first_layer(torch.cat((pixels(2)[:1], pixels(2, seed=1)[1:])))
    torch.testing.assert_close(added[:3], changed[:3], atol=1e-9, rtol=0)
    assert (added[3:] - changed[3:]).abs().max() > 1e-6


def test_cameras_of_one_moment_are_seen_together_when_asked_for() -> None:
    together = torch.tensor([[[0, 0], [1, 1], [1, 1], [1, 1], [1, 1]]]).bool()
    added = _first_layer(pixels(2), together)
    swapped = _first_layer(pixels(2).flip(0), together)
    torch.testing.assert_close(added, swapped, atol=1e-9, rtol=0)  # latents have no order
    assert (added[2] - _first_layer(pixels(2))[2]).abs().max() > 1e-6
    model = build("openflamingo-neox").model
    output = model(input_ids=TWO_IMAGES, pixel_values=pixels(2), image_attention_mask=together).last_hidden_state
    assert (output - model(input_ids=TWO_IMAGES, pixel_values=pixels(2)).last_hidden_state).abs().max() > 1e-5
    with pytest.raises(ValueError, match="image_attention_mask"):
        model(input_ids=TWO_IMAGES, pixel_values=pixels(2), image_attention_mask=together[:, :3])


def test_rows_with_different_numbers_of_images() -> None:
    model = build("openflamingo-neox").model
    ids = torch.cat((TWO_IMAGES, torch.tensor([[0, 5, 59, 6, 7]]), torch.tensor([[0, 5, 6, 7, 8]])))
    together = model(input_ids=ids, pixel_values=pixels(3)).last_hidden_state
    alone = [
        model(input_ids=ids[:1], pixel_values=pixels(3)[:2]).last_hidden_state,
        model(input_ids=ids[1:2], pixel_values=pixels(3)[2:]).last_hidden_state,
        model(input_ids=ids[2:]).last_hidden_state,
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-9, rtol=0)


@pytest.mark.parametrize("split", [1, 2, 3, 4])
def test_images_may_come_one_after_the_other_through_the_cache(split: int) -> None:
    model = build("openflamingo-neox").model
    full = model(input_ids=TWO_IMAGES, pixel_values=pixels(2)).last_hidden_state
    cache, parts, used = None, [], 0
    for ids in (TWO_IMAGES[:, :split], TWO_IMAGES[:, split:]):
        count = int((ids == 59).sum())
        images = pixels(2)[used : used + count] if count else None
        used += count
        output = model(input_ids=ids, pixel_values=images, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.last_hidden_state)
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-9, rtol=0)


def test_rows_of_caches_can_be_put_together_again() -> None:
    """Images travel with the keys and values of their row."""
    model = build("openflamingo-neox").model
    ids = torch.cat((TWO_IMAGES, TWO_IMAGES + torch.tensor([0, 0, 1, 0, 1])))
    full = model(input_ids=torch.cat((ids, ids[:, :1] + 7), dim=1), pixel_values=pixels(4)).last_hidden_state[:, -1:]
    first = model(input_ids=ids, pixel_values=pixels(4), use_cache=True).past_key_values
    swapped = DynamicCache()
    for i, layer in enumerate(first.layers):
        swapped.update(layer.keys.flip(0), layer.values.flip(0), i)
    assert swapped.get_seq_length() == 5
    last = model(input_ids=ids[:, :1] + 7, past_key_values=swapped, use_cache=True).last_hidden_state
    torch.testing.assert_close(last, full.flip(0), atol=1e-9, rtol=0)


def test_cameras_of_a_later_moment_replace_those_in_the_cache() -> None:
    """The mask speaks of the new images; a token before them still sees the old ones."""
    model = build("openflamingo-neox").model
    ids = torch.tensor([[0, 59, 59, 5, 6, 59, 59, 7]])
    mask = torch.zeros(1, 8, 4, dtype=torch.bool)
    mask[:, 1:5, :2], mask[:, 5:, 2:] = True, True
    full = model(input_ids=ids, pixel_values=pixels(4), image_attention_mask=mask).last_hidden_state
    first = model(input_ids=ids[:, :4], pixel_values=pixels(4)[:2], image_attention_mask=mask[:, :4, :2], use_cache=True)
    second = model(
        input_ids=ids[:, 4:],
        pixel_values=pixels(4)[2:],
        image_attention_mask=mask[:, 4:, 2:],
        past_key_values=first.past_key_values,
    )
    torch.testing.assert_close(torch.cat((first.last_hidden_state, second.last_hidden_state), dim=1), full, atol=1e-9, rtol=0)


def test_the_language_model_is_left_without_hooks() -> None:
    model = build("openflamingo-neox").model
    model(input_ids=TWO_IMAGES, pixel_values=pixels(2))
    with pytest.raises(RuntimeError):
        model(input_ids=TWO_IMAGES, pixel_values=pixels(2), attention_mask=torch.ones(1, 3))
    assert not any(layer._forward_pre_hooks for layer in model.language_model.layers)


def test_the_published_sizes() -> None:
    mpt_7b = MptConfig(vocab_size=50280, d_model=4096, n_layers=32, n_heads=32)
    for config, millions in ((OpenFlamingoConfig(), 4039), (OpenFlamingoConfig(text_config=mpt_7b, every=4), 8131)):
        with torch.device("meta"):
            model = OpenFlamingoForConditionalGeneration(config)
        assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions
