"""Conversations about images in LLaVA's JSON, for vision-language co-training.

    [{"id": "7", "image": "coco/7.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat stands in front of the robot?"},
        {"from": "gpt", "value": "A box."},
        {"from": "human", "value": "On which side is there room?"},
        {"from": "gpt", "value": "On the left."}]}]

Every answer is one sample: its prompt is all that was said before it, a line for each turn, and only the answer is learned.
The image, if the entry has one, stands where the model's own prompt has images; ``<image>`` is left out of the text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from anyvla.batch import TextBatch
from anyvla.config.objectives import ConversationsConfig
from anyvla.config.settings import Fit, OnBadEpisode
from anyvla.data.episode import Problem
from anyvla.data.images import resize_frame
from anyvla.data.sampler import Item
from anyvla.errors import DataError

Sample = dict[str, Any]

_ROLES = ("human", "gpt")
_IMAGE = "<image>"


@dataclass(frozen=True)
class Conversation:
    """``turns`` alternate: question, answer, question, answer. ``image``: a file, or None."""

    name: str
    image: Path | None
    turns: tuple[str, ...]


class ConversationDataset:
    """The answers of ``conversations``, each addressed by its index; the same address always gives the same sample."""

    def __init__(
        self, conversations: Sequence[Conversation], image_size: tuple[int, int], fit: Fit, max_characters: int
    ) -> None:
        self.conversations = list(conversations)
        self._answers = [(i, j) for i, c in enumerate(self.conversations) for j in range(1, len(c.turns), 2)]
        self._image_size = image_size
        self._fit = fit
        self._max_characters = max_characters

    def __len__(self) -> int:
        return len(self._answers)

    def __getitem__(self, item: Item) -> Sample:
        """image (h, w, 3) uint8 or None, prompt, answer and name str.

        Raises DataError, naming the entry, if the image cannot be decoded.
        """
        entry, turn = self._answers[item.index]
        conversation = self.conversations[entry]
        answer, before = conversation.turns[turn], conversation.turns[:turn]
        # what is too long loses its oldest turns, a question and its answer at a time
        while len(before) > 2 and _characters(*before, answer) > self._max_characters:
            before = before[2:]
        return {
            "image": None if conversation.image is None else self._read(conversation.name, conversation.image),
            "prompt": "\n".join(before),
            "answer": answer,
            "name": conversation.name,
        }

    def __getitems__(self, items: list[Item]) -> list[Sample]:
        return [self[item] for item in items]

    def collate(self, samples: list[Sample]) -> TextBatch:
        """N samples -> TextBatch, with images as (N, 3, h, w)."""
        black = np.zeros((*self._image_size, 3), np.uint8)
        images = np.stack([black if sample["image"] is None else sample["image"] for sample in samples])
        return TextBatch(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            present=torch.tensor([sample["image"] is not None for sample in samples]),
            prompts=[sample["prompt"] for sample in samples],
            answers=[sample["answer"] for sample in samples],
            names=[sample["name"] for sample in samples],
        )

    def fingerprint(self) -> str:
        """Of what is trained on: every text, and the name of every image."""
        digest = hashlib.sha256()
        for conversation in self.conversations:
            image = conversation.image.name if conversation.image is not None else None
            digest.update(json.dumps([image, *conversation.turns]).encode())
        return digest.hexdigest()[:16]

    def _read(self, name: str, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, Image.DecompressionBombError) as error:
            raise DataError(f"{name}: the image {path} cannot be decoded ({error})") from error
        return resize_frame(pixels, self._image_size, self._fit)


def load_conversations(
    config: ConversationsConfig, image_size: tuple[int, int], fit: Fit = "stretch", on_bad: OnBadEpisode = "error"
) -> tuple[ConversationDataset, list[Problem]]:
    """The answers of the file that ``config`` names, and the entries left out (``on_bad="skip"``).

    Args:
        image_size: (h, w) that images are brought to, as ``fit`` says.

    Raises:
        DataError: the file is no list of conversations, an entry is broken, or none can be used.
    """
    folder = config.images or config.path.parent
    good: list[Conversation] = []
    problems: list[Problem] = []
    for name, entry in _entries(config.path):
        try:
            good.append(_conversation(name, entry, folder, config.max_characters))
        except DataError as error:
            if on_bad == "error":
                raise DataError(f"{error} (data.on_bad_episode=skip leaves such entries out)") from error
            problems.append(Problem(name, str(error)))
    if not good:
        raise DataError(f"{config.path}: no conversation can be used{f'; {problems[0].reason}' if problems else ''}")
    return ConversationDataset(good, image_size, fit, config.max_characters), problems


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of a file with a name for each: ``llava.json[3] (id 7)``."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"objectives.conversations.path: {path} is no JSON file that can be read ({error})") from error
    if not isinstance(entries, list):
        raise DataError(f"{path}: expected a list of conversations, found {type(entries).__name__}")
    for i, entry in enumerate(entries):
        known = isinstance(entry, dict) and "id" in entry
        yield f"{path.name}[{i}]" + (f" (id {entry['id']})" if known else ""), entry


def _conversation(name: str, entry: Any, folder: Path, max_characters: int) -> Conversation:
    if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
        raise DataError(f"{name}: expected an object with a list 'conversations'")
    turns = entry["conversations"]
    if not turns or len(turns) % 2:
        raise DataError(f"{name}: {len(turns)} turns; expected questions (from 'human') and answers (from 'gpt') by turns")
    texts = []
    for i, turn in enumerate(turns):
        value = turn.get("value") if isinstance(turn, dict) else None
        if not isinstance(value, str):
            raise DataError(f"{name}: turn {i}: expected an object with 'from' and a text 'value'")
        if turn.get("from") != _ROLES[i % 2]:
            raise DataError(f"{name}: turn {i} is from {turn.get('from')!r}, expected {_ROLES[i % 2]!r}")
        texts.append(value)
    image = _image_path(name, entry.get("image"), folder)
    written = sum(text.count(_IMAGE) for text in texts)
    if written > (image is not None) or any(_IMAGE in answer for answer in texts[1::2]):
        raise DataError(f"{name}: {written} {_IMAGE} in the text; it may stand once, in a question about an 'image'")
    texts = [text.replace(_IMAGE, "").strip() for text in texts]
    for i, text in enumerate(texts):
        if not text:
            raise DataError(f"{name}: turn {i} says nothing")
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        if _characters(question, answer) > max_characters:
            raise DataError(
                f"{name}: a question and its answer have {_characters(question, answer)} characters, "
                f"more than objectives.conversations.max_characters {max_characters}"
            )
    return Conversation(name, image, tuple(texts))


def _image_path(name: str, image: Any, folder: Path) -> Path | None:
    """The file of an entry's image, which lies in ``folder`` and begins as an image does."""
    if image is None:
        return None
    if not isinstance(image, str):
        raise DataError(f"{name}: 'image' is {image!r}; expected the path of one file")
    relative = os.path.normpath(image)
    if os.path.isabs(relative) or relative.split(os.sep)[0] == os.pardir:
        raise DataError(f"{name}: the image {image!r} leads out of the folder {folder}")
    path = folder / relative
    try:
        with Image.open(path):
            pass
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: {path} is no image") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: the image {path} cannot be read ({error})") from error
    return path


def _characters(*texts: str) -> int:
    return sum(map(len, texts))
