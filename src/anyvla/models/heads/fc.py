"""FC head: a multi-layer perceptron on the features of one step."""

from __future__ import annotations

import torch

from anyvla.config.model import FCHeadConfig, LossConfig
from anyvla.models.heads.base import Head, HeadSizes
from anyvla.models.heads.trunk import ActionTrunk, Mlp


class FCHead(Head):
    """Linear DQ -> DQ/2, ReLU, -> hidden Q, then the trunk, as in RoboVLMs (arXiv 2412.14058); each step for itself."""

    def __init__(self, config: FCHeadConfig, sizes: HeadSizes, loss: LossConfig) -> None:
        super().__init__(sizes.spec, loss, history=1)
        size = sizes.width * sizes.queries
        self.mlp = Mlp(size, [size // 2], config.hidden * sizes.queries)
        self.trunk = ActionTrunk(config.hidden * sizes.queries, config.trunk, sizes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.trunk(self.mlp(features.flatten(2)))
