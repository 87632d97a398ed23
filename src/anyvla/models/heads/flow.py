"""Flow-matching head: a small action transformer that turns noise into a chunk, looking at the features of the window.

Flow matching is Lipman et al. (arXiv 2210.02747); for actions as in pi0 (arXiv 2410.24164). With noise eps ~ N(0, 1), actions
a and time tau in [0, 1]:

    x = (1 - tau) eps + tau a         v(x, tau, features) is fitted to a - eps by least squares
    a = eps + integral of v dtau      by Euler steps from tau = 0 to 1

Binary dimensions flow as -1 and +1 and are decided by the sign.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

from anyvla.config.model import FlowHeadConfig, LossConfig
from anyvla.models.attention import attend
from anyvla.models.heads.base import Head, HeadSizes
from anyvla.models.losses import masked_mean, sample_actions

Memory = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of the features for each block, (B, H Q, hidden) each

TIME_WIDTH = 64


class FlowHead(Head):
    """The chunk of every step is predicted from the features of the steps up to it.

    Sampling starts from the centre of the noise, 0, so that the same features give the same actions. A fixed draw instead pulls
    all actions the same way: one policy solved 12 of 100 navigation worlds so, another 3; from 0 they solved 94 and 86.
    """

    def __init__(self, config: FlowHeadConfig, sizes: HeadSizes, loss: LossConfig) -> None:
        super().__init__(sizes.spec, loss, history=sizes.window)
        self.bounded = sizes.bounded
        self.steps = config.steps
        self.draws = config.draws
        self.times = config.times
        hidden = config.hidden
        self.features_in = nn.Sequential(nn.LayerNorm(sizes.width), nn.Linear(sizes.width, hidden))
        self.step_embedding = nn.Parameter(0.02 * torch.randn(sizes.window, 1, hidden))
        self.query_embedding = nn.Parameter(0.02 * torch.randn(sizes.queries, hidden))
        self.actions_in = nn.Linear(len(sizes.spec), hidden)
        self.chunk_embedding = nn.Parameter(0.02 * torch.randn(sizes.chunk, hidden))
        self.time_in = nn.Sequential(nn.Linear(hidden + TIME_WIDTH, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.blocks = nn.ModuleList(FlowBlock(hidden, config.attention_heads) for _ in range(config.layers))
        self.velocity_out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, len(sizes.spec)))

    def forward(self, features: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Features (B, H, Q, D) -> raw actions (B, H, L, A), from ``noise`` of that shape or from its centre, 0."""
        return self._integrate(features, _causal(features), noise)

    def sample_at(self, features: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        visible = torch.arange(features.shape[1], device=steps.device) <= steps[:, None]
        return sample_actions(self._integrate(features, visible[:, None]), self.spec)[:, 0]

    def loss(
        self, features: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Mean squared error of the velocity over real actions, at times and with noise from PyTorch's own generator."""
        # what is masked may be anything, even NaN: take it out before any arithmetic
        actions = actions.to(_at_least_float32(features)).masked_fill(~mask[..., None], 0.0)
        actions = torch.where(torch.from_numpy(self.spec.binary).to(actions.device), 2 * actions - 1, actions)
        # the features are dear, noise is cheap: fit each chunk at several times at once
        actions, mask = actions.repeat(1, self.draws, 1, 1), mask.repeat(1, self.draws, 1)
        visible = _causal(features).repeat(1, self.draws, 1)
        noise = torch.randn_like(actions)
        time = self._draw_times(actions.shape[:2], actions)
        between = torch.lerp(noise, actions, time[..., None, None])
        velocity = self._velocity(between, time, self._memory(features), visible, mask)
        loss = masked_mean((velocity.to(actions.dtype) - (actions - noise)).square(), mask[..., None])
        return loss, {"flow": loss}

    def _draw_times(self, shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
        uniform = torch.rand(shape, dtype=like.dtype, device=like.device)
        # pi0's choice: 1 - tau / 0.999 ~ Beta(1.5, 1), whose distribution function is x^1.5
        return uniform if self.times == "uniform" else 0.999 * (1 - uniform ** (1 / 1.5))

    def _integrate(self, features: torch.Tensor, visible: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Raw actions (B, S, L, A) of the S steps whose view of the window is ``visible`` (B or 1, S, H) bool."""
        shape = (len(features), visible.shape[1], len(self.chunk_embedding), len(self.spec))
        dtype = _at_least_float32(features)
        x = torch.zeros(shape, dtype=dtype, device=features.device) if noise is None else noise.to(dtype).expand(shape)
        memory = self._memory(features)
        for i in range(self.steps):
            x = x + self._velocity(x, x.new_full(x.shape[:2], i / self.steps), memory, visible).to(x.dtype) / self.steps
        return x.clamp(-1, 1) if self.bounded else x

    def _memory(self, features: torch.Tensor) -> Memory:
        tokens = self.features_in(features) + self.step_embedding[: features.shape[1]] + self.query_embedding
        return [cast(FlowBlock, block).memory(tokens.flatten(1, 2)).chunk(2, dim=-1) for block in self.blocks]

    def _velocity(
        self,
        x: torch.Tensor,
        time: torch.Tensor,
        memory: Memory,
        visible: torch.Tensor,
        real: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """v (B, S, L, A) at x (B, S, L, A) and time (B, S).

        Args:
            visible: (B or 1, S, H) bool, the steps of the window that each of the S steps may look at.
            real: (B, S, L) bool; no position looks at another one that is not real.
        """
        chunk = x.shape[2]
        dtype = self.actions_in.weight.dtype
        time_features = _waves(time).to(dtype)[:, :, None].expand(-1, -1, chunk, -1)
        tokens = self.actions_in(x.to(dtype)) + self.chunk_embedding
        tokens = self.time_in(torch.cat([tokens, time_features], dim=-1))
        queries = len(self.query_embedding)
        look = visible.repeat_interleave(chunk, dim=1).repeat_interleave(queries, dim=2)
        together = None
        if real is not None:  # a position always sees itself, so that there is something to attend to
            together = real.flatten(0, 1)[:, None] | torch.eye(chunk, dtype=torch.bool, device=x.device)
        for block, (keys, values) in zip(self.blocks, memory, strict=True):
            tokens = block(tokens, keys, values, look, together)
        return self.velocity_out(tokens)


class FlowBlock(nn.Module):
    """Pre-norm self-attention within each chunk, cross-attention to the features of the window, feed-forward."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_self, self.norm_cross = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out_self = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.query, self.out_cross = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.memory = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden))
        self.mlp = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))

    def forward(
        self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, look: torch.Tensor, together: torch.Tensor | None
    ) -> torch.Tensor:
        """x (B, S, L, hidden); keys, values (B, H Q, hidden); look (B or 1, S L, H Q) and together (B S, L, L) bool."""
        batch, steps, chunk, hidden = x.shape
        q, k, v = self.qkv(self.norm_self(x)).flatten(0, 1).chunk(3, dim=-1)
        x = x + self.out_self(attend(q, k, v, self.heads, mask=together)).view(x.shape)
        q = self.query(self.norm_cross(x)).flatten(1, 2)
        x = x + self.out_cross(attend(q, keys, values, self.heads, mask=look)).view(batch, steps, chunk, hidden)
        return x + self.mlp(x)


def _causal(features: torch.Tensor) -> torch.Tensor:
    """(1, H, H) bool: step h may look at steps 0..h."""
    window = features.shape[1]
    return torch.ones(1, window, window, dtype=torch.bool, device=features.device).tril()


def _waves(time: torch.Tensor) -> torch.Tensor:
    """(B, S) in [0, 1] -> (B, S, TIME_WIDTH): sines and cosines with periods from 0.004 to 4, as in pi0."""
    periods = 4e-3 * 1e3 ** torch.linspace(0, 1, TIME_WIDTH // 2, device=time.device, dtype=time.dtype)
    angles = 2 * math.pi * time[..., None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _at_least_float32(features: torch.Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)
