"""Families with ways of their own to mask, count positions or encode, images still in the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from anyvla.errors import ConfigError
from anyvla.models.backbones.families.base import Family

if TYPE_CHECKING:
    from anyvla.models.backbones.sequence import TokenSequence


class Kosmos2Family(Family):
    template = "<grounding> {text}"
    connector = "image_to_text_projection"

    def find_placeholder(self) -> int:
        # the first of the ids that the processor puts into the place of an image; they are also those of frequent words
        return int(self.tokenizer.unk_token_id) + 1

    def count_tokens(self) -> int:
        return int(self.config.latent_query_num)

    def placeholders(self, ids: Sequence[int]) -> list[bool]:
        begin, end = self.tokenizer.convert_tokens_to_ids(["<image>", "</image>"])
        inside, result = False, []
        for token in ids:
            inside = inside and token != end
            result.append(inside)
            inside = inside or token == begin
        return result

    def frame_ids(self, images: int) -> list[int]:
        begin, end = self.tokenizer.convert_tokens_to_ids(["<image>", "</image>"])
        return [begin, *range(self.placeholder_id, self.placeholder_id + self.tokens_per_image), end] * images

    def encode_prompt(self, text: str, images: int) -> list[int]:
        words = self.tokenizer(self.template.replace("{text}", text), add_special_tokens=False)["input_ids"]
        return [self.tokenizer.bos_token_id, *self.frame_ids(images), *words]

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, pixels)
        return result if pixels is None else result | {"image_embeds_position_mask": (sequence.image >= 0).long()}

    def hidden(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        past = inputs.get("past_key_values")
        if past is None or past.get_seq_length() == 0:
            return super().hidden(model if "pixel_values" in inputs else model.text_model, inputs)
        # behind a cache the model takes no images: write their features where it would
        inputs = dict(inputs)
        pixels, mask = inputs.pop("pixel_values", None), inputs.pop("image_embeds_position_mask", None)
        if pixels is None or mask is None:
            return super().hidden(model.text_model, inputs)
        vision = model.vision_model
        encoded = F.normalize(vision.model.post_layernorm(vision(pixel_values=pixels)[0]), dim=-1)
        features = model.image_to_text_projection(encoded)[0]

        def put(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
            return output.masked_scatter(mask.bool()[..., None], features.to(output.dtype))

        handle = model.get_input_embeddings().register_forward_hook(put)
        try:
            return super().hidden(model.text_model, inputs)
        finally:
            handle.remove()


class PaliGemmaFamily(Family):
    template = "{images}<bos>{text}\n"
    special_tokens = False

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        # 0: images and prompt, which see each other; 1: what follows, causal
        return super().inputs(sequence, pixels) | {"token_type_ids": sequence.later.long()}


class QwenVLFamily(Family):
    """Images of any size; rotary positions in three dimensions, given to the model rather than left to its memory."""

    template = "<|im_start|>user\n{images}{text}<|im_end|>\n<|im_start|>assistant\n"
    connector = None

    def check_image_size(self) -> None:
        vision = self.config.vision_config
        self.multiple = vision.patch_size * vision.spatial_merge_size
        super().check_image_size()

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        multiple = config.vision_config.patch_size * config.vision_config.spatial_merge_size
        side = 224 // multiple * multiple
        return side, side

    def count_tokens(self) -> int:
        return self.patches() // self.config.vision_config.spatial_merge_size**2

    def image_text(self) -> str:
        return f"<|vision_start|>{super().image_text()}<|vision_end|>"

    def kept(self, output: Any) -> Any:
        return type(output)(**{**output, "last_hidden_state": None})  # patches before they are merged, four times as many

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, None)
        vision = self.config.vision_config
        patch, merge, times = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        rows, columns = self.image_size[0] // patch, self.image_size[1] // patch
        # an image counts in positions as its longer side only
        saved = self.tokens_per_image - max(rows, columns) // merge
        result["position_ids"] = self._positions(sequence, rows // merge, columns // merge) + (
            sequence.past - sequence.past_images * saved
        )
        if pixels is None:
            return result
        patches = (
            pixels.view(len(pixels), 3, rows // merge, merge, patch, columns // merge, merge, patch)
            .permute(0, 2, 5, 3, 6, 1, 4, 7)
            .unsqueeze(6)
            .expand(-1, -1, -1, -1, -1, -1, times, -1, -1)
            .reshape(len(pixels) * rows * columns, 3 * times * patch * patch)
        )
        grid = torch.tensor([[1, rows, columns]] * len(pixels), device=pixels.device)
        types = (sequence.image >= 0).int()
        return result | {"pixel_values": patches, "image_grid_thw": grid, "mm_token_type_ids": types}

    def connector_parameters(self, model: PreTrainedModel) -> list[nn.Parameter]:
        tower = self.vision(model)
        parts = [tower.merger, *getattr(tower, "deepstack_merger_list", [])]
        return [p for part in parts for p in part.parameters()]

    def _positions(self, sequence: TokenSequence, rows: int, columns: int) -> torch.Tensor:
        """(3, N, T): time, row and column; words advance all three, an image spans a block."""
        visual = sequence.image >= 0
        first = visual & (sequence.image != F.pad(sequence.image, (1, 0), value=-1)[:, :-1])
        before = (~visual * sequence.mask.bool()).long() + first * max(rows, columns)
        start = before.cumsum(1) - before  # where a word stands, and where an image begins
        block = self.tokens_per_image
        place = (
            torch.arange(visual.shape[1], device=visual.device)
            - torch.where(first, torch.arange(visual.shape[1], device=visual.device), 0).cummax(1).values
        )
        place = (place % block) * visual
        # inside an image all tokens share its beginning
        begin = torch.where(visual, start - (~first) * max(rows, columns) * visual, start)
        offsets = torch.stack([torch.zeros_like(place), place // columns, place % columns])
        return begin + offsets * visual


class Gemma3Family(Family):
    template = "<start_of_turn>user\n{images}{text}<end_of_turn>\n<start_of_turn>model\n"

    def count_tokens(self) -> int:
        return int(self.config.mm_tokens_per_image)

    def image_text(self) -> str:
        return f"\n\n<start_of_image>{super().image_text()}<end_of_image>\n\n"

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        types = (sequence.image >= 0).long()
        if sequence.past:
            types = torch.cat([types.new_zeros(len(types), sequence.past), types], dim=1)
        return super().inputs(sequence, pixels) | {"token_type_ids": types}


class Florence2Family(Family):
    """Its encoder is used: query tokens look at the whole sequence."""

    template = "<s>{text}</s>"
    special_tokens = False
    causal = False
    appendable = False
    writes = False

    def check_image_size(self) -> None:
        side = 1
        for stride in self.config.vision_config.patch_stride:
            side *= stride
        self.multiple = side
        super().check_image_size()

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        size = processor["size"]
        return int(size["height"]), int(size["width"])

    def count_tokens(self) -> int:
        side = self.multiple or 1
        return (self.image_size[0] // side) * (self.image_size[1] // side) + 1

    def encode_prompt(self, text: str, images: int) -> list[int]:
        return self.frame_ids(images) + super().encode_prompt(text, 0)

    def hidden(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        start = inputs["input_ids"][:, :1]  # the decoder must run to be allowed to encode; one token of it
        return model.base_model(**inputs, decoder_input_ids=start).encoder_last_hidden_state

    def logits(self, model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
        raise ConfigError("florence2 writes text with its decoder, which is not used here")


class Blip2Family(Family):
    template = "Question: {text} Answer:"
    connector = "language_projection"

    def hidden(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        return super().hidden(model if "pixel_values" in inputs else model.language_model, inputs)

    def count_tokens(self) -> int:
        return int(self.config.num_query_tokens)

    def encode_prompt(self, text: str, images: int) -> list[int]:
        return self.frame_ids(images) + super().encode_prompt(text, 0)
