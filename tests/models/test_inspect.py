from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from anyvla.actions import NAV2
from anyvla.cli import app
from anyvla.config import Config, load_config, parse_config
from anyvla.models.inspect import _batch, describe_model
from anyvla.models.tuning import apply_tuning, count_parameters, freeze_unused
from anyvla.models.vla import VLA, build_vla
from anyvla.models.weightless import build_weightless, weightless
from tests.contracts.families import FAMILIES, image_size, make_tiny

SMALL = [
    "observation.image_size=[32, 48]",
    "actions={window: 3, chunk: 2}",
    "model.backbone={type: tiny, width: 32, vision_layers: 2, language_layers: 2}",
    "model.head={type: lstm, hidden: 16, layers: 1, trunk: [16]}",
    "training.batch_size=4",
]
STATE = "observation={image_size: [32, 48], state: [x, y, yaw], mirrored_state: [y, yaw]}"


def _real(config: Config) -> VLA:
    size = config.observation.image_size
    assert size is not None
    model = build_vla(
        config.model,
        NAV2,
        window=config.actions.window,
        chunk=config.actions.chunk,
        image_size=size,
        bounded=True,
        state_size=len(config.observation.state or ()),
    )
    apply_tuning(model, config.tuning)
    return model


def test_linear_layers_cost_what_they_do_by_hand() -> None:
    model = build_weightless(lambda: nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)))
    assert all(p.is_meta for p in model.parameters())
    with weightless() as cost:
        output = model(torch.zeros(5, 8))
        assert cost.flops == 2 * 5 * (8 * 16 + 16 * 4)
        assert cost.live == 4 * 5 * (16 + 4)
        output.sum().backward()
    # the gradient of every weight, and of the input of the second layer: the first layer's input needs none
    assert cost.flops == 2 * (2 * 5 * (8 * 16 + 16 * 4)) + 2 * 5 * 16 * 4
    assert cost.peak >= cost.live == 4 * (5 * 4 + 1 + sum(p.numel() for p in model.parameters())) - 4


def test_integers_keep_their_values_among_floats_without() -> None:
    ids = torch.tensor([[3, 1, 1, 2], [1, 3, 2, 0]])
    embedding = build_weightless(lambda: nn.Embedding(4, 6))
    with weightless():
        words = embedding(ids)
        assert words.is_meta
        assert words[ids == 1].shape == (3, 6)
        words[ids == 1] = torch.zeros(3, 6)
        positions = (ids != 0).cumsum(1).to(words.device)
        assert positions[1].tolist() == [1, 2, 3, 3]
        assert words.argmax(-1).tolist() == [[0] * 4] * 2  # whatever a model without weights chooses
        attended = nn.functional.scaled_dot_product_attention(words[None], words[None], words[None])
        assert attended.shape == (1, 2, 4, 6)


def test_a_tied_weight_stays_one() -> None:
    model = build_weightless(lambda: _real(load_config("nav-tiny", SMALL)))
    assert model.backbone.model.get_input_embeddings().weight is model.backbone.model.get_output_embeddings().weight


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["tuning={vision: {type: lora, rank: 4}, language: {type: last_layers, layers: 1}, text_embedding: true}"],
        ["tuning={connector: {type: frozen}, gradient_checkpointing: true}"],
        ["model.structure.type=interleaved", "model.queries=2", STATE],
        ["model.resampler={depth: 1, latents: 2, heads: 2}", "model.head={type: gpt, hidden: 16, layers: 1}"],
    ],
)
def test_what_is_counted_without_weights_is_what_the_real_model_has_and_does(overrides: list[str]) -> None:
    config = load_config("nav-tiny", [*SMALL, *overrides])
    _check(config)


@pytest.mark.parametrize(
    "family",
    [f if f in ("kosmos2", "qwen2_5_vl", "florence2") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
)
def test_every_family_is_counted_without_weights(family: str, tmp_path: Path) -> None:
    backbone = f"model.backbone={{type: pretrained, path: {make_tiny(family, tmp_path / family)}}}"
    size = f"observation.image_size={list(image_size(family))}"
    _check(load_config("nav-tiny", [*SMALL, backbone, size, "tuning.gradient_checkpointing=true"]))


def _check(config: Config) -> None:
    description = describe_model(config)
    model = _real(config).train()
    batch = _batch(config, model, 4, 1)
    freeze_unused(model, [model(batch)["loss"]])
    assert description.towers == count_parameters(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (description.gradients, description.moments) == (4 * trained, 8 * trained)
    assert description.weights == 4 * sum(p.numel() for p in model.parameters())
    # the fused attention of a CPU is unknown to PyTorch's counter; it computes its scores once more in the backward pass, which
    # is one product beside the six (or, with checkpointing, eight) that attention without it has
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch)["loss"].backward()
    total, products = counter.get_total_flops(), counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0)
    assert 0.995 * total <= description.training_flops <= 1.01 * (total + products / 6)


