"""The state of the robot as the model gets it: which numbers, in which order, on which scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyvla.actions import Normalizer, normalizer_from_dict
from anyvla.data.stats import Statistics, statistics_to_dict
from anyvla.errors import DataError


@dataclass(frozen=True)
class StateTransform:
    """From S numbers in the robot's units to the model's scale.

    Attributes:
        names: of the numbers, in their order. normalizer: q01 and q99 of the training data become -1 and 1, clipped; what never
        changes there becomes 0. statistics: of the training data, for people and reports.
    """

    names: tuple[str, ...]
    normalizer: Normalizer
    statistics: Statistics

    def __call__(self, state: Any, *leading: int) -> np.ndarray:
        """(S,) in the robot's units -> (S,) float32, or (*leading, S) of several moments.

        Raises DataError for another shape or a number that is not finite.
        """
        expected = f"{len(self.names)} numbers ({', '.join(self.names)})"
        try:
            values = np.asarray(state, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"the state must be {expected}, not {state!r}") from error
        if values.shape != (*leading, len(self.names)):
            raise DataError(f"the state must be {expected}; it has the shape {values.shape}")
        bad = ~np.isfinite(values)
        if bad.any():
            first = tuple(np.argwhere(bad)[0])
            raise DataError(f"the state must be {expected}: {self.names[first[-1]]} is {values[first]}")
        return self.normalizer.normalize(values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "normalizer": self.normalizer.to_dict(),
            "statistics": statistics_to_dict(self.statistics),
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> StateTransform:
        """The inverse of ``to_dict``."""
        return cls(
            tuple(value["names"]),
            normalizer_from_dict(value["normalizer"]),
            {name: np.array(numbers) for name, numbers in value["statistics"].items()},
        )


def fit_state(names: Sequence[str], statistics: Statistics) -> StateTransform:
    """The transform of ``names`` from their statistics, (S,) each; see ``state_statistics``."""
    low, high = statistics["q01"], statistics["q99"]
    # what changes in fewer than one frame of a hundred, such as a button, is no constant
    rare = low == high
    low, high = np.where(rare, statistics["min"], low), np.where(rare, statistics["max"], high)
    return StateTransform(tuple(names), Normalizer("quantile", low, high, np.zeros(len(names), dtype=bool)), statistics)
