"""A small vision-language transformer, trained from scratch: the default backbone.

It is an ordinary transformers model in the LLaVA manner (vision tower, projector, language model; image features replace the
``<image>`` tokens of the sequence) and is served by the same adapter as every pretrained one. Its vision tower begins with
convolutions, because a few hundred episodes are too few for a patch embedding to learn edges from.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    Cache,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

STRIDE = 16  # image pixels per vision token, in both directions


class TinyVLMConfig(PreTrainedConfig):
    model_type = "anyvla_tiny"

    def __init__(
        self,
        vocab_size: int = 2048,
        hidden_size: int = 96,
        vision_layers: int = 2,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        dropout: float = 0.0,
        image_size: tuple[int, int] = (64, 112),
        image_token_id: int = 1,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("tie_word_embeddings", True)
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.vision_layers = vision_layers
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.dropout = dropout
        self.image_size = tuple(image_size)
        self.image_token_id = image_token_id

    @property
    def image_seq_length(self) -> int:
        """Tokens per image."""
        return (self.image_size[0] // STRIDE) * (self.image_size[1] // STRIDE)


class Attention(nn.Module):
    """Multi-head self-attention; rotary positions where ``rotary`` is given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None,
        cache: Cache | None,
        layer: int,
    ) -> torch.Tensor:
        """x (N, T, D); mask (N, 1, T, past + T) bool, True = may look; rotary: cos and sin, (N, 1, T, D / heads)."""
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(n, t, d))


def rotary_tables(positions: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (N, 1, T, size) of rotary position embedding (arXiv 2104.09864) for positions (N, T)."""
    frequencies = 10_000.0 ** (-torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size)
    angles = (positions[..., None].float() * frequencies).repeat(1, 1, 2)[:, None]
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Block(GradientCheckpointingLayer):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None = None,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> torch.Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask, rotary, cache, layer))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class VisionTower(nn.Module):
    """(N, 3, h, w) normalised pixels -> (N, h / 16 * w / 16, D)."""

    def __init__(self, config: TinyVLMConfig) -> None:
        super().__init__()
        width = config.hidden_size
        rows, columns = config.image_size[0] // STRIDE, config.image_size[1] // STRIDE
        channels = [3, max(8, width // 6), width // 3, width, width]
        stem: list[nn.Module] = []
        for before, after in pairwise(channels):
            stem += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        self.stem = nn.Sequential(*stem[:-1])
        self.row_embedding = nn.Parameter(torch.empty(rows, 1, width))
        self.column_embedding = nn.Parameter(torch.empty(1, columns, width))
        self.layers = nn.ModuleList(
            Block(width, config.num_attention_heads, config.dropout) for _ in range(config.vision_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x = self.stem(pixel_values).flatten(2).transpose(1, 2)
        x = x + (self.row_embedding + self.column_embedding).flatten(0, 1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class LanguageModel(nn.Module):
    """(N, T, D) embeddings -> (N, T, D) hidden states; causal."""

    def __init__(self, config: TinyVLMConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config.hidden_size, config.num_attention_heads, config.dropout) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head_size = config.hidden_size // config.num_attention_heads

    def forward(self, embeddings: torch.Tensor, attention_mask: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        new, total = embeddings.shape[1], attention_mask.shape[1]
        causal = torch.ones(total, total, dtype=torch.bool, device=embeddings.device).tril()[total - new :]
        mask = causal & attention_mask.bool()[:, None, None, :]
        rotary = rotary_tables(attention_mask.long().cumsum(1)[:, total - new :] - 1, self.head_size)
        for i, layer in enumerate(self.layers):
            embeddings = layer(embeddings, mask, rotary, cache, i)
        return self.norm(embeddings)


@dataclass
class TinyVLMOutput(ModelOutput):
    last_hidden_state: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None


class TinyVLMPreTrainedModel(PreTrainedModel):
    config_class = TinyVLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True

    def _init_weights(self, module: nn.Module) -> None:
        # 0.02, the custom of wide models, is far too small for a narrow one: it would learn nothing for hundreds of steps
        std = self.config.hidden_size**-0.5
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std if module.in_features == self.config.hidden_size else std / 2)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, VisionTower):
            nn.init.normal_(module.row_embedding, std=std)
            nn.init.normal_(module.column_embedding, std=std)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)


class TinyVLMModel(TinyVLMPreTrainedModel):
    """Without the vocabulary head: ``last_hidden_state`` (N, T, D) of the merged sequence."""

    def __init__(self, config: TinyVLMConfig) -> None:
        super().__init__(config)
        self.vision_tower = VisionTower(config)
        self.multi_modal_projector = nn.Linear(config.hidden_size, config.hidden_size)
        self.language_model = LanguageModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.language_model.embed_tokens = value

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> TinyVLMOutput:
        """input_ids (N, T), pixel_values (images, 3, h, w) in the order of the image tokens, attention_mask (N, past + T)."""
        embeddings = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = self.multi_modal_projector(self.vision_tower(pixel_values)).flatten(0, 1)
            at_image = (input_ids == self.config.image_token_id)[..., None].expand_as(embeddings)
            embeddings = embeddings.masked_scatter(at_image, features.to(embeddings.dtype))
        cache = (past_key_values if past_key_values is not None else DynamicCache()) if use_cache else None
        if attention_mask is None:
            past = cache.get_seq_length() if cache is not None else 0
            attention_mask = input_ids.new_ones(len(input_ids), past + input_ids.shape[1])
        hidden = self.language_model(embeddings, attention_mask, cache)
        return TinyVLMOutput(last_hidden_state=hidden, past_key_values=cache)


class TinyVLMForConditionalGeneration(TinyVLMPreTrainedModel):
    """With the vocabulary head, tied to the input embedding."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: TinyVLMConfig) -> None:
        super().__init__(config)
        self.model = TinyVLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> TinyVLMOutput:
        output = self.model(input_ids, pixel_values, attention_mask, past_key_values, use_cache)
        output.logits = self.lm_head(output.last_hidden_state)
        return output


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer shipped in the package: byte-level BPE, so that every text can be written."""
    with resources.as_file(resources.files("anyvla.models.backbones") / "tiny_tokenizer.json") as path:
        return PreTrainedTokenizerFast(
            tokenizer_file=str(Path(path)),
            pad_token="<pad>",
            bos_token="<bos>",
            eos_token="<eos>",
            extra_special_tokens={"image_token": "<image>"},
        )
