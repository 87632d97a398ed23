"""Folders that look like the published checkpoints of the recipes, without weights: configurations of full size.

Their tokenizers are small; token ids are those of the small tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anyvla.models.backbones.moondream import MoondreamConfig
from anyvla.models.backbones.openflamingo import OpenFlamingoConfig
from anyvla.models.backbones.uform import UFormGenConfig
from tests.contracts.families import make_tiny

_CLIP_L_336 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_SIGLIP_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_SIZES: dict[str, dict[str, Any]] = {
    "llava": {
        "image_seq_length": 576,
        "vision_config": {**_CLIP_L_336, "image_size": 336, "patch_size": 14, "projection_dim": 768},
        "text_config": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32064},
    },
    "paligemma": {
        "projection_dim": 2048,
        "hidden_size": 2048,
        "vision_config": {**_SIGLIP_SO400M, "image_size": 224, "patch_size": 14, "projection_dim": 2048},
        "text_config": {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8}
        | {"num_key_value_heads": 1, "head_dim": 256, "vocab_size": 257216},
    },
    "qwen2_5_vl": {
        "tie_word_embeddings": True,
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
        | {"out_hidden_size": 2048, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
        "text_config": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16}
        | {"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "layer_types": None}
        | {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}},
    },
    "kosmos2": {
        "latent_query_num": 64,
        "vision_config": {**_CLIP_L_336, "image_size": 224, "patch_size": 14},
        "text_config": {"embed_dim": 2048, "ffn_dim": 8192, "layers": 24, "attention_heads": 32, "vocab_size": 65037},
    },
}
_OWN = {"uform": UFormGenConfig, "moondream": MoondreamConfig, "openflamingo": OpenFlamingoConfig}

# name in the recipes -> (family, million parameters)
CHECKPOINTS = {
    "microsoft/kosmos-2-patch14-224": ("kosmos2", 1664),
    "google/paligemma-3b-pt-224": ("paligemma", 2924),
    "llava-hf/llava-1.5-7b-hf": ("llava", 7063),
    "Qwen/Qwen2.5-VL-3B-Instruct": ("qwen2_5_vl", 3755),
    "backbones/moondream2": ("moondream", 1867),
    "backbones/uform-gen2-qwen-500m": ("uform", 1118),
    "backbones/openflamingo-4b": ("openflamingo", 4039),
}


def make_official(name: str, folder: Path) -> Path:
    """Write the definition of the checkpoint ``name`` into ``folder``."""
    family, _ = CHECKPOINTS[name]
    make_tiny(family, folder)
    (folder / "model.safetensors").unlink()
    small = json.loads((folder / "config.json").read_text())
    if family in _OWN:
        _OWN[family](image_token_id=small["image_token_id"]).save_pretrained(folder)
    else:
        (folder / "config.json").write_text(json.dumps(_merged(small, _SIZES[family])))
    return folder


def _merged(small: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    result = dict(small)
    for key, value in sizes.items():
        result[key] = _merged(small[key], value) if isinstance(value, dict) and isinstance(small.get(key), dict) else value
    return {key: value for key, value in result.items() if value is not None}
