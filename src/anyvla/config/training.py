"""Settings of the optimisation, and of what of a model is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from anyvla.config.settings import Fraction, Positive, Settings


class TrainingConfig(Settings):
    """Optimisation, its schedule, and how often things are measured and saved."""

    init_from: Path | None = Field(None, description="run or checkpoint whose weights training begins with")
    steps: Positive = Field(10_000, description="optimiser steps")
    batch_size: Positive = Field(16, description="windows per device and forward pass")
    accumulation: Positive = Field(1, description="forward passes per optimiser step")
    learning_rate: float = Field(1e-4, gt=0)
    min_learning_rate: Fraction = Field(0.0, description="at the end of the cosine, as a fraction of learning_rate")
    warmup: int = Field(100, ge=0, description="steps of linear warm-up")
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0, description="of weight matrices; never of norms, biases and embeddings")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of the gradient")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    shard: bool = Field(False, description="spread weights, gradients and optimiser over all processes (FSDP2)")
    log_every: Positive = 20
    validate_every: Positive = 500
    validation_windows: Positive = Field(512, description="windows per validation, spread evenly over the held-out episodes")
    save_every: Positive = 500
    trackers: list[Literal["tensorboard"]] = Field([], description="beside metrics.jsonl, which is always written")


Rate = Annotated[float, Field(gt=0)]


_RATE = Field(None, description="peak learning rate; training.learning_rate if null")


class FullTuningConfig(Settings):
    """Train every weight."""

    type: Literal["full"] = "full"
    learning_rate: Rate | None = _RATE


class FrozenTuningConfig(Settings):
    """Train nothing."""

    type: Literal["frozen"] = "frozen"


class LoraTuningConfig(Settings):
    """Low-rank updates of frozen linear layers, W + (alpha / rank) B A (arXiv 2106.09685)."""

    type: Literal["lora"] = "lora"
    rank: Positive = 32
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | list[str] = Field("attention", description="attention, all-linear, or regular expressions of layer names")
    learning_rate: Rate | None = _RATE

    @field_validator("targets")
    @classmethod
    def _targets_are_known(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, str):
            if value not in ("attention", "all-linear"):
                raise ValueError(f"{value!r} is neither 'attention' nor 'all-linear' nor a list of regular expressions")
            return value
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return value


class LastLayersTuningConfig(Settings):
    """Train the last decoder layers."""

    type: Literal["last_layers"] = "last_layers"
    layers: Positive = Field(4, description="how many")
    learning_rate: Rate | None = _RATE


class HeadTuningConfig(Settings):
    """The action head is new, so it is always trained."""

    learning_rate: Rate | None = _RATE


_Tower = Annotated[FullTuningConfig | FrozenTuningConfig | LoraTuningConfig, Field(discriminator="type")]


_Language = Annotated[
    FullTuningConfig | FrozenTuningConfig | LoraTuningConfig | LastLayersTuningConfig, Field(discriminator="type")
]


class TuningConfig(Settings):
    """What of the model is trained, tower by tower; what is new around a pretrained model (query tokens, head) always is."""

    vision: _Tower = FullTuningConfig()
    connector: _Tower = FullTuningConfig()
    language: _Language = FullTuningConfig()
    head: HeadTuningConfig = HeadTuningConfig()
    text_embedding: bool | None = Field(None, description="train the word embedding; null: if all of language is trained")
    resampler: bool | None = Field(None, description="train the vision resampler; null: as the connector, a new one always")
    gradient_checkpointing: bool = Field(False, description="compute activations again in the backward pass: less memory")
    quantization: Literal["4bit", "8bit"] | None = Field(None, description="of the frozen weights of a pretrained backbone")
