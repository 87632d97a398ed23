from dataclasses import replace

import numpy as np
import pytest

from anyvla.data.scenarios import SCENARIOS
from anyvla.simulation.env import GOAL_RADIUS
from anyvla.simulation.scene import Scene
from anyvla.simulation.world import TARGETS, sample_world


@pytest.mark.parametrize("target", TARGETS)
def test_wherever_stopping_counts_the_robot_touches_nothing(target: str) -> None:
    world = sample_world(SCENARIOS["1box_hori_left"], 5)
    scene = Scene((16, 16))

    def touches(ahead: float) -> bool:
        start = (world.goal[0] + ahead, world.goal[1], 0.0)
        scene.show(replace(world, target=target, start=start))
        return bool(scene.step(np.zeros(3), np.zeros(2)))

    assert not touches(GOAL_RADIUS - 0.005)
    assert any(touches(GOAL_RADIUS + deeper) for deeper in (0.1, 0.2, 0.3, 0.4))
