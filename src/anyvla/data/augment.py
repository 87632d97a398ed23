"""Augmentation of a whole window: what is drawn once holds for all its frames, so that motion stays motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from anyvla.actions.spec import ActionSpec
from anyvla.data.prompts import drop_words, mirror_text


@dataclass(frozen=True)
class Augmentation:
    """Strengths; 0 turns a part off.

    Attributes:
        shift: largest shift of the window's frames, as a fraction of height and width; edges are repeated.
        color: largest relative change of brightness, contrast, saturation and of each channel's gain.
        mirror: probability to exchange left and right: in the images, the actions and the words together.
            Windows whose words cannot be mirrored safely stay as they are.
        words: probability to leave out each word of the instruction that names no side: a policy trained on few sentences
            then relies less on the exact wording.
        drop_camera: probability to leave out each of ``optional_cameras``, so that the policy learns to do without; one camera
            always stays. state_sign: (S,) of +1 and -1, the factor that turns a state into its mirror image.
    """

    shift: float = 0.0
    color: float = 0.0
    mirror: float = 0.0
    words: float = 0.0
    drop_camera: float = 0.0
    optional_cameras: tuple[str, ...] = ()
    state_sign: tuple[float, ...] = ()

    def __call__(
        self,
        images: dict[str, np.ndarray],
        instruction: str,
        actions: np.ndarray,
        spec: ActionSpec,
        rng: np.random.Generator,
        state: np.ndarray | None = None,
    ) -> tuple[dict[str, np.ndarray], str, np.ndarray, np.ndarray | None]:
        """Augment camera -> (H, h, w, 3) uint8, a sentence, (..., A) actions and (H, S) states in robot units.

        Inputs stay as they are; a camera that is left out is no longer in the dictionary.
        """
        mirrored = self.mirrored(instruction, rng)
        if mirrored is not None:
            images = {camera: frames[:, :, ::-1] for camera, frames in images.items()}
            instruction = mirrored
            actions = actions * spec.mirror_sign
            state = None if state is None else state * np.array(self.state_sign, dtype=np.float32)
        if self.words > 0:
            instruction = drop_words(instruction, self.words, rng)
        if self.shift > 0:
            images = {camera: shift_frames(frames, self.shift, rng) for camera, frames in images.items()}
        if self.color > 0:
            images = {camera: jitter_color(frames, self.color, rng) for camera, frames in images.items()}
        if self.drop_camera > 0:
            images = drop_cameras(images, self.optional_cameras, self.drop_camera, rng)
        return images, instruction, actions, state

    def mirrored(self, instruction: str, rng: np.random.Generator) -> str | None:
        """The instruction of a mirrored window; None if the first draw of ``rng`` or the words leave it as it is."""
        return mirror_text(instruction) if rng.random() < self.mirror else None


def drop_cameras(
    images: dict[str, np.ndarray], optional: tuple[str, ...], probability: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Leave out each ``optional`` camera with ``probability``, in random order, as long as another one stays."""
    kept = dict(images)
    for camera in rng.permutation([camera for camera in images if camera in optional]).tolist():
        if rng.random() < probability and len(kept) > 1:
            del kept[camera]
    return kept


def shift_frames(frames: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Shift all of (H, h, w, 3) by one random vector, at most ``amount`` of the height and of the width; unbiased."""
    height, width = frames.shape[1:3]
    limits = (round(amount * height), round(amount * width))
    dy, dx = (int(rng.integers(-limit, limit + 1)) for limit in limits)
    rows = np.clip(np.arange(height) + dy, 0, height - 1)
    columns = np.clip(np.arange(width) + dx, 0, width - 1)
    return frames[:, rows][:, :, columns]


def jitter_color(frames: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and white balance of (H, h, w, 3) uint8, the same way in every frame."""
    brightness, contrast, saturation = 1 + amount * rng.uniform(-1, 1, 3)
    gains = 1 + 0.5 * amount * rng.uniform(-1, 1, 3)
    # one 3x3 matrix and an offset do all four: out = contrast * (balance . saturate)(in) + offset
    luma = np.array([0.299, 0.587, 0.114])
    saturate = saturation * np.eye(3) + (1 - saturation) * luma
    matrix = (contrast * brightness * gains[:, None] * saturate).astype(np.float32)
    offset = np.float32((1 - contrast) * 128.0)
    out = frames.astype(np.float32) @ matrix.T + offset
    return np.clip(out, 0, 255).astype(np.uint8)
