"""Actions as tokens: uniform bins per dimension, as in RT-2 and OpenVLA.

A dimension with the range [low, high] has ``bins`` equally spaced edges, the first at low and the last at high. The index of an
action a is the number of edges at or below clip(a, low, high), minus one: 0 .. bins - 1, where the last one is ``high`` alone.
It comes back as the centre of the interval above its edge; ``high`` as that of the interval below. The largest error of a round
trip is half an interval, (high - low) / (bins - 1) / 2.

The token id that RoboVLMs and OpenVLA give index i is  base - (i + 1),  with base the size of the usable vocabulary.

Binary dimensions are binned as numbers in [-1, 1] and come back as exactly 0 or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anyvla.actions.spec import ActionSpec
from anyvla.errors import ConfigError, DataError

IGNORED = -100  # index of what is masked; PyTorch's cross-entropy leaves it out


@dataclass(frozen=True)
class Discretizer:
    """Normalised actions (..., A) <-> indices (..., A) from 0 to ``bins - 1``; see ``make_discretizer``."""

    names: tuple[str, ...]
    edges: torch.Tensor  # (A, bins) float64
    binary: torch.Tensor  # (A,) bool

    @property
    def bins(self) -> int:
        return self.edges.shape[1]

    @property
    def centers(self) -> torch.Tensor:
        """(A, bins) float64: the action that each index stands for."""
        centers = (self.edges[:, :-1] + self.edges[:, 1:]) / 2
        centers = torch.cat([centers, centers[:, -1:]], dim=1)
        return torch.where(self.binary[:, None], (centers > 0.5).double(), centers)

    @property
    def allowed(self) -> torch.Tensor:
        """(A, bins) bool: the indices that ``encode`` can give; two of a binary dimension."""
        allowed = ~self.binary[:, None].expand_as(self.edges)
        both = self._index(torch.stack([torch.zeros(len(self.binary)), torch.ones(len(self.binary))]))
        return allowed | torch.zeros_like(allowed).scatter(1, both.T, True)

    def encode(self, actions: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Actions (..., A) -> indices (..., A) int64; what lies outside of the range becomes its end.

        Args:
            mask: (...) bool, True where actions are real; elsewhere they may be anything, and the index is ``IGNORED``.

        Raises:
            DataError: a real action is NaN.
        """
        keep = torch.ones_like(actions, dtype=torch.bool) if mask is None else mask[..., None].expand_as(actions)
        bad = (actions.isnan() & keep).reshape(-1, len(self.names)).any(0)
        if bad.any():
            names = ", ".join(name for name, is_bad in zip(self.names, bad.tolist(), strict=True) if is_bad)
            raise DataError(f"actions that are not numbers have no token: NaN in {names}")
        return torch.where(keep, self._index(actions.nan_to_num()), IGNORED)

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices (..., A) -> actions (..., A) float32.

        Raises:
            DataError: an index is not one of 0 .. ``bins - 1``.
        """
        if ((indices < 0) | (indices >= self.bins)).any():
            raise DataError(f"action indices go from 0 to {self.bins - 1}, not {indices.min():d} to {indices.max():d}")
        dims = torch.arange(len(self.names), device=indices.device)
        return self.centers.to(indices.device)[dims, indices].float()

    def _index(self, actions: torch.Tensor) -> torch.Tensor:
        edges = self.edges.to(actions.device)
        columns = actions.double().reshape(-1, len(self.names)).T.contiguous().clamp(edges[:, :1], edges[:, -1:])
        return (torch.searchsorted(edges, columns, right=True) - 1).T.reshape(actions.shape)


def make_discretizer(
    spec: ActionSpec, bins: int = 256, low: float | Sequence[float] = -1.0, high: float | Sequence[float] = 1.0
) -> Discretizer:
    """Bins for every dimension of ``spec``; ``low`` and ``high``: one number for all dimensions, or A of them.

    Raises:
        ConfigError: ``low`` and ``high`` do not fit the spec or each other, or there are fewer than 4 bins.
    """
    if bins < 4:
        raise ConfigError(f"{bins} bins are too few: actions need at least 4")
    ends = []
    for key, value in (("low", low), ("high", high)):
        end = torch.tensor(
            [value] * len(spec) if isinstance(value, int | float) else list(value), dtype=torch.float64, device="cpu"
        )
        if end.shape != (len(spec),) or not end.isfinite().all():
            raise ConfigError(f"{key} of the bins must be one number or {len(spec)} ({', '.join(spec.names)}), not {value!r}")
        ends.append(end)
    binary = torch.from_numpy(spec.binary)
    start, stop = torch.where(binary, -1.0, ends[0]), torch.where(binary, 1.0, ends[1])
    for name, a, b in zip(spec.names, start.tolist(), stop.tolist(), strict=True):
        if not a < b:
            raise ConfigError(f"bins of action dimension {name!r}: low {a:g} is not below high {b:g}")
    edges = torch.from_numpy(np.linspace(start.numpy(), stop.numpy(), bins, axis=-1))
    return Discretizer(spec.names, edges.contiguous(), binary)
