"""Settings of what is minimised beside the loss of the actions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from anyvla.config.settings import Positive, Settings, check_heads

Weight = Annotated[float, Field(gt=0, description="factor of this loss, beside 1 for that of the actions")]


class CaptionConfig(Settings):
    """The backbone is asked ``prompt`` about the last frame of every window, and learns to answer with the instruction."""

    weight: Weight = 0.05
    prompt: str = Field("What should the robot do?", min_length=1, description="the question")


class ConversationsConfig(Settings):
    """Co-training: beside every batch of windows, one of questions about images and their answers (LLaVA's JSON)."""

    weight: Weight = 0.1
    path: Path = Field(description="JSON file of the conversations")
    images: Path | None = Field(None, description="folder that the images' paths start from; that of the file if null")
    batch_size: Positive = Field(8, description="answers per device and forward pass")
    max_characters: Positive = Field(4000, description="of a question, its answer and the turns before them")


class MaskedConfig(Settings):
    """Some patches of the frames to come are shown, and the others are to be predicted."""

    ratio: float = Field(0.9, gt=0, lt=1, description="fraction of the patches that are hidden")
    tube: bool = Field(True, description="hide the same patches in all frames to come")


class FutureConfig(Settings):
    """A small transformer predicts the pixels of the next frames from the features of this one."""

    weight: Weight = 0.1
    cameras: list[str] | None = Field(None, min_length=1, description="cameras whose frames are predicted; all if null")
    next: Positive = Field(1, description="how many frames ahead: t + 1 to t + next")
    masked: MaskedConfig | None = Field(None, description="show a few patches of these frames; null shows none")
    patch: Positive = Field(16, description="side of a patch in pixels; divides observation.image_size")
    hidden: Positive = Field(256, description="width of the transformer")
    layers: Positive = 2
    attention_heads: Positive = 4

    @model_validator(mode="after")
    def _heads_divide_width(self) -> FutureConfig:
        check_heads(self.hidden, self.attention_heads)
        return self


class AlignmentConfig(Settings):
    """The features point where a frozen feature of the instruction points."""

    weight: Weight = 0.1


class ObjectivesConfig(Settings):
    """What is minimised beside the loss of the actions; a section that is null is off and costs nothing."""

    caption: CaptionConfig | None = None
    conversations: ConversationsConfig | None = None
    future: FutureConfig | None = None
    alignment: AlignmentConfig | None = None
