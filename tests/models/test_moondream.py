from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from anyvla.errors import CheckpointError
from anyvla.models.backbones.moondream import (
    MoondreamConfig,
    MoondreamForConditionalGeneration,
    load_published,
    moondream_0_5b,
)
from tests.models.own import batch, build, moondream_config, pixels, row

V, D, INNER, VOCABULARY = 24, 32, 48, 60  # widths of the vision tower and the language model
LINES = [2025, 2024]


def published(line: int) -> dict[str, torch.Tensor]:
    """A checkpoint with the names of one of the two published lines."""
    new = line == 2025
    vision, text = (
        ("model.vision.", "model.text.") if new else ("vision_encoder.encoder.model.visual.", "text_model.transformer.")
    )
    projector = "model.vision.proj_mlp." if new else "vision_encoder.projection.mlp."
    head, norm = ("model.text.lm_head", "model.text.post_ln") if new else ("text_model.lm_head.linear", "text_model.lm_head.ln")
    shapes: dict[str, tuple[int, ...]] = {
        f"{vision}{'pos_emb' if new else 'pos_embed'}": (1, 16, V),
        f"{text}{'wte' if new else 'embd.wte.weight'}": (VOCABULARY, D),
        f"{head}.weight": (VOCABULARY, D),
        f"{head}.bias": (VOCABULARY,),
        ("model.region.coord_features" if new else "region_model.coordinate_features.weight"): (1, 8),
        ("model.region.coord_encoder.weight" if new else "region_model.coordinate_encoder.weight"): (D, 16),
    }

    def linear(name: str, out: int, inputs: int) -> None:
        shapes.update({f"{name}.weight": (out, inputs), f"{name}.bias": (out,)})

    def layer_norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    linear(f"{vision}{'patch_emb' if new else 'patch_embed.linear'}", V, 3 * 4 * 4)
    layer_norm(f"{vision}{'post_ln' if new else 'norm'}", V)
    layer_norm(norm, D)
    linear(f"{projector}fc1", 36, 2 * V)
    linear(f"{projector}fc2", D, 36)
    for i in range(2):
        block = f"{vision}blocks.{i}."
        for j in (1, 2):
            layer_norm(f"{block}{'ln' if new else 'norm'}{j}", V)
        linear(f"{block}attn.qkv", 3 * V, V)
        linear(f"{block}attn.proj", V, V)
        linear(f"{block}mlp.fc1", 40, V)
        linear(f"{block}mlp.fc2", V, 40)
    for i in range(4):
        block = f"{text}{'blocks' if new else 'h'}.{i}."
        layer_norm(f"{block}ln", D)
        linear(f"{block}{'attn.qkv' if new else 'mixer.Wqkv'}", 3 * D, D)
        linear(f"{block}{'attn.proj' if new else 'mixer.out_proj'}", D, D)
        linear(f"{block}mlp.fc1", INNER, D)
        linear(f"{block}mlp.fc2", D, INNER)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("line", LINES)
def test_a_published_checkpoint_loads_strictly(line: int, tmp_path: Path) -> None:
    save_file(published(line), tmp_path / "model.safetensors")
    load_published(tmp_path, moondream_config())


def test_both_lines_are_the_same_model() -> None:
    """The tensors are drawn in the order of the names, which is the same in both lines."""
    new, old = (load_published(published(line), moondream_config()).state_dict() for line in LINES)
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_a_patch_is_a_convolution() -> None:
    """Published as a product with the flattened patch (channels, rows, columns)."""
    state = published(2025)
    tower = load_published(state, moondream_config()).model.vision_tower
    image = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    product = F.linear(image.flatten(1), state["model.vision.patch_emb.weight"], state["model.vision.patch_emb.bias"])
    torch.testing.assert_close(tower.patch_embedding(image).flatten(1), product, atol=1e-5, rtol=0)


@pytest.mark.parametrize("line", LINES)
def test_a_name_too_few_or_too_many_is_told(line: int) -> None:
    state = published(line)
    for name in [name for name in state if name.endswith(("blocks.1.attn.qkv.bias", "h.1.mixer.Wqkv.bias"))]:
        del state[name]
    with pytest.raises(CheckpointError, match=r"missing: model\.\S+\.layers\.1\.\w+\.k_proj\.bias"):
        load_published(state, moondream_config())
    with pytest.raises(CheckpointError, match=r"unknown: \S*surprise"):
        load_published(published(line) | {"text_model.surprise": torch.zeros(1)}, moondream_config())


