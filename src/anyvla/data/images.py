"""One way to bring a frame to the size a model takes, for the training store, the robot and the simulator alike."""

from __future__ import annotations

import numpy as np
from PIL import Image

from anyvla.settings import Fit


def resize_frame(frame: np.ndarray, size: tuple[int, int], fit: Fit = "stretch") -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w, 3) uint8, bicubic with antialiasing.

    ``stretch`` changes the aspect ratio, ``pad`` adds black borders, ``crop`` cuts the longer side around the centre.
    """
    height, width = size
    if frame.shape[:2] == (height, width):
        return frame
    image = Image.fromarray(frame)
    if fit == "stretch":
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    scales = (width / image.width, height / image.height)
    scale = min(scales) if fit == "pad" else max(scales)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(inner, Image.Resampling.BICUBIC)
    left, top = (inner[0] - width) // 2, (inner[1] - height) // 2
    # outside the image, crop fills with black: the same call pads and cuts
    return np.asarray(image.crop((left, top, left + width, top + height)))
