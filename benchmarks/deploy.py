"""One control step of an exported policy by onnxruntime against the same policy in PyTorch, both on the CPU.

python benchmarks/deploy.py RUN [--threads 1] [--steps 200]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from common import report

from anyvla.deploy.export import export_policy
from anyvla.deploy.runtime import DeployedPolicy
from anyvla.evaluation.statistics import percentiles
from anyvla.policies.policy import Policy
from anyvla.policies.session import PolicyBase


def milliseconds(policy: PolicyBase, steps: int) -> tuple[dict[str, float], np.ndarray]:
    """Percentiles of ``act`` and the actions, for images of 224 x 126 that come from a seed."""
    rng = np.random.default_rng(0)
    cameras = policy.transforms.cameras
    frames = rng.integers(0, 256, (steps, len(cameras), 126, 224, 3), dtype=np.uint8)
    states = None if policy.transforms.state is None else rng.uniform(size=(steps, len(policy.transforms.state.names)))
    policy.reset("Pass the box on the left and stop in front of the bottle.")
    times, actions = [], []
    for t in range(steps):
        began = time.perf_counter()
        action = policy.act(dict(zip(cameras, frames[t], strict=True)), state=None if states is None else states[t])
        times.append(1e3 * (time.perf_counter() - began))
        actions.append(action)
    return {name: round(value, 3) for name, value in percentiles(times[20:]).items()}, np.stack(actions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        out, difference = export_policy(arguments.run, Path(folder) / "onnx", "onnx")
        size = sum(path.stat().st_size for path in out.glob("*.onnx*"))
        graphs: PolicyBase = DeployedPolicy.load(out, threads=arguments.threads)
        eager: PolicyBase = Policy.load(arguments.run, device="cpu")
        rows = {}
        # one after the other and again, so that what else runs on the machine meets both
        for turn in ("first", "second"):
            for name, policy in (("pytorch", eager), ("onnxruntime", graphs)):
                rows[name, turn] = milliseconds(policy, arguments.steps)
    result = {
        "run": arguments.run.name,
        "model": eager.spec().to_dict() | {"action": None},
        "parameters": sum(p.numel() for p in eager._model.parameters()) if isinstance(eager, Policy) else None,
        "onnx_bytes": size,
        "threads": arguments.threads,
        "steps": arguments.steps,
        "step_ms": {f"{name}, {turn} turn": times for (name, turn), (times, _) in rows.items()},
        "largest_difference_of_the_example": difference,
        "largest_difference_of_an_action": float(np.abs(rows["pytorch", "first"][1] - rows["onnxruntime", "first"][1]).max()),
        "onnxruntime": version("onnxruntime"),
        "note": arguments.note,
    }
    report("deploy", result)


if __name__ == "__main__":
    main()
