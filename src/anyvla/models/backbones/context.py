"""Run time of sequences: an episode's last frames, encoded once, and their key-value cache.

A control step runs the vision tower on the new frame only and the language model once. While the context grows, the new frame
is appended to the cache. When it is full, it begins again with the last ``keep`` frames, from their kept vision outputs. Every
feature is thus exactly that of a training window which ends here and has at most ``limit`` frames. Where the cache holds
a frame and no new beginning needs it, its vision output is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from anyvla.models.backbones.adapter import Backbone, gather, images_per_row
from anyvla.models.backbones.sequence import TokenSequence

KeyValues = tuple[tuple[torch.Tensor, torch.Tensor], ...]  # per layer, (1, heads, past, size) each


@dataclass(frozen=True)
class Frame:
    """What is kept of one moment: the vision tower's output for its images (None: dropped), the state, how many images."""

    vision: Any
    state: torch.Tensor | None
    images: int


@dataclass(frozen=True)
class Context:
    """What an episode has in its sequence: its frames, oldest first, their features (h, Q, D), the cache of their tokens."""

    frames: tuple[Frame, ...] = ()
    features: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0))
    cache: KeyValues | None = None
    past: int = 0


def extend(
    backbone: Backbone,
    images: torch.Tensor,
    prompts: Sequence[str],
    contexts: Sequence[Context],
    *,
    limit: int,
    keep: int,
    state: torch.Tensor | None = None,
    present: torch.Tensor | None = None,
) -> list[Context]:
    """Add one frame to each of N contexts; their ``features`` end with those of the new frame.

    Args:
        images: (N, C, 3, h, w) uint8. limit: frames a context may have; full, it begins again with its last ``keep`` frames.
        state: (N, S). present: (N, C) bool.
    """
    counts = images_per_row(images.shape[0], images.shape[1], present)
    visions = _encode_rows(backbone, images, prompts, present, counts)
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    grown = []
    for i, (context, vision, count) in enumerate(zip(contexts, visions, counts, strict=True)):
        frame = Frame(vision, None if state is None else state[i], count)
        if len(context.frames) >= limit:
            context = Context(context.frames[len(context.frames) - keep :])
        past = context.past if context.cache is not None and context.frames else 0
        grown.append(replace(context, frames=(*context.frames, frame), past=past))
        # rows of one length share a forward pass: no padding stands between a context and its continuation
        new = 1 if past else len(grown[i].frames)
        cameras = tuple(frame.images for frame in grown[i].frames[-new:])
        seen = sum(frame.images for frame in grown[i].frames[:-new])
        groups[past, seen, cameras, len(backbone.family.prompt_ids(prompts[i], cameras[0]))].append(i)
    for (past, seen, cameras, _), rows in groups.items():
        chosen = [grown[i] for i in rows]
        sequence = backbone.sequence([prompts[i] for i in rows], [cameras] * len(rows), past=past or None, past_images=seen)
        frames = [context.frames[-len(cameras) :] for context in chosen]
        hidden, cache = _run(backbone, sequence, frames, [context.cache for context in chosen] if past else None)
        for i, new, row_cache in zip(rows, backbone.readout(hidden, sequence), _rows_of(cache, len(rows)), strict=True):
            features = torch.cat([grown[i].features, new]) if past else new
            kept = grown[i].frames
            if row_cache is not None:
                kept = tuple(replace(frame, vision=None) if h < limit - keep else frame for h, frame in enumerate(kept))
            grown[i] = Context(kept, features, row_cache, past + sequence.ids.shape[1])
    return grown


