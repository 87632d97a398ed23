"""Made recordings: a robot that drives, its camera showing the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from anyvla.ros2.bag import BagWriter, Storage

SIZE = (24, 32)


def frame_at(seconds: float) -> np.ndarray:
    """(24, 32, 3) uint8: grey, 20 brighter every second, so that its time can be read from it; JPEG keeps it."""
    return np.full((*SIZE, 3), round(20 * seconds) % 256, np.uint8)


def seconds_in(frame: np.ndarray) -> float:
    return float(frame.mean()) / 20


def command_at(seconds: float) -> np.ndarray:
    return np.array([0.5 * np.sin(seconds), 0.25, 0, 0, 0, 0.5 * np.cos(seconds)])


def write_drive(
    path: Path,
    seconds: float = 4.0,
    *,
    storage: Storage = "mcap",
    start: float = 1000.0,
    camera_hz: float = 20.0,
    compressed: bool = True,
    stamped: bool = False,
    delay: float = 0.02,
    instruction: str | None = "Go to the ball.",
    instruction_at: float = 0.5,
    extra: Callable[[BagWriter], None] | None = None,
) -> Path:
    """A bag of one drive: frames arrive ``delay`` after their stamp; commands at 50 Hz; an instruction that is late."""
    events: list[tuple[float, str, str, object, float | None]] = []
    kind, topic = ("compressed_image", "/camera/image_raw/compressed") if compressed else ("image", "/camera/image_raw")
    for i in range(round(seconds * camera_hz)):
        events.append((start + i / camera_hz + delay, topic, kind, frame_at(i / camera_hz), start + i / camera_hz))
    for i in range(round(seconds * 50)):
        events.append((start + i / 50, "/cmd_vel", "twist_stamped" if stamped else "twist", command_at(i / 50), None))
    if instruction is not None:
        events.append((start + instruction_at, "/instruction", "string", instruction, None))
    with BagWriter(path, storage) as writer:
        for received, name, what, data, stamp in sorted(events, key=lambda event: event[0]):
            writer.write(name, what, data, received, stamp)  # type: ignore[arg-type]
        if extra is not None:
            extra(writer)
    return path


MAPPING = """
actions:
  - {name: j1, topic: /joint_commands, field: position.j1, unit: rad, low: -3, high: 3}
  - {name: lift, topic: /target, field: position.z, mode: delta}
  - {name: turn, topic: /target, field: orientation.yaw, mode: delta}
  - {name: push, topic: /servo, field: linear.x}
  - {name: gripper, topic: /gripper, field: data.0, kind: binary, threshold: 0.5}
state:
  - {name: j1, topic: /joint_states, field: position.j1}
  - {name: yaw, topic: /target, field: orientation.yaw}
"""


def write_arm(path: Path) -> Path:
    """Joints that turn by 0.5 rad/s, a target that rises by 0.1 m/s and turns by 1 rad/s, a gripper that opens after 2 s."""

    def more(writer: BagWriter) -> None:
        for i in range(120):
            t, when = i / 30, 1000 + i / 30
            writer.write("/joint_states", "joint_state", {"j0": (9, 0, 0), "j1": (0.5 * t, 0.5, 0)}, when, when)
            writer.write("/joint_states", "joint_state", {"finger": (0.01, 0, 0)}, when + 0.001, when + 0.001)
            writer.write("/joint_commands", "joint_state", {"j1": (0.5 * t + 0.05, 0.5, 0)}, when, when)
            pose = [0, 0, 0.1 * t, 0, 0, np.sin(t / 2), np.cos(t / 2)]
            writer.write("/target", "pose_stamped", pose, when, when)
            writer.write("/gripper", "float64_array", [float(t > 2), 7.0], when)
        writer.write("/servo", "twist", [0.3, 0, 0, 0, 0, 0], 1001.0)

    return write_drive(path, extra=more)
