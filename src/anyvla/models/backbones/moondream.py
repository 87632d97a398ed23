"""Moondream (Moondream 2, 2B, and Moondream 0.5B): SigLIP-like ViT on one 378 px crop -> 729 tokens -> MLP -> Phi decoder.

The published code joins to the features of the whole image those of its crops; an image of 378 px is its own only crop, and
that is what is done here: the features are joined with themselves. Phi (parallel blocks, rotary positions on half of each
head) is transformers' own.

Two lines of weights are published, which differ in names and in attention:

    revisions 2025-01-09 to 2025-06-21 and 0.5B   ``model.vision...``, ``model.text...``; bidirectional over bos and image
    revisions 2024-05-20 to 2024-08-26            ``vision_encoder...``, ``text_model...``; causal throughout

Their words are CodeGen's, until 2025-06-21, whose tokenizer is ``moondream/starmie-v1``: other ids for the same shapes.
Earlier revisions have another projector, and the 4-bit ones other tensors: the strict load refuses them. What points and
boxes are read from (``region``) is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PhiConfig, PreTrainedConfig

from anyvla.models.backbones.parts import (
    MergedModel,
    Mlp,
    OwnForConditionalGeneration,
    OwnPreTrainedModel,
    VisionTower,
    VisionTowerConfig,
    sub_config,
)
from anyvla.models.backbones.published import Tensors, load_strictly, renamed, split_rows, tensors_of


class MoondreamConfig(PreTrainedConfig):
    """By default Moondream 2 of 2025. ``prefix_attention``: bos and the images right behind it see each other both ways."""

    model_type = "anyvla_moondream"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": VisionTowerConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: VisionTowerConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        projector_size: int = 8192,
        prefix_attention: bool = True,
        image_token_id: int = 51200,
        **kwargs: Any,
    ) -> None:
        self.vision_config = sub_config(vision_config or _vision(1152, 16, 4304))
        self.text_config = sub_config(text_config or PhiConfig(partial_rotary_factor=0.5))
        self.projector_size = projector_size
        self.prefix_attention = prefix_attention
        self.image_token_id = image_token_id
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    @property
    def image_seq_length(self) -> int:
        """Tokens per image."""
        return self.vision_config.patches


def _vision(width: int, heads: int, inner: int) -> VisionTowerConfig:
    return VisionTowerConfig(
        hidden_size=width,
        num_hidden_layers=27,
        num_attention_heads=heads,
        intermediate_size=inner,
        image_size=378,
        position_grid=27,
        hidden_act="gelu_tanh",
        class_token=False,
    )


def moondream_0_5b() -> MoondreamConfig:
    text = PhiConfig(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, partial_rotary_factor=0.5)
    return MoondreamConfig(_vision(720, 10, 2690), text)


class Projector(nn.Module):
    """(images, patches, V) -> (images, patches, D), of the features of the whole image and of its crop, which are the same."""

    def __init__(self, config: MoondreamConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.mlp = Mlp(2 * width, config.projector_size, "gelu_tanh", config.text_config.hidden_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.mlp(torch.cat((features, features), dim=-1))


class MoondreamPreTrainedModel(OwnPreTrainedModel):
    config_class = MoondreamConfig


class MoondreamModel(MergedModel, MoondreamPreTrainedModel):
    """Without vocabulary head."""

    def __init__(self, config: MoondreamConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config.vision_config)
        self.multi_modal_projector = Projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def attention(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, embeddings: torch.Tensor, past: int
    ) -> torch.Tensor | None:
        """What is added to the attention scores, (N, 1, T, past + T); what begins a sequence is looked at both ways."""
        if not self.config.prefix_attention or past:  # behind the prefix all is causal
            return attention_mask
        length = input_ids.shape[1]
        prefix = (input_ids == self.config.image_token_id).long()
        prefix[:, 0] = 1
        prefix = prefix.cumprod(1).bool()  # bos and the image tokens right behind it
        seen = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril() | (
            prefix[:, :, None] & prefix[:, None, :]
        )
        if attention_mask is not None:
            seen = seen & attention_mask[:, None, :].bool()
        hidden = torch.zeros(seen.shape, dtype=embeddings.dtype, device=embeddings.device)
        return hidden.masked_fill(~seen, torch.finfo(hidden.dtype).min)[:, None]


class MoondreamForConditionalGeneration(OwnForConditionalGeneration, MoondreamPreTrainedModel):
    model_class = MoondreamModel
    head_bias = True


_OLD = r"vision_encoder\.encoder\.model\.visual\."
_RULES: list[tuple[str, str | None]] = [
    (r"\._orig_mod|^model\.", ""),
    (r"^region(_model)?\.", None),
    # 2024 -> 2025
    (rf"^{_OLD}patch_embed\.linear\.", "vision.patch_emb."),
    (rf"^{_OLD}pos_embed$", "vision.pos_emb"),
    (rf"^{_OLD}norm\.", "vision.post_ln."),
    (rf"^{_OLD}blocks\.(\d+)\.norm(1|2)\.", r"vision.blocks.\1.ln\2."),
    (rf"^{_OLD}", "vision."),
    (r"^vision_encoder\.projection\.mlp\.", "vision.proj_mlp."),
    (r"^text_model\.transformer\.embd\.wte\.weight$", "text.wte"),
    (r"^text_model\.lm_head\.ln\.", "text.post_ln."),
    (r"^text_model\.lm_head\.linear\.", "text.lm_head."),
    (r"^text_model\.transformer\.h\.(\d+)\.mixer\.Wqkv\.", r"text.blocks.\1.attn.qkv."),
    (r"^text_model\.transformer\.h\.(\d+)\.mixer\.out_proj\.", r"text.blocks.\1.attn.proj."),
    (r"^text_model\.transformer\.h\.", "text.blocks."),
    # 2025 -> here
    (r"^vision\.proj_mlp\.", "model.multi_modal_projector.mlp."),
    (r"^vision\.patch_emb\.", "model.vision_tower.patch_embedding."),
    (r"^vision\.pos_emb$", "model.vision_tower.position_embedding"),
    (r"^vision\.post_ln\.", "model.vision_tower.last_norm."),
    (r"^vision\.blocks\.(\d+)\.ln(1|2)\.", r"model.vision_tower.layers.\1.norm\2."),
    (r"^vision\.blocks\.(\d+)\.attn\.proj\.", r"model.vision_tower.layers.\1.attention.out_proj."),
    (r"^vision\.blocks\.(\d+)\.attn\.", r"model.vision_tower.layers.\1.attention."),
    (r"^vision\.blocks\.", "model.vision_tower.layers."),
    (r"^text\.wte$", "model.language_model.embed_tokens.weight"),
    (r"^text\.lm_head\.", "lm_head."),
    (r"^text\.post_ln\.", "model.language_model.final_layernorm."),
    (r"^text\.blocks\.(\d+)\.ln\.", r"model.language_model.layers.\1.input_layernorm."),
    (r"^text\.blocks\.(\d+)\.attn\.proj\.", r"model.language_model.layers.\1.self_attn.dense."),
    (r"^text\.blocks\.(\d+)\.attn\.", r"model.language_model.layers.\1.self_attn."),
    (r"^text\.blocks\.", "model.language_model.layers."),
]


def keys_from_published(state: Tensors) -> dict[str, torch.Tensor]:
    """Our names for the tensors of a published Moondream, of either line."""
    result = {ours: tensor for name, tensor in state.items() if (ours := renamed(name, _RULES)) is not None}
    split_rows(result, "qkv", ("q_proj", "k_proj", "v_proj"))
    tower = "model.vision_tower."
    if (positions := result.get(f"{tower}position_embedding")) is not None:
        result[f"{tower}position_embedding"] = positions.flatten(0, -2)
    patches = result.get(f"{tower}patch_embedding.weight")
    if patches is not None:  # (D, channels * rows * columns): a convolution, written as a product
        side = round((patches.shape[1] / 3) ** 0.5)
        result[f"{tower}patch_embedding.weight"] = patches.unflatten(1, (3, side, -1))
    return result


def read_published(
    checkpoint: Path | str | Tensors, config: MoondreamConfig | None = None
) -> tuple[MoondreamConfig, dict[str, torch.Tensor]]:
    """``config``, by default 2B or 0.5B of the line that the names of a published checkpoint say, and its tensors."""
    published = tensors_of(checkpoint)
    state = keys_from_published(published)
    if config is None:
        words = state.get("model.language_model.embed_tokens.weight")
        config = moondream_0_5b() if words is not None and words.shape[1] == 1024 else MoondreamConfig()
        config.prefix_attention = not any(name.startswith("text_model.") for name in published)
    return config, state


def load_published(
    checkpoint: Path | str | Tensors, config: MoondreamConfig | None = None
) -> MoondreamForConditionalGeneration:
    """Moondream from a published file, folder or state dict; without ``config``, 2B or 0.5B of the line that its names say.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of another shape.
    """
    where = str(checkpoint) if isinstance(checkpoint, (str, Path)) else "the checkpoint"
    config, state = read_published(checkpoint, config)
    model = MoondreamForConditionalGeneration(config)
    load_strictly(model, state, where)
    return model
