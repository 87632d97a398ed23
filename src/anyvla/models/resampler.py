"""Perceiver resampler of Flamingo (arXiv 2204.14198): any number of image tokens becomes a fixed, small one."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from anyvla.models.attention import attend


class PerceiverResampler(nn.Module):
    """Image tokens (N, T, D) -> (N, latents, D), for any T.

    Learned latents look at the image tokens and at each other, ``depth`` times. Parameters have the names that the public
    implementations gave them.

    Args:
        width: D. heads, head_width: of the attention, its inner width being their product. expansion: of feed-forward layers.
    """

    def __init__(
        self, width: int, depth: int = 6, latents: int = 64, heads: int = 8, head_width: int = 64, expansion: int = 4
    ) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, heads, head_width), _feed_forward(width, expansion)]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        latents = self.latents.to(tokens.dtype).expand(len(tokens), -1, -1)
        for layer in self.layers:
            attention, feed_forward = cast(nn.ModuleList, layer)
            latents = latents + attention(tokens, latents)
            latents = latents + feed_forward(latents)
        return self.norm(latents)


class PerceiverAttention(nn.Module):
    """Latents (N, L, D) look at tokens (N, T, D) and latents together, both normalised first."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, tokens: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        latents = self.norm_latents(latents)
        keys, values = self.to_kv(torch.cat([self.norm_media(tokens), latents], dim=1)).chunk(2, dim=-1)
        return self.to_out(attend(self.to_q(latents), keys, values, self.heads))


def _feed_forward(width: int, expansion: int) -> nn.Sequential:
    inner = width * expansion
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, width, bias=False)
    )
