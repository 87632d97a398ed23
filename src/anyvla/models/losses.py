"""Losses and metrics, both derived from the ActionSpec."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from anyvla.actions import ActionSpec
from anyvla.config.model import LossConfig


def action_loss(
    raw: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor, spec: ActionSpec, config: LossConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss of predicted chunks.

    Args:
        raw: (B, H, L, A) normalised continuous values and binary logits. actions: (B, H, L, A) targets.
        mask: (B, H, L) bool; nothing that it hides has any influence.

    Returns:
        The scalar  mean huber (or mse, l1) over real continuous values + binary_weight * mean BCE over real binary ones,
        0 where everything is masked, and its parts by name.
    """
    binary = torch.from_numpy(spec.binary).to(raw.device)
    # what is masked may be anything, even NaN: take it out before any arithmetic
    keep = mask[..., None]
    raw, actions = raw.float().masked_fill(~keep, 0.0), actions.float().masked_fill(~keep, 0.0)
    total = raw.new_zeros(())
    parts: dict[str, torch.Tensor] = {}
    if not binary.all():
        error = _continuous(raw[..., ~binary], actions[..., ~binary], config)
        parts[config.continuous] = masked_mean(error, keep)
        total = total + parts[config.continuous]
    if binary.any():
        error = F.binary_cross_entropy_with_logits(raw[..., binary], actions[..., binary], reduction="none")
        parts["bce"] = masked_mean(error, keep)
        total = total + config.binary_weight * parts["bce"]
    return total, parts


def _continuous(predicted: torch.Tensor, target: torch.Tensor, config: LossConfig) -> torch.Tensor:
    if config.continuous == "huber":
        return F.huber_loss(predicted, target, reduction="none", delta=config.huber_delta)
    if config.continuous == "mse":
        return F.mse_loss(predicted, target, reduction="none")
    return F.l1_loss(predicted, target, reduction="none")


def masked_mean(error: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Mean of ``error`` where ``keep`` (which broadcasts to its shape) is True; 0 if it is nowhere."""
    keep = keep.expand_as(error)
    return (error * keep).sum() / keep.sum().clamp(min=1)


def sample_actions(raw: torch.Tensor, spec: ActionSpec) -> torch.Tensor:
    """Raw actions (..., A) -> normalised actions (..., A): binary dimensions become 0 or 1."""
    binary = torch.from_numpy(spec.binary).to(raw.device)
    return torch.where(binary, (raw > 0).to(raw.dtype), raw)
