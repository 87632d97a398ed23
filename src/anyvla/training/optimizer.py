"""AdamW with sensible groups, and warm-up + cosine as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from anyvla.config import TrainingConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Two groups: weight matrices, which decay; norms, biases, embeddings and query tokens, which do not."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            last = name.rsplit(".", 1)[-1]
            free = parameter.ndim < 2 or id(parameter) in embeddings or last == "queries" or last.endswith("embedding")
            (rest if free else decay).append(parameter)
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay), lr=config.learning_rate, betas=config.betas, foreach=True
    )


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Of optimiser step ``step`` (from 0): linear warm-up, then half a cosine down to ``min_learning_rate`` x the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.min_learning_rate + (1 - config.min_learning_rate) * cosine)
