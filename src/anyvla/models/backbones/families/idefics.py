"""Idefics and its heirs, and the families whose images enter by cross-attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from anyvla.models.backbones.families.base import CountedFamily, Family, attended_images, batched

if TYPE_CHECKING:
    from anyvla.models.backbones.sequence import TokenSequence


class IdeficsFamily(Family):
    """Images enter by cross-attention; each token looks at the images of its own frame that stand before it."""

    template = "<s>User:{images}{text}\nAssistant:"
    special_tokens = False
    connector = None
    appendable = False  # nothing of an image is cached

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        size = int(config.vision_config.image_size)
        return size, size

    def find_placeholder(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<image>"))

    def count_tokens(self) -> int:
        return 1

    def images_text(self, images: int) -> str:
        return "<fake_token_around_image>" + "<image><fake_token_around_image>" * images if images else ""

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        if pixels is None:  # the model takes no text alone: an image that no token looks at
            ids = sequence.ids
            return result | {
                "pixel_values": self.black.expand(len(ids), 1, 3, *self.image_size),
                "image_attention_mask": torch.zeros(*ids.shape, 1, dtype=torch.int64, device=ids.device),
            }
        return result | {
            "pixel_values": batched(pixels, sequence.images),
            "image_attention_mask": attended_images(sequence).long(),
        }

    def connector_parameters(self, model: PreTrainedModel) -> list[nn.Parameter]:
        inner = model.model
        parts = [inner.gated_cross_attn_layers, *([inner.perceiver_resampler] if hasattr(inner, "perceiver_resampler") else [])]
        return [p for part in parts for p in part.parameters()]


class Idefics2Family(Family):
    template = "User:{images} {text}<end_of_utterance>\nAssistant:"
    connector = "connector"

    def check_image_size(self) -> None:
        self.multiple = int(self.config.vision_config.patch_size)
        super().check_image_size()

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        patch = config.vision_config.patch_size
        side = min(378, config.vision_config.image_size) // patch * patch
        return side, side

    def count_tokens(self) -> int:
        return int(self.config.perceiver_config.resampler_n_latents)

    def images_text(self, images: int) -> str:
        return "<fake_token_around_image>" + (self.image_text() + "<fake_token_around_image>") * images if images else ""

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        if pixels is None:
            return result
        values = batched(pixels, sequence.images)
        return result | {"pixel_values": values, "pixel_attention_mask": torch.ones_like(values[:, :, 0], dtype=torch.int64)}


class Idefics3Family(Idefics2Family):
    template = "User:{images}{text}<end_of_utterance>\nAssistant:"

    def check_image_size(self) -> None:
        Family.check_image_size(self)

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        size = int(config.vision_config.image_size)
        return size, size

    def count_tokens(self) -> int:
        return self.patches() // self.config.scale_factor**2

    def images_text(self, images: int) -> str:
        around = "<fake_token_around_image>"
        return f"{around}<global-img>{self.image_text()}{around}" * images


class SmolVLMFamily(Idefics3Family):
    template = "<|im_start|>User:{images}{text}<end_of_utterance>\nAssistant:"


class MllamaFamily(Family):
    template = "{images}<|begin_of_text|>{text}"
    special_tokens = False
    connector = None
    appendable = False  # its cache keeps the images of all frames
    mixes = False  # where a row has no image, its cross-attention looks at the padding
    image_dim = 1

    def count_tokens(self) -> int:
        return 1

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        if pixels is None:
            return result
        tiles = self.config.vision_config.max_num_tiles
        single = batched(pixels, sequence.images)
        count, images = single.shape[:2]
        whole = torch.zeros(count, images, tiles, dtype=torch.int64, device=pixels.device)
        whole[..., 0] = 1  # an image is one tile
        values = torch.zeros(count, images, tiles, *single.shape[2:], dtype=pixels.dtype, device=pixels.device)
        values[:, :, 0] = single
        return result | {
            "pixel_values": values,
            "aspect_ratio_ids": (sequence.frame_of_image >= 0).long(),
            "aspect_ratio_mask": whole,
            "cross_attention_mask": attended_images(sequence)[..., None].long() * whole[:, None],
        }


class OpenFlamingoFamily(CountedFamily):
    template = "{images}{text}"  # with what the tokenizer puts before a text: Llama's bos; the others have none
    connector = None

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, pixels)
        return result if pixels is None else result | {"image_attention_mask": attended_images(sequence)}
