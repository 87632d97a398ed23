"""Frozen weights in 4 or 8 bits while training, through bitsandbytes (QLoRA, arXiv 2305.14314).

Only what is not trained is quantised. State dicts hold what the quantised weights stand for, in floating point, so that a
checkpoint is an ordinary one and needs neither bitsandbytes nor a device that it supports.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from anyvla.config import Config
from anyvla.config.model import PretrainedBackboneConfig
from anyvla.config.training import TuningConfig
from anyvla.errors import ConfigError, MissingExtraError
from anyvla.models.backbones.adapter import TOWERS, Backbone
from anyvla.models.backbones.load import build_backbone
from anyvla.models.tuning import linear_layers
from anyvla.models.weightless import build_weightless

BYTES = {"4bit": 0.5, "8bit": 1.0}  # of a weight


def plan_quantization(config: Config, image_size: tuple[int, int]) -> Any:
    """The ``quantization_config`` of transformers for ``config``, None if it asks for none; see ``quantization_settings``."""
    kind, backbone = config.tuning.quantization, config.model.backbone
    if kind is None or not isinstance(backbone, PretrainedBackboneConfig):
        return None
    empty = config.model.model_copy(update={"backbone": backbone.model_copy(update={"random_weights": True})})
    shapes = build_weightless(lambda: build_backbone(empty, image_size))
    compute = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.training.precision]
    return quantization_settings(kind, shapes.model, quantized_layers(shapes, config.tuning), compute)


def quantized_layers(backbone: Backbone, config: TuningConfig) -> list[str]:
    """Full names, inside ``backbone.model``, of the linear layers to quantise: those of frozen towers, and below LoRA."""
    if config.quantization is None:
        return []
    towers = backbone.towers()
    frozen = {id(p) for tower in TOWERS if getattr(config, tower).type in ("frozen", "lora") for p in towers[tower]}
    if config.resampler:
        frozen -= {id(p) for name, p in backbone.named_parameters() if re.search("resampler|perceiver", name)}
    return [
        name
        for name, module in linear_layers(backbone.model)
        if id(module.weight) in frozen and ".lora_" not in name and _fits(module, config.quantization)
    ]


def _fits(module: nn.Linear, kind: str) -> bool:
    # 64 weights share a scale; bitsandbytes 0.50 takes wrong scales on the CPU where rows do not divide into such blocks
    return kind == "8bit" or module.weight.shape[1] % 64 == 0


def quantization_settings(kind: Literal["4bit", "8bit"], model: nn.Module, layers: list[str], compute: torch.dtype) -> Any:
    """The ``quantization_config`` of transformers that quantises ``layers`` of a model built like ``model``, and no others.

    Args:
        compute: type that 4-bit weights are multiplied in.

    Raises:
        MissingExtraError: bitsandbytes is not installed. ConfigError: it does not run on any device of this machine.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "bnb")
    import bitsandbytes
    from transformers import BitsAndBytesConfig

    supported = set(getattr(bitsandbytes, "supported_torch_devices", {"cuda"}))
    here = {"cpu", *(name for name in ("cuda", "xpu", "mps") if getattr(torch, name).is_available())}
    if not supported & here:
        raise ConfigError(f"tuning.quantization: bitsandbytes runs on {', '.join(sorted(supported))}, and none of it is here")
    chosen = set(layers)
    others = [re.escape(name) for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in chosen]
    return BitsAndBytesConfig(
        load_in_4bit=kind == "4bit",
        load_in_8bit=kind == "8bit",
        llm_int8_skip_modules=others,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=compute,
    )


def save_in_floating_point(model: PreTrainedModel) -> None:
    """Let what is saved of ``model`` hold quantised weights as the floats that they stand for, and let it load such ones.

    Loading leaves the quantised weights as they are: they are never trained, and come with the pretrained model.
    """
    del model.config.quantization_config
    for module in model.modules():
        if type(module).__name__ in ("Linear4bit", "Linear8bitLt") and type(module).__module__.startswith("bitsandbytes"):
            # its layout for newer processors rounds the scales, as soon as the model is validated
            module.support_avx512bf16_for_cpu = False
            module.register_state_dict_post_hook(_dequantize)
            module.register_load_state_dict_pre_hook(_keep)


def _dequantize(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    for key in [key for key in state if key.startswith(prefix)]:
        if key.removeprefix(prefix) not in ("weight", "bias"):
            del state[key]  # scales and tables of the quantisation
    weight: Any = module.weight
    state[f"{prefix}weight"] = dequantize_bnb_weight(weight, getattr(module, "state", None)).to(torch.float32)


def _keep(module: nn.Module, state: dict[str, Any], prefix: str, *_details: Any) -> None:
    weight: Any = module.weight
    state[f"{prefix}weight"] = weight.data
