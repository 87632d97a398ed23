"""UForm-Gen: ViT -> latents that look at its patches (one transformer decoder layer) -> a language model.

Two generations are published. ``uform-gen`` (1.5B: ViT-B/16 at 224 px, Sheared-LLaMA 1.3B) projects the patches to the width of
the language model and pools there; ``uform-gen2-qwen-500m`` and ``-dpo`` (1.2B: ViT-H/14, learned at 224 px and used at 336 px
with interpolated positions, Qwen1.5 0.5B) pool at the width of the ViT and project the latents.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from anyvla.models.backbones.parts import (
    Attention,
    MergedModel,
    Mlp,
    OwnForConditionalGeneration,
    OwnPreTrainedModel,
    VisionTower,
    VisionTowerConfig,
    sub_config,
)
from anyvla.models.backbones.published import Tensors, load_strictly, renamed, split_rows, tensors_of


class UFormGenConfig(PreTrainedConfig):
    """By default uform-gen2-qwen-500m. ``project_first``: the first generation's order, projection before pooling."""

    model_type = "anyvla_uform_gen"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": VisionTowerConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: VisionTowerConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        latents: int = 256,
        pooler_heads: int = 16,
        pooler_size: int = 3200,
        project_first: bool = False,
        image_token_id: int = 151646,
        **kwargs: Any,
    ) -> None:
        self.vision_config = sub_config(vision_config or _vision(1280, 32, 16, patch=14, image=336))
        self.text_config = sub_config(text_config or _qwen_500m())
        self.latents = latents
        self.pooler_heads = pooler_heads
        self.pooler_size = pooler_size
        self.project_first = project_first
        self.image_token_id = image_token_id
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def image_seq_length(self) -> int:
        """Tokens per image."""
        return self.latents


def _vision(width: int, layers: int, heads: int, patch: int, image: int) -> VisionTowerConfig:
    return VisionTowerConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        patch_size=patch,
        image_size=image,
        position_grid=224 // patch,
        layer_norm_eps=1e-6,
        layer_scale=True,
    )


def _qwen_500m() -> Qwen2Config:
    return Qwen2Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
    )


def uform_gen() -> UFormGenConfig:
    """The first generation: three words more than Llama's, the last of them the image."""
    text = LlamaConfig(
        vocab_size=32003,
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=24,
        num_attention_heads=16,
        rms_norm_eps=1e-5,
    )
    return UFormGenConfig(
        _vision(768, 12, 12, patch=16, image=224),
        text,
        latents=196,
        pooler_size=5504,
        project_first=True,
        image_token_id=32002,
    )


class LatentPooler(GradientCheckpointingLayer):
    """Latents look at themselves, then at the patches: (images, patches, D) -> (images, latents, D)."""

    def __init__(self, width: int, heads: int, inner: int, latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.empty(latents, width))
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.mlp = Mlp(width, inner, "silu")

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        x = self.latents.expand(len(patches), -1, -1)
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), patches)
        return x + self.mlp(self.norm3(x))


class Connector(nn.Module):
    def __init__(self, config: UFormGenConfig) -> None:
        super().__init__()
        vision, text = config.vision_config.hidden_size, config.text_config.hidden_size
        self.project_first = config.project_first
        self.projection = nn.Linear(vision, text)
        width = text if self.project_first else vision
        self.pooler = LatentPooler(width, config.pooler_heads, config.pooler_size, config.latents)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.project_first:
            return self.pooler(self.projection(features))
        return self.projection(self.pooler(features))


class UFormGenPreTrainedModel(OwnPreTrainedModel):
    config_class = UFormGenConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LatentPooler):
            nn.init.normal_(module.latents, std=0.02**0.5)


class UFormGenModel(MergedModel, UFormGenPreTrainedModel):
    """Without vocabulary head."""

    def __init__(self, config: UFormGenConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config.vision_config)
        self.multi_modal_projector = Connector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()


class UFormGenForConditionalGeneration(OwnForConditionalGeneration, UFormGenPreTrainedModel):
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    model_class = UFormGenModel