def test_the_tokens_of_a_frame_are_counted() -> None:
    config = load_config("nav-tiny", [*SMALL, "model.queries=2", STATE, "observation.cameras=[front, hand]"])
    description = describe_model(config)
    assert description.cameras == 2
    tokens = description.tokens
    assert (tokens["visual"], tokens["state"], tokens["query"]) == (2 * 2 * 3, 1, 2)
    assert 10 < tokens["text"] < 30


def test_memory_follows_what_it_depends_on() -> None:
    def activations(*overrides: str) -> int:
        return describe_model(load_config("nav-tiny", [*SMALL, *overrides])).activations

    base = activations()
    assert activations("training.batch_size=8") == pytest.approx(2 * base, rel=0.1)
    assert activations("tuning.gradient_checkpointing=true") < 0.7 * base
    assert activations("training.precision=bf16") < 0.7 * base
    assert activations("tuning.vision.type=frozen", "tuning.connector.type=frozen") < base


def test_a_recipe_is_shown_as_yaml_with_its_costs_as_comments(llava_folder: Path) -> None:
    pretrained = [f"model.backbone={{type: pretrained, path: {llava_folder}}}", "tuning.vision.type=frozen"]
    shown = CliRunner().invoke(app, ["inspect", "recipe", "nav-tiny", *pretrained, "observation.image_size=[28,28]"])
    assert shown.exit_code == 0, shown.output
    text = shown.stdout
    assert parse_config(text) == load_config("nav-tiny", [*pretrained, "observation.image_size=[28,28]"])
    assert "#   vision" in text
    assert "FLOP" in text
    alone = CliRunner().invoke(app, ["inspect", "recipe", "nav-tiny", "--settings"])
    assert "#" not in alone.stdout
    assert yaml.safe_load(alone.stdout)


def test_a_model_that_is_not_at_hand_is_named_and_the_settings_are_shown(tmp_path: Path) -> None:
    missing = f"model.backbone={{type: pretrained, path: {tmp_path / 'nowhere'}}}"
    shown = CliRunner().invoke(app, ["inspect", "recipe", "nav-tiny", missing])
    assert shown.exit_code == 0, shown.output
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("#")]
    assert "cannot be described here" in line
    assert "nowhere" in line
    assert parse_config(shown.stdout).model.backbone.type == "pretrained"


@pytest.mark.slow
def test_seven_billion_parameters_are_described_without_them(llava_folder: Path) -> None:
    from transformers import AutoConfig, LlavaConfig

    tiny = AutoConfig.from_pretrained(llava_folder)
    LlavaConfig(image_token_id=tiny.image_token_id).save_pretrained(llava_folder)
    overrides = [f"model.backbone={{type: pretrained, path: {llava_folder}}}", "observation.image_size=[336, 336]"]
    description = describe_model(
        load_config("nav-tiny", [*overrides, "tuning={vision: {type: frozen}, language: {type: lora}}"])
    )
    total = {tower: count for tower, (count, _) in description.towers.items()}
    assert total["vision"] == pytest.approx(303.5e6, rel=1e-3)
    assert total["language"] == pytest.approx(6738.4e6 + 33.55e6, rel=1e-3)  # LoRA: 32 layers x 4 x 32 x (4096 + 4096)
    assert description.towers["language"][1] == 32 * 4 * 32 * 8192
    assert description.tokens["visual"] == 576
    # two per parameter and token, and attention over all pairs of tokens
    tokens = sum(description.tokens.values())
    by_hand = 2 * tokens * (6738e6 - 2 * 32064 * 4096) + 32 * 4 * tokens**2 * 4096 + 2 * 577 * 303e6
    assert description.control_flops == pytest.approx(by_hand, rel=0.02)
