"""The last thing between a policy and a robot: it limits values and their rate of change, braking included, and stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Mapping, Protocol, Sequence

import numpy as np

StopCause = Literal["non_finite_action", "stale_observation", "stale_action"]


class LimitsLike(Protocol):
    """What the filter reads of an action spec: anyvla's ActionSpec has it, and ``Limits``."""

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def binary(self) -> np.ndarray: ...
    @property
    def low(self) -> np.ndarray: ...
    @property
    def high(self) -> np.ndarray: ...
    @property
    def rate(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Limits:
    """Of A action dimensions: hard limits ``low`` and ``high``, largest change per second ``rate``, which are ``binary``."""

    names: tuple[str, ...]
    binary: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rate: np.ndarray

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Limits:
        """From an action spec as a policy server sends it: ``metadata["action"]``."""
        dims = spec["dims"]
        rates = [dim.get("rate") for dim in dims]
        return cls(
            names=tuple(dim["name"] for dim in dims),
            binary=np.array([dim.get("kind", "continuous") == "binary" for dim in dims]),
            low=np.array([dim.get("low", -1.0) for dim in dims], dtype=np.float64),
            high=np.array([dim.get("high", 1.0) for dim in dims], dtype=np.float64),
            rate=np.array([np.inf if rate is None else rate for rate in rates], dtype=np.float64),
        )


def neutral(limits: LimitsLike) -> np.ndarray:
    """(A,) standing: of every dimension the value nearest to 0 that is allowed."""
    return np.clip(np.zeros(len(limits.names)), limits.low, limits.high)


def approach(limits: LimitsLike, target: np.ndarray, last: np.ndarray, largest_change: np.ndarray) -> np.ndarray:
    """(A,) as near to ``target`` as the limits, and ``largest_change`` (A,) from ``last``, allow; binary ones may jump."""
    change = np.where(limits.binary, np.inf, largest_change)
    return np.clip(np.clip(target, limits.low, limits.high), last - change, last + change)


@dataclass(frozen=True)
class SafeAction:
    """What may be sent: ``action`` (A,), why it is a stop (or None), and which dimensions were limited."""

    action: np.ndarray
    stop: StopCause | None
    limited: tuple[str, ...]


class SafetyFilter:
    """Limits and watchdogs for one robot, derived from its action spec.

    A stop commands the value nearest to 0 that the limits allow in every continuous dimension and keeps the binary ones: it
    stops a base and an arm and leaves a gripper closed.
    """

    def __init__(
        self,
        spec: LimitsLike,
        period: float,
        *,
        rate_limit: bool = True,
        max_observation_age: float = 1.0,
        max_action_age: float = 1.0,
    ) -> None:
        """``period``: seconds between two actions; ages in seconds."""
        self._spec = spec
        self._largest_change = spec.rate * period if rate_limit else np.full(len(spec.names), np.inf)
        self._max_observation_age = max_observation_age
        self._max_action_age = max_action_age
        self.reset()

    def reset(self) -> None:
        """Forget the last action: the robot stands."""
        self._last = neutral(self._spec)

    def filter(self, action: np.ndarray, *, observation_age: float = 0.0, action_age: float = 0.0) -> SafeAction:
        """Make ``action`` (A,) safe.

        Args:
            observation_age: seconds since the newest observation. action_age: seconds since what the action was predicted from.
        """
        cause: StopCause | None = None
        if not np.isfinite(action).all():
            cause = "non_finite_action"
        elif not observation_age <= self._max_observation_age:  # also true for NaN
            cause = "stale_observation"
        elif not action_age <= self._max_action_age:
            cause = "stale_action"
        if cause is not None:
            self._last = np.where(self._spec.binary, self._last, neutral(self._spec))
            return SafeAction(self._last.astype(np.float32), cause, ())
        safe = approach(self._spec, action, self._last, self._largest_change)
        limited = tuple(name for name, before, after in zip(self._spec.names, action, safe) if abs(before - after) > 1e-6)
        self._last = safe
        return SafeAction(safe.astype(np.float32), None, limited)
