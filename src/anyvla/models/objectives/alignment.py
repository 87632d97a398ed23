"""Alignment of the query features with a frozen feature of the instruction: a policy must not lose what it was told."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from anyvla.models.backbones.adapter import Backbone
from anyvla.models.losses import masked_mean

_WIDTH = 128  # of the text feature: wider embeddings are projected to it at random, which keeps angles (Johnson-Lindenstrauss)


class TextAlignment(nn.Module):
    """Mean of 1 - cos(projected mean of the query features, text feature) over the real steps of all windows.

    The text feature is the mean of the instruction's word vectors. These are the backbone's word embeddings as they were when
    the model was made, less their mean: a table that is saved and never trained. So the target is the same for a sentence
    whatever is learned, and the loss cannot fall by making all sentences alike.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        with torch.no_grad():
            embedding = backbone.model.get_input_embeddings()
            words = embedding(torch.arange(len(embedding.weight), device=embedding.weight.device)).float()
            words = words - words.mean(0)
            if words.shape[1] > _WIDTH:
                words = words @ torch.randn(words.shape[1], _WIDTH, device=words.device)
        # no buffer: distributed training would send it round at every step
        self.words = nn.Parameter(words, requires_grad=False)
        self.norm = nn.LayerNorm(backbone.width)
        self.project = nn.Linear(backbone.width, words.shape[1])

    def forward(
        self, tokenizer: PreTrainedTokenizerBase, features: torch.Tensor, instructions: Sequence[str], mask: torch.Tensor
    ) -> torch.Tensor:
        """features (B, H, Q, D), B instructions, mask (B, H) bool, True where the step is real -> the loss."""
        target = torch.stack([self.text_feature(tokenizer, text) for text in instructions])
        predicted = self.project(self.norm(features.mean(2))).float()
        return masked_mean(1 - F.cosine_similarity(predicted, target[:, None].float(), dim=-1), mask)

    def text_feature(self, tokenizer: PreTrainedTokenizerBase, text: str) -> torch.Tensor:
        """The frozen feature (W,) of ``text``."""
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.words[ids].mean(0)
