"""One way to bring frames to the size a model takes, for the training store, the robot and the simulator alike."""

from __future__ import annotations

import numpy as np

from anyvla.config.settings import Fit
from anyvla.data.bicubic import bicubic


def resize_frame(frame: np.ndarray, size: tuple[int, int], fit: Fit = "stretch") -> np.ndarray:
    """(H, W, 3) uint8 -> (h, w, 3) uint8; see ``resize_frames``."""
    return resize_frames(frame[None], size, fit)[0]


def resize_frames(frames: np.ndarray, size: tuple[int, int], fit: Fit = "stretch") -> np.ndarray:
    """(T, H, W, 3) uint8 -> (T, h, w, 3) uint8, bicubic with antialiasing; each frame as if it were alone.

    ``stretch`` changes the aspect ratio, ``pad`` adds black borders, ``crop`` cuts the longer side around the centre.
    """
    height, width = frames.shape[1:3]
    if (height, width) == size:
        return frames
    if fit == "stretch":
        return _bicubic(frames, size)
    scales = (size[0] / height, size[1] / width)
    scale = min(scales) if fit == "pad" else max(scales)
    inner = _bicubic(frames, (max(1, round(height * scale)), max(1, round(width * scale))))
    out = np.zeros((len(frames), *size, 3), dtype=np.uint8)
    (rows, theirs), (columns, their_columns) = (_overlap(n, inner.shape[i + 1]) for i, n in enumerate(size))
    out[:, rows, columns] = inner[:, theirs, their_columns]
    return out


def _bicubic(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    try:
        import torch
        from torch.nn import functional as F
    except ImportError:  # a robot with an exported policy needs no torch
        return bicubic(frames, size)
    # torch's uint8 kernel differs from Pillow's by 2 of 255 at most, and is several times as fast
    stacked = torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(0, 3, 1, 2)  # stays channels last in memory
    resized = F.interpolate(stacked, size, mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1).numpy())


def _overlap(target: int, source: int) -> tuple[slice, slice]:
    """Where a length of ``source`` lies, centred, in one of ``target``: in the target, and in the source."""
    if source <= target:
        start = (target - source) // 2
        return slice(start, start + source), slice(0, source)
    start = (source - target) // 2
    return slice(0, target), slice(start, start + target)
