from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from anyvla.actions import NAV2
from anyvla.config import Config, parse_config
from anyvla.errors import ConfigError
from anyvla.models.tuning import apply_tuning, count_parameters, freeze_unused, merge_lora, without_lora
from anyvla.models.vla import VLA, build_vla
from anyvla.training.optimizer import make_optimizer, set_learning_rates

PROMPTS = ["Stop.", "Pass the box on the left and stop in front of the bottle."]


def _config(*overrides: str, llava: Path | None = None) -> Config:
    backbone = "{type: tiny, width: 32, vision_layers: 2, language_layers: 3}"
    if llava is not None:
        backbone = f"{{type: pretrained, path: {llava}}}"
    size = [32, 32] if llava is None else [28, 28]
    base = [f"model.backbone={backbone}", "model.head={type: fc, hidden: 16, trunk: [16]}", "actions={window: 2, chunk: 3}"]
    return parse_config("{}", [*base, "model.queries=2", f"observation.image_size={size}", *overrides])


def _model(config: Config) -> VLA:
    torch.manual_seed(0)
    model = build_vla(config.model, NAV2, window=2, chunk=3, image_size=config.observation.image_size, bounded=True)
    apply_tuning(model, config.tuning)
    return model


def _predict(model: VLA) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 2, 3, *model.backbone.image_size), dtype=torch.uint8, generator=generator)
    return model.predict({"front": images}, PROMPTS)


