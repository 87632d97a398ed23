"""WindowDataset: random windows of a set of episodes, from the frame store, augmented and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from anyvla.actions import Windows, chunk_targets
from anyvla.batch import Batch
from anyvla.data.augment import Augmentation
from anyvla.data.episode import Episode
from anyvla.data.sampler import Item
from anyvla.data.store import FrameStore
from anyvla.data.transforms import Transforms

Sample = dict[str, Any]


class WindowDataset:
    """Windows of ``episodes``, addressed by (epoch, index); the same address always gives the same sample."""

    def __init__(
        self,
        episodes: Sequence[Episode],
        store: FrameStore,
        transforms: Transforms,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.episodes = list(episodes)
        self.windows = Windows([episode.length for episode in episodes], transforms.window)
        self._store = store
        self._transforms = transforms
        self._augmentation = augmentation
        self._seed = seed

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, item: Item) -> Sample:
        """The window at ``item``:

        images camera -> (H, h, w, 3) uint8, prompt str, actions (H, L, A) float32 normalised, mask (H, L) bool, name str,
        present (C,) bool, and state (H, S) float32 normalised or None. An absent camera has black frames.
        """
        transforms = self._transforms
        index, start = self.windows[item.index]
        episode = self.episodes[index]
        stop = min(start + transforms.window, episode.length)
        stored = self._store.read(episode.name, start, stop)
        images = {camera: stored[camera] for camera in transforms.cameras if camera in episode.cameras}
        state = None if episode.state is None else episode.state[start:stop]
        actions, mask = chunk_targets(episode.actions, start, transforms.window, transforms.chunk)
        instruction = episode.instruction
        if self._augmentation is not None:
            rng = np.random.default_rng([self._seed, item.epoch, item.index])
            images, instruction, actions, state = self._augmentation(images, instruction, actions, transforms.spec, rng, state)
        absent = np.zeros((stop - start, *transforms.image_size, 3), dtype=np.uint8)
        return {
            "images": {camera: _pad_window(images.get(camera, absent), transforms.window) for camera in transforms.cameras},
            "present": np.array([camera in images for camera in transforms.cameras]),
            "state": transforms.normalize_state(
                None if state is None else _pad_window(state, transforms.window), transforms.window
            ),
            "prompt": transforms.prompt(instruction),
            "actions": transforms.normalizer.normalize(actions),
            "mask": mask,
            "name": f"{episode.name}@{start}",
        }

    def __getitems__(self, items: list[Item]) -> list[Sample]:
        return [self[item] for item in items]


def _pad_window(frames: np.ndarray, window: int) -> np.ndarray:
    """Repeat the last frame (or state) of an episode shorter than the window; the mask says which steps are real."""
    return frames[np.minimum(np.arange(window), len(frames) - 1)] if len(frames) < window else frames


def collate(samples: list[Sample]) -> Batch:
    """B samples -> Batch, with images as (B, H, 3, h, w)."""
    cameras = samples[0]["images"]
    present = torch.from_numpy(np.stack([sample["present"] for sample in samples]))
    stateless = samples[0]["state"] is None
    return Batch(
        images={
            camera: torch.from_numpy(np.stack([sample["images"][camera] for sample in samples])).permute(0, 1, 4, 2, 3)
            for camera in cameras
        },
        prompts=[sample["prompt"] for sample in samples],
        actions=torch.from_numpy(np.stack([sample["actions"] for sample in samples])),
        action_mask=torch.from_numpy(np.stack([sample["mask"] for sample in samples])),
        names=[sample["name"] for sample in samples],
        state=None if stateless else torch.from_numpy(np.stack([sample["state"] for sample in samples])),
        present=None if present.all() else present,
    )
