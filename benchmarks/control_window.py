"""Latency of a control step as the window grows: each structure, beside encoding the whole window anew.

    python benchmarks/control_window.py [--model llava] [--windows 1 2 4 8 16] [--threads 1] [--calls 24]
    python benchmarks/control_window.py --device cuda --dtype bf16

One robot, a random model of middle size (see random_models.py), the window full. ``interleaved`` is measured with ``keep`` half
of the window (the default: one step in W - keep begins again with the kept frames, all others append a frame to the cache) and
with W - 1 (the window slides by a frame each step, and the language model reads all of it). The plain way is one pass over the
window, without cache. Before the clock starts, steps are checked against one pass over the same frames. Every structure and
window has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import in_fresh_process, report
from random_models import PROMPT, random_vla

from anyvla.evaluation.statistics import percentiles
from anyvla.models.backbones.context import Context
from anyvla.models.vla import ContinuousVLA

HEADS = {"one_step": "{type: fc}", "policy_head": "{type: lstm}", "interleaved": "{type: fc}"}
CHUNK = 10
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}


class Robot:
    """One robot's episode of random frames: steps of a model, and how many frames each of them left in the context."""

    def __init__(self, vla: ContinuousVLA, frames: int) -> None:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (1, frames, 3, *vla.backbone.image_size), dtype=torch.uint8, generator=generator)
        self.vla = vla
        self.images = images.to(vla.backbone.device)
        self.time = 0
        self.state = vla.init_state()

    def step(self) -> torch.Tensor:
        """(L, A) at the next frame."""
        frame = self.images[:, self.time % self.images.shape[1]]
        actions, (self.state,) = self.vla.step({"front": frame}, [PROMPT], [self.state])
        self.time += 1
        return actions[0]

    def anew(self) -> torch.Tensor:
        """(L, A) of the step before, from all its frames in one pass."""
        frames = len(self.state.frames) if isinstance(self.state, Context) else min(self.time, self.vla.window)
        return self.vla.predict({"front": self.images[:, self.time - frames : self.time]}, [PROMPT])[0, -1]

    def check(self, steps: int, tolerance: float) -> dict[str, float]:
        """How far ``step`` and ``anew`` are apart at most, once the window is full; and how much actions change in a step."""
        apart, changes, before = 0.0, 0.0, torch.zeros(())
        for t in range(steps):
            actions = self.step()
            if t >= self.vla.window - 1:
                apart = max(apart, (actions - self.anew()).abs().max().item())
            if t:
                changes = max(changes, (actions - before).abs().max().item())
            before = actions
        assert apart < tolerance, f"a step and the window anew differ by {apart}"
        return {"apart": apart, "change_in_a_step": round(changes, 4)}


def measure(task: dict[str, Any]) -> dict[str, Any]:
    """Latencies of one structure with one window."""
    structure, window = task["structure"], task["window"]
    with tempfile.TemporaryDirectory() as folder:
        vla = random_vla(task["model"], Path(folder), structure, HEADS[structure], window, CHUNK, task["tiny"])
    vla.to(task["device"], torch.bfloat16 if task["dtype"] == "bf16" else torch.float32).eval()
    result: dict[str, Any] = {"parameters": sum(p.numel() for p in vla.parameters()), "threads": torch.get_num_threads()}
    with torch.inference_mode():
        if structure != "interleaved":
            return result | {"step": _steps(vla, task, cycle=1)}
        for keep in sorted({window // 2, window - 1}):
            vla.keep = keep
            result[f"keep {keep}"] = _steps(vla, task, cycle=window - keep)
        windows = {"front": Robot(vla, window).images}
        wall, processor = _clock(lambda: vla.predict(windows, [PROMPT]), task["calls"] // 2, vla)
    return result | {"plain": _summary(wall, processor)}


def _steps(vla: ContinuousVLA, task: dict[str, Any], cycle: int) -> dict[str, Any]:
    """Steps of one robot, by whether they append to a cache or begin again, which one in ``cycle`` does."""
    robot = Robot(vla, 2 * vla.window + 2)
    result: dict[str, Any] = robot.check(vla.window + 2, TOLERANCE[task["dtype"]])
    frames: list[int] = []

    def step() -> None:
        robot.step()
        frames.append(len(robot.state.frames) if isinstance(robot.state, Context) else 0)

    calls = -(-task["calls"] // cycle) * cycle  # whole cycles, so that the mean is that of an endless episode
    wall, processor = _clock(step, calls, vla)
    result |= _summary(wall, processor)
    if isinstance(robot.state, Context):
        for name, begins in (("beginning_again", True), ("appending", False)):
            chosen = [i for i, count in enumerate(frames) if (count == vla.keep + 1) == begins]
            if chosen:
                result[name] = _summary([wall[i] for i in chosen], [processor[i] for i in chosen])
        result["context_mib"] = round(_bytes(robot.state) / 2**20, 2)
    return result


def _clock(call: Callable[[], object], calls: int, vla: ContinuousVLA) -> tuple[list[float], list[float]]:
    """Milliseconds of wall and of processor time of each call."""
    cuda = vla.backbone.device.type == "cuda"
    wall, processor = [], []
    for _ in range(calls):
        began, worked = time.perf_counter(), time.process_time()
        call()
        if cuda:
            torch.cuda.synchronize()
        wall.append(1e3 * (time.perf_counter() - began))
        processor.append(1e3 * (time.process_time() - worked))
    return wall, processor


def _summary(wall: list[float], processor: list[float]) -> dict[str, float]:
    """Mean and percentiles of wall time; mean and median of processor time, which other work on the machine changes less."""
    values = {"mean": sum(wall) / len(wall), **percentiles(wall)}
    values |= {"processor_mean": sum(processor) / len(processor), "processor_p50": percentiles(processor)["p50"]}
    return {name: round(value, 2) for name, value in values.items()} | {"calls": len(wall)}


def _bytes(value: Any) -> int:
    """Of all tensors in a context."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_bytes(part) for part in value.values())
    if isinstance(value, (tuple, list)):
        return sum(_bytes(part) for part in value)
    return sum(_bytes(part) for part in vars(value).values()) if hasattr(value, "__dict__") else 0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="llava")
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--calls", type=int, default=24, help="steps that are measured; half as many of the plain way")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of weights and computations")
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task is not None:
        print(json.dumps(measure(arguments.task)))
        return
    settings = {name: getattr(arguments, name) for name in ("model", "device", "dtype", "calls")}
    cases = [("one_step", 1), *((structure, w) for structure in ("policy_head", "interleaved") for w in arguments.windows)]
    results: dict[str, Any] = {**settings, "prompt": PROMPT}
    for structure, window in cases:
        task = {**settings, "structure": structure, "window": window, "tiny": False}
        results[f"{structure}, W = {window}"] = in_fresh_process(__file__, task, arguments.threads)
    report(f"control_window_{arguments.threads}", results)


if __name__ == "__main__":
    main()
