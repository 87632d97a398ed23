"""Small sources of many kinds for the tests of the packed store and of conversion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from anyvla.actions.spec import ARM7, ActionSpec
from anyvla.data.episode import ArrayEpisode, Episode, Problem
from anyvla.data.writers.packed import PackedWriter


@dataclass(frozen=True)
class Cut(ArrayEpisode):
    """An episode cut from a recording."""

    recording: tuple[str, int] = ("", 0)


@dataclass(frozen=True)
class ListSource:
    """Episodes in memory as a source."""

    spec: ActionSpec
    episodes: Sequence[Episode]
    name: str = "memory"
    problems: list[Problem] = field(default_factory=list)

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(camera for episode in self.episodes for camera in episode.cameras))

    @property
    def ready(self) -> dict[str, tuple[int, int]]:
        return {}

    def __len__(self) -> int:
        return len(self.episodes)

    def episode(self, index: int) -> Episode:
        return self.episodes[index]


def make_episode(
    spec: ActionSpec,
    name: str = "a",
    length: int = 9,
    *,
    cameras: Sequence[str] = ("front",),
    size: tuple[int, int] = (6, 8),
    state: Sequence[str] = (),
    seed: int = 0,
    **changes: object,
) -> ArrayEpisode:
    rng = np.random.default_rng(seed)
    low, high = spec.low.astype(np.float32), spec.high.astype(np.float32)
    actions = np.clip(rng.uniform(low, high, (length, len(spec))).astype(np.float32), low, high)
    episode = ArrayEpisode(
        name=name,
        instruction=f"병 앞에 멈춰, {name}.",
        actions=np.where(spec.binary, np.round(actions), actions).astype(np.float32),
        images={camera: rng.integers(0, 256, (length, *size, 3), dtype=np.uint8) for camera in cameras},
        fps=2.5,
        task=f"task {seed % 3}",
        state_names=tuple(state),
        state=rng.normal(size=(length, len(state))).astype(np.float32) if state else None,
    )
    return replace(episode, **changes)  # type: ignore[arg-type]


def cut(spec: ActionSpec, whole: ArrayEpisode, first: int, last: int) -> Cut:
    """Frames ``first`` to ``last`` (exclusive) of a recording."""
    return Cut(
        name=f"{whole.name}_{first}_{last}",
        instruction=whole.instruction,
        actions=whole.actions[first:last],
        images={camera: frames[first:last] for camera, frames in whole.images.items()},
        fps=whole.fps,
        task=whole.task,
        state_names=whole.state_names,
        state=None if whole.state is None else whole.state[first:last],
        recording=(whole.name, first),
    )


def make_packed(path: Path) -> Path:
    """A packed store of one episode."""
    episode = make_episode(ARM7, state=("x",))
    with PackedWriter(path, ARM7, episode.cameras, state_names=episode.state_names) as writer:
        writer.add(episode)
    return path


def assert_same(one: Episode, other: Episode, *, names: bool = True) -> None:
    """Everything that the contract says of an episode agrees, images to the bit."""
    if names:
        assert one.name == other.name
    facts = [(e.length, e.fps, e.instruction, e.task, e.state_names, sorted(e.cameras)) for e in (one, other)]
    assert facts[0] == facts[1]
    np.testing.assert_array_equal(one.actions, other.actions)
    assert one.actions.dtype == other.actions.dtype == np.float32
    if one.state is None or other.state is None:
        assert one.state is other.state
    else:
        np.testing.assert_array_equal(one.state, other.state)
    frames, others = (e.read(0, e.length, e.cameras) for e in (one, other))
    for camera in frames:
        np.testing.assert_array_equal(frames[camera], others[camera])
