"""The pictures of the report: SVG that stands in the page itself and takes its colours from the page's style sheet.

So they follow light and dark mode and print sharply. Bird's-eye maps and interval bars are written directly (a map of a hundred
drives is a few kilobytes); learning curves come from matplotlib. Films are animated WebP.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

CAUSES: dict[str, str] = {
    "collision": "touched a box or the target",
    "wrong_side": "passed a box on the side that the sentence does not name",
    "stopped_short": "stood still elsewhere than at the goal when time was up",
    "timeout": "was still moving when time was up",
    "not_done": "the task was not done when time was up",
}
LINES = 7  # colours of curves, --line-1 ... in the style sheet
FILM_WIDTH = 256  # pixels
FILM_FRAMES = 60
FILM_MS = 200  # per frame


def outcome(result: dict[str, Any]) -> str:
    """``success`` or the cause of failure of an episode: the CSS class of its path and mark; ``other`` for an unknown cause."""
    if result["success"]:
        return "success"
    return result["failure"] if result["failure"] in CAUSES else "other"


# ---------------------------------------------------------------------------------------------------------------- intervals


def interval_bar(successes: int, episodes: int, interval: Sequence[float], large: bool = False) -> Markup:
    """A success rate (dot) and its interval (band) on a line from 0 to 100 %."""
    low, high = (100 * value for value in interval)
    height, radius, tick = (26, 4.5, 8) if large else (14, 3.5, 6)
    middle = 9 if large else 7
    rate = 100 * successes / episodes if episodes else None
    spoken = "no episodes" if rate is None else f"{rate:.1f} %, 95 % interval {low:.1f} to {high:.1f} %"
    # 240 units wide, of which 220 are 0 to 100 %
    parts = [
        f'<svg class="interval" viewBox="0 0 240 {height}" role="img" aria-label="{spoken}"><title>{spoken}</title>',
        f'<line class="axis" x1="10" x2="230" y1="{middle}" y2="{middle}"/>',
    ]
    for share in (0, 25, 50, 75, 100):
        x = 10 + 2.2 * share
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{middle - tick / 2}" y2="{middle + tick / 2}"/>')
        if large:
            parts.append(f'<text x="{x}" y="25" text-anchor="middle">{share}{" %" if share == 100 else ""}</text>')
    if rate is not None:
        parts.append(
            f'<rect class="band" x="{10 + 2.2 * low:.1f}" y="{middle - tick / 2}" width="{max(1.0, 2.2 * (high - low)):.1f}" '
            f'height="{tick}" rx="2"/><circle class="rate" cx="{10 + 2.2 * rate:.1f}" cy="{middle}" r="{radius}"/>'
        )
    return Markup("".join([*parts, "</svg>"]))


# --------------------------------------------------------------------------------------------------------------------- maps


@dataclass(frozen=True)
class Extent:
    """The ground that a map shows, in metres: ``x`` forward from the robot's start area, ``y`` to the left."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float


def extent_of(results: Iterable[dict[str, Any]]) -> Extent:
    """Ground that holds all of these episodes, within reason: a robot that drove far away leaves the map."""
    xs, ys = [-0.3, 2.0], [-1.2, 1.2]
    for result in results:
        layout = result["layout"]
        xs += [layout["target"]["center"][0], *(pose[0] for pose in result["path"])]
        ys += [layout["target"]["center"][1], *(pose[1] for pose in result["path"])]
    half = min(2.5, max(max(ys), -min(ys)) + 0.25)
    return Extent(max(-1.5, min(xs) - 0.2), min(7.5, max(xs) + 0.3), -half, half)


