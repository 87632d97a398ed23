"""Discrete head: actions as tokens, predicted one after the other by the language model itself (RT-2, OpenVLA).

Its tokens are ids behind the vocabulary, with embeddings and an output layer of their own: no text can produce them, nothing of
the vocabulary is given up, and only the logits of bins are ever computed.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from anyvla.actions import ActionSpec
from anyvla.actions.discretize import make_discretizer
from anyvla.config.model import DiscreteHeadConfig


class DiscreteHead(nn.Module):
    """Normalised chunks (B, L, A) <-> B sequences of ``length`` = L x A tokens, action after action, dimension by dimension."""

    history = 1  # what came before is in the backbone's sequence, if anywhere
    allowed: torch.Tensor  # (A, bins) bool

    def __init__(self, config: DiscreteHeadConfig, width: int, spec: ActionSpec, chunk: int, scale: float) -> None:
        super().__init__()
        self.discretizer = make_discretizer(spec, config.bins)
        self.register_buffer("allowed", self.discretizer.allowed, persistent=False)
        self.chunk = chunk
        self.length = chunk * len(spec)
        self.embedding = nn.Embedding(config.bins, width)
        self.output = nn.Linear(width, config.bins, bias=False)
        nn.init.normal_(self.embedding.weight, std=scale)
        nn.init.normal_(self.output.weight, std=width**-0.5)

    def tokens(self, actions: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, L, A) and mask (B, L) -> (B, L A); masked actions, of which nothing may depend, become token 0."""
        return self.discretizer.encode(actions, mask).clamp(min=0).flatten(1)

    def actions(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, L A) -> normalised actions (B, L, A), binary dimensions 0 or 1."""
        return self.discretizer.decode(tokens.unflatten(1, (self.chunk, -1)))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, K) -> (B, K, D): what the language model reads."""
        return self.embedding(tokens)

    def token_loss(self, hidden: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the real tokens, 0 if there are none.

        Args:
            hidden: (B, L A, D), in front of each token. tokens: (B, L A). mask: (B, L) bool.
        """
        keep = mask.repeat_interleave(self.length // self.chunk, dim=1)
        error = F.cross_entropy(self.output(hidden).float().transpose(1, 2), tokens, reduction="none")
        return (error * keep).sum() / keep.sum().clamp(min=1)

    def choose(self, step: int, hidden: torch.Tensor) -> torch.Tensor:
        """The most likely token at place ``step`` of the sequence, of those that its dimension has: (B, D) -> (B,)."""
        allowed = self.allowed[step % (self.length // self.chunk)]
        return self.output(hidden).masked_fill(~allowed, float("-inf")).argmax(-1)
