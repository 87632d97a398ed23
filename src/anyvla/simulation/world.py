"""A world of the navigation task: where the boxes and the target stand and what everything looks like.

Everything is drawn from (seed, number of boxes, layout) alone. The side on which to pass is no part of it: the left and
the right variant of a scenario with the same seed are the same world, so that the sentence is all that differs.

Metres and radians in a world frame with x forward, y left, z up; the robot starts near the origin and looks along +x.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np

from anyvla.data.scenarios import Scenario

ROBOT_RADIUS = 0.2
GOAL_DISTANCE = 0.6  # the goal lies this far before the target's centre

TARGETS = ("bottle", "ball", "can", "cup", "plant", "chair")
FLOORS = ("checker", "wood", "tiles", "carpet", "concrete")
BOX_STYLES = ("cardboard", "crate", "plain")

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Box:
    """An obstacle: centre (x, y), heading, half sizes (along its x, its y, z) and looks."""

    x: float
    y: float
    yaw: float
    half: tuple[float, float, float]
    style: str
    colour: Colour

    @property
    def extent(self) -> tuple[float, float]:
        """Half sizes of the axis-aligned rectangle around the box, along world x and y."""
        c, s = abs(cos(self.yaw)), abs(sin(self.yaw))
        return self.half[0] * c + self.half[1] * s, self.half[0] * s + self.half[1] * c


@dataclass(frozen=True)
class Looks:
    """Floor, sky, light and camera. Colours are RGB in 0..1."""

    floor: str
    floor_tint: Colour
    zenith: Colour
    horizon: Colour
    sun_direction: tuple[float, float, float]  # the way the light travels
    sun: Colour
    ambient: Colour
    camera_height: float
    camera_pitch: float  # downwards
    camera_fov: float  # horizontal


@dataclass(frozen=True)
class World:
    """One sampled world; see ``sample_world``."""

    seed: int
    boxes: tuple[Box, ...]
    target: str
    target_colour: Colour
    target_x: float
    target_y: float
    target_yaw: float
    start: tuple[float, float, float]  # x, y, yaw
    looks: Looks

    @property
    def goal(self) -> tuple[float, float]:
        return self.target_x - GOAL_DISTANCE, self.target_y


def rng_for(scenario: Scenario, seed: int, stream: int) -> np.random.Generator:
    """A generator of (seed, number of boxes, layout).

    Stream 0 draws the world, 1 the sentence, 2 the disturbances, 3 another start in the same world.
    """
    key = (scenario.boxes, ("hori", "vert").index(scenario.layout), stream)
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=key))


def sample_world(scenario: Scenario, seed: int) -> World:
    """The world of ``(scenario, seed)``; the same for both sides.

    Args:
        seed: any integer >= 0.
    """
    rng = rng_for(scenario, seed, 0)
    box_hue = rng.uniform()
    target = TARGETS[rng.integers(len(TARGETS))]
    if scenario.boxes == 1:
        centres = [rng.uniform(1.4, 1.9)]
        target_x = rng.uniform(3.4, 4.0)
    else:
        centres = [rng.uniform(1.4, 1.7), rng.uniform(2.8, 3.1)]
        target_x = rng.uniform(4.6, 5.2)
    style = BOX_STYLES[rng.integers(len(BOX_STYLES))]
    boxes = tuple(_box(rng, scenario, x, style, box_hue) for x in centres)
    # cardboard is brown whatever the hue; the target keeps away from both, so that it is never taken for a box
    avoid = 0.08 if style == "cardboard" else box_hue
    target_hue = (avoid + rng.uniform(0.25, 0.75)) % 1.0
    return World(
        seed=seed,
        boxes=boxes,
        target=target,
        target_colour=_hsv(target_hue, rng.uniform(0.75, 1.0), rng.uniform(0.75, 1.0)),
        target_x=target_x,
        target_y=rng.uniform(-0.25, 0.25),
        target_yaw=rng.uniform(-np.pi, np.pi),
        start=sample_start(rng),
        looks=_looks(rng),
    )


def sample_start(rng: np.random.Generator) -> tuple[float, float, float]:
    """x, y, yaw of the robot at the beginning."""
    return rng.uniform(-0.1, 0.1), rng.uniform(-0.25, 0.25), radians(rng.uniform(-4.0, 4.0))


def _box(rng: np.random.Generator, scenario: Scenario, x: float, style: str, hue: float) -> Box:
    long, short, height = rng.uniform(0.6, 0.9), rng.uniform(0.2, 0.35), rng.uniform(0.2, 0.3)
    size = (short, long, height) if scenario.layout == "hori" else (long, short, height)
    if style == "cardboard":
        colour = _hsv(rng.uniform(0.06, 0.1), rng.uniform(0.35, 0.6), rng.uniform(0.6, 0.9))
    else:
        colour = _hsv(hue, rng.uniform(0.25, 0.85), rng.uniform(0.45, 0.95))
    return Box(
        x=x,
        y=rng.uniform(-0.1, 0.1),
        yaw=radians(rng.uniform(-8.0, 8.0)),
        half=(size[0] / 2, size[1] / 2, size[2] / 2),
        style=style,
        colour=colour,
    )


def _looks(rng: np.random.Generator) -> Looks:
    sky_hue = rng.uniform(0.52, 0.62)
    azimuth, elevation = rng.uniform(-np.pi, np.pi), radians(rng.uniform(40.0, 75.0))
    warmth, power = rng.uniform(-0.06, 0.06), rng.uniform(0.4, 0.6)
    ambient = rng.uniform(0.35, 0.5)
    return Looks(
        floor=FLOORS[rng.integers(len(FLOORS))],
        floor_tint=_hsv(rng.uniform(), rng.uniform(0.0, 0.25), rng.uniform(0.7, 1.0)),
        zenith=_hsv(sky_hue, rng.uniform(0.2, 0.7), rng.uniform(0.6, 0.95)),
        horizon=_hsv(sky_hue, rng.uniform(0.03, 0.2), rng.uniform(0.8, 0.98)),
        sun_direction=(cos(azimuth) * cos(elevation), sin(azimuth) * cos(elevation), -sin(elevation)),
        sun=(power + warmth, power, power - warmth),
        ambient=(ambient, ambient, ambient + 0.02),
        camera_height=rng.uniform(0.52, 0.58),
        camera_pitch=radians(rng.uniform(12.0, 16.0)),
        camera_fov=radians(rng.uniform(92.0, 98.0)),
    )


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    return colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
