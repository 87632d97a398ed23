"""A policy drives the navigation world over plain DDS, in real time, and directly, in the same worlds.

    python benchmarks/ros2_drive.py --run runs/demo/run --episodes 20          # about ten minutes

A simulated robot publishes an image every 0.4 s and executes the command that it has heard 0.2 s later. The drive node is a
process of its own: `anyvla ros2 run`. At the end it is ended by SIGTERM while it drives; the time to the first zero that the
robot hears is taken. Results: results/ros2_drive.json.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import report

from anyvla.evaluation.navigation import IMAGE_SIZE, evaluate_nav
from anyvla.evaluation.statistics import wilson_interval
from anyvla.evaluation.tasks import nav_tasks
from anyvla.ros2.transport import Message

CAMERA, OTHER_CAMERA, COMMAND = "/camera/image_raw", "/camera/image_raw/compressed", "/cmd_vel"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--domain", type=int, default=87)
    parser.add_argument("--compressed", action="store_true", help="JPEG images")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        over_topics = drive(arguments, Path(folder))
    direct = evaluate_nav(arguments.run, episodes=arguments.episodes, seed=arguments.seed, image_size=IMAGE_SIZE)
    outcomes = [episode["success"] for episode in direct["results"]]
    settings = {"run": str(arguments.run), "episodes": arguments.episodes, "seed": arguments.seed}
    found = {
        "over_dds": over_topics,
        "directly": {key: direct[key] for key in ("successes", "episodes", "wilson95", "failures")},
        "same_outcome": sum(a == b for a, b in zip(outcomes, over_topics.pop("outcomes"), strict=True)),
    }
    report("ros2_drive", {"settings": settings, **found})


def drive(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All episodes over DDS: counts, what the node measured, how soon it stopped."""
    from anyvla.simulation.gl import choose_backend

    choose_backend()
    from anyvla.evaluation.simulated_robot import SimulatedRobot, Topics
    from anyvla.ros2.dds import DdsTransport
    from anyvla.simulation.env import BoxNav

    topics = Topics(camera=OTHER_CAMERA if arguments.compressed else CAMERA, command=COMMAND)
    log = folder / "stops.jsonl"
    command = [sys.executable, "-m", "anyvla", "ros2", "run", str(arguments.run), "--camera", f"front={topics.camera}"]
    command += ["--cmd-vel", COMMAND, "--instruction-topic", topics.instruction, "--reset-topic", topics.reset]
    command += ["--max-image-age", "0.9", "--stop-log", str(log), "--loopback", "--domain", str(arguments.domain)]
    transport = DdsTransport(arguments.domain, loopback=True)
    heard: list[tuple[float, np.ndarray]] = []
    first = threading.Event()

    def hear(message: Message) -> None:
        heard.append((time.monotonic(), message.data))
        first.set()

    transport.subscribe(COMMAND, "twist", hear)
    env = BoxNav("all", image_size=IMAGE_SIZE, language="any")
    robot = SimulatedRobot(transport, env, topics)
    ends: list[dict[str, Any]] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        try:
            if not first.wait(120):
                raise SystemExit("the node was not heard")
            time.sleep(3)
            tasks = nav_tasks("1box", arguments.episodes, arguments.seed)
            for task in tasks:
                ends.append(robot.drive(task, Pace()))
                print(task.index, ends[-1]["failure"] or "success", flush=True)
            stop_after = _end(node, robot, tasks[0], heard)
        finally:
            node.terminate()
            said = node.stdout.read() if node.stdout else ""
    transport.close()
    env.close()
    successes = sum(end["success"] for end in ends)
    failures = [end["failure"] for end in ends if not end["success"]]
    stops = [event["cause"] for event in map(json.loads, log.read_text().splitlines()) if event["event"] == "stop"]
    return {
        "successes": successes,
        "episodes": len(ends),
        "wilson95": list(wilson_interval(successes, len(ends))),
        "failures": {cause: failures.count(cause) for cause in set(failures)},
        "outcomes": [end["success"] for end in ends],
        "stops": {cause: stops.count(cause) for cause in set(stops)},
        "sigterm_to_first_zero_ms": stop_after,
        "node": json.loads(said[said.index("{") :]),
    }


class Pace:
    """Sleeps to a schedule, so that what happens between the sleeps takes no time of the robot's."""

    def __init__(self) -> None:
        self._due = time.monotonic()

    def __call__(self, seconds: float) -> None:
        self._due = max(self._due + seconds, time.monotonic() - 0.1)
        time.sleep(max(0.0, self._due - time.monotonic()))


def _end(node: subprocess.Popen[str], robot: Any, task: Any, heard: list[tuple[float, np.ndarray]]) -> float | None:
    """SIGTERM in the middle of an episode; milliseconds until the robot hears zero, after which it hears nothing else."""
    began: list[float] = []
    pace, rests = Pace(), 0

    def rest(seconds: float) -> None:
        nonlocal rests
        pace(seconds)
        rests += 1
        if rests > 8 and not began and heard[-1][1].any():
            began.append(time.monotonic())
            node.send_signal(signal.SIGTERM)

    robot.drive(task, rest)
    after = [(moment, twist) for moment, twist in heard if began and moment >= began[0]]
    zeros = [i for i, (_, twist) in enumerate(after) if not twist.any()]
    if not zeros or any(twist.any() for _, twist in after[zeros[0] :]):
        return None
    return round(1e3 * (after[zeros[0]][0] - began[0]), 1)


if __name__ == "__main__":
    main()
