"""Settings of the data, of what the model sees, and of what it predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from anyvla.actions.normalize import NormalizerKind
from anyvla.actions.spec import action_spec
from anyvla.config.settings import Fit, Fraction, OnBadEpisode, Positive, Settings
from anyvla.config.sources import MobileH5Config, SourceConfig
from anyvla.errors import ConfigError, did_you_mean


class AugmentConfig(Settings):
    """Augmentation of training windows; 0 turns a part off."""

    shift: float = Field(0.0, ge=0, le=0.5, description="largest shift of a window, as a fraction of height and width")
    color: float = Field(
        0.0, ge=0, le=1, description="largest relative change of brightness, contrast, saturation, white balance"
    )
    mirror: Fraction = Field(0.0, description="probability to exchange left and right in images, actions and words together")
    words: Fraction = Field(0.0, description="probability to leave out each word of the instruction that names no side")
    drop_camera: Fraction = Field(0.0, description="probability to leave out each of observation.optional_cameras")


class DataConfig(Settings):
    """Where the episodes are and how windows are drawn from them."""

    source: SourceConfig = MobileH5Config()
    on_bad_episode: OnBadEpisode = Field("error", description="stop at a damaged episode, or skip and count it")
    validation: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="fraction of the episodes held out")
    store: Literal["auto", "cache", "direct"] = Field(
        "auto", description="decode all frames once into the cache, or each when it is drawn; auto: the cache if it has room"
    )
    cache: Path | None = Field(None, description="folder of the frame cache; ~/.cache/anyvla if null")
    workers: int = Field(0, ge=0, description="processes that load batches; 0 loads them in the training process")
    augment: AugmentConfig = AugmentConfig()


class ObservationConfig(Settings):
    """What the model sees."""

    cameras: list[str] | None = Field(None, min_length=1, description="camera names; all that the data have if null")
    optional_cameras: list[str] = Field([], description="those of them that an episode, and later the robot, may lack")
    state: list[str] | None = Field(
        None, min_length=1, description="numbers of the robot's state that the model takes, by name; none if null"
    )
    mirrored_state: list[str] | None = Field(
        None, description="those of state that change sign when left and right are exchanged; needed for data.augment.mirror"
    )
    image_size: tuple[Positive, Positive] | None = Field(
        None, description="height and width of the model's images; those that the backbone was trained with if null"
    )
    fit: Fit = Field("stretch", description="how a frame of another aspect ratio is brought to image_size")
    prompt: str = Field("{instruction}", pattern=r"\{instruction\}", description="template around the instruction")

    @model_validator(mode="after")
    def _names_are_known(self) -> ObservationConfig:
        for key, names, among in (
            ("cameras", self.cameras, None),
            ("optional_cameras", self.optional_cameras, self.cameras),
            ("state", self.state, None),
            ("mirrored_state", self.mirrored_state, self.state or []),
        ):
            for name in names or []:
                if among is not None and name not in among:
                    raise ValueError(
                        f"{key}: {name!r} is not in {'state' if 'state' in key else 'cameras'}{did_you_mean(name, among)}"
                    )
                if (names or []).count(name) > 1:
                    raise ValueError(f"{key}: {name!r} is named twice")
        return self


class ActionsConfig(Settings):
    """What the model predicts."""

    spec: str | dict[str, Any] | None = Field(
        "nav2", description="arm7, delta7, pose7, nav2, nav3, or a mapping with name and dims; that of the data if null"
    )
    window: Positive = Field(8, description="H, observations in a window")
    chunk: Positive = Field(10, description="L, actions predicted at each step")
    normalization: NormalizerKind = "quantile"
    bounds: tuple[float, float] | None = Field(
        None,
        description="of normalization bounds and mu_law: what becomes -1 and 1; smallest and largest of the data if null",
    )

    @field_validator("bounds")
    @classmethod
    def _bounds_are_ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"the lower bound {value[0]:g} is not below the upper one {value[1]:g}")
        return value

    @model_validator(mode="after")
    def _bounds_are_used(self) -> ActionsConfig:
        if self.bounds is not None and self.normalization not in ("bounds", "mu_law"):
            raise ValueError(f"normalization {self.normalization!r} takes no bounds; only 'bounds' and 'mu_law' do")
        return self

    @field_validator("spec")
    @classmethod
    def _spec_is_one(cls, value: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        try:
            if value is not None:
                action_spec(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return value
