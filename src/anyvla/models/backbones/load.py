"""From settings, or from a saved definition, to a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_base import ImageProcessingMixin

from anyvla.config import Config
from anyvla.config.model import ModelConfig, PretrainedBackboneConfig, TinyBackboneConfig
from anyvla.errors import CheckpointError, ConfigError
from anyvla.models.backbones.adapter import Backbone
from anyvla.models.backbones.families import family_of
from anyvla.models.backbones.moondream import MoondreamForConditionalGeneration
from anyvla.models.backbones.openflamingo import OpenFlamingoForConditionalGeneration
from anyvla.models.backbones.robovlms import robovlms_family
from anyvla.models.backbones.tiny import (
    TinyVLMConfig,
    TinyVLMForConditionalGeneration,
    tiny_tokenizer,
)
from anyvla.models.backbones.uform import UFormGenForConditionalGeneration
from anyvla.models.resampler import PerceiverResampler

_HALF = (0.5, 0.5, 0.5)
_TINY_IMAGE_SIZE = (64, 112)
# models that transformers does not carry
_OWN_MODELS: tuple[type[PreTrainedModel], ...] = (
    TinyVLMForConditionalGeneration,
    UFormGenForConditionalGeneration,
    MoondreamForConditionalGeneration,
    OpenFlamingoForConditionalGeneration,
)


def build_backbone(
    config: ModelConfig,
    image_size: tuple[int, int],
    definition: Path | None = None,
    *,
    state_size: int = 0,
    quantization: Any = None,
) -> Backbone:
    """The backbone that ``config`` asks for, with new query tokens.

    Args:
        definition: a folder of ``Backbone.save_definition``; the model comes from there, with weights that the caller replaces.
        state_size: S, numbers of the robot's state that enter as one token; 0: none.
        quantization: what transformers calls ``quantization_config``, for pretrained weights.
    """
    backbone = config.backbone
    if definition is not None:
        model, tokenizer, processor = _load(str(definition), random_weights=True)
    elif isinstance(backbone, TinyBackboneConfig):
        model, tokenizer = _tiny(backbone, image_size)
        processor = {"image_mean": _HALF, "image_std": _HALF}
    else:
        model, tokenizer, processor = _load(backbone.path, random_weights=backbone.random_weights, quantization=quantization)
    make_family = family_of(model.config)
    if isinstance(backbone, PretrainedBackboneConfig) and backbone.layout == "robovlms":
        make_family = robovlms_family(model.config.model_type)
    family = make_family(model, tokenizer, image_size)
    width = model.get_input_embeddings().weight.shape[1]
    resampler = config.resampler
    return Backbone(
        model,
        tokenizer,
        family,
        config.queries,
        processor["image_mean"],
        processor["image_std"],
        pooling=config.pooling,
        resampler=None if resampler is None else PerceiverResampler(width, resampler.depth, resampler.latents, resampler.heads),
        state_size=state_size,
    )


def resolve_image_size(config: Config) -> Config:
    """``config`` with ``observation.image_size``: as it is, or the size that the backbone was trained with."""
    if config.observation.image_size is not None:
        return config
    if isinstance(config.model.backbone, TinyBackboneConfig):
        size = _TINY_IMAGE_SIZE
    else:
        model_config, processor = read_definition(config.model.backbone.path)
        size = family_of(model_config).default_image_size(model_config, processor)
    observation = config.observation.model_copy(update={"image_size": size})
    return config.model_copy(update={"observation": observation})


def register_own_models() -> None:
    """Make the models that are defined here known to transformers' Auto classes."""
    for model in _OWN_MODELS:
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        AutoModelForImageTextToText.register(model.config_class, model, exist_ok=True)


def read_definition(path: str) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The configuration and the image processor's settings of a model in a folder or of the hub."""
    register_own_models()
    if not Path(path).exists():
        try:
            hf_hub_download(path, "config.json")  # asks once; what follows would ask for every file anew, several times
        except (OSError, ValueError) as error:
            what = "no folder, and no model of the hub that can be reached"
            raise CheckpointError(f"{path}: no usable vision-language model: {what}") from error
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)  # by default it asks, and runs what comes with it
        processor, _ = ImageProcessingMixin.get_image_processor_dict(path)
        for key in ("image_mean", "image_std"):
            processor[key]
    except (OSError, ValueError, KeyError) as error:
        what = repr(error)
        if family := _published_family(path):
            what = f"a published {family}; convert it once: anyvla import-backbone {family} {path} --out FOLDER"
        raise CheckpointError(f"{path}: no usable vision-language model: {what}") from error
    return config, processor


def _published_family(path: str) -> str | None:
    """Which of the families that come with code of their own a folder or a model of the hub is, as far as its files say."""
    if (Path(path) / "checkpoint.pt").exists():
        return "openflamingo"
    try:
        values, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError):
        return None
    return {"moondream1": "moondream", "vlm": "uform"}.get(values.get("model_type", ""))


def _load(
    path: str, random_weights: bool, quantization: Any = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    config, processor = read_definition(path)
    family_of(config)
    make = AutoModelForImageTextToText
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        # weights in full precision whatever was stored: training in bf16 computes in bf16, and updates fp32 weights
        if random_weights:
            model = make.from_config(config, dtype=torch.float32)
        else:
            model = make.from_pretrained(path, dtype=torch.float32, quantization_config=quantization)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path}: no usable vision-language model ({error!r})") from error
    return model, tokenizer, processor


def _tiny(
    config: TinyBackboneConfig, image_size: tuple[int, int]
) -> tuple[TinyVLMForConditionalGeneration, PreTrainedTokenizerBase]:
    if config.width % (2 * config.attention_heads):
        raise ConfigError(f"model.backbone.width {config.width} must be a multiple of 2 x attention_heads")
    tokenizer = tiny_tokenizer()
    model_config = TinyVLMConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.width,
        vision_layers=config.vision_layers,
        num_hidden_layers=config.language_layers,
        num_attention_heads=config.attention_heads,
        dropout=config.dropout,
        image_size=image_size,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return TinyVLMForConditionalGeneration(model_config), tokenizer
