"""The contract of a head: features of a window in, a chunk of raw actions at each of its steps out.

History is an explicit state that the caller keeps. Heads hold none, so batches may change between any two calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class HeadState:
    """The features of the last steps of B episodes, oldest first.

    Attributes:
        features: (B, H, Q, D); only the first ``count[b]`` steps of row b are real. count: (B,) int64.
    """

    features: torch.Tensor
    count: torch.Tensor

    @staticmethod
    def cat(states: list[HeadState]) -> HeadState:
        """Put the states of several episodes into one batch."""
        return HeadState(torch.cat([s.features for s in states]), torch.cat([s.count for s in states]))

    def split(self) -> list[HeadState]:
        """The states of the single episodes of a batch."""
        return [HeadState(f[None], c[None]) for f, c in zip(self.features, self.count, strict=True)]


class Head(nn.Module, ABC):
    """Features (B, H, Q, D) -> raw actions (B, H, L, A); step h depends on steps 0..h only.

    ``history`` says how many steps it looks back on at run time: H, or 1 if each step stands alone.
    """

    history: int

    @abstractmethod
    def forward(self, features: torch.Tensor) -> torch.Tensor: ...

    def init_state(self, batch: int, features: tuple[int, int], device: torch.device) -> HeadState:
        """The state before the first step of ``batch`` episodes, for (Q, D) features a step."""
        return HeadState(
            torch.zeros(batch, self.history, *features, device=device, dtype=next(self.parameters()).dtype),
            torch.zeros(batch, dtype=torch.int64, device=device),
        )

    def step(self, features: torch.Tensor, state: HeadState) -> tuple[torch.Tensor, HeadState]:
        """One step at run time: features (B, Q, D) -> raw actions (B, L, A), and the next state.

        Computes what training computes: the window that ends at this step, from its first step on.
        """
        full = state.count == self.history
        window = torch.where(full[:, None, None, None], state.features.roll(-1, dims=1), state.features)
        last = torch.where(full, state.count - 1, state.count)
        rows = torch.arange(len(last), device=last.device)
        window = window.index_put((rows, last), features.to(window.dtype))
        return self(window)[rows, last], HeadState(window, last + 1)
