"""Batch: the one currency between data and models."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Batch:
    """B windows of H observations, with the chunk of L actions that begins at each of their steps.

    Attributes:
        images: camera name -> (B, H, 3, h, w) uint8 RGB; they become floats on the device.
        prompts: B strings, as made by the prompt function.
        actions: (B, H, L, A) float32, normalised.
        action_mask: (B, H, L) bool, True where the action is real.
        state: (B, H, S) float32, normalised, or None.
        present: (B, C) bool, False where a window lacks a camera, whose frames are then black; None: all there.
        names: B strings ``episode@frame`` that say where each window comes from.
    """

    images: dict[str, torch.Tensor]
    prompts: list[str]
    actions: torch.Tensor
    action_mask: torch.Tensor
    names: list[str]
    state: torch.Tensor | None = None
    present: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            images={camera: image.to(device, non_blocking=True) for camera, image in self.images.items()},
            actions=self.actions.to(device, non_blocking=True),
            action_mask=self.action_mask.to(device, non_blocking=True),
            state=None if self.state is None else self.state.to(device, non_blocking=True),
            present=None if self.present is None else self.present.to(device, non_blocking=True),
        )
