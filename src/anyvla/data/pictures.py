"""Pictures of data: a contact sheet, histograms, counts by task, and a film of a few episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anyvla.data.episode import Episode, Problem
from anyvla.data.images import resize_frame
from anyvla.errors import DataError, MissingExtraError

_ROWS, _COLUMNS = 8, 6  # of the contact sheet
_CAMERAS = 3  # of an episode, that are shown
_THUMB_PIXELS = 160 * 90  # of one small picture, whatever its shape
_MARGIN, _CAPTION = 6, 18
_PAPER, _INK = "#f4f4f2", "#333333"
_FILM_EPISODES, _FILM_FRAMES, _FILM_HEIGHT, _FILM_FPS = 6, 60, 160, 10


@dataclass(frozen=True)
class Histogram:
    """The values of one number: how many lie in each bin, and its quantiles."""

    label: str
    counts: np.ndarray  # (N,)
    edges: np.ndarray  # (N + 1,)
    q01: float
    q99: float


def evenly(episodes: Sequence[Episode], count: int) -> list[Episode]:
    """At most ``count`` of them, evenly chosen."""
    count = min(count, len(episodes))
    return [episodes[i * len(episodes) // count] for i in range(count)]


def contact_sheet(episodes: Sequence[Episode], path: Path) -> list[Problem]:
    """For each of a few episodes its sentence, and a strip of frames from first to last for each of its cameras."""
    font, strips, problems = _font(), [], []
    for episode in evenly(episodes, _ROWS):
        times = [round(c * (episode.length - 1) / (_COLUMNS - 1)) for c in range(_COLUMNS)]
        cameras = episode.cameras[:_CAMERAS]
        try:
            frames = [episode.read(t, t + 1, cameras) for t in times]
        except DataError as error:
            problems.append(Problem(episode.name, str(error)))
            continue
        rows = [[Image.fromarray(_small(frame[camera][0])) for frame in frames] for camera in cameras]
        width = max(picture.width for row in rows for picture in row)
        heights = [row[0].height for row in rows]
        strip = Image.new(
            "RGB", (_COLUMNS * (width + _MARGIN) + _MARGIN, _CAPTION + sum(heights) + _MARGIN * len(rows)), _PAPER
        )
        draw = ImageDraw.Draw(strip)
        draw.text((0, 1), _fitting(_caption(episode, font), strip.width, draw, font), fill=_INK, font=font)
        top = _CAPTION
        for camera, row in zip(cameras, rows, strict=True):
            for c, picture in enumerate(row):
                strip.paste(picture, (c * (width + _MARGIN), top))
                label = f"{camera}  " if c == 0 and len(cameras) > 1 else ""
                _tag(draw, (c * (width + _MARGIN), top), f"{label}{times[c]}")
            top += row[0].height + _MARGIN
        strips.append(strip)
    several = any(len(episode.cameras) > 1 for episode in episodes)
    _in_columns(strips, 2 if several else 1).save(path)
    return problems


def _in_columns(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """All of them on one sheet, row by row."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    width = max((picture.width for picture in pictures), default=300) + _MARGIN
    heights = [max(picture.height for picture in row) + _MARGIN for row in rows]
    sheet = Image.new("RGB", (columns * width + _MARGIN, sum(heights) + _MARGIN), _PAPER)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for c, picture in enumerate(row):
            sheet.paste(picture, (_MARGIN + c * width, top))
        top += height
    return sheet


