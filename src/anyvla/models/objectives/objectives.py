"""All auxiliary objectives of a model, and the loss that they make together with that of the actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from anyvla.batch import Batch
from anyvla.config.objectives import ObjectivesConfig
from anyvla.errors import ConfigError
from anyvla.models.backbones.adapter import Backbone
from anyvla.models.objectives.alignment import TextAlignment
from anyvla.models.objectives.future import FuturePrediction


class Objectives(nn.Module):
    """loss = action loss + sum of weight x objective, over those that the settings turn on.

    Captions and conversations have no parameters of their own: they train the backbone's own words.
    """

    def __init__(
        self, config: ObjectivesConfig, backbone: Backbone, cameras: Sequence[str], image_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.config = config
        if not backbone.family.writes and (config.caption is not None or config.conversations is not None):
            raise ConfigError(
                f"objectives.caption and objectives.conversations do not go with {backbone.model.config.model_type}: "
                "its words come from a decoder that is not used here"
            )
        self.future: FuturePrediction | None = None
        if config.future is not None:
            predicted = config.future.cameras or cameras
            self.future = FuturePrediction(config.future, backbone.width, backbone.readouts, predicted, image_size)
        self.alignment = None if config.alignment is None else TextAlignment(backbone)

    def forward(
        self, backbone: Backbone, features: torch.Tensor, batch: Batch, losses: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """``losses`` of the actions, with ``loss`` made whole, ``action`` in its former place, and each objective by name.

        Args:
            features: (B, H, Q, D), the query features that the actions come from.
        """
        config = self.config
        parts: dict[str, torch.Tensor] = {}
        total = losses["loss"]
        if config.caption is not None:
            images = torch.stack([frames[:, -1] for frames in batch.images.values()], dim=1)
            questions = [config.caption.prompt] * len(images)
            parts["caption"] = backbone.text_loss(images, questions, _given(batch.captions, "captions"), present=batch.present)
            total = total + config.caption.weight * parts["caption"]
        if config.conversations is not None:
            text = _given(batch.text, "conversations")
            parts["conversations"] = backbone.text_loss(
                text.images[:, None], text.prompts, text.answers, present=text.present[:, None]
            )
            total = total + config.conversations.weight * parts["conversations"]
        if config.future is not None and self.future is not None:
            parts["future"] = self.future(features, batch)
            total = total + config.future.weight * parts["future"]
        if config.alignment is not None and self.alignment is not None:
            captions = _given(batch.captions, "captions")
            parts["alignment"] = self.alignment(backbone.tokenizer, features, captions, batch.action_mask[:, :, 0])
            total = total + config.alignment.weight * parts["alignment"]
        return {**losses, "loss": total, "action": losses["loss"], **parts}


_T = TypeVar("_T")


def _given(value: _T | None, name: str) -> _T:
    if value is None:
        raise ValueError(f"an objective needs {name}, and the batch has none")
    return value


def make_objectives(
    config: ObjectivesConfig, backbone: Backbone, cameras: Sequence[str], image_size: tuple[int, int]
) -> Objectives | None:
    """What ``config`` turns on, with fresh weights; None if that is nothing."""
    if config == ObjectivesConfig():
        return None
    return Objectives(config, backbone, cameras, image_size)
