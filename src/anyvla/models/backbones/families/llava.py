"""LLaVA and what is written like it: image features replace tokens in front of the words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.image_processing_utils import select_best_resolution

from anyvla.models.backbones.families.base import CountedFamily, Family
from anyvla.models.backbones.tiny import STRIDE

if TYPE_CHECKING:
    from anyvla.models.backbones.sequence import TokenSequence


class TinyFamily(CountedFamily):
    template = "<bos>{images}{text}"
    special_tokens = False
    multiple = STRIDE


class PlainFamily(Family):
    """Any model of transformers that marks images as LLaVA does and is not known here."""

    template = "{images}\n{text}"


class LlavaNextFamily(Family):
    """The image once whole and once in tiles, as its processor cuts it."""

    template = "[INST] {images}\n{text} [/INST]"
    connector = None
    multiple = 1

    def count_tokens(self) -> int:
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        height, width = self._best()
        rows, columns = side * (height // self._tile()), side * (width // self._tile())
        image_height, image_width = self.image_size
        if image_width / image_height > width / height:  # what pads the image to the tiles is taken out again
            padding = (rows - int(round(image_height * columns / image_width, 7))) // 2
            rows -= 2 * padding
        else:
            padding = (columns - int(round(image_width * rows / image_height, 7))) // 2
            columns -= 2 * padding
        return side * side + rows * (columns + 1)

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        if pixels is None:
            return result
        sizes = torch.tensor([list(self.image_size)] * len(pixels), device=pixels.device)
        return result | {"pixel_values": self._tiles(pixels), "image_sizes": sizes}

    def _tile(self) -> int:
        return int(self.config.vision_config.image_size)

    def _best(self) -> tuple[int, int]:
        height, width = select_best_resolution(self.image_size, self.config.image_grid_pinpoints)
        return int(height), int(width)

    def _tiles(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, h, w) -> (n, 1 + tiles, 3, s, s)."""
        tile, (height, width) = self._tile(), self._best()
        scale = min(height / pixels.shape[-2], width / pixels.shape[-1])
        fitted = _resized(
            pixels, min(height, math.ceil(pixels.shape[-2] * scale)), min(width, math.ceil(pixels.shape[-1] * scale))
        )
        top, left = (height - fitted.shape[-2]) // 2, (width - fitted.shape[-1]) // 2
        padded = self.black.to(pixels).expand(len(pixels), 3, height, width).clone()
        padded[..., top : top + fitted.shape[-2], left : left + fitted.shape[-1]] = fitted
        tiles = padded.unflatten(3, (-1, tile)).unflatten(2, (-1, tile)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        return torch.cat([_resized(pixels, tile, tile)[:, None], tiles], dim=1)


def _resized(pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if pixels.shape[-2:] == (height, width):
        return pixels
    return F.interpolate(pixels.float(), (height, width), mode="bicubic", antialias=True, align_corners=False).to(pixels.dtype)


class LlavaOnevisionFamily(Family):
    """Without tiles, as it takes several images: one vector ends each image."""

    template = "<|im_start|>user {images}\n{text}<|im_end|><|im_start|>assistant\n"
    connector = None

    def count_tokens(self) -> int:
        return self.patches() + 1

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        if pixels is None:
            return result
        sizes = torch.tensor([list(self.image_size)] * len(pixels), device=pixels.device)
        many = torch.tensor([max(2, len(pixels))], device=pixels.device)  # a single one would be cut into tiles
        return result | {"pixel_values": pixels[:, None], "image_sizes": sizes, "batch_num_images": many}


class InternVLFamily(CountedFamily):
    template = "<|im_start|>user\n{images}\n{text}<|im_end|>\n<|im_start|>assistant\n"

    def image_text(self) -> str:
        return f"<img>{super().image_text()}</img>"


class UFormFamily(CountedFamily):
    """Both generations chat in the same words; a tokenizer with a bos does not add it to a chat."""

    template = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n {images} {text}<|im_end|>\n<|im_start|>assistant\n"
    )
    special_tokens = False


class MoondreamFamily(CountedFamily):
    """Its image token may lie behind the vocabulary, where no text can name it."""

    template = "\n\nQuestion: {text}\n\nAnswer:"

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_size: tuple[int, int]) -> None:
        super().__init__(model, tokenizer, image_size)
        if "<|md_reserved_0|>" in tokenizer.get_vocab():  # the tokenizer since 2025-06-21 has tokens for this
            self.template = "<|md_reserved_0|>query<|md_reserved_1|>{text}<|md_reserved_2|><|md_reserved_2|>"
        self.bos_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id

    def frame_ids(self, images: int) -> list[int]:
        return [self.placeholder_id] * (self.tokens_per_image * images)

    def encode_prompt(self, text: str, images: int) -> list[int]:
        words = self.tokenizer(self.template.replace("{text}", text), add_special_tokens=False)["input_ids"]
        return [self.bos_id, *self.frame_ids(images), *words]
