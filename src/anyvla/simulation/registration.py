"""Registers the environments with Gymnasium. Imports nothing heavy: MuJoCo loads when an environment is made."""

from __future__ import annotations

ENV_ID = "AnyVLA/BoxNav-v0"


def register() -> None:
    """Make ``gymnasium.make("AnyVLA/BoxNav-v0")`` work. Calling it again does nothing."""
    import gymnasium

    if ENV_ID not in gymnasium.registry:
        gymnasium.register(id=ENV_ID, entry_point="anyvla.simulation.env:BoxNav")
