"""LSTM head: recurrence over the features of a window, as in RoboFlamingo and RoboVLMs (arXiv 2412.14058)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from anyvla.config.model import LossConfig, LSTMHeadConfig
from anyvla.models.heads.base import Head, HeadSizes
from anyvla.models.heads.trunk import ActionTrunk
from anyvla.models.losses import sample_actions


@dataclass(frozen=True)
class LSTMState:
    """Of the k <= H windows that hold an episode's last step, oldest first: hidden and cell states (layers, k, hidden).

    None before the first step.
    """

    hidden: torch.Tensor | None = None
    cell: torch.Tensor | None = None


class LSTMHead(Head):
    """Every step of the window is predicted, from a zero state at its first step.

    At run time a step stands in H windows and is the last of one. All H go on side by side, one step each: the weights are read
    once a step, not once for every step of the window.
    """

    def __init__(self, config: LSTMHeadConfig, sizes: HeadSizes, loss: LossConfig) -> None:
        super().__init__(sizes.spec, loss, history=sizes.window)
        dropout = config.dropout if config.layers > 1 else 0.0  # PyTorch drops between layers only
        self.rnn = nn.LSTM(sizes.width * sizes.queries, config.hidden, config.layers, batch_first=True, dropout=dropout)
        self.trunk = ActionTrunk(config.hidden, config.trunk, sizes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(features.flatten(2))
        return self.trunk(hidden)

    def init_state(self) -> LSTMState:
        return LSTMState()

    def step(self, features: torch.Tensor, states: Sequence[LSTMState]) -> tuple[torch.Tensor, list[LSTMState]]:
        hidden = [self._continued(state.hidden, features) for state in states]
        cell = [self._continued(state.cell, features) for state in states]
        counts = [part.shape[1] for part in hidden]
        inputs = torch.cat([new.flatten().expand(count, -1) for new, count in zip(features, counts, strict=True)])
        next_hidden, next_cell = self._cells(inputs, torch.cat(hidden, dim=1), torch.cat(cell, dim=1))
        states = [LSTMState(h, c) for h, c in zip(next_hidden.split(counts, 1), next_cell.split(counts, 1), strict=True)]
        oldest = torch.stack([h[-1, 0] for h in next_hidden.split(counts, 1)])
        return sample_actions(self.trunk(oldest), self.spec), states

    def _continued(self, state: torch.Tensor | None, features: torch.Tensor) -> torch.Tensor:
        """States (layers, k, hidden) of the windows that the next step belongs to; it is the first of one of them."""
        fresh = features.new_zeros(self.rnn.num_layers, 1, self.rnn.hidden_size)
        if state is None:
            return fresh
        ended = state.shape[1] - (self.history - 1)
        return torch.cat([state[:, max(0, ended) :], fresh], dim=1)

    def _cells(self, inputs: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of n rows: (n, width) and states (layers, n, hidden) -> the next states."""
        layers = []
        for weights, h, c in zip(self.rnn.all_weights, hidden, cell, strict=True):
            inputs, c = torch.lstm_cell(inputs, (h, c), *weights)
            layers.append((inputs, c))
        after_hidden, after_cell = zip(*layers, strict=True)
        return torch.stack(after_hidden), torch.stack(after_cell)
