"""Batch: the one currency between data and models."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class TextBatch:
    """N questions and their answers, about an image each or about none.

    Attributes:
        images: (N, 3, h, w) uint8 RGB. present: (N,) bool, False where there is no image (its pixels are black).
        prompts: N questions, with what was said before. answers: N. names: N strings that say where each comes from.
    """

    images: torch.Tensor
    present: torch.Tensor
    prompts: list[str]
    answers: list[str]
    names: list[str]

    def to(self, device: torch.device) -> TextBatch:
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            present=self.present.to(device, non_blocking=True),
        )


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

    What auxiliary objectives need, None where none of them does:
        captions: B instructions with no word left out. text: a batch of conversations.
        future: camera -> (B, N, 3, h, w) uint8, the frames behind the window.
        future_mask: (B, N) bool, True where there is such a frame.
    """

    images: dict[str, torch.Tensor]
    prompts: list[str]
    actions: torch.Tensor
    action_mask: torch.Tensor
    names: list[str]
    state: torch.Tensor | None = None
    present: torch.Tensor | None = None
    captions: list[str] | None = None
    text: TextBatch | None = None
    future: dict[str, torch.Tensor] | None = None
    future_mask: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            images={camera: image.to(device, non_blocking=True) for camera, image in self.images.items()},
            actions=self.actions.to(device, non_blocking=True),
            action_mask=self.action_mask.to(device, non_blocking=True),
            state=None if self.state is None else self.state.to(device, non_blocking=True),
            present=None if self.present is None else self.present.to(device, non_blocking=True),
            text=None if self.text is None else self.text.to(device),
            future=None
            if self.future is None
            else {camera: frames.to(device, non_blocking=True) for camera, frames in self.future.items()},
            future_mask=None if self.future_mask is None else self.future_mask.to(device, non_blocking=True),
        )
