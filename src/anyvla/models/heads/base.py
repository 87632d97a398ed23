"""The contract of a head: features of a window in, a chunk of actions at each of its steps out.

History is an explicit state that the caller keeps, one per episode. Heads hold none, so the batch may change between any
two calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from anyvla.actions import ActionSpec
from anyvla.config.model import LossConfig
from anyvla.models.losses import action_loss, sample_actions


@dataclass(frozen=True)
class HeadState:
    """The history of one episode: ``features`` (h, Q, D) of its last steps, oldest first; None before the first step."""

    features: torch.Tensor | None = None


@dataclass(frozen=True)
class HeadSizes:
    """What a head reads and what it predicts.

    Attributes:
        width: D. queries: Q. window: H. chunk: L. bounded: whether normalised continuous actions lie in [-1, 1].
    """

    width: int
    queries: int
    spec: ActionSpec
    window: int
    chunk: int
    bounded: bool


class Head(nn.Module, ABC):
    """Features (B, H, Q, D) -> actions (B, H, L, A); step h depends on steps 0..h only.

    A head is made from its settings, its sizes and the settings of the loss.

    Attributes:
        history: steps it looks back on at run time: H, or 1 if each step stands alone.
    """

    def __init__(self, spec: ActionSpec, loss: LossConfig, history: int) -> None:
        super().__init__()
        self.spec = spec
        self.loss_config = loss
        self.history = history

    @abstractmethod
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, H, Q, D) -> raw actions (B, H, L, A): normalised continuous values and logits of binary dimensions."""

    def loss(
        self, features: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What training minimises, and its parts by name; see ``action_loss``.

        Args:
            features: (B, H, Q, D). actions: (B, H, L, A) normalised. mask: (B, H, L) bool, True where ``actions`` are real.
        """
        return action_loss(self(features), actions, mask, self.spec, self.loss_config)

    def sample(self, features: torch.Tensor) -> torch.Tensor:
        """(B, H, Q, D) -> normalised actions (B, H, L, A), binary dimensions 0 or 1."""
        return sample_actions(self(features), self.spec)

    def sample_at(self, features: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """``sample`` at one step of each window: (B, H, Q, D) and (B,) int64 -> (B, L, A)."""
        return self.sample(features)[torch.arange(len(steps), device=steps.device), steps]

    def init_state(self) -> Any:
        """The state of one episode before its first step; only the head looks into it."""
        return HeadState()

    def step(self, features: torch.Tensor, states: Sequence[Any]) -> tuple[torch.Tensor, list[Any]]:
        """One step of each of B episodes at run time, whatever step each has come to.

        Computes what training computes: the window that ends at this step, from its first step on. Shorter windows are padded
        behind their last step, which cannot influence it.

        Args:
            features: (B, Q, D) of this step. states: B states, as the step before left them.

        Returns:
            Normalised actions (B, L, A), binary dimensions 0 or 1, and the next B states.
        """
        windows = [self._remember(state, new) for state, new in zip(states, features, strict=True)]
        last = torch.tensor([len(window) - 1 for window in windows], device=features.device)
        return self.sample_at(pad_sequence(windows, batch_first=True), last), [HeadState(window) for window in windows]

    def _remember(self, state: HeadState, new: torch.Tensor) -> torch.Tensor:
        """The last ``history`` steps (h, Q, D) of an episode, ``new`` (Q, D) among them."""
        if state.features is None or self.history == 1:
            return new[None]
        return torch.cat([state.features[1 - self.history :], new[None]])
