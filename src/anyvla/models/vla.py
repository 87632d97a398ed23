"""VLA: a backbone, a structure and a head become one policy model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from anyvla.actions import ActionSpec
from anyvla.batch import Batch
from anyvla.config.model import DiscreteHeadConfig, InterleavedConfig, ModelConfig, OneStepConfig, PolicyHeadConfig
from anyvla.errors import ConfigError
from anyvla.models.backbones.adapter import Backbone
from anyvla.models.backbones.context import Context, decode, extend
from anyvla.models.backbones.load import build_backbone
from anyvla.models.heads.base import Head, HeadSizes
from anyvla.models.heads.discrete import DiscreteHead
from anyvla.models.heads.make import make_head
from anyvla.models.objectives.objectives import Objectives

StructureConfig = OneStepConfig | InterleavedConfig | PolicyHeadConfig
Images = dict[str, torch.Tensor]


class VLA(nn.Module, ABC):
    """What every structure and head has in common.

    ``policy_head``: the backbone sees one frame at a time, the head sees the window of its features; ``one_step`` is the
    case of a window of one. ``interleaved``: the backbone sees the window as one causal sequence, and the head its features.
    """

    def __init__(self, backbone: Backbone, head: Head | DiscreteHead, structure: StructureConfig, window: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.objectives: Objectives | None = None  # what is trained beside the actions
        self.interleaved = isinstance(structure, InterleavedConfig)
        self.window = window
        keep = structure.keep if isinstance(structure, InterleavedConfig) else None
        self.keep = window // 2 if keep is None else keep

    @property
    def history(self) -> int:
        """Steps that the model looks back on at run time: 1 if each step stands alone."""
        return self.window if self.interleaved else self.head.history

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """What training minimises, as ``loss``, and its parts by name."""
        features, losses = self.action_losses(batch)
        return losses if self.objectives is None else self.objectives(self.backbone, features, batch, losses)

    def count_actions(self, batch: Batch) -> int:
        """Real actions that the loss of ``batch`` is a mean over."""
        return int(batch.action_mask.sum())

    @abstractmethod
    def action_losses(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The features (B, H, Q, D) of the windows; and the loss of the actions, as ``loss``, and its parts by name."""

    @abstractmethod
    def evaluate(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Losses of the actions as in training, and what ``predict`` gives."""

    @abstractmethod
    def predict(
        self,
        images: Images,
        prompts: Sequence[str],
        state: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Windows: camera -> (B, H, 3, h, w) uint8, B prompts, state (B, H, S) -> normalised actions (B, H, L, A).

        A model that acts only at the last step of a window gives (B, 1, L, A). present: (B, C) bool, False where a row lacks
        a camera.
        """

    @abstractmethod
    def init_state(self) -> Any:
        """The state of one episode before its first observation."""

    @abstractmethod
    def step(
        self,
        images: Images,
        prompts: Sequence[str],
        states: Sequence[Any],
        state: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[Any]]:
        """One observation of each of B episodes, wherever each of them stands.

        Args:
            images: camera -> (B, 3, h, w) uint8. states: B, of ``init_state`` or of the step before.
            state: (B, S) of the robot. present: (B, C) bool, False where a row lacks a camera.

        Returns:
            Normalised actions (B, L, A), binary dimensions 0 or 1, and the next B states.
        """

    def _extend(
        self,
        images: torch.Tensor,
        prompts: Sequence[str],
        contexts: Sequence[Context],
        state: torch.Tensor | None,
        present: torch.Tensor | None,
    ) -> list[Context]:
        limit, keep = (self.window, self.keep) if self.interleaved else (1, 0)
        return extend(self.backbone, images, prompts, contexts, limit=limit, keep=keep, state=state, present=present)


class ContinuousVLA(VLA):
    """Query features of every step of a window, then a head."""

    head: Head

    def action_losses(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        features = self.features(batch.images, batch.prompts, batch.state, batch.present)
        loss, parts = self.head.loss(features, batch.actions, batch.action_mask)
        return features, {"loss": loss, **parts}

    def evaluate(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        features, losses = self.action_losses(batch)
        return losses, self.head.sample(features)

    def predict(
        self,
        images: Images,
        prompts: Sequence[str],
        state: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.head.sample(self.features(images, prompts, state, present))

    def features(
        self,
        images: Images,
        prompts: Sequence[str],
        state: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, H, Q, D), as ``predict`` has its arguments."""
        stacked = torch.stack(list(images.values()), dim=2)
        if self.interleaved:
            return self.backbone.encode_windows(stacked, prompts, state, present=present)[0]
        batch, window = stacked.shape[:2]
        features, _ = self.backbone.encode_windows(
            stacked.flatten(0, 1)[:, None],
            [prompt for prompt in prompts for _ in range(window)],
            None if state is None else state.flatten(0, 1)[:, None],
            present=None if present is None else present.repeat_interleave(window, dim=0),
        )
        return features[:, 0].unflatten(0, (batch, window))

    def init_state(self) -> Any:
        return Context() if self.interleaved else self.head.init_state()

    def step(
        self,
        images: Images,
        prompts: Sequence[str],
        states: Sequence[Any],
        state: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[Any]]:
        stacked = torch.stack(list(images.values()), dim=1)
        if not self.interleaved:
            features, _ = self.backbone.encode_windows(
                stacked[:, None], prompts, None if state is None else state[:, None], present=present
            )
            return self.head.step(features[:, 0], states)
        contexts = self._extend(stacked, prompts, states, state, present)
        windows = [context.features for context in contexts]
        last = torch.tensor([len(window) - 1 for window in windows], device=stacked.device)
        return self.head.sample_at(pad_sequence(windows, batch_first=True), last), contexts


class DiscreteVLA(VLA):
    """Actions as tokens: the chunk of the window's last step is decoded behind its query tokens."""

    head: DiscreteHead

    def count_actions(self, batch: Batch) -> int:
        return int(batch.action_mask[:, -1].sum())

    def action_losses(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Teacher forcing: all action tokens in one pass, each predicted from what stands before it."""
        mask = batch.action_mask[:, -1]
        tokens = self.head.tokens(batch.actions[:, -1], mask)
        stacked = torch.stack(list(batch.images.values()), dim=2)
        features, suffix = self.backbone.encode_windows(
            stacked, batch.prompts, batch.state, present=batch.present, suffix=self.head.embed(tokens[:, :-1])
        )
        hidden = torch.cat([features[:, -1, -1:], suffix], dim=1)
        loss = self.head.token_loss(hidden, tokens, mask)
        return features, {"loss": loss, "cross_entropy": loss}

    def evaluate(self, batch: Batch) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        return self.action_losses(batch)[1], self.predict(batch.images, batch.prompts, batch.state, batch.present)

    def predict(
        self,
        images: Images,
        prompts: Sequence[str],
        state: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        contexts: list[Any] = [Context() for _ in prompts]
        stacked = torch.stack(list(images.values()), dim=2)
        for h in range(stacked.shape[1]):
            contexts = self._extend(stacked[:, h], prompts, contexts, None if state is None else state[:, h], present)
        return self._decode(prompts, contexts)[:, None]

    def init_state(self) -> Context:
        return Context()

    def step(
        self,
        images: Images,
        prompts: Sequence[str],
        states: Sequence[Any],
        state: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, list[Any]]:
        contexts = self._extend(torch.stack(list(images.values()), dim=1), prompts, states, state, present)
        # without history nothing need be kept
        return self._decode(prompts, contexts), contexts if self.interleaved else [Context() for _ in contexts]

    def _decode(self, prompts: Sequence[str], contexts: Sequence[Context]) -> torch.Tensor:
        first = torch.stack([context.features[-1, -1] for context in contexts])
        tokens = decode(self.backbone, first, prompts, contexts, self.head.length, self.head.choose, self.head.embed)
        return self.head.actions(tokens)


def build_vla(
    config: ModelConfig,
    spec: ActionSpec,
    *,
    window: int,
    chunk: int,
    image_size: tuple[int, int],
    bounded: bool,
    definition: Path | None = None,
    state_size: int = 0,
    quantization: Any = None,
) -> VLA:
    """The model that ``config`` describes, with fresh weights (those of a pretrained backbone excepted).

    Args:
        bounded: whether normalised actions lie in [-1, 1].
        definition: folder of a saved backbone definition to take instead of ``config.backbone``, as a checkpoint has one.
        state_size: S, numbers of the robot's state that the model takes. quantization: see ``build_backbone``.
    """
    backbone = build_backbone(config, image_size, definition, state_size=state_size, quantization=quantization)
    in_sequence = isinstance(config.structure, InterleavedConfig) or isinstance(config.head, DiscreteHeadConfig)
    if in_sequence and not backbone.family.causal:
        raise ConfigError(
            f"{backbone.model.config.model_type} looks at its whole sequence from every place: "
            "neither structure interleaved nor the discrete head can be right with it"
        )
    if isinstance(config.head, DiscreteHeadConfig):
        if not bounded:
            raise ConfigError("the discrete head needs bounded actions: set actions.normalization to quantile or bounds")
        discrete = DiscreteHead(config.head, backbone.width, spec, chunk, backbone.embedding_scale())
        return DiscreteVLA(backbone, discrete, config.structure, window)
    head = make_head(config.head, HeadSizes(backbone.width, backbone.readouts, spec, window, chunk, bounded), config.loss)
    return ContinuousVLA(backbone, head, config.structure, window)
