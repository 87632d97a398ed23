"""The tokens of a batch: where images, words, query tokens and everything else stand in the model's own sequence.

A row is the prompt with the images of the first frame, then slots; each further frame adds its images and its slots:

    [images] prompt [state] [queries]   [images] [state] [queries]   ...   [suffix or tail]

Slots are places whose embedding is written by the adapter: the state token, the query tokens, the suffix (action tokens). They
come right behind the last real token of their frame, and padding stands at the end of the row, so that it changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from anyvla.models.backbones.families import Family


@dataclass(frozen=True)
class TokenSequence:
    """N rows of T tokens, padded on the right.

    Attributes:
        ids: (N, T) token ids. mask: (N, T) 1 = real. frame: (N, T), the frame that a token belongs to.
        image: (N, T), which of the row's images a placeholder stands for, -1 elsewhere. later: (N, T) bool, behind the prompt
        and slots of the first frame. images: how many images each row has. frame_of_image: (N, largest of them), -1 = none.
        state: (N, H, 0 or 1), queries: (N, H, Q), suffix: (N, K), tail: (N, K'), places; a tail's padding is -1.
        past, past_images: tokens and images in front of these that are in the key-value cache already.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    frame: torch.Tensor
    image: torch.Tensor
    later: torch.Tensor
    images: list[int]
    frame_of_image: torch.Tensor
    state: torch.Tensor
    queries: torch.Tensor
    suffix: torch.Tensor
    tail: torch.Tensor
    past: int = 0
    past_images: int = 0

    def rows(self, index: torch.Tensor) -> TokenSequence:
        """The rows at ``index``, repeated as it repeats them."""
        picked = {
            name: getattr(self, name)[index]
            for name in ("ids", "mask", "frame", "image", "later", "frame_of_image", "state", "queries", "suffix", "tail")
        }
        return TokenSequence(
            **picked,
            images=[self.images[i] for i in index.tolist()],
            past=self.past,
            past_images=self.past_images,
        )


@dataclass
class _Row:
    ids: list[int]
    frame: list[int]
    image: list[int]
    later: list[bool]
    frame_of_image: list[int]
    places: dict[str, list[list[int]]]

    def add(self, ids: Sequence[int], frame: int, later: bool, images: Sequence[int] | None = None) -> list[int]:
        """Append tokens; returns their places."""
        places = list(range(len(self.ids), len(self.ids) + len(ids)))
        self.ids += ids
        self.frame += [frame] * len(ids)
        self.image += images if images is not None else [-1] * len(ids)
        self.later += [later] * len(ids)
        return places


def build_sequence(
    family: Family,
    prompts: Sequence[str],
    device: torch.device,
    *,
    cameras: Sequence[Sequence[int]],
    state: bool = False,
    queries: int = 0,
    suffix: int = 0,
    tails: Sequence[Sequence[int]] | None = None,
    past: int | None = None,
    past_images: int = 0,
) -> TokenSequence:
    """Lay out N rows.

    Args:
        cameras: for each row, how many images each of its frames has. state: whether every frame has a state token.
        queries: Q per frame. suffix: K slots at the end. tails: real token ids at the end of each row (an answer).
        past: given, the rows are one further frame each, to be appended behind ``past`` tokens with ``past_images`` images.
    """
    keys = [
        (prompt, tuple(counts), tuple(tail))
        for prompt, counts, tail in zip(prompts, cameras, tails or [()] * len(prompts), strict=True)
    ]
    unique = list(dict.fromkeys(keys))  # the frames of a window share one prompt
    rows = [_row(family, *key, int(state), queries, suffix, past is not None) for key in unique]
    sequence = _stack(rows, family.pad_id, past or 0, past_images, device)
    if len(unique) == len(keys):
        return sequence
    at = {key: i for i, key in enumerate(unique)}
    return sequence.rows(torch.tensor([at[key] for key in keys], device=device))


def _row(
    family: Family,
    prompt: str,
    cameras: tuple[int, ...],
    tail: tuple[int, ...],
    state: int,
    queries: int,
    suffix: int,
    continued: bool,
) -> _Row:
    row = _Row([], [], [], [], [], {"state": [], "queries": [], "suffix": [], "tail": []})
    first = family.prompt_ids(prompt, cameras[0])
    # a slot repeats the id of the last word: neither padding nor an image, whatever the model
    slot = [token for token, placeholder in zip(first, family.placeholders(first), strict=True) if not placeholder][-1]
    for h, count in enumerate(cameras):
        later = h > 0 or continued
        ids = family.further_ids(prompt, count) if later else first
        ending = len(ids) - family.ending
        before = len(row.frame_of_image)
        seen, images = 0, []
        for placeholder in family.placeholders(ids):
            images.append(before + seen // family.tokens_per_image if placeholder else -1)
            seen += placeholder
        if seen != count * family.tokens_per_image:
            raise family.prompt_error(prompt)
        row.add(ids[:ending], h, later, images[:ending])
        row.frame_of_image += [h] * count
        row.places["state"].append(row.add([slot] * state, h, later))
        row.places["queries"].append(row.add([slot] * queries, h, later))
        row.add(ids[ending:], h, later)
    row.places["suffix"] = [row.add([slot] * suffix, len(cameras) - 1, True)]
    row.places["tail"] = [row.add(tail, len(cameras) - 1, True)]
    return row


def _stack(rows: list[_Row], pad: int, past: int, past_images: int, device: torch.device) -> TokenSequence:
    def padded(lists: Sequence[Sequence[int | bool]], fill: int | bool) -> torch.Tensor:
        width = max(map(len, lists))
        return torch.tensor([[*values, *[fill] * (width - len(values))] for values in lists], device=device)

    def places(name: str) -> torch.Tensor:
        return torch.tensor([row.places[name] for row in rows], dtype=torch.int64, device=device)

    return TokenSequence(
        ids=padded([row.ids for row in rows], pad),
        mask=padded([[1] * len(row.ids) for row in rows], 0),
        frame=padded([row.frame for row in rows], -1),
        image=padded([row.image for row in rows], -1),
        later=padded([row.later for row in rows], True),
        images=[len(row.frame_of_image) for row in rows],
        frame_of_image=padded([row.frame_of_image for row in rows], -1).long(),
        state=places("state"),
        queries=places("queries"),
        suffix=places("suffix")[:, 0],
        tail=padded([row.places["tail"][0] for row in rows], -1).long(),
        past=past,
        past_images=past_images,
    )
