"""Is the score real? The same chains without the sentence, with another task's sentence, or from other start poses."""

from __future__ import annotations

import numpy as np

from anyvla.errors import ConfigError, did_you_mean
from anyvla.evaluation.calvin.chains import BLOCKS, ROBOT_OBS, TASKS, Chain, initial_observations
from anyvla.evaluation.calvin.rollouts import Job
from anyvla.evaluation.tasks import Probe

PROBES = ("none", "blind", "shuffled-language", "randomised")
JOINT_RANGE = 0.1  # radians to either side of the start, in every joint of the arm
BLOCK_DISTANCE = 0.1  # metres between the middles of two blocks at least


def make_jobs(
    chains: list[Chain], sentences: dict[str, str], surfaces: dict[str, np.ndarray], probe: Probe = "none", seed: int = 0
) -> list[Job]:
    """What is driven under ``probe``; the chains, and what counts as success, are the same for all of them.

    ``blind``: the sentence is empty. ``shuffled-language``: it is that of another task, drawn anew for every subtask.
    ``randomised``: see ``redraw``. Draws depend on ``seed`` and the chain, not on how many chains there are.

    Args:
        sentences: task -> its sentence. surfaces: name -> (2, 3) lowest and highest position where blocks are put down.
    """
    if probe not in PROBES:
        raise ConfigError(f"CALVIN has no probe {probe!r}{did_you_mean(probe, PROBES)}")
    jobs = []
    for chain in chains:
        robot_obs, scene_obs = initial_observations(chain.state)
        said = [sentences[task] for task in chain.tasks]
        draws = np.random.default_rng([seed, int(chain.world, 16)])
        if probe == "blind":
            said = [""] * len(said)
        elif probe == "shuffled-language":
            said = [sentences[str(draws.choice([other for other in TASKS if other != task]))] for task in chain.tasks]
        elif probe == "randomised":
            robot_obs, scene_obs = redraw(chain, robot_obs, scene_obs, surfaces, draws)
        jobs.append(Job(chain, robot_obs, scene_obs, tuple(said)))
    return jobs


def redraw(
    chain: Chain, robot_obs: np.ndarray, scene_obs: np.ndarray, surfaces: dict[str, np.ndarray], draws: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Another start of the same chain: its tasks stay possible, for doors, lights and each block's surface stay as they are.

    The benchmark starts from one pose of the arm, and blocks lie at two places of the table and two of the cabinet. Here
    every joint is drawn within 0.1 rad of the start (the gripper moves by some centimetres, well inside the range of the
    training data), every block uniformly on its surface as the environment itself puts blocks down when data are recorded, and
    its yaw uniformly; blocks keep 10 cm from each other.
    """
    robot_obs, scene_obs = robot_obs.copy(), scene_obs.copy()
    joints = [i for i, name in enumerate(ROBOT_OBS) if name.startswith("joint_")]
    robot_obs[joints] += draws.uniform(-JOINT_RANGE, JOINT_RANGE, len(joints))
    placed: list[np.ndarray] = []
    for color, start in BLOCKS.items():
        low, high = surfaces[chain.state[f"{color}_block"]]
        while True:  # at most two blocks share a surface, on which there is always room for both
            place = draws.uniform(low, high)
            if all(np.linalg.norm(place - other) >= BLOCK_DISTANCE for other in placed):
                break
        placed.append(place)
        scene_obs[start : start + 3] = place
        scene_obs[start + 5] = draws.uniform(-np.pi, np.pi)
    return robot_obs, scene_obs
