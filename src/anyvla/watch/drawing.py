"""From numbers to what a page draws: chunks as ways over the ground, seen from above and in the camera's picture."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyvla.actions import ActionSpec
from anyvla.evaluation.statistics import percentiles
from anyvla.serving.monitor import Moment, Shown

WIDEST = 640  # pixels of a picture on the page
NEAREST = 0.05  # metres in front of the camera, from which on a point of the ground is drawn


@dataclass(frozen=True)
class GroundCamera:
    """Where the camera is on the robot, to draw ways over the ground into its picture; as in the built-in world.

    Attributes:
        height: metres above the ground. pitch: degrees below the horizon. fov: degrees, horizontal. back: metres behind the
        point that the robot turns about.
    """

    height: float = 0.55
    pitch: float = 14.0
    fov: float = 95.0
    back: float = 0.15

    def project(self, points: np.ndarray, aspect: float) -> list[list[float] | None]:
        """Ground points (n, 2), metres forward and to the left, -> [u, v] as shares of width and height, or None.

        Args:
            aspect: height over width of the picture. A point behind the camera is None.
        """
        sine, cosine = math.sin(math.radians(self.pitch)), math.cos(math.radians(self.pitch))
        half = math.tan(math.radians(self.fov) / 2)
        pixels: list[list[float] | None] = []
        for forward, left in points:
            ahead = forward + self.back
            depth = ahead * cosine + self.height * sine
            below = self.height * cosine - ahead * sine
            if depth < NEAREST:
                pixels.append(None)
            else:
                u, v = 0.5 - left / depth / half / 2, 0.5 + below / depth / half / 2 / aspect
                pixels.append([round(u, 4), round(v, 4)])
        return pixels


def ground_way(chunk: np.ndarray, spec: ActionSpec, fps: float) -> np.ndarray | None:
    """(L, A) velocities -> (L + 1, 2) positions from here, metres forward and to the left; None if they are no velocities.

    Each velocity, in the frame of the robot, is held for a control step; turning is exact.
    """
    names = spec.names
    if "linear_x" not in names:
        return None

    def column(name: str) -> np.ndarray:
        return chunk[:, names.index(name)].astype(np.float64) if name in names else np.zeros(len(chunk))

    vx, vy, turn = column("linear_x") / fps, column("linear_y") / fps, column("angular_z") / fps
    position, yaw = complex(0, 0), 0.0
    way = [position]
    for forward, left, angle in zip(vx, vy, turn, strict=True):
        # the way of a constant velocity in a frame that turns is an arc
        arc = 1.0 if abs(angle) < 1e-9 else (np.exp(1j * angle) - 1) / (1j * angle)
        position += complex(forward, left) * arc * np.exp(1j * yaw)
        yaw += angle
        way.append(position)
    return np.array([[point.real, point.imag] for point in way])


def picture(image: np.ndarray) -> str:
    """(H, W, 3) uint8 -> a JPEG as a data URL."""
    from PIL import Image

    shown = Image.fromarray(np.ascontiguousarray(image))
    if shown.width > WIDEST:
        shown = shown.resize((WIDEST, max(1, round(shown.height * WIDEST / shown.width))))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def describe_moment(moment: Moment, spec: ActionSpec, fps: float, camera: GroundCamera) -> dict[str, Any]:
    """JSON values of what the page shows of ``moment``; numbers that are not finite become None."""
    ways = {}
    for name, chunk in (("predicted", moment.chunk), ("recorded", moment.recorded)):
        if chunk is None:
            continue
        finite = np.isfinite(chunk).all()
        way = ground_way(chunk, spec, fps) if finite else None
        ways[name] = {
            "chunk": _numbers(chunk),
            "ground": None if way is None else np.round(way, 4).tolist(),
            "drawn": {}
            if way is None
            else {key: camera.project(way, image.shape[0] / image.shape[1]) for key, image in moment.images.items()},
        }
    return {
        "robot": moment.robot,
        "instruction": moment.instruction,
        "images": {name: picture(image) for name, image in moment.images.items()},
        "ways": ways,
        "action": None if moment.action is None else _numbers(moment.action),
        "step_ms": moment.step_ms,
        "stop": moment.stop,
        "pose": None if moment.pose is None else [float(value) for value in moment.pose],
        "path": [[round(float(x), 3), round(float(y), 3)] for x, y, *_ in moment.path],
        "layout": _layout(moment.layout),
        "outcome": moment.outcome,
        "facts": dict(moment.facts),
    }


def describe_shown(shown: Shown, spec: ActionSpec, fps: float, camera: GroundCamera) -> dict[str, Any]:
    """``describe_moment`` with what was measured around it."""
    latency = percentiles(list(shown.latency_ms)) if shown.latency_ms else None
    return {
        **describe_moment(shown.moment, spec, fps, camera),
        "number": shown.number,
        "step": shown.step,
        "age": round(shown.age, 2),
        "hz": None if shown.hz is None else round(shown.hz, 2),
        "latency_ms": None if latency is None else {name: round(value, 2) for name, value in latency.items()},
        "robots": list(shown.robots),
        "stops": [[round(ago, 1), robot, cause, count] for ago, robot, cause, count in shown.stops[-50:]],
        "dropped": shown.dropped,
    }


def describe_spec(spec: ActionSpec) -> list[dict[str, Any]]:
    return [{"name": dim.name, "unit": dim.unit, "low": dim.low, "high": dim.high, "kind": dim.kind} for dim in spec.dims]


def _numbers(values: Any) -> Any:
    """Nested lists of an array, rounded; None for what JSON cannot say."""
    if isinstance(values, np.ndarray | Sequence):
        return [_numbers(value) for value in values]
    return round(float(values), 5) if math.isfinite(values) else None


def _layout(layout: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if layout is None:
        return None
    return {key: layout[key] for key in ("boxes", "target", "goal", "goal_radius", "robot_radius") if key in layout}
