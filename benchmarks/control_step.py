"""Latency of one control step of a policy on one core: a 720p image in, an action out; and the process's peak memory.

python benchmarks/control_step.py runs/demo/run [--steps 300] [--threads 1]
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import milliseconds, peak_memory_mib, report

from anyvla.policies.policy import Policy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    policy = Policy.load(arguments.run, device="cpu")
    rng = np.random.default_rng(0)
    results: dict[str, object] = {}
    for height, width in ((720, 1280), (126, 224)):
        images = {camera: rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for camera in policy.transforms.cameras}
        policy.reset("Pass the box on the left and stop in front of the bottle.")
        results[f"{width}x{height}"] = milliseconds(partial(policy.act, images), arguments.steps, warm_up=20)
    results["peak_memory_mib"] = peak_memory_mib()
    report("control_step", {"threads": arguments.threads, "window": policy.transforms.window, "step_ms": results})


if __name__ == "__main__":
    main()
