"""Transforms: everything that happens to data on its way to the model, and to actions on their way back.

One object stands on the training path and on the robot's. It is saved inside the checkpoint, statistics included, so that the
model sees on the robot what it saw in training: the same frame size, the same prompt function, the same normalisation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from anyvla.actions import ActionSpec, Normalizer, normalizer_from_dict
from anyvla.config.settings import Fit
from anyvla.data.images import resize_frame
from anyvla.data.prompts import make_prompt
from anyvla.data.state import StateTransform
from anyvla.data.stats import Statistics, statistics_to_dict
from anyvla.errors import CheckpointError, ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class Scale:
    """What differs between the sources of a mixture: each has its own units, habits and rate."""

    normalizer: Normalizer
    statistics: Statistics
    fps: float
    state: StateTransform | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "normalizer": self.normalizer.to_dict(),
            "statistics": statistics_to_dict(self.statistics),
            "fps": self.fps,
            "state": None if self.state is None else self.state.to_dict(),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Scale:
        """The inverse of ``to_dict``."""
        state = value.get("state")  # there is none in older files
        return cls(
            normalizer=normalizer_from_dict(value["normalizer"]),
            statistics={name: np.array(numbers) for name, numbers in value["statistics"].items()},
            fps=float(value["fps"]),
            state=None if state is None else StateTransform.from_dict(state),
        )


@dataclass(frozen=True)
class Transforms:
    """Attributes:

    spec: the action dimensions. normalizer: their fitted scale. statistics: of the training actions, for people and reports.
    cameras: names of the images the model takes. image_size: (h, w). fit: how a frame of another shape is brought to it.
    prompt_template: see ``make_prompt``. window: H. chunk: L. fps: control steps per second of the training data.
    optional_cameras: those of ``cameras`` that an observation may lack. state: None if the model takes none.
    mixture: name -> scale of every source, where the model was trained on several; the scale here is that of one of them.
    """

    spec: ActionSpec
    normalizer: Normalizer
    statistics: Statistics
    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    fit: Fit
    prompt_template: str
    window: int
    chunk: int
    fps: float
    optional_cameras: tuple[str, ...] = ()
    state: StateTransform | None = None
    mixture: Mapping[str, Scale] = field(default_factory=dict)

    def of(self, source: str) -> Transforms:
        """These with the scale of one source of the mixture."""
        if source not in self.mixture:
            raise ConfigError(
                f"the model was trained on no source {source!r}{did_you_mean(source, self.mixture)}; "
                f"its sources: {', '.join(self.mixture) or 'one without a name'}"
            )
        scale = self.mixture[source]
        return replace(self, normalizer=scale.normalizer, statistics=scale.statistics, fps=scale.fps, state=scale.state)

    def images(self, images: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Camera -> (H, W, 3) uint8 of any size -> camera -> (h, w, 3) uint8, for the cameras that the model takes.

        Optional cameras may be absent, there and here. Raises DataError for any other missing camera, for an observation
        without any camera, or for an image of another dtype or shape.
        """
        result = {}
        for camera in self.cameras:
            if camera not in images and camera in self.optional_cameras:
                continue
            if camera not in images:
                raise DataError(f"the observation lacks the camera {camera!r}; it has: {', '.join(sorted(images)) or 'none'}")
            image = np.asarray(images[camera])
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or image.size == 0:
                raise DataError(f"camera {camera!r}: expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
            result[camera] = resize_frame(image, self.image_size, self.fit)
        if not result:
            raise DataError(
                f"the observation has none of the policy's cameras ({', '.join(self.cameras)}); "
                f"it has: {', '.join(sorted(images)) or 'none'}"
            )
        return result

    def normalize_state(self, state: Any, *leading: int) -> np.ndarray | None:
        """The robot's state (*leading, S), in its own units -> the same as the model takes it, float32; None if it takes none.

        Raises DataError for a state that is missing, of another size, not finite, or not asked for.
        """
        if self.state is None:
            if state is not None:
                raise DataError("a state is given, and the policy was trained without one (observation.state)")
            return None
        if state is None:
            raise DataError(f"the observation lacks the robot's state: {', '.join(self.state.names)}")
        return self.state(state, *leading)

    def prompt(self, instruction: str) -> str:
        return make_prompt(instruction, self.prompt_template)

    def to_json(self) -> str:
        value = {
            "spec": self.spec.to_dict(),
            **Scale(self.normalizer, self.statistics, self.fps, self.state).to_dict(),
            "cameras": list(self.cameras),
            "image_size": list(self.image_size),
            "fit": self.fit,
            "prompt_template": self.prompt_template,
            "window": self.window,
            "chunk": self.chunk,
            "optional_cameras": list(self.optional_cameras),
            "mixture": {name: scale.to_dict() for name, scale in self.mixture.items()},
        }
        return json.dumps(value, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Transforms:
        """The inverse of ``to_json``; raises CheckpointError for a text that is not one."""
        try:
            value: dict[str, Any] = json.loads(text)
            scale = Scale.from_dict(value)
            return cls(
                spec=ActionSpec.from_dict(value["spec"]),
                normalizer=scale.normalizer,
                statistics=scale.statistics,
                cameras=tuple(value["cameras"]),
                image_size=(int(value["image_size"][0]), int(value["image_size"][1])),
                fit=value["fit"],
                prompt_template=value["prompt_template"],
                window=int(value["window"]),
                chunk=int(value["chunk"]),
                fps=scale.fps,
                optional_cameras=tuple(value.get("optional_cameras", ())),
                state=scale.state,
                mixture={name: Scale.from_dict(one) for name, one in value.get("mixture", {}).items()},
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"transforms.json is damaged: {error!r}") from error
