"""Normalisation of actions: from robot units to the scale that a head predicts, and exactly back.

Every kind is one affine map, ``low -> -1`` and ``high -> +1``, with a clip before it where the kind has bounds and mu-law
companding after it where asked for:

    quantile   low, high = q01, q99 of the training data; clipped        a~ = 2 (a' - q01) / (q99 - q01) - 1
    bounds     low, high = min, max of the training data; clipped
    mean_std   low, high = mean -+ std; not clipped                      a~ = (a - mean) / std
    mu_law     as bounds, then sign(x) log(1 + mu |x|) / log(1 + mu)
    identity   nothing

Binary dimensions are never touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from anyvla.actions.spec import ActionSpec
from anyvla.errors import DataError, did_you_mean

NormalizerKind = Literal["quantile", "bounds", "mean_std", "mu_law", "identity"]

# which statistics become low and high, per kind
_NEEDS: dict[str, tuple[str, ...]] = {
    "quantile": ("q01", "q99"),
    "bounds": ("min", "max"),
    "mean_std": ("mean", "std"),
    "mu_law": ("min", "max"),
    "identity": (),
}
BOUNDED_KINDS = frozenset({"quantile", "bounds", "mu_law"})


@dataclass(frozen=True)
class Normalizer:
    """A fitted map for A dimensions; ``normalize`` and ``denormalize`` take and return (..., A) arrays.

    A dimension that is constant in the data normalises to 0 and comes back as that constant.
    """

    kind: NormalizerKind
    low: np.ndarray  # (A,) float64, the value that becomes -1
    high: np.ndarray  # (A,) float64, the value that becomes +1
    binary: np.ndarray  # (A,) bool
    mu: float = 255.0

    @property
    def bounded(self) -> bool:
        """Whether normalised continuous values lie in [-1, 1]."""
        return self.kind in BOUNDED_KINDS

    @property
    def _center(self) -> np.ndarray:
        return (self.low + self.high) / 2

    @property
    def _half(self) -> np.ndarray:
        """Half the width, 0 for a constant dimension."""
        half = (self.high - self.low) / 2
        return np.where(half > 1e-6 * np.maximum(1.0, np.abs(self._center)), half, 0.0)

    def normalize(self, actions: np.ndarray) -> np.ndarray:
        """(..., A) in robot units -> (..., A) float32 normalised."""
        if self.kind == "identity":
            return actions.astype(np.float32)
        clipped = np.clip(actions, self.low, self.high) if self.bounded else actions
        half = self._half
        scaled = np.where(half > 0, (clipped - self._center) / np.where(half > 0, half, 1.0), 0.0)
        if self.kind == "mu_law":
            scaled = np.sign(scaled) * np.log1p(self.mu * np.abs(scaled)) / np.log1p(self.mu)
        return np.where(self.binary, actions, scaled).astype(np.float32)

    def denormalize(self, normalized: np.ndarray) -> np.ndarray:
        """(..., A) normalised -> (..., A) float32 in robot units; the inverse of ``normalize`` inside the range."""
        if self.kind == "identity":
            return normalized.astype(np.float32)
        scaled = normalized.astype(np.float64)
        if self.kind == "mu_law":
            scaled = np.sign(scaled) * np.expm1(np.abs(scaled) * np.log1p(self.mu)) / self.mu
        return np.where(self.binary, normalized, self._center + self._half * scaled).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "binary": self.binary.tolist(),
            "mu": self.mu,
        }


def normalizer_from_dict(value: Mapping[str, Any]) -> Normalizer:
    """The inverse of ``Normalizer.to_dict``."""
    return Normalizer(
        value["kind"],
        np.array(value["low"], dtype=np.float64),
        np.array(value["high"], dtype=np.float64),
        np.array(value["binary"], dtype=bool),
        float(value["mu"]),
    )


def fit_normalizer(
    kind: NormalizerKind, statistics: Mapping[str, np.ndarray], spec: ActionSpec, mu: float = 255.0
) -> Normalizer:
    """Make a normaliser of ``kind`` from ``statistics``: name (``q01``, ``q99``, ``min``, ``max``, ``mean``, ``std``) -> (A,).

    Raises:
        DataError: a statistic that the kind needs is missing, has another shape, or is not finite.
    """
    if kind not in _NEEDS:
        raise DataError(f"unknown normalisation {kind!r}{did_you_mean(kind, _NEEDS)}")
    values = []
    for name in _NEEDS[kind]:
        if name not in statistics:
            raise DataError(f"normalisation {kind!r} needs the statistic {name!r}, which the data statistics lack")
        value = np.asarray(statistics[name], dtype=np.float64)
        if value.shape != (len(spec),) or not np.isfinite(value).all():
            raise DataError(
                f"statistic {name!r} must be {len(spec)} finite numbers ({', '.join(spec.names)}), not {value.tolist()}"
            )
        values.append(value)
    if kind == "identity":
        low, high = -np.ones(len(spec)), np.ones(len(spec))
    elif kind == "mean_std":
        low, high = values[0] - values[1], values[0] + values[1]
    else:
        low, high = values
    return Normalizer(kind, low, high, spec.binary, mu)
