"""What the adapter must know of each family of vision-language models, and nothing more.

A family says how its prompt is written, which tokens stand for an image, and which further inputs its forward takes. The
defaults are LLaVA's; a subclass says what differs. Merging images, masks and positions stay the model's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anyvla.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from anyvla.models.backbones.sequence import TokenSequence


class Family:
    """LLaVA's way, and the base of all others.

    Attributes:
        template: the prompt, with the images of the first frame and the text. special_tokens: whether the tokenizer adds its own.
        connector: path of the module whose output is what the language model gets of an image, (images, tokens, D).
        causal: later tokens never change earlier hidden states. appendable: the key-value cache can be continued with a frame.
        image_dim: the dimension along which images follow each other in the vision tower's output.
    """

    template = "USER: {images}\n{text} ASSISTANT:"
    special_tokens = True
    connector: str | None = "multi_modal_projector"
    causal = True
    appendable = True
    image_dim = 0

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_size: tuple[int, int]) -> None:
        self.config = model.config
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.placeholder_id = self.find_placeholder()
        self.tokens_per_image = self.count_tokens()
        self._prompts: dict[tuple[str, int], list[int]] = {}

    # -- tokens

    def find_placeholder(self) -> int:
        return int(self.config.image_token_id)

    def count_tokens(self) -> int:
        """Placeholders per image."""
        count = getattr(self.config, "image_seq_length", None)
        if count is None:
            raise CheckpointError(f"{self.config.model_type} has no image_seq_length: its way to merge images is not known here")
        return int(count)

    def is_placeholder(self, token: int) -> bool:
        return token == self.placeholder_id

    def image_text(self) -> str:
        """One image as text: its placeholders, and what stands around them."""
        token: str = self.tokenizer.convert_ids_to_tokens(self.placeholder_id)
        return token * self.tokens_per_image

    def prompt_ids(self, text: str, images: int) -> list[int]:
        """Token ids of a prompt with ``images`` images."""
        key = (text, images)
        if key not in self._prompts:
            if len(self._prompts) >= 4096:
                self._prompts.clear()
            self._prompts[key] = self.encode_prompt(text, images)
        return self._prompts[key]

    def encode_prompt(self, text: str, images: int) -> list[int]:
        written = self.template.replace("{images}", self.image_text() * images).replace("{text}", text)
        return self.tokenizer(written, add_special_tokens=self.special_tokens)["input_ids"]

    def frame_ids(self, images: int) -> list[int]:
        """Token ids of a further frame of ``images`` images."""
        return self.tokenizer(self.image_text() * images, add_special_tokens=False)["input_ids"]

    def prompt_error(self, prompt: str) -> DataError:
        return DataError(f"the instruction {prompt[:80]!r} contains the token that stands for an image; write it without")

    # -- forward

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        """What forward takes, for the pixels (all images, 3, h, w) of all rows one after the other, None if there are none."""
        mask = sequence.mask
        if sequence.past:
            mask = torch.cat([mask.new_ones(len(mask), sequence.past), mask], dim=1)
        result = {"input_ids": sequence.ids, "attention_mask": mask}
        return result if pixels is None else {**result, "pixel_values": pixels}

    def hidden(self, model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
        """Run ``model``; hidden states (N, T, D) after the last norm. The vocabulary head sees one token only."""
        kept: list[torch.Tensor] = []

        def keep(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            kept.append(arguments[0])
            return (arguments[0][:, :1],)

        handle = model.get_output_embeddings().register_forward_pre_hook(keep)
        try:
            model(**inputs)
        finally:
            handle.remove()
        return kept[-1]

    def logits(self, model: PreTrainedModel, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits (..., V) of hidden states (..., D)."""
        logits = model.get_output_embeddings()(hidden).float()
        cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    # -- parts

    def vision(self, model: PreTrainedModel) -> nn.Module:
        return model.get_encoder("image")

    def language(self, model: PreTrainedModel) -> nn.Module:
        return model.get_decoder()

    def connector_parameters(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """Parameters of the connector that lie inside the module of the vision tower or of the language model."""
        return []

    def connector_module(self, model: PreTrainedModel) -> nn.Module:
        """Where a resampler is put."""
        inner = getattr(model, "model", model)
        if self.connector is None or not hasattr(inner, self.connector):
            raise ConfigError(f"model.resampler does not go with {self.config.model_type}: no single sequence of visual tokens")
        module: nn.Module = inner.get_submodule(self.connector)
        return module

    @classmethod
    def default_image_size(cls, config: Any, processor: dict[str, Any]) -> tuple[int, int]:
        """(h, w) that the model was trained with, from its image processor's settings."""
        for size in (processor.get("crop_size") if processor.get("do_center_crop") else None, processor.get("size")):
            if isinstance(size, int):
                return size, size
            if size and "height" in size:
                return int(size["height"]), int(size["width"])
            if size and "shortest_edge" in size:
                return int(size["shortest_edge"]), int(size["shortest_edge"])
        raise CheckpointError(f"{config.model_type}: the image size is not known from its processor; set observation.image_size")


class TinyFamily(Family):
    template = "<bos>{images}{text}"
    special_tokens = False


FAMILIES: dict[str, type[Family]] = {
    "anyvla_tiny": TinyFamily,
    "llava": Family,
}


def family_of(model_type: str) -> type[Family]:
    """The family that serves a transformers ``model_type``."""
    if model_type not in FAMILIES:
        raise CheckpointError(f"no support for models of type {model_type!r}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]
