"""Looking at data before training on it: counts, lengths, histograms, a contact sheet, and what is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anyvla.data.episode import Episode, EpisodeSource, Problem
from anyvla.data.images import resize_frame
from anyvla.data.stats import action_statistics, state_statistics, statistics_to_dict
from anyvla.errors import DataError

_SHEET_ROWS, _SHEET_COLUMNS = 8, 6
_THUMB = (90, 160)  # (h, w)


@dataclass(frozen=True)
class DataReport:
    """What ``inspect_data`` found, and the pictures it made."""

    summary: dict[str, Any]
    problems: list[Problem]
    warnings: list[str]
    pictures: list[Path]


def inspect_data(source: EpisodeSource, out: Path) -> DataReport:
    """Describe ``source``, opened with ``on_bad_episode="skip"``; ``contact_sheet.png`` and ``actions.png`` go to ``out``."""
    episodes = [source.episode(i) for i in range(len(source))]
    lengths = np.array([episode.length for episode in episodes])
    actions = np.concatenate([episode.actions for episode in episodes])
    instructions = Counter(episode.instruction for episode in episodes)
    summary = {
        "episodes": len(episodes),
        "frames": int(lengths.sum()),
        "lengths": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
        "fps": dict(Counter(f"{episode.fps:g}" for episode in episodes)),
        "cameras": {camera: sum(camera in episode.cameras for episode in episodes) for camera in source.cameras},
        "instructions": {"different": len(instructions), "most_common": instructions.most_common(5)},
        "actions": statistics_to_dict(action_statistics(episodes)),
        "state": _state(episodes),
    }
    out.mkdir(parents=True, exist_ok=True)
    sheet, unreadable = _contact_sheet(source, episodes)
    pictures = [out / "contact_sheet.png", out / "actions.png"]
    sheet.save(pictures[0])
    _histograms(source, actions, lengths, pictures[1])
    return DataReport(summary, [*source.problems, *unreadable], _warnings(source, episodes, actions), pictures)


def _state(episodes: list[Episode]) -> dict[str, Any] | None:
    """Names and statistics of the robot's state, of the episodes that have the numbers which most episodes have."""
    counted = Counter(episode.state_names for episode in episodes if episode.state_names)
    if not counted:
        return None
    ((names, count),) = counted.most_common(1)
    statistics = state_statistics(episode for episode in episodes if episode.state_names == names)
    return {"names": list(names), "episodes": count, **statistics_to_dict(statistics)}


def _warnings(source: EpisodeSource, episodes: list[Episode], actions: np.ndarray) -> list[str]:
    found = []
    rates = sorted({round(episode.fps, 3) for episode in episodes})
    if len(rates) > 1:
        found.append(f"episodes have different control rates: {', '.join(f'{rate:g}' for rate in rates)} fps")
    for dim, name in enumerate(source.spec.names):
        values = actions[:, dim]
        if np.ptp(values) < 1e-6:
            found.append(f"action {name} never changes: it is {values[0]:g} in every frame")
        limits = source.spec.dims[dim]
        at_limit = np.mean((values <= limits.low + 1e-4) | (values >= limits.high - 1e-4))
        if limits.kind == "continuous" and at_limit > 0.25:
            found.append(
                f"action {name} is at its limit in {at_limit:.0%} of the frames: recorded clipped, or in another unit?"
            )
    still = [e.name for e in episodes if not np.abs(e.actions[:, ~source.spec.binary]).max(initial=0) > 1e-6]
    if still:
        found.append(f"{len(still)} episodes command no motion at all, such as {still[0]}")
    if len({episode.instruction for episode in episodes}) == 1 and len(episodes) > 1:
        found.append("all episodes have the same instruction: a policy will learn to ignore it")
    states = Counter(episode.state_names for episode in episodes)
    if len(states) > 1:
        kinds = "; ".join(f"{count} have {', '.join(names) or 'none'}" for names, count in states.most_common())
        found.append(f"episodes have different states of the robot ({kinds}): observation.state needs its names in all of them")
    for camera in source.cameras:
        lacking = [episode.name for episode in episodes if camera not in episode.cameras]
        if lacking:
            found.append(
                f"{len(lacking)} episodes lack the camera {camera}, such as {lacking[0]}: see observation.optional_cameras"
            )
    short = [e.name for e in episodes if e.length < 3]
    if short:
        found.append(f"{len(short)} episodes have fewer than 3 frames, such as {short[0]}")
    return found


def _contact_sheet(source: EpisodeSource, episodes: list[Episode]) -> tuple[Image.Image, list[Problem]]:
    """A row per episode, evenly chosen: its instruction, and frames from first to last."""
    count = min(_SHEET_ROWS, len(episodes))
    rows = [episodes[i * len(episodes) // count] for i in range(count)]
    height, width = _THUMB
    margin, caption = 6, 18
    sheet = Image.new(
        "RGB", (_SHEET_COLUMNS * (width + margin) + margin, count * (height + caption + margin) + margin), "#f4f4f2"
    )
    draw = ImageDraw.Draw(sheet)
    wide_font = _font_with_hangul()
    problems = []
    for r, episode in enumerate(rows):
        camera = episode.cameras[0]
        top = margin + r * (height + caption + margin)
        draw.text((margin, top), _caption(episode, wide_font), fill="#333333", font=wide_font)
        try:
            for c in range(_SHEET_COLUMNS):
                t = round(c * (episode.length - 1) / (_SHEET_COLUMNS - 1))
                frame = resize_frame(episode.read(t, t + 1, [camera])[camera][0], _THUMB, "pad")
                sheet.paste(Image.fromarray(frame), (margin + c * (width + margin), top + caption))
        except DataError as error:
            problems.append(Problem(episode.name, str(error)))
    return sheet, problems


def _font_with_hangul() -> ImageFont.FreeTypeFont | None:
    """A system font that can write Korean, if there is one; Pillow's own has Latin letters only."""
    names = ("NotoSansCJK-Regular.ttc", "NanumGothic.ttf", "UnDotum.ttf", "AppleSDGothicNeo.ttc", "DroidSansFallbackFull.ttf")
    for name in names:
        try:
            return ImageFont.truetype(name, 12)
        except OSError:
            continue
    return None


def _caption(episode: Episode, font: ImageFont.FreeTypeFont | None) -> str:
    if font is None and not episode.instruction.isascii():
        return f"{episode.name}: (no font here for its sentence)"
    return f"{episode.name}: {episode.instruction}"[:150]


def _histograms(source: EpisodeSource, actions: np.ndarray, lengths: np.ndarray, path: Path) -> None:
    """One histogram per action dimension, and one of the episodes' lengths."""
    from matplotlib.figure import Figure

    panels = len(source.spec) + 1
    figure = Figure(figsize=(3.4 * panels, 2.8), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels))
    for axis, dim, values in zip(axes, source.spec.dims, actions.T, strict=False):
        axis.hist(values, bins=60, color="#3b6ea5")
        axis.set_yscale("log")
        axis.set_xlabel(f"{dim.name} [{dim.unit}]")
        for quantile in np.quantile(values, [0.01, 0.99]):
            axis.axvline(quantile, color="#c2571a", linewidth=1, linestyle="--")
    axes[0].set_ylabel("frames (dashed: q01, q99)")
    width = max(1, int(np.ptp(lengths)) // 30)  # whole frames a bar
    axes[-1].hist(lengths, bins=np.arange(lengths.min(), lengths.max() + width + 1, width) - 0.5, color="#6a8f4e")
    axes[-1].set_xlabel("episode length [frames]")
    axes[-1].set_ylabel("episodes")
    figure.savefig(path, dpi=110)