def ground_map(
    results: Sequence[dict[str, Any]], extent: Extent, width: int = 220, dashed: Sequence[int] = (), label: str = ""
) -> Markup:
    """Bird's-eye view of one or many episodes, the robot's forward direction up. Boxes of several worlds are translucent.

    Args:
        width: in pixels, that the map is made for; text and marks keep their size there.
        dashed: positions in ``results`` of the paths to be dashed.
    """
    alone = len({(result["scenario"].rsplit("_", 1)[0], result["seed"]) for result in results}) == 1  # one world
    left, bottom, top, right = 30, 30, 6, 6  # pixels around the ground
    unit = (extent.y_high - extent.y_low) / (width - left - right)  # metres per pixel
    inner = width - left - right
    high = (extent.x_high - extent.x_low) / unit

    def at(point: Sequence[float]) -> tuple[float, float]:
        return round(left + (extent.y_high - point[1]) / unit, 1), round(top + (extent.x_high - point[0]) / unit, 1)

    size = f'width="{width}" viewBox="0 0 {width} {high + top + bottom:.0f}"'
    parts = [
        f'<svg class="map" {size} role="img" aria-label="{escape(label)}">',
        f'<rect class="ground" x="{left}" y="{top}" width="{inner}" height="{high:.1f}"/>',
    ]
    parts += _grid(extent, at, left, left + inner, top, top + high)
    box = f"{left} {top} {inner} {high:.1f}"
    parts.append(f'<svg x="{left}" y="{top}" width="{inner}" height="{high:.1f}" viewBox="{box}">')  # cuts what lies outside
    worlds = {(result["scenario"].rsplit("_", 1)[0], result["seed"]): result["layout"] for result in results}
    opacity = 1.0 if alone else max(0.05, 0.5 / math.sqrt(len(worlds)))
    for layout in worlds.values():
        parts += _world(layout, at, unit, opacity)
    order = sorted(range(len(results)), key=lambda i: not results[i]["success"])  # failures lie on top
    for i in order:
        parts.append(_drive(results[i], at, unit, alone, i in dashed))
    return Markup("".join([*parts, "</svg></svg>"]))


def _grid(extent: Extent, at: Any, left: float, right: float, top: float, bottom: float) -> list[str]:
    parts = []
    for metre in range(math.ceil(extent.x_low), math.floor(extent.x_high) + 1):
        _, y = at((metre, 0))
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 4}" y="{y + 3:.1f}" text-anchor="end">{metre}</text>')
    for metre in range(math.ceil(extent.y_low), math.floor(extent.y_high) + 1):
        x, _ = at((0, metre))
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom:.1f}"/>')
        parts.append(f'<text x="{x}" y="{bottom + 12:.1f}" text-anchor="middle">{str(metre).replace("-", "−")}</text>')
    middle = (top + bottom) / 2
    parts.append(f'<text x="{(left + right) / 2:.1f}" y="{bottom + 25:.1f}" text-anchor="middle">← left (m)</text>')
    parts.append(f'<text transform="translate(10 {middle:.1f}) rotate(-90)" text-anchor="middle">forward (m) →</text>')
    return parts


def _world(layout: dict[str, Any], at: Any, unit: float, opacity: float) -> list[str]:
    parts = []
    for box in layout["boxes"]:
        cosine, sine = math.cos(box["yaw"]), math.sin(box["yaw"])
        corners = [
            (box["center"][0] + a * cosine - b * sine, box["center"][1] + a * sine + b * cosine)
            for a, b in (
                (i * box["half"][0], j * box["half"][1]) for i, j in ((1, 1), (1, -1), (-1, -1), (-1, 1))
            )
        ]  # fmt: skip
        points = " ".join(f"{x},{y}" for x, y in map(at, corners))
        parts.append(f'<polygon class="box" points="{points}" opacity="{opacity:.2f}"/>')
    x, y = at(layout["goal"])
    parts.append(f'<circle class="goal" cx="{x}" cy="{y}" r="{layout["goal_radius"] / unit:.1f}" opacity="{opacity:.2f}"/>')
    x, y = at(layout["target"]["center"])
    parts.append(f'<circle class="target" cx="{x}" cy="{y}" r="3" opacity="{min(1.0, 2 * opacity):.2f}"/>')
    return parts


def _drive(result: dict[str, Any], at: Any, unit: float, alone: bool, dashed: bool) -> str:
    points = [at(pose) for pose in _thinned(result["path"])]
    line = "M" + "L".join(f"{x} {y}" for x, y in points)
    name = outcome(result)
    said = result["instruction"] or "(no sentence)"
    how = "success" if result["success"] else str(result["failure"]).replace("_", " ")
    hint = escape(f"{how}: world {result['index']}, {result['steps']} steps. {said}")
    swath = ""
    if alone and not dashed:
        breadth = 2 * result["layout"]["robot_radius"] / unit
        swath = f'<path class="swath" d="{line}" stroke-width="{breadth:.1f}"/>'
    style = " dashed" if dashed else ""
    x, y = points[-1]
    return (
        f'<g class="drive {name}"><title>{hint}</title>{swath}<path class="path{style}" d="{line}"/>'
        f'<g transform="translate({x} {y})">{_MARKS[name]}</g></g>'
    )


