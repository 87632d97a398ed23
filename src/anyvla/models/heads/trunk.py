"""The last layers of every continuous head: features of one step to a chunk of raw actions, for any ActionSpec."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from anyvla.models.heads.base import HeadSizes


class Mlp(nn.Sequential):
    """Linear layers with ReLU between; Xavier-uniform weights and zero biases."""

    def __init__(self, width_in: int, hidden: Sequence[int], width_out: int) -> None:
        widths = [width_in, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers, nn.Linear(widths[-1], width_out))
        for module in self:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


class ActionTrunk(nn.Module):
    """(..., width) -> raw actions (..., L, A): normalised values of continuous dimensions, logits of binary ones.

    Continuous values pass through tanh where the normalisation bounds them to [-1, 1].
    """

    order: torch.Tensor

    def __init__(self, width: int, hidden: Sequence[int], sizes: HeadSizes) -> None:
        super().__init__()
        self.chunk = sizes.chunk
        self.bounded = sizes.bounded
        binary = torch.from_numpy(sizes.spec.binary)
        # where each dimension of the output is found behind [continuous, binary]
        self.register_buffer("order", torch.argsort(torch.argsort(binary.int(), stable=True)), persistent=False)
        n_binary = int(binary.sum())
        n_continuous = len(sizes.spec) - n_binary
        self.continuous = Mlp(width, hidden, self.chunk * n_continuous) if n_continuous else None
        self.binary = Mlp(width, hidden, self.chunk * n_binary) if n_binary else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        parts = []
        if self.continuous is not None:
            values = self.continuous(features).unflatten(-1, (self.chunk, -1))
            parts.append(values.tanh() if self.bounded else values)
        if self.binary is not None:
            parts.append(self.binary(features).unflatten(-1, (self.chunk, -1)))
        return torch.cat(parts, dim=-1)[..., self.order]
