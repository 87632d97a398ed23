"""LSTM head: recurrence over the features of a window, as in RoboFlamingo and RoboVLMs (arXiv 2412.14058)."""

from __future__ import annotations

import torch
from torch import nn

from anyvla.actions import ActionSpec
from anyvla.config import LossConfig, LSTMHeadConfig
from anyvla.models.heads.base import Head
from anyvla.models.heads.trunk import ActionTrunk


class LSTMHead(Head):
    """Every step of the window is predicted, from a zero state at its first step."""

    def __init__(
        self,
        config: LSTMHeadConfig,
        width: int,
        queries: int,
        spec: ActionSpec,
        window: int,
        chunk: int,
        bounded: bool,
        loss: LossConfig,
    ) -> None:
        super().__init__(spec, loss, history=window)
        dropout = config.dropout if config.layers > 1 else 0.0  # PyTorch drops between layers only
        self.rnn = nn.LSTM(width * queries, config.hidden, config.layers, batch_first=True, dropout=dropout)
        self.trunk = ActionTrunk(config.hidden, config.trunk, spec, chunk, bounded)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.rnn(features.flatten(2))
        return self.trunk(hidden)
