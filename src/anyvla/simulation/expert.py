"""The scripted expert: it knows the layout and steers by where the robot is now, so that it recovers from pushes."""

from __future__ import annotations

from itertools import pairwise
from math import cos, hypot, sin
from typing import Any

import gymnasium
import numpy as np

CRUISE = 0.8  # m/s
MARGIN = 0.45  # m between the robot's edge and a box's edge that the planned path keeps
ALONG = 0.2  # m: as MARGIN, before and behind a box
LOOKAHEAD = 0.5  # m: it aims at the point this far along the path, which rounds the corners
GAIN = 1.4  # 1/s: speed per metre that is left
ARRIVED = 0.06  # m: so near to the goal it commands a stop

Point = tuple[float, float]


class Expert:
    """``act()`` commands for the state that ``env`` (a BoxNav, wrapped or not) is in now.

    The path is a taut string from the robot to the goal that keeps beyond the corners of every box on the named side. It is
    planned anew at each call from the robot's position alone: no memory, and the action changes smoothly with the position.
    """

    def __init__(self, env: gymnasium.Env) -> None:
        self._env: Any = env.unwrapped

    def act(self) -> np.ndarray:
        """(3,) float32 velocities in the robot's frame: linear_x and linear_y in m/s, angular_z = 0."""
        layout = self._env.layout()
        x, y, yaw = self._env.pose
        goal: Point = (layout["goal"][0], layout["goal"][1])
        sign = 1.0 if layout["side"] == "left" else -1.0
        # mirrored for the right side, so that "beyond a box" always means a larger y
        path = _taut_path((x, sign * y), self._corners(sign), (goal[0], sign * goal[1]))
        left = sum(hypot(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(path))
        if left < ARRIVED:
            return np.zeros(3, np.float32)
        ahead = _along(path, LOOKAHEAD)
        dx, dy = ahead[0] - x, sign * ahead[1] - y
        speed = min(CRUISE, GAIN * left) / max(hypot(dx, dy), 1e-9)
        vx, vy = speed * dx, speed * dy
        return np.array([cos(yaw) * vx + sin(yaw) * vy, cos(yaw) * vy - sin(yaw) * vx, 0.0], np.float32)

    def _corners(self, sign: float) -> list[tuple[Point, Point]]:
        """Per box, the two points that the robot's centre passes: before and behind it, on the (mirrored) left."""
        corners = []
        for box in self._env.world.boxes:
            along, across = box.extent
            reach = along + self._env.layout()["robot_radius"] + ALONG
            y = sign * box.y + across + self._env.layout()["robot_radius"] + MARGIN
            corners.append(((box.x - reach, y), (box.x + reach, y)))
        return corners


def _taut_path(start: Point, corners: list[tuple[Point, Point]], goal: Point) -> list[Point]:
    """The shortest way from ``start`` to ``goal`` that stays above all ``corners`` ahead: their upper hull."""
    points = [start]
    for before, behind in corners:
        if start[0] < before[0]:
            points += [before, behind]
        elif start[0] < behind[0]:
            # beside the box: get out to the line first, the more sideways the further it is away
            gap = before[1] - start[1]
            if gap > 0:
                points.append((start[0] + 0.3 * max(-0.3, 1 - gap / 0.3), before[1]))
            points.append(behind)
    points.append(goal)
    hull: list[Point] = []
    for point in points:
        while len(hull) >= 2 and _turns_left(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _turns_left(a: Point, b: Point, c: Point) -> bool:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) >= 0


def _along(path: list[Point], distance: float) -> Point:
    """The point ``distance`` along ``path``, or its end."""
    for a, b in pairwise(path):
        length = hypot(b[0] - a[0], b[1] - a[1])
        if distance < length:
            share = distance / length
            return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])
        distance -= length
    return path[-1]
