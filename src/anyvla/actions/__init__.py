"""What an action means: its dimensions, its scale, and how a trajectory is cut into windows and chunks."""

from anyvla.actions.chunks import Windows, chunk_targets
from anyvla.actions.normalize import Normalizer, fit_normalizer, normalizer_from_dict
from anyvla.actions.spec import ARM7, DELTA7, METAWORLD4, NAV2, NAV3, POSE7, ActionDim, ActionSpec

__all__ = [
    "ARM7",
    "DELTA7",
    "METAWORLD4",
    "NAV2",
    "NAV3",
    "POSE7",
    "ActionDim",
    "ActionSpec",
    "Normalizer",
    "Windows",
    "chunk_targets",
    "fit_normalizer",
    "normalizer_from_dict",
]
