"""The expert arrives, on every scenario, pushed or not, smoothly and at a distance from the boxes."""

from __future__ import annotations

from math import cos, hypot, sin

import numpy as np
import pytest

from anyvla.data.scenarios import SCENARIOS
from anyvla.simulation.env import BoxNav
from anyvla.simulation.expert import Expert


def clearance(env: BoxNav) -> float:
    """Metres between the robot's edge and the nearest box."""
    x, y, _ = env.pose
    gaps = []
    for box in env.world.boxes:
        c, s = cos(box.yaw), sin(box.yaw)
        along, across = c * (x - box.x) + s * (y - box.y), c * (y - box.y) - s * (x - box.x)
        gaps.append(hypot(max(abs(along) - box.half[0], 0), max(abs(across) - box.half[1], 0)) - 0.2)
    return min(gaps)


def episode(env: BoxNav, name: str, seed: int) -> tuple[bool, np.ndarray, float]:
    """Success, the (T, 3) commands with the one after the end, and the smallest clearance."""
    expert = Expert(env)
    env.reset(seed=seed, options={"scenario": name})
    commands, nearest, over = [expert.act()], 9.0, False
    while not over:
        _, _, terminated, truncated, info = env.step(commands[-1][:2])
        commands.append(expert.act())
        nearest, over = min(nearest, clearance(env)), terminated or truncated
    return info["success"], np.array(commands), nearest


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_expert_succeeds_smoothly(blind: BoxNav, name: str) -> None:
    for seed in range(10):
        success, commands, nearest = episode(blind, name, seed)
        assert success
        assert nearest >= 0.2
        assert 12 <= len(commands) - 1 <= (18 if name.startswith("1box") else 24)
        assert abs(commands).max() <= 0.81
        assert abs(np.diff(commands, axis=0)).max() < 0.7
        assert not commands[:, 2].any()
        # the data shows standing: commands are zero at the end, and only there
        moving = np.hypot(commands[:, 0], commands[:, 1]) > 0
        assert 2 <= len(commands) - moving.sum() <= 4
        assert moving[: moving.sum()].all()


@pytest.mark.parametrize("name", ["1box_hori_left", "1box_vert_right", "2box_hori_right", "2box_vert_left"])
def test_the_expert_recovers_from_pushes(name: str) -> None:
    env = BoxNav(observe_images=False, disturbances=0.3)
    assert sum(episode(env, name, seed)[0] for seed in range(20)) >= 19


def test_the_action_depends_on_the_state_alone(blind: BoxNav) -> None:
    blind.reset(seed=0, options={"scenario": "1box_hori_left"})
    expert = Expert(blind)
    for _ in range(5):
        np.testing.assert_array_equal(expert.act(), Expert(blind).act())
        blind.step(expert.act()[:2])


@pytest.mark.slow
@pytest.mark.parametrize("disturbances", [0.0, 0.15])
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_expert_succeeds_in_many_worlds(name: str, disturbances: float) -> None:
    env = BoxNav(observe_images=False, disturbances=disturbances)
    successes = sum(episode(env, name, 10_000 + seed)[0] for seed in range(200))
    assert successes >= (198 if disturbances == 0 else 194)
