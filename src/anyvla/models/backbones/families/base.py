"""What every family of vision-language models tells the adapter; the defaults are LLaVA's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anyvla.errors import ConfigError, DataError

if TYPE_CHECKING:
    from anyvla.models.backbones.sequence import TokenSequence


class Family:
    """LLaVA's way, and the base of all others.

    Attributes:
        template: the prompt, with the images of the first frame and the text.
        special_tokens: whether the tokenizer adds its own to it.
        connector: path of the module whose output is what the language model gets of an image, (images, tokens, D).
        causal: later tokens never change earlier hidden states. appendable: the key-value cache can be continued with a frame.
        mixes: rows with and without images may share a forward pass.
        writes: the hidden state of each token predicts the next one.
        image_dim: the dimension along which images follow each other in the vision tower's output.
        black: (1, 3, 1, 1), a black pixel, normalised. ending: tokens of a prompt that stand behind its slots.
    """

    black: torch.Tensor

    template = "USER: {images}\n{text} ASSISTANT:"
    special_tokens = True
    connector: str | None = "multi_modal_projector"
    causal = True
    appendable = True
    mixes = True
    writes = True
    image_dim = 0
    ending = 0
    multiple: int | None = None  # images of any size that is a multiple of this; None: of the one size it was trained with

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_size: tuple[int, int]) -> None:
        self.config = model.config
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.check_image_size()
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.placeholder_id = self.find_placeholder()
        self.tokens_per_image = self.count_tokens()
        self._prompts: dict[tuple[str, int], list[int]] = {}

    # -- tokens

    def check_image_size(self) -> None:
        size = list(self.image_size)
        if self.multiple is not None:
            if size[0] % self.multiple or size[1] % self.multiple:
                raise ConfigError(
                    f"observation.image_size {size} must be multiples of {self.multiple} for {self.config.model_type}"
                )
        elif size != (own := pair(self.config.vision_config.image_size)):
            raise ConfigError(f"observation.image_size is {size}, but this {self.config.model_type} takes {own} only")

    def find_placeholder(self) -> int:
        return int(self.config.image_token_id)

    def patches(self) -> int:
        """Patches of the vision tower per image."""
        patch = pair(self.config.vision_config.patch_size)
        return (self.image_size[0] // patch[0]) * (self.image_size[1] // patch[1])

    def count_tokens(self) -> int:
        """Placeholders per image."""
        return self.patches() + (getattr(self.config, "vision_feature_select_strategy", "default") == "full")

    def placeholders(self, ids: Sequence[int]) -> list[bool]:
        """Which tokens stand for images."""
        return [token == self.placeholder_id for token in ids]

    def images_text(self, images: int) -> str:
        """``images`` images as text: their placeholders, and what stands around them."""
        return self.image_text() * images

    def image_text(self) -> str:
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
        written = self.template.replace("{images}", self.images_text(images)).replace("{text}", text)
        return self.tokenizer(written, add_special_tokens=self.special_tokens)["input_ids"]

    def frame_ids(self, images: int) -> list[int]:
        """Token ids of a further frame of ``images`` images."""
        return self.tokenizer(self.images_text(images), add_special_tokens=False)["input_ids"]

    def further_ids(self, text: str, images: int) -> list[int]:
        """Token ids of a further frame behind a prompt with ``text``."""
        return self.frame_ids(images)

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
        """Run ``model``; hidden states (N, T, D) after the last norm. The vocabulary head is called with no token at all."""
        kept: list[torch.Tensor] = []

        def keep(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            kept.append(arguments[0])
            return (arguments[0][:, :0],)  # for even one token it would read all its weights

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

    def kept(self, output: Any) -> Any:
        """Of the vision tower's ``output``, what the model goes on with: all that need be remembered of a frame."""
        layers = getattr(self.config, "vision_feature_layer", None)
        states = getattr(output, "hidden_states", None)
        if layers is None or layers == -1 or states is None:
            return output
        chosen = {layer % len(states) for layer in ([layers] if isinstance(layers, int) else layers)}
        return type(output)(hidden_states=tuple(state if i in chosen else None for i, state in enumerate(states)))

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
        own = pair(config.vision_config.image_size)
        return own[0], own[1]


class CountedFamily(Family):
    """Whose configuration says how many placeholders an image has."""

    def count_tokens(self) -> int:
        return int(self.config.image_seq_length)


def attended_images(sequence: TokenSequence) -> torch.Tensor:
    """(N, T, I) bool: the images that each token looks at by cross-attention: those of its frame that stand before it."""
    count = sequence.frame_of_image.shape[1]
    images = torch.arange(count, device=sequence.ids.device)
    seen = (sequence.image[..., None] == images).long().cumsum(1) > 0
    return seen & (sequence.frame[..., None] == sequence.frame_of_image[:, None]) & sequence.mask.bool()[..., None]


def batched(pixels: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """All images one after the other -> (N, most images of a row, 3, h, w), padded with zeros."""
    rows = pixels.split(counts)
    if len(set(counts)) == 1:
        return torch.stack(rows)
    return nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def pair(size: Any) -> list[int]:
    return [int(size), int(size)] if isinstance(size, int) else [int(size[0]), int(size[1])]
