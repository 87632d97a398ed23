"""A recording, as arrays of what came when, to episodes: the way that bags and live recordings have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from anyvla.errors import DataError
from anyvla.ros2.mapping import (
    ActionField,
    MappingConfig,
    Series,
    StateField,
    Track,
    action_values,
    must_be_heard,
    series,
    state_values,
)
from anyvla.ros2.synchronize import CommandRule, Stretch, cut, message_times


@dataclass(frozen=True)
class Rules:
    """How messages become ticks; see ``anyvla.ros2.synchronize``."""

    fps: float = 5.0  # ticks per second
    max_age: float = 0.25  # seconds: an older frame or state is none
    command: CommandRule = "hold"
    command_gap: float = 0.5  # seconds after which a velocity is zero
    shortest: float = 1.0  # seconds: a shorter episode is left out


@dataclass
class Recording:
    """What came, in order of arrival: of images only the times."""

    cameras: dict[str, Track] = field(default_factory=dict)  # camera -> its messages; ``data`` is whatever finds the image
    topics: dict[str, Track] = field(default_factory=dict)  # topic -> messages with numbers
    said: list[tuple[float, str]] = field(default_factory=list)  # arrival and text of instructions


@dataclass(frozen=True)
class Part:
    """An episode of T ticks, its images as positions in the camera's messages."""

    times: np.ndarray  # (T,) seconds
    frames: dict[str, np.ndarray]  # camera -> (T,)
    instruction: str
    actions: np.ndarray  # (T, A) float32
    state: np.ndarray  # (T, S) float32


def episodes_of(
    recording: Recording,
    mapping: MappingConfig,
    rules: Rules,
    where: str,
    text: str | None = None,
    anchor: float | None = None,
) -> list[Part]:
    """The episodes of a recording, in order.

    Args:
        text: instruction of what nobody has said one for; such ticks are no episode if None. where: for messages.

    Raises DataError: no frames, no commands, or nothing that is long enough; the message says why.
    """
    times, order = {}, {}
    for camera, track in recording.cameras.items():
        if not track.received:
            raise DataError(f"{where}: the camera {camera} has no frames")
        moments = message_times(np.array(track.received), np.array(track.stamps))
        order[camera] = np.argsort(moments, kind="stable")
        times[camera] = moments[order[camera]]
    found = {item: _series(recording, item, where) for item in (*mapping.actions, *mapping.state)}
    needed: dict[str, tuple[np.ndarray, float]] = {}
    for item, values in found.items():
        if not isinstance(item, ActionField):
            needed[f"state {item.name}"] = (values.times, rules.max_age)
        elif must_be_heard(item, recording.topics[item.topic].kind):
            needed[f"action {item.name}"] = (values.times, np.inf)
    stretches = cut(times, needed, sorted(recording.said), rules.fps, rules.max_age, anchor)
    long = [stretch for stretch in stretches if len(stretch.times) >= max(2.0, rules.shortest * rules.fps)]
    chosen = [stretch for stretch in long if stretch.instruction is not None or text]
    if not chosen:
        raise DataError(f"{where}: no episode: {_why(times, needed, stretches, long, rules)}")
    parts = []
    for stretch in chosen:
        columns = [
            action_values(
                item,
                recording.topics[item.topic].kind,
                found[item],
                stretch.times,
                1 / rules.fps,
                rules.command,
                rules.command_gap,
            )
            for item in mapping.actions
        ]
        states = [state_values(item, found[item], stretch.times) for item in mapping.state]
        frames = {camera: order[camera][stretch.frames[camera]] for camera in times}
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite, and refused as such
            actions = np.stack(columns, axis=1).astype(np.float32)
        state = np.stack(states, axis=1).astype(np.float32) if states else np.zeros((len(actions), 0), np.float32)
        parts.append(Part(stretch.times, frames, stretch.instruction or str(text), actions, state))
    return parts


def _series(recording: Recording, item: StateField, where: str) -> Series:
    track = recording.topics[item.topic]
    if not track.received:
        what = "commands" if isinstance(item, ActionField) else "messages"
        raise DataError(f"{where}: no {what}: {item.topic}, which {item.name} is from, has no message")
    return series(track, message_times(np.array(track.received), np.array(track.stamps)), item, where)


def _why(
    cameras: Mapping[str, np.ndarray],
    needed: Mapping[str, tuple[np.ndarray, float]],
    stretches: list[Stretch],
    long: list[Stretch],
    rules: Rules,
) -> str:
    if long:
        return "nobody has said an instruction, and none is set (text=...)"
    if stretches:
        longest = max(len(stretch.times) for stretch in stretches) / rules.fps
        return f"the longest of {len(stretches)} stretches has {longest:.1f} s, and shortest is {rules.shortest:g} s"
    rates = {**cameras, **{name: times for name, (times, _) in needed.items()}}
    said = ", ".join(f"{name} {_rate(times)}" for name, times in rates.items())
    return f"no moment has all of what it needs, at most {rules.max_age:g} s old (max_age): {said}"


def _rate(times: np.ndarray) -> str:
    span = times[-1] - times[0]
    return f"{(len(times) - 1) / span:.1f} Hz from {times[0]:.1f} s" if span > 0 else f"{len(times)} message"