def test_the_names_of_a_compiled_model() -> None:
    state = {name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in published(2025).items()}
    load_published(state, moondream_config())


@pytest.mark.parametrize(("line", "prefix"), [(2025, True), (2024, False)])
@pytest.mark.parametrize(("width", "vision"), [(2048, 1152), (1024, 720)])
def test_size_and_attention_are_told_by_the_checkpoint(
    line: int, prefix: bool, width: int, vision: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[MoondreamConfig] = []

    def remember(config: MoondreamConfig) -> None:
        built.append(config)
        raise CheckpointError("enough seen")

    monkeypatch.setattr("anyvla.models.backbones.moondream.MoondreamForConditionalGeneration", remember)
    name = "model.text.wte" if line == 2025 else "text_model.transformer.embd.wte.weight"
    with pytest.raises(CheckpointError, match="enough"):
        load_published({name: torch.zeros(VOCABULARY, width)})
    assert built[0].prefix_attention is prefix
    assert built[0].vision_config.hidden_size == vision


def _hidden(name: str, ids: list[int], seed: int = 0) -> torch.Tensor:
    model = build(name)
    return model.model(input_ids=torch.tensor([ids]), pixel_values=pixels(ids.count(60) // 16, seed)).last_hidden_state


def test_bos_sees_the_image_behind_it_and_no_word() -> None:
    ids = row(build("moondream-2025"), 5, 6)
    for name, sees in (("moondream-2025", True), ("moondream-2024", False)):
        base, other_image, other_word = _hidden(name, ids), _hidden(name, ids, seed=1), _hidden(name, [*ids[:-1], 7])
        assert bool((base[:, 0] - other_image[:, 0]).abs().max() > 1e-5) is sees
        torch.testing.assert_close(base[:, :-1], other_word[:, :-1], atol=1e-9, rtol=0)


def _mask(ids: list[list[int]]) -> torch.Tensor:
    model = build("moondream-2025").model
    tokens, mask = batch(ids)
    return model.attention(tokens, mask, torch.zeros(1), past=0)[:, 0] == 0


def test_the_mask_of_the_published_code() -> None:
    """Its first 1 + 27 * 27 = 730 places see each other, whatever stands behind sees all before: here 1 + 16 places."""
    seen = _mask([row(build("moondream-2025"), 5, 6, 7)])[0]
    expected = torch.ones(20, 20, dtype=torch.bool).tril()
    expected[:17, :17] = True
    assert torch.equal(seen, expected)
    assert MoondreamConfig().image_seq_length + 1 == 730


def test_cameras_of_one_moment_share_the_prefix_and_later_images_do_not() -> None:
    model = build("moondream-2025")
    two = row(model, 5, images=2)
    seen = _mask([two])[0]
    assert seen[:33, :33].all()
    later = row(model, 5) + [60] * 16
    assert torch.equal(_mask([later])[0][17:, 17:], torch.ones(17, 17, dtype=torch.bool).tril())


def test_without_image_all_is_causal() -> None:
    assert torch.equal(_mask([[0, 5, 6, 7]])[0], torch.ones(4, 4, dtype=torch.bool).tril())


def test_padding_is_never_looked_at() -> None:
    model = build("moondream-2025")
    seen = _mask([row(model, 5), row(model, 5, 6, 7)])
    assert not seen[0, :, 18:].any()
    assert seen[1].any(0).all()


def test_a_prefix_in_the_cache_stays_as_it_was() -> None:
    """Image first, words later: the words are causal, and a later image begins no new prefix."""
    model = build("moondream-2025").model
    ids = torch.tensor([row(build("moondream-2025"), 5, 6)])
    first = model(input_ids=ids[:, :17], pixel_values=pixels(1), use_cache=True)
    second = model(input_ids=ids[:, 17:], past_key_values=first.past_key_values, use_cache=True)
    full = model(input_ids=ids, pixel_values=pixels(1)).last_hidden_state
    torch.testing.assert_close(torch.cat((first.last_hidden_state, second.last_hidden_state), dim=1), full, atol=1e-9, rtol=0)


def test_rotary_positions_turn_half_of_each_head() -> None:
    """32 of 64 places, as published."""
    for config in (MoondreamConfig(), moondream_0_5b()):
        text = config.text_config
        assert text.hidden_size // text.num_attention_heads * text.rope_parameters["partial_rotary_factor"] == 32


def test_the_published_sizes() -> None:
    for config, millions in ((MoondreamConfig(), 1867), (moondream_0_5b(), 589)):
        with torch.device("meta"):
            model = MoondreamForConditionalGeneration(config)
        assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions
