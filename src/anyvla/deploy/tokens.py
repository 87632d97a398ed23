"""From an instruction to the tokens that an exported backbone reads, with the tokenizer's own file and nothing else.

The images of a prompt have fixed places; only the words change from episode to episode. So a layout is a few token ids in
front, a text with ``{text}`` in it, and the slots behind (see ``models.backbones.sequence``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from anyvla.errors import CheckpointError, DataError


@dataclass(frozen=True)
class PromptLayout:
    """Attributes:

    front: token ids before the text. text: what is tokenized, ``{text}`` standing for the prompt. special_tokens: whether the
    tokenizer adds its own. image_places: where image tokens stand. image_token: their id, None where they have several.
    slots: state and query tokens. ending: tokens of the prompt that stand behind the slots.
    """

    front: tuple[int, ...]
    text: str
    special_tokens: bool
    image_places: tuple[int, ...]
    image_token: int | None
    slots: int
    ending: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> PromptLayout:
        """The inverse of ``to_dict``; raises CheckpointError for anything else."""
        try:
            return cls(
                front=tuple(map(int, value["front"])),
                text=str(value["text"]),
                special_tokens=bool(value["special_tokens"]),
                image_places=tuple(map(int, value["image_places"])),
                image_token=None if value["image_token"] is None else int(value["image_token"]),
                slots=int(value["slots"]),
                ending=int(value["ending"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the prompt's layout is damaged: {error!r}") from error


def prompt_tokens(tokenizer: Any, layout: PromptLayout, prompt: str) -> list[int]:
    """Token ids of ``prompt`` with its images, without slots, by a ``tokenizers.Tokenizer``."""
    text = layout.text.replace("{text}", prompt)
    return [*layout.front, *tokenizer.encode(text, add_special_tokens=layout.special_tokens).ids]


def input_tokens(tokenizer: Any, layout: PromptLayout, prompt: str) -> np.ndarray:
    """(1, T) int64: what the exported backbone takes.

    Raises:
        DataError: the prompt contains the token that stands for an image.
    """
    ids = prompt_tokens(tokenizer, layout, prompt)
    if layout.image_token is not None and ids.count(layout.image_token) != len(layout.image_places):
        raise DataError(f"the instruction {prompt[:80]!r} contains the token that stands for an image; write it without")
    places = set(layout.image_places)
    last_word = next(ids[i] for i in reversed(range(len(ids))) if i not in places)
    end = len(ids) - layout.ending
    return np.array([[*ids[:end], *[last_word] * layout.slots, *ids[end:]]], dtype=np.int64)
