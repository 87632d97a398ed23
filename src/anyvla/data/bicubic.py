"""Bicubic resizing with antialiasing in NumPy, for a robot without PyTorch: bit for bit what PyTorch's uint8 kernel gives."""

from __future__ import annotations

import numpy as np

_A = -0.5  # of the cubic kernel (Keys 1981), as Pillow and PyTorch have it with antialiasing


def bicubic(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(T, H, W, 3) uint8 -> (T, h, w, 3) uint8: rows first, then columns, each rounded to uint8."""
    count, height, width, _ = frames.shape
    # float64 holds these integers exactly, and its matrix products are fast
    values = frames.astype(np.float64)
    if width != size[1]:
        values = _apply(*_weights(width, size[1]), values)
    if height != size[0]:
        values = _apply(*_weights(height, size[0]), values.reshape(count, height, -1)).reshape(count, *size, 3)
    return values.astype(np.uint8)


def _apply(weights: np.ndarray, precision: int, values: np.ndarray) -> np.ndarray:
    """Fixed-point weights (m, n) on (..., n, k) -> (..., m, k), rounded and kept within 0 to 255."""
    half = 1 << precision >> 1
    return np.clip(np.floor((weights @ values + half) / (1 << precision)), 0, 255)


def _weights(source: int, target: int) -> tuple[np.ndarray, int]:
    """(target, source) integer weights of 16 bits, and the number of bits behind the point that this leaves."""
    scale = source / target
    support, stretch = 2 * max(scale, 1.0), min(1 / scale, 1.0)
    exact = np.zeros((target, source))
    for i in range(target):
        centre = scale * (i + 0.5)
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), source)
        row = _cubic(np.abs((np.arange(low, high) - centre + 0.5) * stretch))
        exact[i, low:high] = row / row.sum()
    precision = 0
    while precision < 22 and int(0.5 + exact.max() * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    scaled = exact * (1 << precision)
    return np.trunc(scaled + np.copysign(0.5, scaled)), precision


def _cubic(x: np.ndarray) -> np.ndarray:
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * _A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
