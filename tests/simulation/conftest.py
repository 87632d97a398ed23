"""Shared environments: making one (model, OpenGL context) takes longer than an episode without pictures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anyvla.simulation.env import BoxNav


@pytest.fixture(scope="session")
def blind() -> Iterator[BoxNav]:
    """An environment that doesn't render."""
    env = BoxNav(observe_images=False)
    yield env
    env.close()


@pytest.fixture(scope="session")
def seeing() -> Iterator[BoxNav]:
    """A small environment that renders."""
    env = BoxNav(image_size=(64, 112), render_mode="rgb_array")
    yield env
    env.close()
