"""FC head: a multi-layer perceptron on the features of one step."""

from __future__ import annotations

import torch

from anyvla.actions import ActionSpec
from anyvla.config import FCHeadConfig, LossConfig
from anyvla.models.heads.base import Head
from anyvla.models.heads.trunk import ActionTrunk, Mlp


class FCHead(Head):
    """Linear DQ -> DQ/2, ReLU, -> hidden Q, then the trunk, as in RoboVLMs (arXiv 2412.14058); each step for itself."""

    def __init__(
        self,
        config: FCHeadConfig,
        width: int,
        queries: int,
        spec: ActionSpec,
        window: int,
        chunk: int,
        bounded: bool,
        loss: LossConfig,
    ) -> None:
        super().__init__(spec, loss, history=1)
        size = width * queries
        self.mlp = Mlp(size, [size // 2], config.hidden * queries)
        self.trunk = ActionTrunk(config.hidden * queries, config.trunk, spec, chunk, bounded)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.trunk(self.mlp(features.flatten(2)))
