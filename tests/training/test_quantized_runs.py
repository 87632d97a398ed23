"""Training on quantised weights, where bitsandbytes is installed, and what is said where it is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText

from anyvla.checkpoint import export_checkpoint, load_checkpoint, resolve_checkpoint
from anyvla.config import load_config
from anyvla.errors import MissingExtraError
from anyvla.training.loop import train
from tests.training.test_loop import _assert_same

TUNING = "vision: {type: frozen}, language: {type: lora, rank: 4, targets: all-linear}"


@pytest.fixture
def folder(llava_folder: Path) -> Path:
    """A LLaVA as wide as a block of quantised weights at the least."""
    config = AutoConfig.from_pretrained(llava_folder)
    for part in (config.vision_config, config.text_config):
        part.hidden_size, part.intermediate_size = 64, 128
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(llava_folder)
    return llava_folder


@pytest.fixture
def overrides(make_episodes, tiny_overrides, folder: Path) -> list[str]:
    kept = [item for item in tiny_overrides if "model.backbone" not in item]
    return [
        *kept,
        f"data.source.path={make_episodes(*[9] * 8)}",
        f"model.backbone={{type: pretrained, path: {folder}}}",
        "observation.image_size=[28,28]",
        "training.learning_rate=0.01",
    ]


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="runs where bitsandbytes is not installed")
def test_without_the_package_its_extra_is_named(overrides) -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'anyvla\[bnb\]'"):
        train(load_config("nav-tiny", [*overrides, f"tuning={{{TUNING}, quantization: 4bit}}"]))


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_quantised_training_goes_on_and_ends_in_an_ordinary_checkpoint(
    overrides, folder: Path, tmp_path: Path, monkeypatch, quantization: str
) -> None:
    pytest.importorskip("bitsandbytes")
    from anyvla.training import loop

    settings = [*overrides, f"tuning={{{TUNING}, quantization: {quantization}}}"]
    built = []
    original = loop.build_model

    def build(*arguments):
        built.append(original(*arguments))
        return built[-1]

    monkeypatch.setattr(loop, "build_model", build)
    whole = train(load_config("nav-tiny", [*settings, f"out={tmp_path / 'whole'}"]))
    kinds = {name: type(module).__name__ for name, module in built[0].backbone.model.named_modules()}
    quantized = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[quantization]
    of_layers = {name.rsplit(".", 1)[-1]: kind for name, kind in kinds.items() if "language_model.layers.0.mlp.up_proj" in name}
    assert of_layers["base_layer"] == quantized
    assert kinds["model.multi_modal_projector.linear_1"] == "Linear"  # it is trained
    assert kinds["lm_head"] == "Linear"

    half = [*settings, f"out={tmp_path / 'half'}"]
    step = loop._Loop._optimizer_step

    def stop(self, batches):
        if self.step == 5:
            raise KeyboardInterrupt
        return step(self, batches)

    monkeypatch.setattr(loop._Loop, "_optimizer_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(load_config("nav-tiny", half))
    monkeypatch.setattr(loop._Loop, "_optimizer_step", step)
    _assert_same(whole, train(load_config("nav-tiny", half), resume=True))

    loaded = load_checkpoint(whole)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    weights = load_file(str(resolve_checkpoint(whole) / "model.safetensors"))
    base = load_file(str(folder / "model.safetensors"))
    name = next(name for name in weights if name.endswith("layers.0.mlp.up_proj.base_layer.weight"))
    original_weight = next(value for key, value in base.items() if key.endswith(".layers.0.mlp.up_proj.weight"))
    error = (weights[name] - original_weight).norm() / original_weight.norm()
    assert 0 < error < {"4bit": 0.15, "8bit": 0.02}[quantization]
    images = {"front": torch.randint(0, 256, (2, 4, 3, 28, 28), dtype=torch.uint8)}
    trained = built[0].eval().predict(images, ["Stop.", "Go left."])
    torch.testing.assert_close(loaded.model.predict(images, ["Stop.", "Go left."]), trained, atol=0.02, rtol=0)
    exported = load_checkpoint(export_checkpoint(whole, tmp_path / "exported"))
    assert exported.config.tuning.quantization is None
