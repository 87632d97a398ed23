"""Exact statistics in the form that LeRobotDataset keeps them: of one episode, and of all."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}


def column_statistics(values: np.ndarray) -> dict[str, list[float] | list[int]]:
    """Of (T,) or (T, D) numbers: name -> D numbers. Quantiles are true ones, linearly interpolated."""
    table = values.reshape(len(values), -1).astype(np.float64)
    quantiles = np.quantile(table, list(_QUANTILES.values()), axis=0)
    return {
        "min": table.min(0).tolist(),
        "max": table.max(0).tolist(),
        "mean": table.mean(0).tolist(),
        "std": table.std(0).tolist(),
        "count": [len(table)],
        **{name: row.tolist() for name, row in zip(_QUANTILES, quantiles, strict=True)},
    }


def pixel_histogram(frames: np.ndarray) -> np.ndarray:
    """(T, H, W, 3) uint8 -> (3, 256) int64: how often each value occurs in each channel. Histograms of episodes add up."""
    return np.stack([np.bincount(frames[..., channel].ravel(), minlength=256) for channel in range(3)])


def pixel_statistics(histogram: np.ndarray, frames: int) -> dict[str, list[list[list[float]]] | list[int]]:
    """Of all pixels counted in ``histogram``, on a scale of 0 to 1: name -> (3, 1, 1); ``count`` is that of the frames."""
    values = np.arange(256)
    total = histogram.sum(1)
    mean = histogram @ values / total
    variance = histogram @ values**2 / total - mean**2
    occurring = [np.flatnonzero(counts) for counts in histogram]
    return {
        "min": _per_channel(channel[0] for channel in occurring),
        "max": _per_channel(channel[-1] for channel in occurring),
        "mean": _per_channel(mean),
        "std": _per_channel(np.sqrt(np.maximum(variance, 0))),
        "count": [frames],
        **{name: _per_channel(_quantile(counts, q) for counts in histogram) for name, q in _QUANTILES.items()},
    }


def _quantile(counts: np.ndarray, q: float) -> float:
    """The q-quantile of the values 0 to 255, of which there are ``counts``, interpolated as ``np.quantile`` does."""
    ends = np.cumsum(counts)
    position = q * (ends[-1] - 1)
    below = int(position)
    low, high = np.searchsorted(ends, [below, min(below + 1, int(ends[-1]) - 1)], side="right")
    return float(low + (position - below) * (high - low))


def _per_channel(values: Iterable[float]) -> list[list[list[float]]]:
    return [[[float(value) / 255]] for value in values]
