"""Tiny members of the model families that are defined in this project, and inputs for them."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    GPTNeoXConfig,
    LlamaConfig,
    MptConfig,
    PhiConfig,
    PreTrainedModel,
    Qwen2Config,
)

from anyvla.models.backbones.moondream import MoondreamConfig, MoondreamForConditionalGeneration
from anyvla.models.backbones.openflamingo import OpenFlamingoConfig, OpenFlamingoForConditionalGeneration
from anyvla.models.backbones.parts import OwnForConditionalGeneration, VisionTowerConfig
from anyvla.models.backbones.uform import UFormGenConfig, UFormGenForConditionalGeneration

IMAGE = 59
PATCH, SIDE = 4, 16
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2, "vocab_size": 60}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "image_size": SIDE,
    "position_grid": SIDE // PATCH,
}


def uform_config(generation: int = 2) -> UFormGenConfig:
    vision = VisionTowerConfig(**VISION, layer_norm_eps=1e-6, layer_scale=True)
    first = generation == 1
    text = LlamaConfig(**SMALL) if first else Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)
    return UFormGenConfig(vision, text, latents=3, pooler_heads=2, pooler_size=20, project_first=first, image_token_id=IMAGE)


def moondream_config(prefix_attention: bool = True) -> MoondreamConfig:
    vision = VisionTowerConfig(**VISION, hidden_act="gelu_tanh", class_token=False)
    # the image token stands behind the vocabulary, as where a tokenizer has no room for it
    return MoondreamConfig(vision, PhiConfig(**SMALL), projector_size=36, prefix_attention=prefix_attention, image_token_id=60)


def openflamingo_config(language: str = "gpt_neox", every: int = 2) -> OpenFlamingoConfig:
    vision = VisionTowerConfig(**VISION, hidden_act="quick_gelu", patch_bias=False, first_norm=True, last_norm=False)
    text = {
        "gpt_neox": lambda: GPTNeoXConfig(**SMALL, use_parallel_residual=False),
        "llama": lambda: LlamaConfig(**SMALL),
        "mpt": lambda: MptConfig(d_model=32, n_layers=4, n_heads=2, vocab_size=60, max_seq_len=64),
    }[language]()
    return OpenFlamingoConfig(vision, text, every=every, latents=3, resampler_layers=2, heads=2, image_token_id=IMAGE)


CONFIGS = {
    "uform-1": lambda: uform_config(1),
    "uform-2": lambda: uform_config(2),
    "moondream-2025": lambda: moondream_config(True),
    "moondream-2024": lambda: moondream_config(False),
    "openflamingo-neox": lambda: openflamingo_config("gpt_neox"),
    "openflamingo-mpt": lambda: openflamingo_config("mpt", every=1),
    "openflamingo-llama": lambda: openflamingo_config("llama", every=4),
}
CLASSES: dict[type, type[OwnForConditionalGeneration]] = {
    UFormGenConfig: UFormGenForConditionalGeneration,
    MoondreamConfig: MoondreamForConditionalGeneration,
    OpenFlamingoConfig: OpenFlamingoForConditionalGeneration,
}


def build(name: str, **options: str) -> PreTrainedModel:
    """In double precision, with weights large enough that every part makes a difference: fresh gates and scales are near 0."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    model = CLASSES[type(config)]._from_config(config, **options)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0, std=0.2)
    return model.double().eval()


def pixels(images: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def row(model: PreTrainedModel, *words: int, images: int = 1) -> list[int]:
    """bos, the images, the words."""
    return [0] + [model.config.image_token_id] * (model.config.image_seq_length * images) + list(words)


def batch(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and mask (N, T), padded on the right."""
    length = max(map(len, rows))
    ids = torch.tensor([ids + [1] * (length - len(ids)) for ids in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in rows])
    return ids, mask
