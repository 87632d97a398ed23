"""How the predicted chunks become actions, as the settings of a policy say."""

from __future__ import annotations

from anyvla.actions import ActionSpec
from anyvla.config.tree import EnsembleConfig, ExecutionConfig, RecedingHorizonConfig
from anyvla_client.execution import Execution, FirstAction, RecedingHorizon, TemporalEnsemble

__all__ = ["Execution", "FirstAction", "RecedingHorizon", "TemporalEnsemble", "make_execution", "replans_every"]


def make_execution(config: ExecutionConfig, spec: ActionSpec) -> Execution:
    """A fresh one, for one episode."""
    if isinstance(config, RecedingHorizonConfig):
        return RecedingHorizon(config.steps)
    if isinstance(config, EnsembleConfig):
        return TemporalEnsemble(config.decay, spec.binary)
    return FirstAction()


def replans_every(config: ExecutionConfig) -> int:
    """Control steps between two chunks that are taken."""
    return config.steps if isinstance(config, RecedingHorizonConfig) else 1
