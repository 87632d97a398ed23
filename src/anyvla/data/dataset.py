"""WindowDataset: random windows of a set of episodes, from the frame store, augmented and normalised."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from anyvla.actions import Windows, chunk_targets
from anyvla.batch import Batch
from anyvla.config.settings import OnBadEpisode
from anyvla.data.augment import Augmentation
from anyvla.data.direct import DirectFrames
from anyvla.data.episode import Episode
from anyvla.data.prompts import make_prompt
from anyvla.data.sampler import Item
from anyvla.data.store import FrameStore
from anyvla.data.transforms import Transforms
from anyvla.errors import DataError

_LOG = logging.getLogger(__name__)

Sample = dict[str, Any]


class WindowDataset:
    """Windows of ``episodes``, addressed by (epoch, index); the same address always gives the same sample."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        store: FrameStore | DirectFrames,
        transforms: Transforms,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        future: int = 0,
        future_cameras: Sequence[str] = (),
        on_bad_episode: OnBadEpisode = "error",
    ) -> None:
        """``future``: N, frames of ``future_cameras`` behind each window that are loaded with it.

        ``on_bad_episode``: stop at frames that cannot be read when they are drawn, or draw those of the next episode instead.
        """
        self.episodes = list(episodes)
        self.windows = Windows([episode.length for episode in episodes], transforms.window)
        self._store = store
        self._transforms = transforms
        self._augmentation = augmentation
        self._seed = seed
        self._future = dict.fromkeys(future_cameras, future)
        self._on_bad_episode = on_bad_episode

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: Item) -> Sample:
        """The window at ``item``:

        images camera -> (H, h, w, 3) uint8, prompt and caption str, actions (H, L, A) float32 normalised, mask (H, L) bool,
        name str, present (C,) bool, and state (H, S) float32 normalised or None. An absent camera has black frames.
        If frames behind the window are wanted: future camera -> (N, h, w, 3) uint8 and future_mask (N,) bool.
        """
        if self._on_bad_episode == "error":
            return self._sample(item)
        index = item.index
        for _ in self.episodes:
            try:
                return self._sample(Item(item.epoch, index))
            except DataError as error:
                episode = self.windows[index][0]
                _LOG.warning("left out: %s", error)
                index = self.windows.first((episode + 1) % len(self.episodes))
        raise DataError("no frames of any episode can be read")

    def _sample(self, item: Item) -> Sample:
        transforms = self._transforms
        index, start = self.windows[item.index]
        episode = self.episodes[index]
        window, ahead = transforms.window, max(self._future.values(), default=0)
        stop = min(start + window, episode.length)
        stored = self._store.read(episode.name, start, min(start + window + ahead, episode.length))
        lengths = {camera: window + self._future.get(camera, 0) for camera in transforms.cameras}
        images = {camera: stored[camera][:length] for camera, length in lengths.items() if camera in episode.cameras}
        state = None if episode.state is None else episode.state[start:stop]
        actions, mask = chunk_targets(episode.actions, start, transforms.window, transforms.chunk)
        instruction = caption = episode.instruction
        if self._augmentation is not None:
            draws = [self._seed, item.epoch, item.index]
            caption = self._augmentation.mirrored(instruction, np.random.default_rng(draws)) or instruction
            rng = np.random.default_rng(draws)
            images, instruction, actions, state = self._augmentation(images, instruction, actions, transforms.spec, rng, state)
        absent = np.zeros((1, *transforms.image_size, 3), dtype=np.uint8)
        frames = {camera: _pad(images.get(camera, absent), length) for camera, length in lengths.items()}
        sample = {
            "images": {camera: frames[camera][:window] for camera in transforms.cameras},
            "present": np.array([camera in images for camera in transforms.cameras]),
            "state": transforms.normalize_state(None if state is None else _pad(state, window), window),
            "prompt": transforms.prompt(instruction),
            "caption": make_prompt(caption),
            "actions": transforms.normalizer.normalize(actions),
            "mask": mask,
            "name": f"{episode.name}@{start}",
        }
        if ahead:
            sample["future"] = {camera: frames[camera][window:] for camera in self._future}
            sample["future_mask"] = start + window + np.arange(ahead) < episode.length
        return sample

    def __getitems__(self, items: list[Item]) -> list[Sample]:
        return [self[item] for item in items]


def _pad(frames: np.ndarray, length: int) -> np.ndarray:
    """Repeat the last frame (or state) where the episode has no more; the mask says which steps are real."""
    return frames[np.minimum(np.arange(length), len(frames) - 1)] if len(frames) < length else frames


def collate(samples: list[Sample]) -> Batch:
    """B samples -> Batch, with images as (B, H, 3, h, w)."""
    present = torch.from_numpy(np.stack([sample["present"] for sample in samples]))
    stateless = samples[0]["state"] is None
    has_future = "future" in samples[0]
    return Batch(
        images=_stack_frames([sample["images"] for sample in samples]),
        prompts=[sample["prompt"] for sample in samples],
        actions=torch.from_numpy(np.stack([sample["actions"] for sample in samples])),
        action_mask=torch.from_numpy(np.stack([sample["mask"] for sample in samples])),
        names=[sample["name"] for sample in samples],
        state=None if stateless else torch.from_numpy(np.stack([sample["state"] for sample in samples])),
        present=None if present.all() else present,
        captions=[sample["caption"] for sample in samples],
        future=_stack_frames([sample["future"] for sample in samples]) if has_future else None,
        future_mask=torch.from_numpy(np.stack([sample["future_mask"] for sample in samples])) if has_future else None,
    )


def _stack_frames(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """B x camera -> (T, h, w, 3)  becomes  camera -> (B, T, 3, h, w)."""
    return {camera: torch.from_numpy(np.stack([row[camera] for row in rows])).permute(0, 1, 4, 2, 3) for camera in rows[0]}
