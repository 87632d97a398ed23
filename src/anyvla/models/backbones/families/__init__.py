"""What the adapter must know of each family of vision-language models, and nothing more.

A family says how its prompt is written, which tokens stand for an image, and which further inputs its forward takes. The
defaults are LLaVA's; a subclass says what differs. Merging images, masks and positions stay the model's own.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

from anyvla.errors import CheckpointError
from anyvla.models.backbones.families.base import Family
from anyvla.models.backbones.families.idefics import (
    Idefics2Family,
    Idefics3Family,
    IdeficsFamily,
    MllamaFamily,
    OpenFlamingoFamily,
    SmolVLMFamily,
)
from anyvla.models.backbones.families.llava import (
    InternVLFamily,
    LlavaNextFamily,
    LlavaOnevisionFamily,
    MoondreamFamily,
    PlainFamily,
    TinyFamily,
    UFormFamily,
)
from anyvla.models.backbones.families.mixed import (
    Blip2Family,
    Florence2Family,
    Gemma3Family,
    Kosmos2Family,
    PaliGemmaFamily,
    QwenVLFamily,
)

__all__ = ["Family", "Kosmos2Family", "MoondreamFamily", "OpenFlamingoFamily", "PaliGemmaFamily", "family_of"]

FAMILIES: dict[str, type[Family]] = {
    "anyvla_moondream": MoondreamFamily,
    "anyvla_openflamingo": OpenFlamingoFamily,
    "anyvla_tiny": TinyFamily,
    "anyvla_uform_gen": UFormFamily,
    "blip-2": Blip2Family,
    "florence2": Florence2Family,
    "gemma3": Gemma3Family,
    "idefics": IdeficsFamily,
    "idefics2": Idefics2Family,
    "idefics3": Idefics3Family,
    "internvl": InternVLFamily,
    "kosmos-2": Kosmos2Family,
    "llava": Family,
    "llava_next": LlavaNextFamily,
    "llava_onevision": LlavaOnevisionFamily,
    "mllama": MllamaFamily,
    "paligemma": PaliGemmaFamily,
    "qwen2_5_vl": QwenVLFamily,
    "qwen2_vl": QwenVLFamily,
    "qwen3_vl": QwenVLFamily,
    "smolvlm": SmolVLMFamily,
}


def family_of(config: PreTrainedConfig) -> type[Family]:
    """The family that serves models of ``config``.

    Raises:
        CheckpointError: none does, and the model does not mark images as LLaVA does.
    """
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    if getattr(config, "image_token_id", None) is not None and hasattr(config, "vision_config"):
        return PlainFamily
    raise CheckpointError(f"no support for models of type {config.model_type!r}; known: {', '.join(sorted(FAMILIES))}")
