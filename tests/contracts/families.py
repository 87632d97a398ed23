"""All families of backbones: those of transformers, and those defined in this project."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from transformers import GPTNeoXConfig, PhiConfig, PreTrainedConfig, Qwen2Config

from anyvla.models.backbones.moondream import MoondreamConfig
from anyvla.models.backbones.openflamingo import OpenFlamingoConfig
from anyvla.models.backbones.tiny import tiny_tokenizer
from anyvla.models.backbones.uform import UFormGenConfig
from tests import tiny_models
from tests.models.own import CLASSES, SIDE, SMALL, VISION, VisionTowerConfig

OWN = ("uform", "moondream", "openflamingo")
FAMILIES = (*tiny_models.FAMILIES, *OWN)


def image_size(family: str) -> tuple[int, int]:
    return (SIDE, SIDE) if family in OWN else tiny_models.image_size(family)


def make_tiny(family: str, folder: Path) -> Path:
    """Write a tiny random model of ``family`` into ``folder``, as a checkpoint lies there."""
    if family not in OWN:
        return tiny_models.make_tiny(family, folder)
    tokenizer = tiny_models.chat_tokenizer() if family == "uform" else tiny_tokenizer()
    config = _config(family, {**SMALL, "vocab_size": len(tokenizer)}, tokenizer.convert_tokens_to_ids("<image>"))
    torch.manual_seed(0)
    model = CLASSES[type(config)]._from_config(config)
    for parameter in model.parameters():  # fresh gates and scales are near 0
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    half = [0.5, 0.5, 0.5]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": half, "image_std": half}))
    return folder


def _config(family: str, text: dict[str, int], image: int) -> PreTrainedConfig:
    if family == "uform":
        vision = VisionTowerConfig(**VISION, layer_norm_eps=1e-6, layer_scale=True)
        return UFormGenConfig(
            vision, Qwen2Config(**text, num_key_value_heads=2), latents=3, pooler_heads=2, pooler_size=20, image_token_id=image
        )
    if family == "moondream":
        vision = VisionTowerConfig(**VISION, hidden_act="gelu_tanh", class_token=False)
        return MoondreamConfig(vision, PhiConfig(**text), projector_size=36, image_token_id=text["vocab_size"])
    vision = VisionTowerConfig(**VISION, hidden_act="quick_gelu", patch_bias=False, first_norm=True, last_norm=False)
    language = GPTNeoXConfig(**text, use_parallel_residual=False)
    return OpenFlamingoConfig(vision, language, every=2, latents=3, resampler_layers=2, heads=2, image_token_id=image)
