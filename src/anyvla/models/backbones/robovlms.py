"""The token sequences of RoboVLMs (arXiv 2412.14058), for weights that were trained with them.

The original builds its sequence by hand and runs the language model on it, causal throughout:

    begin  [image] [image]  words  [state] [queries]  end

``begin`` is the first token of its prompt and ``end`` the last, whatever they are: it takes for granted that a tokenizer with a
bos puts it in front, and one with an eos at the end. Nothing stands around images. Each further frame repeats all of this.
OpenFlamingo, which sees images by cross-attention, has the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anyvla.errors import CheckpointError, ConfigError
from anyvla.models.backbones.families import Family, Kosmos2Family, MoondreamFamily, OpenFlamingoFamily, PaliGemmaFamily
from anyvla.models.backbones.sequence import TokenSequence


class RoboVLMsFamily(Family):
    """What the layout changes in a family; mixed in before it. The prompt is the whole text, special tokens included."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_size: tuple[int, int]) -> None:
        super().__init__(model, tokenizer, image_size)
        self.ending = int(tokenizer.eos_token is not None)

    def encode_prompt(self, text: str, images: int) -> list[int]:
        words = self.tokenizer(text, add_special_tokens=self.special_tokens)["input_ids"]
        begin = int(self.tokenizer.bos_token is not None)
        return [*words[:begin], *[self.placeholder_id] * (self.tokens_per_image * images), *words[begin:]]

    def further_ids(self, text: str, images: int) -> list[int]:
        return self.prompt_ids(text, images)

    def query_scale(self, model: PreTrainedModel) -> float:
        """What the language model of the original multiplies all its inputs by, and the one here only its words."""
        return 1.0


class RoboVLMsKosmos2(RoboVLMsFamily, Kosmos2Family):
    def find_placeholder(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<image>"))

    def placeholders(self, ids: Sequence[int]) -> list[bool]:
        return [token == self.placeholder_id for token in ids]


class RoboVLMsPaliGemma(RoboVLMsFamily, PaliGemmaFamily):
    causal = True

    def inputs(self, sequence: TokenSequence, pixels: torch.Tensor | None) -> dict[str, Any]:
        result = super().inputs(sequence, pixels)
        result["token_type_ids"] = torch.ones_like(sequence.ids)  # every token sees what stands before it, no more
        return result

    def query_scale(self, model: PreTrainedModel) -> float:
        return float(model.config.text_config.hidden_size) ** 0.5


class RoboVLMsMoondream(RoboVLMsFamily, MoondreamFamily):
    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_size: tuple[int, int]) -> None:
        if model.config.prefix_attention:
            raise CheckpointError(
                "layout robovlms belongs to the Moondream of 2024, which is causal throughout: "
                "set prefix_attention to false in the config.json of the vision-language model"
            )
        super().__init__(model, tokenizer, image_size)


class RoboVLMsOpenFlamingo(RoboVLMsFamily, OpenFlamingoFamily):
    """The prompt names the one image that there is; a second camera would share its place."""

    special_tokens = True

    def encode_prompt(self, text: str, images: int) -> list[int]:
        if images != 1:
            raise ConfigError(f"layout robovlms of OpenFlamingo takes one camera, not {images}")
        ids: list[int] = self.tokenizer(text, add_special_tokens=self.special_tokens)["input_ids"]
        return ids


LAYOUTS: dict[str, type[RoboVLMsFamily]] = {
    "anyvla_moondream": RoboVLMsMoondream,
    "anyvla_openflamingo": RoboVLMsOpenFlamingo,
    "kosmos-2": RoboVLMsKosmos2,
    "paligemma": RoboVLMsPaliGemma,
}


def robovlms_family(model_type: str) -> type[RoboVLMsFamily]:
    """The family that serves a transformers ``model_type`` with the sequences of RoboVLMs."""
    if model_type not in LAYOUTS:
        known = ", ".join(sorted(LAYOUTS))
        raise CheckpointError(f"layout robovlms is not known for models of type {model_type!r}; known: {known}")
    return LAYOUTS[model_type]
