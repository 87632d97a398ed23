"""What the vision-language models that are defined here (and not in transformers) are made of.

A vision transformer, attention with separate projections (so that LoRA finds them by name), and the LLaVA way of putting
image features in the place of image tokens. The language models are transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast, LlavaModelOutputWithPast

from anyvla.models.attention import attend


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}


class VisionTowerConfig(PreTrainedConfig):
    """A vision transformer (arXiv 2010.11929); the flags say in what the published towers differ.

    ``position_grid`` is the side, in patches, of the square the positions were learned on; other images interpolate them.
    """

    model_type = "anyvla_vision_tower"
    base_config_key = "vision_config"

    def __init__(
        self,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        intermediate_size: int = 4096,
        patch_size: int = 14,
        image_size: int = 224,
        position_grid: int = 16,
        hidden_act: str = "gelu",
        layer_norm_eps: float = 1e-5,
        class_token: bool = True,
        patch_bias: bool = True,
        first_norm: bool = False,
        last_norm: bool = True,
        layer_scale: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.patch_size = patch_size
        self.image_size = image_size
        self.position_grid = position_grid
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.class_token = class_token
        self.patch_bias = patch_bias
        self.first_norm = first_norm
        self.last_norm = last_norm
        self.layer_scale = layer_scale

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2


class Attention(nn.Module):
    """Multi-head attention of x (N, T, D) to a memory (N, S, M), by default to itself; no positions."""

    def __init__(
        self, width: int, heads: int, head_size: int | None = None, memory_width: int | None = None, bias: bool = True
    ) -> None:
        super().__init__()
        inner = heads * (head_size or width // heads)
        self.heads = heads
        self.q_proj = nn.Linear(width, inner, bias)
        self.k_proj = nn.Linear(memory_width or width, inner, bias)
        self.v_proj = nn.Linear(memory_width or width, inner, bias)
        self.out_proj = nn.Linear(inner, width, bias)

    def forward(self, x: torch.Tensor, memory: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> torch.Tensor:
        """``mask`` (N, T, S) bool, True = may look."""
        memory = x if memory is None else memory
        seen = attend(self.q_proj(x), self.k_proj(memory), self.v_proj(memory), self.heads, mask=mask)
        return self.out_proj(seen)


class Mlp(nn.Module):
    def __init__(self, width: int, inner: int, activation: str, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, out or width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class LayerScale(nn.Module):
    """A learned factor per channel (arXiv 2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


class VisionBlock(GradientCheckpointingLayer):
    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps)
        self.attention = Attention(width, config.num_attention_heads)
        self.norm2 = nn.LayerNorm(width, eps)
        self.mlp = Mlp(width, config.intermediate_size, config.hidden_act)
        self.scale1 = LayerScale(width) if config.layer_scale else nn.Identity()
        self.scale2 = LayerScale(width) if config.layer_scale else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.scale1(self.attention(self.norm1(x)))
        return x + self.scale2(self.mlp(self.norm2(x)))


class VisionTower(nn.Module):
    """(images, 3, h, w) normalised pixels -> (images, class token + patches, D)."""

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.grid = config.position_grid
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=config.patch_bias)
        self.position_embedding = nn.Parameter(torch.empty(self.grid**2, width))
        self.class_embedding = nn.Parameter(torch.empty(1, width)) if config.class_token else None
        self.first_norm = nn.LayerNorm(width, config.layer_norm_eps) if config.first_norm else nn.Identity()
        self.layers = nn.ModuleList(VisionBlock(config) for _ in range(config.num_hidden_layers))
        self.last_norm = nn.LayerNorm(width, config.layer_norm_eps) if config.last_norm else nn.Identity()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        x = x.flatten(2).transpose(1, 2) + self._positions(x.shape[2], x.shape[3])
        if self.class_embedding is not None:
            x = torch.cat((self.class_embedding.expand(len(x), -1, -1), x), dim=1)
        x = self.first_norm(x)
        for layer in self.layers:
            x = layer(x)
        return self.last_norm(x)

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        """(rows * columns, D); bicubic between the learned ones where the image has another size."""
        if (rows, columns) == (self.grid, self.grid):
            return self.position_embedding
        learned = self.position_embedding.float().view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        # the factors of DINO, which UForm-Gen was trained with: 0.1 more than needed, against an output one row too short
        factors = ((rows + 0.1) / self.grid, (columns + 0.1) / self.grid)
        positions = F.interpolate(learned, scale_factor=factors, mode="bicubic")
        return positions.flatten(2).squeeze(0).T.to(self.position_embedding.dtype)


