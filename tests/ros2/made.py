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
