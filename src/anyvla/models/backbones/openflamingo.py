"""OpenFlamingo (arXiv 2308.01390, after Flamingo, arXiv 2204.14198): images seen by cross-attention between the layers of a
language model.

CLIP ViT-L/14 -> Perceiver resampler to 64 latents per image -> a gated cross-attention before every n-th layer. A text token
attends to the latents of the latest image before it. The gates start at 0: a fresh model is the language model alone.

Published: OpenFlamingo-4B (RedPajama-INCITE 3B, a GPT-NeoX, n = 2), -9B (MPT-7B, n = 4) and the older Llama line. Not the 3B
ones: their MPT-1B normalises queries and keys, which the Mpt of transformers doesn't.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    GPTNeoXConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModelOutputWithPast

from anyvla.errors import CheckpointError
from anyvla.models.backbones.parts import (
    Attention,
    OwnForConditionalGeneration,
    OwnPreTrainedModel,
    VisionTower,
    VisionTowerConfig,
    positions_of,
    sub_config,
)
from anyvla.models.backbones.published import Tensors, load_strictly, renamed, split_rows, tensors_of
from anyvla.models.resampler import PerceiverResampler

TOWER = "model.vision_tower."
CLASS = f"{TOWER}class_embedding"
HEAD_SIZE = 64  # of the cross-attentions


class OpenFlamingoConfig(PreTrainedConfig):
    """By default OpenFlamingo-4B. ``every``: a cross-attention before every n-th layer of the language model."""

    model_type = "anyvla_openflamingo"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": VisionTowerConfig, "text_config": AutoConfig}

    def __init__(
        self,
        vision_config: VisionTowerConfig | dict[str, Any] | None = None,
        text_config: PreTrainedConfig | dict[str, Any] | None = None,
        every: int = 2,
        latents: int = 64,
        resampler_layers: int = 6,
        heads: int = 8,
        image_token_id: int = 50278,
        **kwargs: Any,
    ) -> None:
        self.vision_config = sub_config(vision_config or clip_vit_l14())
        self.text_config = sub_config(text_config or redpajama_3b())
        self.every = every
        self.latents = latents
        self.resampler_layers = resampler_layers
        self.heads = heads
        self.image_token_id = image_token_id
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def image_seq_length(self) -> int:
        """An image takes one token of the sequence; its latents are looked at from the side."""
        return 1


def clip_vit_l14() -> VisionTowerConfig:
    """OpenAI's CLIP ViT-L/14; OpenFlamingo takes its patches before the last norm."""
    return VisionTowerConfig(hidden_act="quick_gelu", patch_bias=False, first_norm=True, last_norm=False)


def redpajama_3b() -> PreTrainedConfig:
    """RedPajama-INCITE 3B, its vocabulary cut to the tokenizer's and the three tokens of OpenFlamingo."""
    return GPTNeoXConfig(
        vocab_size=50280,
        hidden_size=2560,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=10240,
        use_parallel_residual=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        tie_word_embeddings=False,
    )


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class GatedCrossAttention(GradientCheckpointingLayer):
    def __init__(self, width: int, image_width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, HEAD_SIZE, image_width, bias=False)
        self.attention_gate = nn.Parameter(torch.empty(1))
        self.feed_forward = FeedForward(width)
        self.feed_forward_gate = nn.Parameter(torch.empty(1))

    def forward(self, x: torch.Tensor, images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """x (N, T, D); images (N, I, latents, V); mask (N, T, I) bool, True = may look."""
        if images.shape[1]:
            blind = ~mask.any(2, keepdim=True)  # before the first image nothing is added, not even a mean over what is hidden
            latents = (mask | blind).repeat_interleave(images.shape[2], 2)
            seen = self.attention(self.norm(x), images.flatten(1, 2), latents).masked_fill(blind, 0)
            x = x + self.attention_gate.tanh() * seen
        return x + self.feed_forward_gate.tanh() * self.feed_forward(x)


class OpenFlamingoPreTrainedModel(OwnPreTrainedModel):
    config_class = OpenFlamingoConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PerceiverResampler):
            nn.init.normal_(module.latents)
        elif isinstance(module, GatedCrossAttention):
            nn.init.zeros_(module.attention_gate)
            nn.init.zeros_(module.feed_forward_gate)


