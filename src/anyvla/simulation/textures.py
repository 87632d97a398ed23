"""Procedural textures: (size, size, 3) uint8 arrays, the same on every machine."""

from __future__ import annotations

import numpy as np

SIZE = 256


def floor_texture(name: str) -> np.ndarray:
    """One of ``world.FLOORS``, light enough to be tinted; 2 m x 2 m of floor."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    if name == "checker":
        value = np.where((x // (SIZE // 4) + y // (SIZE // 4)) % 2, 0.85, 0.6)
    elif name == "tiles":
        tile = SIZE // 4
        tone = rng.uniform(0.78, 0.88, (4, 4))[y // tile, x // tile]
        grout = (x % tile < 3) | (y % tile < 3)
        value = np.where(grout, 0.5, tone)
    elif name == "wood":
        return _wood(rng)
    elif name == "carpet":
        value = 0.68 + 0.1 * rng.standard_normal((SIZE, SIZE))
    elif name == "concrete":
        value = 0.74 + 0.12 * _blotches(rng, 8, 8) + 0.06 * _blotches(rng, 32, 32) + 0.02 * rng.standard_normal((SIZE, SIZE))
    else:
        raise ValueError(f"no floor texture {name!r}")
    return _to_rgb(value)


def box_texture(name: str) -> np.ndarray:
    """One side of a box in one of ``world.BOX_STYLES``, to be tinted."""
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))
    value = np.full((SIZE, SIZE), 0.92)
    if name == "cardboard":  # a strip of tape
        value[abs(y - 0.5) < 0.09] = 1.0
        value[abs(y - 0.5) < 0.01] = 0.7
    elif name == "crate":  # boards and a frame
        value = np.where((y * 4) % 1 < 0.06, 0.55, 0.9)
        value[edge < 0.1] = 1.0
        value[abs(edge - 0.1) < 0.012] = 0.5
    elif name != "plain":
        raise ValueError(f"no box texture {name!r}")
    value[edge < 0.02] *= 0.65  # darker edges show the shape where two sides are lit alike
    return _to_rgb(value)


def sky_texture(zenith: tuple[float, float, float], horizon: tuple[float, float, float], size: int) -> np.ndarray:
    """(6 * size, size, 3) uint8 cube map in MuJoCo's order (right, left, up, down, front, back): a vertical gradient."""
    u = ((np.arange(size) + 0.5) / size * 2 - 1)[None, :]
    v = u.T
    # the sine of the elevation of every pixel; rows run downwards, and below the horizon the colour stays
    side = np.clip(-v, 0, 1) / np.sqrt(1 + u**2 + v**2)
    up = 1 / np.sqrt(1 + u**2 + v**2)
    blend = np.concatenate([side, side, up, np.zeros((size, size)), side, side])[..., None] ** 0.7
    low, high = np.array(horizon), np.array(zenith)
    return np.round(255 * (low + (high - low) * blend)).astype(np.uint8)


def _wood(rng: np.random.Generator) -> np.ndarray:
    rows = 8
    row = np.arange(SIZE) * rows // SIZE
    value = 0.78 + 0.09 * rng.uniform(-1, 1, rows)[row][:, None] + 0.07 * _blotches(rng, 64, 4)
    seam = (np.arange(SIZE) % (SIZE // rows) < 2)[:, None]
    from_joint = (np.arange(SIZE)[None, :] - rng.integers(0, SIZE, rows)[row][:, None]) % SIZE
    value[seam | (from_joint < 2)] = 0.45
    return np.round(255 * np.clip(value[..., None] * np.array([1.1, 0.88, 0.66]), 0, 1)).astype(np.uint8)


def _blotches(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """(SIZE, SIZE) smooth periodic noise in -1..1 with ``rows`` x ``columns`` cells."""
    grid = rng.uniform(-1, 1, (rows, columns))
    (low_y, high_y, fy), (low_x, high_x, fx) = _cells(rows), _cells(columns)
    lines = grid[low_y] * (1 - fy)[:, None] + grid[high_y] * fy[:, None]
    return lines[:, low_x] * (1 - fx) + lines[:, high_x] * fx


def _cells(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of SIZE pixels: the cell before it, the cell after it, and the smoothed way between them."""
    at = np.arange(SIZE) * count / SIZE
    low = at.astype(int)
    fraction = at - low
    return low, (low + 1) % count, fraction * fraction * (3 - 2 * fraction)


def _to_rgb(value: np.ndarray) -> np.ndarray:
    grey = np.round(255 * np.clip(value, 0, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
