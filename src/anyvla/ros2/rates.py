"""What a drive really did: rates and delays against their targets."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection
from typing import Any

import numpy as np

_KEPT = 100_000  # numbers of each kind: more than half an hour at 50 Hz


class Rates:
    """Collects while driving; ``summary`` at the end."""

    def __init__(self, period: float) -> None:
        self._period = period
        self._steps = 0
        self._began: float | None = None
        self._last: float | None = None
        self._periods: deque[float] = deque(maxlen=_KEPT)
        self._inference: deque[float] = deque(maxlen=_KEPT)
        self._delays: deque[float] = deque(maxlen=_KEPT)
        self.counts: Counter[str] = Counter()

    def step(self, steady: float) -> None:
        """A control step begins."""
        if self._last is None:
            self._began = steady
        else:
            self._periods.append(steady - self._last)
        self._steps, self._last = self._steps + 1, steady

    def chunk(self, seconds: float, delay: float) -> None:
        """A chunk took ``seconds`` to predict and came ``delay`` after what it was predicted from was seen."""
        self._inference.append(seconds)
        self._delays.append(delay)
        self.counts["chunks"] += 1

    def summary(self) -> dict[str, Any]:
        """Milliseconds as p50, p95 and p99; rates in Hz."""
        seconds = (self._last or 0.0) - (self._began or 0.0)
        return {
            "seconds": round(seconds, 3),
            "control_steps": self._steps,
            "target_hz": round(1 / self._period, 3),
            "control_hz": round((self._steps - 1) / seconds, 3) if seconds > 0 else None,
            "period_ms": _milliseconds(self._periods),
            "jitter_ms": _milliseconds([abs(period - self._period) for period in self._periods]),
            "inference_ms": _milliseconds(self._inference),
            "image_to_chunk_ms": _milliseconds(self._delays),
            **self.counts,
        }


def _milliseconds(seconds: Collection[float]) -> dict[str, float] | None:
    if not seconds:
        return None
    values = 1e3 * np.percentile(list(seconds), (50, 95, 99))
    return {name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), values, strict=True)}
