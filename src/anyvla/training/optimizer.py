"""AdamW with sensible groups, and warm-up + cosine as a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from anyvla.config.training import TrainingConfig, TuningConfig
from anyvla.models.vla import VLA


def parameter_groups(model: VLA, config: TrainingConfig, tuning: TuningConfig) -> list[dict[str, Any]]:
    """What is trained, grouped by peak learning rate (``peak``) and weight decay.

    Weight matrices decay, those of LoRA too, for which 0 is the pretrained model; norms, biases, embeddings, queries do not.
    """
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    peaks = _peak_rates(model, config, tuning)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            last = name.rsplit(".", 1)[-1]
            free = (
                parameter.ndim < 2
                or id(parameter) in embeddings
                or last in ("queries", "latents")
                or last.endswith("embedding")
            )
            key = (peaks.get(id(parameter), config.learning_rate), 0.0 if free else config.weight_decay)
            groups.setdefault(key, []).append(parameter)
    return [{"params": groups[key], "peak": key[0], "weight_decay": key[1]} for key in sorted(groups, reverse=True)]


def _peak_rates(model: VLA, config: TrainingConfig, tuning: TuningConfig) -> dict[int, float]:
    """id of a parameter -> its tower's own peak learning rate, where the tower has one."""
    peaks: dict[int, float] = {}
    for tower, parameters in {**model.backbone.towers(), "head": list(model.head.parameters())}.items():
        rate = getattr(getattr(tuning, tower), "learning_rate", None)  # a frozen tower has none
        peaks |= {id(p): rate or config.learning_rate for p in parameters}
    return peaks


def make_optimizer(model: VLA, config: TrainingConfig, tuning: TuningConfig) -> torch.optim.AdamW:
    """AdamW over ``parameter_groups``; set each group's rate by ``set_learning_rates`` before a step."""
    return torch.optim.AdamW(parameter_groups(model, config, tuning), lr=config.learning_rate, betas=config.betas, foreach=True)


def set_learning_rates(optimizer: Any, step: int, config: TrainingConfig) -> None:
    """Bring every group to its rate at optimiser step ``step``: its own peak, on the schedule that all share."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config, group["peak"])


def learning_rate(step: int, config: TrainingConfig, peak: float | None = None) -> float:
    """Of optimiser step ``step`` (from 0): linear warm-up to ``peak``, then half a cosine down to ``min_learning_rate`` x it.

    ``peak`` is ``training.learning_rate`` if None.
    """
    peak = config.learning_rate if peak is None else peak
    if step < config.warmup:
        return peak * (step + 1) / config.warmup
    progress = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (config.min_learning_rate + (1 - config.min_learning_rate) * cosine)