def _trained(model: VLA) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_everything_is_trained_unless_said_otherwise() -> None:
    model = _model(_config())
    assert _trained(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("tower", ["vision", "connector", "language"])
def test_a_frozen_tower_and_nothing_else_stands_still(tower: str) -> None:
    model = _model(_config(f"tuning.{tower}.type=frozen"))
    frozen = {id(p) for p in model.backbone.towers()[tower]} - {id(model.backbone.queries)}
    assert {id(p) for p in model.parameters() if not p.requires_grad} == frozen
    _predict(model).square().sum().backward()
    assert all((p.grad is None) == (id(p) in frozen) for p in model.parameters())


def test_the_last_layers_alone() -> None:
    trained = _trained(_model(_config("tuning.language={type: last_layers, layers: 2}", "tuning.vision.type=frozen")))
    layers = {name.split(".layers.")[1][0] for name in trained if "language_model" in name}
    assert layers == {"1", "2"}
    assert not any("embed_tokens" in name or "language_model.norm" in name for name in trained)
    with pytest.raises(ConfigError, match="this model has 3 layers"):
        _model(_config("tuning.language={type: last_layers, layers: 4}"))


@pytest.mark.parametrize(("language", "trained"), [("full", False), ("frozen", True), ("lora", True)])
def test_the_word_embedding_has_a_say_of_its_own(language: str, trained: bool) -> None:
    by_default = _model(_config(f"tuning.language.type={language}")).backbone.model.get_input_embeddings().weight
    assert by_default.requires_grad is not trained
    model = _model(_config(f"tuning.language.type={language}", f"tuning.text_embedding={trained}"))
    assert model.backbone.model.get_input_embeddings().weight.requires_grad is trained
    assert model.backbone.model.get_output_embeddings().weight.requires_grad is trained  # it is the same


def test_the_resampler_has_a_say_of_its_own() -> None:
    with pytest.raises(ConfigError, match="has no resampler"):
        _model(_config("tuning.resampler=false"))
    config = _config("tuning.connector.type=frozen")
    for inside, value, trained in [(False, None, True), (False, False, False), (True, None, False), (True, True, True)]:
        model = build_vla(config.model, NAV2, window=2, chunk=3, image_size=(32, 32), bounded=True)
        resampler = torch.nn.Linear(32, 32)
        (model.backbone.model if inside else model.backbone).resampler = resampler
        apply_tuning(model, config.tuning.model_copy(update={"resampler": value}))
        assert resampler.weight.requires_grad is trained


LORA = "type: lora, rank: 4, alpha: 8"


@pytest.mark.parametrize("llava", [False, True])
@pytest.mark.parametrize("targets", ["attention", "all-linear", "[mlp, 'q.*']"])
def test_lora_begins_as_nothing_and_merges_to_what_it_was(llava: bool, targets: str, llava_folder: Path) -> None:
    folder = llava_folder if llava else None
    plain = _model(_config(llava=folder)).eval()
    towers = [f"tuning.{tower}={{{LORA}, targets: {targets}}}" for tower in ("vision", "language")]
    model = _model(_config(*towers, "tuning.connector={type: lora, targets: all-linear, rank: 2}", llava=folder)).eval()
    names = set(plain.state_dict())
    before = _predict(plain)
    torch.testing.assert_close(_predict(model), before, atol=0, rtol=0)

    linear = {  # out + in numbers of every layer that should have an update, by tower
        tower: sum(
            sum(module.weight.shape)
            for name, module in plain.backbone.model.named_modules()
            if isinstance(module, torch.nn.Linear) and tower in name and re.search(pattern, name)
        )
        for tower, pattern in [("vision", _PATTERNS[targets]), ("projector", ""), ("language", _PATTERNS[targets])]
    }
    trained = {tower: count for tower, (_, count) in count_parameters(model).items()}
    assert trained["vision"] == 4 * linear["vision"]
    assert trained["language"] == 4 * linear["language"]
    assert trained["connector"] == 2 * linear["projector"] + model.backbone.queries.numel()
    assert trained["head"] == sum(p.numel() for p in model.head.parameters())

    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    updated = _predict(model)
    assert (updated - before).abs().max() > 1e-3
    merged = merge_lora(model)
    assert set(merged.state_dict()) == names
    assert not any("peft" in type(module).__module__ for module in merged.modules())
    torch.testing.assert_close(_predict(merged), updated, atol=1e-5, rtol=0)


_PATTERNS = {
    "attention": r"attention\.|attn\.",
    "all-linear": "",
    "[mlp, 'q.*']": "mlp|q",
}


def test_lora_leaves_the_backbone_what_it_is(tmp_path: Path) -> None:
    model = _model(_config(f"tuning.vision={{{LORA}}}", f"tuning.language={{{LORA}, targets: all-linear, dropout: 0.1}}"))
    backbone = model.backbone
    assert backbone.model.get_decoder() is backbone.model.model.language_model
    assert backbone.model.get_input_embeddings().weight is backbone.model.get_output_embeddings().weight
    ids = [id(p) for parameters in backbone.towers().values() for p in parameters]
    assert sorted(ids) == sorted(id(p) for p in backbone.parameters())
    backbone.save_definition(tmp_path)
    assert "lora" not in (tmp_path / "config.json").read_text()


def test_what_lora_cannot_find_is_said_with_examples() -> None:
    with pytest.raises(ConfigError, match=r"'nothing' matches no linear layer; there are: .*language_model\.layers\.0"):
        _model(_config("tuning.language={type: lora, targets: [qkv, nothing]}"))
    with pytest.raises(ConfigError, match=r"'attention' match no .* there are: model\.multi_modal_projector"):
        _model(_config("tuning.connector={type: lora}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tuning.vision={type: last_layers}", "unknown type 'last_layers'; known: 'full', 'frozen', 'lora'"),
        ("tuning.vision={type: frozen, learning_rate: 1e-4}", "learning_rate: unknown key"),
        ("tuning.language={type: lora, targets: attn}", "neither 'attention' nor 'all-linear'"),
        ("tuning.language={type: lora, targets: ['(']}", "no regular expression"),
        ("tuning.quantization=4bit", "needs a tower of type frozen or lora"),
        ("tuning={quantization: 4bit, vision: {type: frozen}}", "needs a backbone with pretrained weights"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _config(override)
    assert message in str(caught.value)


def test_settings_without_lora_are_those_of_an_ordinary_model() -> None:
    config = _config(f"tuning.vision={{{LORA}}}", "tuning.language={type: last_layers}", "tuning.text_embedding=true")
    assert without_lora(config.tuning) == _config("tuning.language={type: last_layers}", "tuning.text_embedding=true").tuning


@pytest.mark.parametrize("llava", [False, True])
@pytest.mark.parametrize("tuning", ["{}", f"{{vision: {{type: frozen}}, language: {{{LORA}, dropout: 0.2}}}}"])
def test_gradient_checkpointing_computes_again_and_the_same(llava: bool, tuning: str, llava_folder: Path) -> None:
    results: list[tuple[int, dict[str, torch.Tensor]]] = []
    for checkpointing in (False, True):
        overrides = [f"tuning={tuning}", f"tuning.gradient_checkpointing={checkpointing}"]
        overrides += [] if llava else ["model.backbone.dropout=0.2"]
        model = _model(_config(*overrides, llava=llava_folder if llava else None)).double().train()
        runs: list[Any] = []
        for name, module in model.named_modules():
            if name.endswith("language_model.layers.0.mlp"):
                module.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(3)
        _predict(model).square().sum().backward()
        results.append((len(runs), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    (once, kept), (twice, again) = results
    assert (once, twice) == (1, 2)
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-9, rtol=0)


def test_a_model_that_cannot_checkpoint_says_so(monkeypatch) -> None:
    from anyvla.models.backbones.tiny import TinyVLMPreTrainedModel

    monkeypatch.setattr(TinyVLMPreTrainedModel, "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="does not support it"):
        _model(_config("tuning.gradient_checkpointing=true"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_computes_nothing_is_found_and_frozen(checkpointing: bool, llava_folder: Path) -> None:
    model = _model(_config(f"tuning.gradient_checkpointing={checkpointing}", llava=llava_folder))
    names = freeze_unused(model, [_predict(model)])
    assert any("vision_tower" in name and "layers.2" in name for name in names)
    assert any("lm_head" in name for name in names)
    assert _trained(model).isdisjoint(names)
    _predict(model).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == _trained(model)
    assert freeze_unused(model, [_predict(model)]) == []


def test_towers_learn_at_their_own_rates() -> None:
    config = _config(
        "tuning={vision: {type: full, learning_rate: 1e-5}, connector: {type: frozen}, head: {learning_rate: 1e-3}}",
        f"tuning.language={{{LORA}, learning_rate: 2e-4}}",
        "training={learning_rate: 1e-4, warmup: 10, weight_decay: 0.1}",
    )
    model = _model(config)
    optimizer = make_optimizer(model, config.training, config.tuning)
    set_learning_rates(optimizer, 4, config.training)  # half way through the warm-up
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    towers = {**model.backbone.towers(), "head": list(model.head.parameters())}
    for tower, rate in [("vision", 1e-5), ("connector", 1e-4), ("language", 2e-4), ("head", 1e-3)]:
        found = {rates[id(p)] for p in towers[tower] if p.requires_grad}
        assert list(found) == [pytest.approx(rate / 2)], tower
    assert set(rates) == {id(p) for p in model.parameters() if p.requires_grad}
    assert {decays[id(p)] for name, p in model.named_parameters() if "lora_" in name} == {0.1}
    assert decays[id(model.backbone.queries)] == 0
