"""GPT head: a small causal transformer over the features of a window, as in RoboVLMs (arXiv 2412.14058).

The transformer is GPT-2's (Radford et al. 2019) without word embeddings, and so are its parameter names and shapes.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from anyvla.config.model import GPTHeadConfig, LossConfig
from anyvla.models.attention import attend
from anyvla.models.heads.base import Head, HeadSizes
from anyvla.models.heads.trunk import ActionTrunk


class GPTHead(Head):
    """Linear DQ -> hidden where they differ, learned positions, causal pre-norm layers, then the trunk; every step predicts."""

    def __init__(self, config: GPTHeadConfig, sizes: HeadSizes, loss: LossConfig) -> None:
        super().__init__(sizes.spec, loss, history=sizes.window)
        size = sizes.width * sizes.queries
        self.project = nn.Identity() if size == config.hidden else nn.Linear(size, config.hidden)
        self.gpt = GPT(config.hidden, config.layers, config.attention_heads, sizes.window, config.dropout)
        self.trunk = ActionTrunk(config.hidden, config.trunk, sizes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.trunk(self.gpt(self.project(features.flatten(2))))


class GPT(nn.Module):
    """GPT-2 on given embeddings: (B, H, D) -> (B, H, D), for H up to ``positions``."""

    def __init__(self, width: int, layers: int, heads: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.wpe = nn.Embedding(positions, width)
        self.drop = nn.Dropout(dropout)
        self.h = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):  # two of them a layer add to the residual stream
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers))
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(x + self.wpe.weight[: x.shape[1]])
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads, dropout)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.c_attn = Conv1D(width, 3 * width)
        self.c_proj = Conv1D(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        dropout = self.dropout if self.training else 0.0
        return F.dropout(self.c_proj(attend(q, k, v, self.heads, causal=True, dropout=dropout)), dropout)


class FeedForward(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.c_fc = Conv1D(width, 4 * width)
        self.c_proj = Conv1D(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Conv1D(nn.Module):
    """A linear layer that holds its weight as (in, out), as GPT-2 does."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))
        self.bias = nn.Parameter(torch.zeros(width_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.T, self.bias)