def sub_config(config: PreTrainedConfig | dict[str, Any]) -> PreTrainedConfig:
    """The configuration of a part, from what a config.json holds of it."""
    if isinstance(config, PreTrainedConfig):
        return config
    values = dict(config)
    kind = values.pop("model_type")
    return VisionTowerConfig(**values) if kind == VisionTowerConfig.model_type else AutoConfig.for_model(kind, **values)


def positions_of(attention_mask: torch.Tensor | None, length: int) -> torch.Tensor | None:
    """Position (N, T) of the last T = ``length`` tokens of a mask (N, past + T): padding takes no position."""
    if attention_mask is None or attention_mask.ndim != 2:
        return None
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -length:]


class OwnPreTrainedModel(PreTrainedModel):
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_compile_fullgraph = False
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LayerScale):
            nn.init.constant_(module.weight, 1e-5)
        elif isinstance(module, VisionTower):
            nn.init.normal_(module.position_embedding, std=0.02)
            if module.class_embedding is not None:
                nn.init.normal_(module.class_embedding, std=0.02)


class MergedModel(OwnPreTrainedModel):
    """Without vocabulary head; the features of each image stand in the sequence where its image tokens are.

    A child builds ``vision_tower``, ``multi_modal_projector`` (features of one image -> (image_seq_length, D)) and
    ``language_model``.
    """

    vision_tower: VisionTower
    multi_modal_projector: nn.Module
    language_model: PreTrainedModel

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """``pooler_output`` (images, image_seq_length, D): what stands in the sequence for each image."""
        hidden = self.vision_tower(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self.multi_modal_projector(hidden))

    def merge(self, input_ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """Embeddings (N, T, D) with ``features`` (images, tokens, D) at the image tokens, in order."""
        at_image = input_ids == self.config.image_token_id
        # an image token may have been added behind the vocabulary; its own embedding is never used
        embeddings = self.get_input_embeddings()(input_ids.masked_fill(at_image, 0))
        if features is None:
            return embeddings
        if not torch.compiler.is_exporting() and at_image.sum() != features.shape[0] * features.shape[1]:
            raise ValueError(
                f"{int(at_image.sum())} image tokens do not fit {features.shape[0]} images of {features.shape[1]} tokens each"
            )
        return embeddings.masked_scatter(at_image[..., None], features.to(embeddings.dtype))

    def attention(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, embeddings: torch.Tensor, past: int
    ) -> torch.Tensor | None:
        """The mask that the language model gets: here the padding (N, past + T), to which it adds causality itself."""
        return attention_mask

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """Hidden states (N, T, D) after the last norm.

        Args:
            input_ids: (N, T), ``image_seq_length`` image tokens for each image. pixel_values: (images, 3, h, w) in their order.
            attention_mask: (N, past + T), padded on the right. mm_encoder_outputs: ``{"image": get_image_features(...)}``
                computed before, in place of pixel_values.
        """
        image = (mm_encoder_outputs or {}).get("image")
        if image is None and pixel_values is not None:
            image = self.get_image_features(pixel_values)
        features = None if image is None else image.pooler_output
        embeddings = self.merge(input_ids, features)
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if position_ids is None:
            position_ids = positions_of(attention_mask, input_ids.shape[1])
        output = self.language_model(
            inputs_embeds=embeddings,
            attention_mask=self.attention(input_ids, attention_mask, embeddings, past),
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=bool(use_cache),
            **kwargs,
        )
        return LlavaModelOutputWithPast(
            last_hidden_state=output.last_hidden_state,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_hidden_states=features,
        )


class OwnForConditionalGeneration(OwnPreTrainedModel, GenerationMixin):
    """A headless model with the vocabulary head; a child says which model."""

    model_class: ClassVar[type[OwnPreTrainedModel]]
    head_bias: ClassVar[bool] = False

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        text = config.get_text_config()
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=self.head_bias)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def get_image_features(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        return self.model.get_image_features(pixel_values)

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> LlavaCausalLMOutputWithPast:
        """What the headless model takes, and ``labels`` (N, T), -100 where there is nothing to learn."""
        output = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.get_text_config().vocab_size)
        return LlavaCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_hidden_states=output.image_hidden_states,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        is_first_iteration: bool | None = False,
        pixel_values: torch.Tensor | None = None,
        image_attention_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if is_first_iteration or inputs.get("past_key_values") is None:  # afterwards the images are in the cache
            images = {
                "pixel_values": pixel_values,
                "image_attention_mask": image_attention_mask,
                "mm_encoder_outputs": mm_encoder_outputs,
            }
            inputs |= {name: value for name, value in images.items() if value is not None}
        return inputs
