"""A policy that drives the built-in world in real time, for people to look on: nothing but this machine is needed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from anyvla.data.sources.mobile_h5 import CAMERA
from anyvla.errors import ConfigError
from anyvla.policies.session import PolicyBase
from anyvla.serving.monitor import Moment, Monitor

ROBOT = "simulated robot"


def drive_nav(
    policy: PolicyBase,
    monitor: Monitor,
    *,
    scenario: str = "1box",
    seed: int = 0,
    image_size: tuple[int, int] = (252, 448),
    episodes: int | None = None,
    speed: float = 1.0,
    pause: float = 2.0,
    instruction: str | None = None,
    on_outcome: Callable[[int, str], None] = lambda seed, outcome: None,
) -> None:
    """Drive worlds ``seed``, ``seed + 1``, ... in the calling thread until interrupted, or ``episodes`` of them.

    Args:
        image_size: (height, width) that the camera renders. speed: of the world's clock; infinite: as fast as it goes.
        pause: seconds between two episodes. instruction: said instead of a drawn sentence.
        on_outcome: gets the seed and what became of each episode.

    Raises:
        ConfigError: the policy is one for another robot. SimulationError: the world cannot be simulated here.
    """
    from anyvla.simulation.gl import choose_backend

    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    from anyvla.actions import NAV2, NAV3
    from anyvla.simulation.env import FPS, BoxNav

    spec = policy.transforms.spec
    if spec not in (NAV2, NAV3) or abs(policy.transforms.fps - FPS) > 0.01:
        raise ConfigError(
            f"the navigation world is driven with nav2 or nav3 at {FPS:g} Hz, "
            f"not with {spec.describe()} at {policy.transforms.fps:g} Hz"
        )
    env = BoxNav(scenario, action_spec=spec.name, image_size=image_size)
    try:
        world = seed
        while episodes is None or world < seed + episodes:
            options = {} if instruction is None else {"instruction": instruction}
            observation, info = env.reset(seed=world, options=options)
            session = policy.start(info["instruction"])
            path, over, due = [list(env.pose)], False, time.monotonic()
            while not over:
                began = time.perf_counter()
                action = policy.act_batch([session], [{CAMERA: observation["image"]}])[0]
                elapsed = 1e3 * (time.perf_counter() - began)
                shown = {
                    "robot": ROBOT,
                    "instruction": info["instruction"],
                    "images": {CAMERA: observation["image"]},
                    "chunk": session.chunk,
                    "action": np.array(action),
                    "step_ms": elapsed,
                    "stop": None if session.last is None else session.last.stop,
                    "pose": list(env.pose),
                    "path": list(path),
                    "layout": env.layout(),
                    "facts": {"world": f"{info['scenario']}, seed {world}"},
                }
                monitor.show(Moment(**shown))
                observation, _, terminated, truncated, info = env.step(action)
                path.append(list(env.pose))
                over = terminated or truncated
                due += 1 / (FPS * speed)
                time.sleep(max(0.0, due - time.monotonic()))
                due = max(due, time.monotonic() - 1.0)  # a world that is slower than its clock does not hurry afterwards
            outcome = "success" if info["success"] else str(info["failure"])
            end = {"images": {CAMERA: observation["image"]}, "pose": list(env.pose), "path": list(path), "outcome": outcome}
            monitor.show(Moment(**{**shown, **end, "chunk": None, "step_ms": None, "stop": None}))
            on_outcome(world, outcome)
            world += 1
            time.sleep(pause / speed)
    finally:
        env.close()