_TOWER, _POOLER = "model.vision_tower.", "model.multi_modal_projector.pooler."
_RULES: list[tuple[str, str | None]] = [
    (r"^image_encoder\.embedding_projection\.|rotary_emb\.inv_freq$", None),  # for search; a constant
    (r"^text_decoder\.lm_head\.", "lm_head."),
    (r"^text_decoder\.model\.", "model.language_model."),
    (r"^image_encoder\.patch_embed\.", f"{_TOWER}patch_embedding."),
    (r"^image_encoder\.pos_embed$", f"{_TOWER}position_embedding"),
    (r"^image_encoder\.cls_token$", f"{_TOWER}class_embedding"),
    (r"^image_encoder\.norm\.", f"{_TOWER}last_norm."),
    (r"^image_encoder\.blocks\.(\d+)\.attn\.(q)uery\.", rf"{_TOWER}layers.\1.attention.\2_proj."),
    (r"^image_encoder\.blocks\.(\d+)\.attn\.(k)ey\.", rf"{_TOWER}layers.\1.attention.\2_proj."),
    (r"^image_encoder\.blocks\.(\d+)\.attn\.(v)alue\.", rf"{_TOWER}layers.\1.attention.\2_proj."),
    (r"^image_encoder\.blocks\.(\d+)\.attn\.out\.", rf"{_TOWER}layers.\1.attention.out_proj."),
    (r"^image_encoder\.blocks\.(\d+)\.mlp\.hidden_layer\.", rf"{_TOWER}layers.\1.mlp.fc1."),
    (r"^image_encoder\.blocks\.(\d+)\.mlp\.output_layer\.", rf"{_TOWER}layers.\1.mlp.fc2."),
    (r"^image_encoder\.blocks\.(\d+)\.ls(1|2)\.(weight|gamma)$", rf"{_TOWER}layers.\1.scale\2.weight"),
    (r"^image_encoder\.blocks\.(\d+)\.norm", rf"{_TOWER}layers.\1.norm"),
    (r"^image_pooler\.projection\.", "model.multi_modal_projector.projection."),
    (r"^image_pooler\.image_latents$", f"{_POOLER}latents"),
    (r"^image_pooler\.pooler\.self_attn\.", f"{_POOLER}self_attention."),
    (r"^image_pooler\.pooler\.multihead_attn\.", f"{_POOLER}cross_attention."),
    (r"^image_pooler\.pooler\.linear(1|2)\.", rf"{_POOLER}mlp.fc\1."),
    (r"^image_pooler\.pooler\.norm", f"{_POOLER}norm"),
    (r"\.in_proj_(weight|bias)$", r".qkv.\1"),
]


def keys_from_published(state: Tensors) -> dict[str, torch.Tensor]:
    """Our names for the tensors of a published UForm-Gen, of either generation."""
    result = {ours: tensor for name, tensor in state.items() if (ours := renamed(name, _RULES)) is not None}
    split_rows(result, "qkv", ("q_proj", "k_proj", "v_proj"))
    for name in (f"{_TOWER}position_embedding", f"{_TOWER}class_embedding", f"{_POOLER}latents"):
        if name in result:  # (1, n, D)
            result[name] = result[name].flatten(0, -2)
    return result


def read_published(
    checkpoint: Path | str | Tensors, config: UFormGenConfig | None = None
) -> tuple[UFormGenConfig, dict[str, torch.Tensor]]:
    """``config``, by default that of the generation that the latents of a published checkpoint say, and its tensors."""
    state = keys_from_published(tensors_of(checkpoint))
    if config is None:
        latents = state.get(f"{_POOLER}latents")
        config = uform_gen() if latents is not None and len(latents) == 196 else UFormGenConfig()
    return config, state


def load_published(checkpoint: Path | str | Tensors, config: UFormGenConfig | None = None) -> UFormGenForConditionalGeneration:
    """UForm-Gen from a published file, folder or state dict; without ``config``, of the generation that its latents say.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of another shape.
    """
    where = str(checkpoint) if isinstance(checkpoint, (str, Path)) else "the checkpoint"
    config, state = read_published(checkpoint, config)
    model = UFormGenForConditionalGeneration(config)
    load_strictly(model, state, where)
    return model