class OpenFlamingoModel(OpenFlamingoPreTrainedModel):
    """Without vocabulary head: hidden states (N, T, D) of the text, which has seen the images."""

    def __init__(self, config: OpenFlamingoConfig) -> None:
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        self.vision_tower = VisionTower(vision)
        self.resampler = PerceiverResampler(vision.hidden_size, config.resampler_layers, config.latents, config.heads)
        # Mpt has one way to attend; the others take the one that the whole model was asked for
        self.language_model = AutoModel.from_config(
            text, **({"attn_implementation": "eager"} if text.model_type == "mpt" else {})
        )
        self.cross_attentions = nn.ModuleDict(
            {
                str(i): GatedCrossAttention(text.hidden_size, vision.hidden_size, config.heads)
                for i in range(len(decoder_layers(self.language_model)))
                if (i + 1) % config.every == 0
            }
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """``pooler_output`` (images, latents, V): what the text can look at."""
        hidden = self.vision_tower(pixel_values)
        patches = hidden[:, 1:] if self.config.vision_config.class_token else hidden
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=self.resampler(patches))

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        image_attention_mask: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> LlavaModelOutputWithPast:
        """Hidden states (N, T, D) after the last norm.

        Args:
            input_ids: (N, T) with one image token per image. pixel_values: (images, 3, h, w) in their order.
            attention_mask: (N, past + T), padded on the right.
            image_attention_mask: (N, T, I) bool, which of its row's I new images each token may look at; by default the latest
                one up to the token itself. A token that may look at none sees what the last token in the cache saw.
            past_key_values: the images are kept in it, behind the layers, so that later tokens see them.
            mm_encoder_outputs: ``{"image": get_image_features(...)}`` computed before, in place of pixel_values.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config.text_config)
        image = (mm_encoder_outputs or {}).get("image")
        if image is None and pixel_values is not None:
            image = self.get_image_features(pixel_values)
        features = None if image is None else image.pooler_output
        images, mask = self._visible(input_ids, features, image_attention_mask, past_key_values)
        if position_ids is None:
            position_ids = positions_of(attention_mask, input_ids.shape[1])
        embeddings = self.get_input_embeddings()(input_ids)
        with self._looking_at(images.to(embeddings.dtype), mask):
            output = self.language_model(
                inputs_embeds=embeddings,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=bool(use_cache),
                **kwargs,
            )
        if past_key_values is not None:
            self._keep(past_key_values, images, mask[:, -1])
        return LlavaModelOutputWithPast(
            last_hidden_state=output.last_hidden_state,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            image_hidden_states=images,
        )

    def _visible(
        self, input_ids: torch.Tensor, features: torch.Tensor | None, mask: torch.Tensor | None, cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The images of each row (N, I, latents, V), those of the cache first, and which of them each token sees (N, T, I)."""
        at_image = input_ids == self.config.image_token_id
        count = len(features) if features is not None else 0
        if not torch.compiler.is_exporting() and at_image.sum() != count:
            raise ValueError(f"{int(at_image.sum())} image tokens, but {count} images")
        seen = at_image.cumsum(1)
        new = int(seen[:, -1].max())
        shape = (len(input_ids), new, self.config.latents, self.config.vision_config.hidden_size)
        if features is None:
            images = self.resampler.latents.new_zeros(shape)
        else:
            row, column = at_image.nonzero(as_tuple=True)
            images = features.new_zeros(shape).index_put((row, seen[row, column] - 1), features)
        latest = seen[..., None] == torch.arange(1, new + 1, device=input_ids.device)
        if mask is None:
            mask = latest
        elif mask.shape != latest.shape:
            raise ValueError(f"image_attention_mask {tuple(mask.shape)}, expected {tuple(latest.shape)}")
        mask = mask.bool()
        before = self._kept(cache)
        if before is not None:
            old_images, old_seen = before
            images = torch.cat((old_images, images), dim=1)
            mask = torch.cat((old_seen[:, None] & ~mask.any(2, keepdim=True), mask), dim=2)
        return images, mask

    def _kept(self, cache: Cache | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The images in a cache (N, I, latents, V), and which of them the last token saw (N, I)."""
        place = len(decoder_layers(self.language_model))
        if cache is None or len(cache.layers) <= place:
            return None
        return cache.layers[place].keys, cache.layers[place].values[:, :, 0, 0] > 0

    def _keep(self, cache: Cache, images: torch.Tensor, seen: torch.Tensor) -> None:
        """As one layer more, so that images are copied, picked and put together row by row as keys and values are."""
        place = len(decoder_layers(self.language_model))
        if len(cache.layers) == place:
            cache.layers.append(DynamicLayer())
        layer = cache.layers[place]
        layer.lazy_initialization(images, images)
        layer.keys, layer.values = images, seen[..., None, None].to(images.dtype)

    @contextmanager
    def _looking_at(self, images: torch.Tensor, mask: torch.Tensor) -> Iterator[None]:
        """While the block runs, every n-th layer of the language model looks at the images first."""

        def look(cross: nn.Module, _layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (cross(inputs[0], images, mask), *inputs[1:])

        layers = decoder_layers(self.language_model)
        handles = [
            layers[int(index)].register_forward_pre_hook(partial(look, cross)) for index, cross in self.cross_attentions.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a language model (Mpt calls them blocks)."""
    return cast(nn.ModuleList, model.blocks if hasattr(model, "blocks") else model.layers)


class OpenFlamingoForConditionalGeneration(OwnForConditionalGeneration, OpenFlamingoPreTrainedModel):
    model_class = OpenFlamingoModel

    def __init__(self, config: OpenFlamingoConfig) -> None:
        embedding = {"mpt": "wte", "gpt_neox": "embed_in"}.get(config.text_config.model_type, "embed_tokens")
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{embedding}.weight"}
        super().__init__(config)


_RULES: list[tuple[str, str | None]] = [
    # the language model; each of its layers is wrapped with its cross-attention, and a whole state dict lists both once more
    (r"^lang_encoder\.(old_decoder_blocks|gated_cross_attn_layers)\.", None),
    (r"rotary_emb\.inv_freq$|attention\.(bias|masked_bias)$", None),  # constants that older transformers stored
    (r"^lang_encoder\.", ""),
    (r"^embed_out\.", "lm_head."),
    (r"^(gpt_neox|transformer|model)\.", "model.language_model."),
    (r"^model\.language_model\.(?:layers|blocks)\.(\d+)\.gated_cross_attn_layer\.", r"model.cross_attentions.\1."),
    (r"^(model\.language_model\.\w+\.\d+)\.decoder_layer\.", r"\1."),
    # gated cross-attention: Linear layers 1 and 3 of a Sequential after its norm
    (r"^(model\.cross_attentions\.\d+)\.attn\.norm\.", r"\1.norm."),
    (r"^(model\.cross_attentions\.\d+)\.attn\.to_(q|kv|out)\.", r"\1.attention.\2_proj."),
    (r"^(model\.cross_attentions\.\d+)\.attn_gate$", r"\1.attention_gate"),
    (r"^(model\.cross_attentions\.\d+)\.ff_gate$", r"\1.feed_forward_gate"),
    (r"^(model\.cross_attentions\.\d+)\.ff\.", r"\1.feed_forward."),
    (r"^(model\.cross_attentions\.\d+\.feed_forward)\.0\.", r"\1.norm."),
    (r"^(model\.cross_attentions\.\d+\.feed_forward)\.1\.", r"\1.fc1."),
    (r"^(model\.cross_attentions\.\d+\.feed_forward)\.3\.", r"\1.fc2."),
    (r"^perceiver\.", "model.resampler."),
]

_VISION_RULES: list[tuple[str, str | None]] = [
    # a whole CLIP has a text tower, and neither it nor what follows the patches is used
    (r"^(text_model|text_projection|visual_projection|logit_scale|token_embedding|ln_final)", None),
    (r"^(positional_embedding$|transformer\.resblocks\.)", None),
    (r"^(visual|vision_encoder)\.(proj$|ln_post\.)|^vision_model\.post_layernorm\.|position_ids$", None),
    # OpenAI and open_clip
    (r"^(visual|vision_encoder)\.", "v."),
    (r"^v\.conv1\.", "v.patch_embedding."),
    (r"^v\.ln_pre\.", "v.first_norm."),
    (r"^v\.transformer\.resblocks\.", "v.layers."),
    (r"\.ln_(1|2)\.", r".norm\1."),
    (r"\.attn\.in_proj_(weight|bias)$", r".attention.qkv_proj.\1"),
    (r"\.attn\.out_proj\.", ".attention.out_proj."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    # transformers
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "v.positional_embedding"),
    (r"^vision_model\.embeddings\.", "v."),
    (r"^vision_model\.pre_layrnorm\.", "v.first_norm."),
    (r"^vision_model\.encoder\.layers\.", "v.layers."),
    (r"\.self_attn\.", ".attention."),
    (r"\.layer_norm(1|2)\.", r".norm\1."),
    (r"^v\.", "model.vision_tower."),
]


def keys_from_published(state: Tensors, vision: bool = False) -> dict[str, torch.Tensor]:
    """Our names for the tensors of a published OpenFlamingo checkpoint or language model, or, with ``vision``, of a CLIP."""
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        clip = vision or name.startswith(("vision_encoder.", "module.vision_encoder."))
        ours = renamed(name.removeprefix("module."), _VISION_RULES if clip else _RULES)
        if ours is not None:
            result[ours] = tensor
    split_rows(result, "kv_proj", ("k_proj", "v_proj"))
    split_rows(result, "qkv_proj", ("q_proj", "k_proj", "v_proj"))
    positions = result.pop(f"{TOWER}positional_embedding", None) if CLASS in result else None
    if positions is not None:  # the first position is the class token's, and only ever added to it
        result[CLASS] = (result[CLASS].view(-1) + positions[0])[None]
        result[f"{TOWER}position_embedding"] = positions[1:]
    return result


def read_published(
    checkpoint: Path | str | Tensors,
    language: Path | str | Tensors | None = None,
    vision: Path | str | Tensors | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of the published parts under our names; what the parts are, ``load_published`` says."""
    state = keys_from_published(tensors_of(vision), vision=True) if vision is not None else {}
    if language is not None:
        state |= keys_from_published(tensors_of(language))
    state |= keys_from_published(tensors_of(checkpoint))  # last: its embeddings have the words <image> and <|endofchunk|>
    if any(".q_ln." in name for name in state):
        where = str(checkpoint) if isinstance(checkpoint, (str, Path)) else "the checkpoint"
        raise CheckpointError(f"{where}: MPT-1B (norms of queries and keys) is not supported; use the 4B or 9B OpenFlamingo")
    words, head = state.get("model.language_model.embed_tokens.weight"), state.get("lm_head.weight")
    if words is not None and head is not None and len(head) < len(words):  # Llama's head never learned the added words
        state["lm_head.weight"] = nn.functional.pad(head, (0, 0, 0, len(words) - len(head)))
    return state


def layout_of(state: Tensors) -> dict[str, Any]:
    """What the names and shapes under ``read_published`` say of the settings of ``OpenFlamingoConfig``."""
    layers = [int(name.split(".")[2]) for name in state if name.startswith("model.cross_attentions.")]
    resampler = {name.split(".")[3] for name in state if name.startswith("model.resampler.layers.")}
    latents = state.get("model.resampler.latents")
    return {
        "every": min(layers, default=0) + 1,
        "resampler_layers": len(resampler),
        "latents": 64 if latents is None else len(latents),
    }


def load_published(
    checkpoint: Path | str | Tensors,
    config: OpenFlamingoConfig,
    language: Path | str | Tensors | None = None,
    vision: Path | str | Tensors | None = None,
) -> OpenFlamingoForConditionalGeneration:
    """OpenFlamingo from its published parts.

    The published checkpoints hold only what was trained (resampler, cross-attentions, word embeddings); ``language`` and
    ``vision`` are the weights of the language model and of CLIP (OpenAI's, open_clip's or transformers' names) beside which
    they belong. A checkpoint of the whole model needs neither.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of another shape.
    """
    where = str(checkpoint) if isinstance(checkpoint, (str, Path)) else "the checkpoint"
    state = read_published(checkpoint, language, vision)
    model = OpenFlamingoForConditionalGeneration(config)
    load_strictly(model, state, where)
    return model
