"""FrameStore: every frame decoded and resized once, then read from a memory map.

A store is a folder per (source, image size, fit) in the cache:

    index.jsonl          one line per stored episode: name, fingerprint, first row, number of rows; later lines win
    <camera>.frames      (rows, h, w, 3) uint8, raw; the same rows in every camera's file, zeros where an episode lacks it

Episodes are appended, the frames first and then their line. So a store whose making was interrupted holds whole episodes
only, and making it again goes on from there. An episode whose fingerprint has changed is decoded anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.config.settings import Fit, OnBadEpisode
from anyvla.data.episode import Episode, EpisodeSource, Problem
from anyvla.data.images import resize_frames
from anyvla.errors import DataError
from anyvla.processes import interrupts_held, leave_interrupts_to_the_main_process, locked
from anyvla.progress import progress_bar

_VERSION = 2  # of the layout and of the resizing; a change makes old stores unused
_BLOCK = 16  # frames decoded at a time: 44 MB at 720p
_FEW_FRAMES = 300  # below this, starting processes takes longer than decoding

Frames = list[np.ndarray | None]  # of each camera, (T, h, w, 3) uint8; None where an episode lacks it


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/anyvla`` or ``~/.cache/anyvla``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anyvla"


@dataclass(frozen=True)
class _Entry:
    name: str
    fingerprint: str
    first: int
    rows: int


class FrameStore:
    """Resized frames of the episodes of one source, by name."""

    def __init__(self, folder: Path, cameras: Sequence[str], size: tuple[int, int], entries: dict[str, _Entry]) -> None:
        self._opened_with = (folder, cameras, size, entries)
        self._entries = entries
        self._frames = {}
        for camera in cameras:
            path = folder / f"{camera}.frames"
            rows = path.stat().st_size // (size[0] * size[1] * 3)
            self._frames[camera] = np.memmap(path, dtype=np.uint8, mode="r", shape=(rows, *size, 3))

    def __reduce__(self) -> tuple[type[FrameStore], tuple[Any, ...]]:
        return FrameStore, self._opened_with  # a worker process opens the files anew; a pickled map would be a copy of them

    def read(self, name: str, start: int, stop: int) -> dict[str, np.ndarray]:
        """Camera -> (stop - start, h, w, 3) uint8 of frames ``start`` to ``stop`` (exclusive) of one episode, not copied.

        Frames of a camera that the episode lacks are black.
        """
        entry = self._entries[name]
        if not 0 <= start < stop <= entry.rows:
            raise IndexError(f"frames {start}-{stop} of episode {name}, which has {entry.rows}")
        return {camera: frames[entry.first + start : entry.first + stop] for camera, frames in self._frames.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._entries


def open_store(
    source: EpisodeSource,
    cameras: Sequence[str],
    size: tuple[int, int],
    *,
    fit: Fit = "stretch",
    cache: Path | None = None,
    on_bad_episode: OnBadEpisode = "error",
    processes: int | None = None,
) -> tuple[FrameStore, list[Problem]]:
    """The store of ``source``, after decoding what it does not hold yet.

    Args:
        cameras: which cameras to store. size: (h, w) of the stored frames.
        cache: folder of all stores, ``default_cache()`` if None.
        processes: how many decode at a time; all cores if None, in this process if 1.

    Returns:
        The store, and the episodes that were left out because they could not be read (``on_bad_episode="skip"``).

    Raises:
        DataError: an episode cannot be read, or the cache cannot be written.
    """
    identity, folder = _identity(source, cameras, size, fit, cache)
    problems: list[Problem] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "about.json").write_text(json.dumps(identity, indent=1))
        with locked(folder / "lock"):
            entries = _read_index(folder, cameras, size)
            missing = [
                episode
                for episode in map(source.episode, range(len(source)))
                if (entry := entries.get(episode.name)) is None
                or (entry.fingerprint, entry.rows) != (episode.fingerprint, episode.length)
            ]
            if missing:
                _write_index(folder, entries)
                decoded = _decode_all(missing, cameras, size, fit, processes)
                problems = _append(folder, decoded, len(missing), cameras, size, on_bad_episode, entries)
    except OSError as error:
        raise DataError(f"{folder}: the frame cache cannot be written ({error}); set data.cache to another folder") from error
    if not any(source.episode(i).name in entries for i in range(len(source))):
        raise DataError(f"{source.name}: no episode can be read; the first: {problems[0].reason}")
    return FrameStore(folder, cameras, size, entries), problems


def _identity(
    source: EpisodeSource, cameras: Sequence[str], size: tuple[int, int], fit: Fit, cache: Path | None
) -> tuple[dict[str, Any], Path]:
    """What a store is of, and its folder."""
    identity = {"version": _VERSION, "source": source.name, "cameras": sorted(cameras), "size": list(size), "fit": fit}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return identity, (cache or default_cache()) / "frames" / digest


def stored_bytes(source: EpisodeSource, cameras: Sequence[str], size: tuple[int, int], fit: Fit, cache: Path | None) -> int:
    """What the store of ``source`` takes on the disk now; 0 if there is none."""
    _, folder = _identity(source, cameras, size, fit, cache)
    return sum(512 * path.stat().st_blocks for path in folder.glob("*.frames"))


def free_room(cache: Path | None) -> int:
    """Bytes that the disk of the cache has left."""
    folder = (cache or default_cache()).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _read_index(folder: Path, cameras: Sequence[str], size: tuple[int, int]) -> dict[str, _Entry]:
    """The entries whose rows are all on disk; a half-written last line is ignored."""
    index = folder / "index.jsonl"
    paths = [folder / f"{camera}.frames" for camera in cameras]
    if not all(path.exists() for path in (index, *paths)):
        return {}
    stored = min(path.stat().st_size for path in paths) // (size[0] * size[1] * 3)
    entries = {}
    for line in index.read_text().splitlines():
        try:
            entry = _Entry(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue  # the line that was being written when the process died
        if entry.first + entry.rows <= stored:
            entries[entry.name] = entry
    return entries


def _write_index(folder: Path, entries: dict[str, _Entry]) -> None:
    """Leave only what is whole: an entry whose rows are lost must not come back to life when its place is filled again."""
    partial = folder / "index.jsonl.partial"
    partial.write_text("".join("\n" + json.dumps(asdict(entry)) for entry in entries.values()))
    os.replace(partial, folder / "index.jsonl")


def _append(
    folder: Path,
    decoded: Iterator[tuple[Episode, Frames | str]],
    count: int,
    cameras: Sequence[str],
    size: tuple[int, int],
    on_bad_episode: OnBadEpisode,
    entries: dict[str, _Entry],
) -> list[Problem]:
    """Write ``decoded`` behind what is stored, add it to ``entries``, and return the episodes that could not be read."""
    row = size[0] * size[1] * 3
    paths = [folder / f"{camera}.frames" for camera in cameras]
    rows = max((-(-path.stat().st_size // row) for path in paths if path.exists()), default=0)
    problems = []
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("ab")) for path in paths]
        for file in files:
            file.truncate(rows * row)  # brings all cameras to the same row after an interruption
        index = stack.enter_context((folder / "index.jsonl").open("a"))
        bar = stack.enter_context(progress_bar("decode episodes", count))
        for episode, frames in decoded:
            bar.advance()
            if isinstance(frames, str):
                if on_bad_episode == "error":
                    raise DataError(f"{frames} (on_bad_episode=skip leaves such episodes out)")
                problems.append(Problem(episode.name, frames))
                entries.pop(episode.name, None)
                continue
            for file, camera_frames in zip(files, frames, strict=True):
                if camera_frames is None:
                    file.truncate((rows + episode.length) * row)  # a hole, which takes no room
                    file.seek(0, os.SEEK_END)
                else:
                    file.write(camera_frames.tobytes())
                file.flush()
            entry = _Entry(episode.name, episode.fingerprint, rows, episode.length)
            index.write("\n" + json.dumps(asdict(entry)))  # first the newline: it ends a line that was cut short
            index.flush()
            entries[episode.name] = entry
            rows += episode.length
    return problems


def _decode_all(
    episodes: list[Episode], cameras: Sequence[str], size: tuple[int, int], fit: Fit, processes: int | None
) -> Iterator[tuple[Episode, Frames | str]]:
    """In the given order: each episode with the frames of each camera, or with what is wrong with it."""
    processes = min(processes or os.cpu_count() or 1, len(episodes))
    if processes == 1 or sum(episode.length for episode in episodes) < _FEW_FRAMES:
        for episode in episodes:
            yield episode, _decode(episode, cameras, size, fit)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), leave_interrupts_to_the_main_process)
    waiting: deque[tuple[Episode, Future[Frames | str]]] = deque()
    try:
        for episode in episodes:
            with interrupts_held():  # this may start a process
                waiting.append((episode, pool.submit(_decode, episode, cameras, size, fit)))
            if len(waiting) > 4 * processes:  # bounds the memory of episodes that wait to be written
                first, future = waiting.popleft()
                yield first, future.result()
        for last, future in waiting:
            yield last, future.result()
    except BrokenProcessPool as error:
        raise DataError("a decoding process died, perhaps for lack of memory; what was decoded is kept") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(episode: Episode, cameras: Sequence[str], size: tuple[int, int], fit: Fit) -> Frames | str:
    there = [camera for camera in cameras if camera in episode.cameras]
    frames: dict[str, list[np.ndarray]] = {camera: [] for camera in there}
    try:
        for start in range(0, episode.length, _BLOCK):  # by blocks, so that 720p episodes never fill the memory
            for camera, images in episode.read(start, min(start + _BLOCK, episode.length), there).items():
                frames[camera].append(resize_frames(images, size, fit))
    except DataError as error:
        return str(error)
    return [np.concatenate(frames[camera]) if camera in frames else None for camera in cameras]