_MARKS = {
    "success": '<circle class="full" r="3"/>',
    "collision": '<path class="stroke" d="M-3.5-3.5L3.5 3.5M-3.5 3.5L3.5-3.5"/>',
    "wrong_side": '<path class="full" d="M0-4.5L4.5 0 0 4.5-4.5 0Z"/>',
    "stopped_short": '<rect class="full" x="-3.3" y="-3.3" width="6.6" height="6.6"/>',
    "timeout": '<circle class="stroke" r="3.2"/>',
    "not_done": '<circle class="stroke" r="3.2"/>',
    "other": '<path class="stroke" d="M0-4.5L4.5 0 0 4.5-4.5 0Z"/>',
}


def mark(name: str) -> Markup:
    """The mark of an outcome as it ends a path on the maps, for legends and tables."""
    return Markup(f'<svg class="mark drive {name}" viewBox="-6 -6 12 12" aria-hidden="true">{_MARKS[name]}</svg>')


def _thinned(points: Sequence[Any], most: int = 400) -> list[Any]:
    """At most ``most`` of the points, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


# ------------------------------------------------------------------------------------------------------------------- curves


def curve(
    series: dict[str, list[tuple[float, float]]], y_label: str, x_label: str = "optimiser step", log: bool = False
) -> Markup:
    """Lines over training steps. ``log``: a logarithmic y axis if the values are positive and span more than a factor of 10."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    # stand-ins, replaced below by the page's own colours
    ink, faint, colours = "#010203", "#040506", [f"#0708{i:02x}" for i in range(1, LINES + 1)]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": y_label, "font.size": 9, "axes.unicode_minus": True}):
        figure = Figure(figsize=(4.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, points) in enumerate(series.items()):
            xs, ys = zip(*_thinned(points), strict=True)
            style: dict[str, Any] = {"linestyle": ("-", "--", "-.")[i % 3], "color": colours[i % LINES], "linewidth": 1.4}
            axes.plot(xs, ys, label=name, marker="o" if len(points) < 40 else "", markersize=2.5, **style)
        values = [y for points in series.values() for _, y in points]
        if log and min(values) > 0 and max(values) > 10 * min(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=min(0.0, min(values)))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(x_label, color=ink)
        axes.set_ylabel(y_label, color=ink)
        axes.tick_params(which="both", color=faint, labelcolor=ink)
        axes.grid(True, color=faint, linewidth=0.6)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(faint)
        if list(series) != [y_label]:
            axes.legend(frameon=False, labelcolor=ink, ncols=1 if len(series) < 4 else 2)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # they repeat from figure to figure; the ids that are referred to do not
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 class="curve" role="img"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    variables = ["ink-2", "line", *(f"line-{i}" for i in range(1, LINES + 1))]
    for colour, variable in zip([ink, faint, *colours], variables, strict=True):
        svg = svg.replace(colour, f"var(--{variable})")
    return Markup(svg)


# -------------------------------------------------------------------------------------------------------------------- films


def film(frames: Sequence[np.ndarray]) -> tuple[bytes, bytes]:
    """Animated WebP of (H, W, 3) uint8 frames, and four of them in one picture, for print and for who wants no motion."""
    from PIL import Image

    pictures = []
    for frame in _thinned(frames, FILM_FRAMES):
        picture = Image.fromarray(np.ascontiguousarray(frame, dtype=np.uint8))
        if picture.width > FILM_WIDTH:
            picture = picture.resize((FILM_WIDTH, max(1, round(picture.height * FILM_WIDTH / picture.width))))
        pictures.append(picture)
    width, height = pictures[0].size
    moving, still = io.BytesIO(), io.BytesIO()
    durations = [FILM_MS] * (len(pictures) - 1) + [1500]
    pictures[0].save(
        moving, "WEBP", save_all=True, append_images=pictures[1:], duration=durations, loop=0, quality=50, method=4
    )
    four = _thinned(pictures, 4)
    sheet = Image.new("RGB", (2 * width, 2 * height))
    for i, picture in enumerate(four + [four[-1]] * (4 - len(four))):
        sheet.paste(picture, (width * (i % 2), height * (i // 2)))
    sheet.resize((FILM_WIDTH, round(height * FILM_WIDTH / width))).save(still, "WEBP", quality=60)
    return moving.getvalue(), still.getvalue()
