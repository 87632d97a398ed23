"""VLA: a backbone, a structure and a head become one policy model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from anyvla.actions import ActionSpec
from anyvla.config import ModelConfig
from anyvla.models.backbones.adapter import Backbone, build_backbone, load_backbone_definition
from anyvla.models.heads.base import Head, HeadState
from anyvla.models.heads.fc import FCHead
from anyvla.models.heads.lstm import LSTMHead

_HEADS: dict[str, type[FCHead] | type[LSTMHead]] = {"fc": FCHead, "lstm": LSTMHead}


class VLA(nn.Module):
    """The structures ``one_step`` and ``policy_head``: the backbone sees one observation at a time, the head sees history.

    ``one_step`` is the case of a window of one.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: dict[str, torch.Tensor], prompts: Sequence[str]) -> torch.Tensor:
        """Windows: camera -> (B, H, 3, h, w) uint8 and B prompts -> raw actions (B, H, L, A)."""
        stacked = torch.stack(list(images.values()), dim=2)
        batch, window = stacked.shape[:2]
        features = self.backbone.encode(stacked.flatten(0, 1), [prompt for prompt in prompts for _ in range(window)])
        return self.head(features.unflatten(0, (batch, window)))

    def init_state(self, batch: int) -> HeadState:
        """The state before the first observation of ``batch`` episodes."""
        queries = self.backbone.queries
        return self.head.init_state(batch, (len(queries), self.backbone.width), queries.device)

    def step(self, images: dict[str, torch.Tensor], prompts: Sequence[str], state: HeadState) -> tuple[torch.Tensor, HeadState]:
        """One observation of each of B episodes: camera -> (B, 3, h, w) uint8 -> raw actions (B, L, A), next state."""
        features = self.backbone.encode(torch.stack(list(images.values()), dim=1), prompts)
        return self.head.step(features, state)


def build_vla(
    config: ModelConfig,
    spec: ActionSpec,
    *,
    window: int,
    chunk: int,
    image_size: tuple[int, int],
    bounded: bool,
    definition: Path | None = None,
) -> VLA:
    """The model that ``config`` describes, with fresh weights (those of a pretrained backbone excepted).

    Args:
        bounded: whether normalised actions lie in [-1, 1].
        definition: folder of a saved backbone definition to take instead of ``config.backbone``, as a checkpoint has one.
    """
    if definition is not None:
        backbone = load_backbone_definition(definition, config.queries, image_size)
    else:
        backbone = build_backbone(config.backbone, config.queries, image_size)
    make_head = _HEADS[config.head.type]
    head = make_head(config.head, backbone.width, config.queries, spec, window, chunk, bounded)  # type: ignore[arg-type]
    return VLA(backbone, head)