def decode(
    backbone: Backbone,
    first: torch.Tensor,
    prompts: Sequence[str],
    contexts: Sequence[Context],
    steps: int,
    choose: Callable[[int, torch.Tensor], torch.Tensor],
    embed: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Decode ``steps`` tokens behind each of N contexts, which stay as they are.

    Args:
        first: (N, D) hidden states that the first tokens are chosen from.
        choose: (step, hidden (n, D)) -> tokens (n,). embed: tokens (n, K) -> (n, K, D).

    Returns:
        (N, steps) tokens.
    """
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, context in enumerate(contexts):
        groups[context.past, tuple(frame.images for frame in context.frames)].append(i)
    result: dict[int, torch.Tensor] = {}
    for (past, cameras), rows in groups.items():
        tokens = choose(0, first[rows])[:, None]
        chosen, texts = [contexts[i] for i in rows], [prompts[i] for i in rows]
        cache = _stacked([context.cache for context in chosen]) if chosen[0].cache is not None else None
        slot = _slot_sequence(backbone, texts, past, sum(cameras))
        for step in range(1, steps):
            if cache is not None:
                sequence = replace(slot, past=past + step - 1)
                inputs = {**backbone.family.inputs(sequence, None), "past_key_values": cache, "use_cache": True}
                hidden = backbone.run(sequence, inputs, suffix=embed(tokens[:, -1:]))
            else:
                sequence = backbone.sequence(texts, [cameras] * len(rows), suffix=step)
                hidden, _ = _run(backbone, sequence, [context.frames for context in chosen], None, embed(tokens))
            tokens = torch.cat([tokens, choose(step, gather(hidden, sequence.suffix)[:, -1])[:, None]], dim=1)
        result |= dict(zip(rows, tokens, strict=True))
    return torch.stack([result[i] for i in range(len(contexts))])


def _encode_rows(
    backbone: Backbone, images: torch.Tensor, prompts: Sequence[str], present: torch.Tensor | None, counts: Sequence[int]
) -> list[Any]:
    """``encode_vision`` of rows that may lack cameras: together where they have as many, for some families pad to the most."""
    if present is None:
        return encode_vision(backbone, images, prompts)
    visions: dict[int, Any] = {}
    for count in sorted(set(counts)):
        rows = [i for i, other in enumerate(counts) if other == count]
        chosen = torch.stack([images[i, present[i]] for i in rows])
        visions |= zip(rows, encode_vision(backbone, chosen, [prompts[i] for i in rows]), strict=True)
    return [visions[i] for i in range(len(counts))]


def encode_vision(backbone: Backbone, images: torch.Tensor, prompts: Sequence[str]) -> list[Any]:
    """The vision tower's output for each of N rows of images (N, C, 3, h, w); the language model does not run."""
    counts = [images.shape[1]] * len(images)
    sequence = backbone.sequence(prompts, [[count] for count in counts])
    pixels = backbone.pixels(images.flatten(0, 1))
    tower = backbone.family.vision(backbone.model)

    def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
        raise _VisionDone(output)

    handle = tower.register_forward_hook(stop)
    try:
        backbone.run(sequence, backbone.family.inputs(sequence, pixels), _no_state(backbone, sequence))
    except _VisionDone as done:
        return _split(backbone.family.kept(done.output), counts, backbone.family.image_dim)
    finally:
        handle.remove()
    raise RuntimeError(f"{backbone.model.config.model_type}: the vision tower did not run")


class _VisionDone(Exception):  # noqa: N818 - no error: it ends a forward pass behind the vision tower
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _no_state(backbone: Backbone, sequence: TokenSequence) -> torch.Tensor | None:
    encoder = backbone.state_encoder
    return None if encoder is None else encoder.weight.new_zeros(*sequence.state.shape[:2], encoder.in_features)


def _run(
    backbone: Backbone,
    sequence: TokenSequence,
    frames: Sequence[Sequence[Frame]],
    caches: Sequence[KeyValues | None] | None,
    suffix: torch.Tensor | None = None,
) -> tuple[torch.Tensor, DynamicCache | None]:
    """The language model over rows of equal length, images from their kept vision outputs."""
    family = backbone.family
    images = sum(frame.images for row in frames for frame in row)
    # their values are not looked at, but an image of zeros would count as padding in some families
    pixels = torch.ones(1, device=backbone.device, dtype=backbone.model.dtype).expand(images, 3, *backbone.image_size)
    inputs = family.inputs(sequence, pixels)
    cache = None
    if family.appendable:
        cache = DynamicCache() if caches is None else _stacked(caches)
        inputs |= {"past_key_values": cache, "use_cache": True}
    state = None
    if backbone.state_encoder is not None:
        state = torch.stack([torch.stack([frame.state for frame in row]) for row in frames])  # type: ignore[misc]
    with _vision_given(
        family.vision(backbone.model), _join([[frame.vision for frame in row] for row in frames], family.image_dim)
    ):
        return backbone.run(sequence, inputs, state, suffix), cache


def _slot_sequence(backbone: Backbone, prompts: Sequence[str], past: int, past_images: int) -> TokenSequence:
    """One slot behind ``past`` tokens."""
    whole = backbone.sequence(prompts, [[0]] * len(prompts), suffix=1)
    last = whole.ids.gather(1, whole.suffix)
    one = torch.zeros_like(last)
    none = torch.zeros(len(last), 1, 0, dtype=torch.int64, device=last.device)
    return TokenSequence(
        ids=last, mask=one + 1, frame=one, image=one - 1, later=one == 0, images=[0] * len(last),
        frame_of_image=none[:, 0], state=none, queries=none, suffix=one, tail=none[:, 0], past=past, past_images=past_images,
    )  # fmt: skip


@contextmanager
def _vision_given(tower: nn.Module, output: Any) -> Iterator[None]:
    """While the block runs, the vision tower gives ``output`` without computing."""

    def given(*_arguments: Any, **_keywords: Any) -> Any:
        return output

    tower.forward = given
    try:
        yield
    finally:
        del tower.forward


def _split(output: Any, counts: Sequence[int], dim: int) -> list[Any]:
    """The output of a tower for all rows -> one for each row. ``dim`` 0: images follow each other; 1: (rows, images, ...)."""
    if output is None or isinstance(output, (int, float, bool)):
        return [output] * len(counts)
    if isinstance(output, torch.Tensor):
        if dim == 1:
            return list(output.split(1))
        unit = len(output) // sum(counts)
        return list(output.split([count * unit for count in counts]))
    if isinstance(output, dict):  # a ModelOutput
        parts = {key: _split(value, counts, dim) for key, value in output.items()}
        return [type(output)(**{key: value[i] for key, value in parts.items()}) for i in range(len(counts))]
    lists = [_split(value, counts, dim) for value in output]
    return [type(output)(row) for row in zip(*lists, strict=True)]


def _join(rows: Sequence[Sequence[Any]], dim: int) -> Any:
    """The inverse of ``_split``, for rows of several frames each."""
    first = rows[0][0]
    if first is None or isinstance(first, (int, float, bool)):
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat([torch.cat(list(row), dim=dim) for row in rows])
    if isinstance(first, dict):
        return type(first)(**{key: _join([[frame[key] for frame in row] for row in rows], dim) for key in first})
    return type(first)(_join([[frame[i] for frame in row] for row in rows], dim) for i in range(len(first)))


def _rows_of(cache: DynamicCache | None, count: int) -> list[KeyValues | None]:
    if cache is None:
        return [None] * count
    return [tuple((layer.keys[i : i + 1], layer.values[i : i + 1]) for layer in cache.layers) for i in range(count)]


def _stacked(caches: Sequence[KeyValues | None]) -> DynamicCache:
    """One cache of several rows of equal length. One row's shares its tensors: a cache grows by new ones, never in place."""
    rows = [cache for cache in caches if cache is not None]
    stacked = DynamicCache()
    for parts in zip(*rows, strict=True):
        keys, values = (torch.cat(part) if len(part) > 1 else part[0] for part in zip(*parts, strict=True))
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # by way of ``update`` they would be copied once more
        stacked.layers.append(layer)
    return stacked
