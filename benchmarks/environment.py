"""Environment steps per second of AnyVLA/BoxNav-v0 in one process, without images and at several sizes.

python benchmarks/environment.py [--steps 200]
"""

from __future__ import annotations

import argparse

from common import milliseconds, peak_memory_mib, report

from anyvla.simulation.env import BoxNav
from anyvla.simulation.expert import Expert
from anyvla.simulation.gl import choose_backend


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    results = {"backend": choose_backend()}
    for size in (None, (64, 112), (126, 224), (720, 1280)):
        env = BoxNav("all", "nav3", size or (64, 112), observe_images=size is not None)
        expert = Expert(env)
        seeds = iter(range(10_000))
        env.reset(seed=next(seeds))

        def step(env: BoxNav = env, expert: Expert = expert, seeds: object = seeds) -> None:
            *_, terminated, truncated, _ = env.step(expert.act())
            if terminated or truncated:
                env.reset(seed=next(seeds))  # type: ignore[call-overload]

        times = milliseconds(step, arguments.steps)
        name = "no images" if size is None else f"{size[1]}x{size[0]}"
        results[name] = {"step_ms": times, "steps_per_s": round(1e3 / times["p50"], 1)}  # type: ignore[assignment]
        env.close()
    report("environment", {**results, "peak_memory_mib": peak_memory_mib()})


if __name__ == "__main__":
    main()