def histograms(panels: Sequence[Histogram], lengths: np.ndarray, path: Path) -> None:
    """A panel for each number, and one of the episodes' lengths."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    columns = min(4, len(panels) + 1)
    rows = -(-(len(panels) + 1) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.6 * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        axis.stairs(panel.counts, panel.edges, fill=True, color="#3b6ea5")
        if panel.counts.max(initial=0) > 0:
            axis.set_yscale("log")
            axis.set_ylim(0.7, 2 * panel.counts.max())
        axis.set_xlabel(panel.label)
        for quantile in (panel.q01, panel.q99):
            axis.axvline(quantile, color="#c2571a", linewidth=1, linestyle="--")
    for axis in axes[: len(panels) : columns]:
        axis.set_ylabel("frames (dashed: q01, q99)")
    last = axes[len(panels)]
    width = max(1, int(np.ptp(lengths)) // 30)  # whole frames a bar
    last.hist(lengths, bins=np.arange(lengths.min(), lengths.max() + width + 1, width) - 0.5, color="#6a8f4e")
    last.set_xlabel("episode length [frames]")
    last.set_ylabel("episodes")
    last.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[len(panels) + 1 :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def task_bars(counts: Sequence[tuple[str, int]], different: int, path: Path) -> None:
    """Episodes of each of the most frequent tasks."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.5, 0.9 + 0.24 * len(counts)), layout="constrained")
    axis = figure.subplots()
    names = [name if len(name) <= 60 else f"{name[:57]}..." for name, _ in counts]
    bars = axis.barh(range(len(counts)), [count for _, count in counts], color="#6a8f4e")
    axis.bar_label(bars, padding=3, fontsize=8)
    axis.set_yticks(range(len(counts)), names, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.08, y=0.01)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("episodes" if different <= len(counts) else f"episodes (the first {len(counts)} of {different} tasks)")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def film(episodes: Sequence[Episode], out: Path) -> tuple[Path, list[Problem]]:
    """A few episodes, one after the other, all cameras side by side; long ones are shown quicker.

    ``preview.mp4`` in ``out``, or ``preview.gif`` where PyAV is not installed.
    """
    from anyvla.data.video import VideoWriter, load_av

    problems: list[Problem] = []
    frames = list(_film_frames(evenly(episodes, _FILM_EPISODES), problems))
    try:
        load_av()
    except MissingExtraError:
        path = out / "preview.gif"
        if frames:
            first, *rest = [frame.quantize(method=Image.Quantize.FASTOCTREE) for frame in frames]
            first.save(path, save_all=True, append_images=rest, duration=round(1000 / _FILM_FPS), loop=0)
        return path, problems
    path = out / "preview.mp4"
    if frames:
        with VideoWriter(path, (frames[0].height, frames[0].width), _FILM_FPS, "h264") as writer:
            writer.add(np.asarray(frame) for frame in frames)
    return path, problems


def _film_frames(episodes: Sequence[Episode], problems: list[Problem]) -> Iterator[Image.Image]:
    """Frames of one size, large enough for all episodes."""
    font, size = _font(), (0, 0)
    shown = []
    for episode in episodes:
        step = -(-episode.length // _FILM_FRAMES)
        try:
            strips = []
            for t in range(0, episode.length, step):
                frames = episode.read(t, t + 1, episode.cameras[:_CAMERAS]).values()
                strips.append(np.concatenate([_of_height(frame[0], _FILM_HEIGHT) for frame in frames], axis=1))
        except DataError as error:
            problems.append(Problem(episode.name, str(error)))
            continue
        shown.append((episode, strips))
        size = max(size[0], strips[0].shape[1]), _FILM_HEIGHT + _CAPTION
    for episode, strips in shown:
        for strip in strips:
            frame = Image.new("RGB", (max(320, size[0]) // 2 * 2, size[1] // 2 * 2), _PAPER)
            draw = ImageDraw.Draw(frame)
            draw.text((4, 1), _fitting(_caption(episode, font), frame.width - 8, draw, font), fill=_INK, font=font)
            frame.paste(Image.fromarray(strip), (0, _CAPTION))
            yield frame


def _small(frame: np.ndarray) -> np.ndarray:
    """About _THUMB_PIXELS, of the same shape; at most twice as large as it is."""
    scale = min(2.0, (_THUMB_PIXELS / (frame.shape[0] * frame.shape[1])) ** 0.5)
    return resize_frame(frame, (max(1, round(frame.shape[0] * scale)), max(1, round(frame.shape[1] * scale))))


def _of_height(frame: np.ndarray, height: int) -> np.ndarray:
    return resize_frame(frame, (height, max(1, round(frame.shape[1] * height / frame.shape[0]))))


def _tag(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str) -> None:
    """Small light text on a dark ground in the corner of a picture."""
    font = ImageFont.load_default(10)
    _, _, right, bottom = draw.textbbox((place[0] + 3, place[1] + 1), text, font=font)
    draw.rectangle((place[0], place[1], right + 2, bottom + 2), fill="#222222")
    draw.text((place[0] + 3, place[1] + 1), text, fill="#ffffff", font=font)


def _font() -> ImageFont.FreeTypeFont | None:
    """A system font that can write Korean, if there is one; Pillow's own has Latin letters only."""
    names = ("NotoSansCJK-Regular.ttc", "NanumGothic.ttf", "UnDotum.ttf", "AppleSDGothicNeo.ttc", "DroidSansFallbackFull.ttf")
    for name in names:
        try:
            return ImageFont.truetype(name, 12)
        except OSError:
            continue
    return None


def _caption(episode: Episode, font: ImageFont.FreeTypeFont | None) -> str:
    said = episode.instruction or "(no sentence)"
    if font is None and not said.isascii():
        said = "(no font here for its sentence)"
    return f"{said}   [{episode.name}{f', {episode.task}' if episode.task else ''}, {episode.length} frames]"


def _fitting(text: str, width: int, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | None) -> str:
    """``text``, cut where it would not fit into ``width`` pixels."""
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font=font) > width:
        text = text[:-1]
    return f"{text}..."
