"""From any source to any writer: ``convert`` adds the episodes in order while processes decode those that come next."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

import numpy as np

from anyvla.config.settings import Fit, OnBadEpisode
from anyvla.data.coding import QUALITY, check_coding
from anyvla.data.episode import Coding, Episode, EpisodeSource, EpisodeWriter, Problem, recording_of
from anyvla.data.images import resize_frames
from anyvla.data.writers.mobile_h5 import MobileH5Writer
from anyvla.data.writers.packed import BLOCK, PackedWriter, coded_frames
from anyvla.errors import AnyVLAError, ConfigError, DataError
from anyvla.processes import interrupts_held, leave_interrupts_to_the_main_process
from anyvla.progress import progress_bar

Format = Literal["packed", "lerobot", "mobile_h5"]
# of images; the first is what is taken where none is asked for, and loses nothing
ENCODINGS: dict[Format, tuple[str, ...]] = {"packed": ("raw", "jpeg", "avif"), "lerobot": ("image", "video"), "mobile_h5": ()}
_FEW_FRAMES = 300  # below this, starting processes takes longer than decoding
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}

Plan = Sequence[tuple[Episode, int]]  # episodes, and from which frame on their images are needed
Decoded = dict[str, "np.ndarray | list[bytes]"]  # camera -> (T, H, W, 3) uint8, or T files


@dataclass(frozen=True)
class Images:
    """What becomes of the images on their way."""

    size: tuple[int, int] | None = None  # (h, w); as they are if None
    fit: Fit = "stretch"
    coding: Coding | None = None  # None: not coded
    quality: int = 0


@dataclass(frozen=True)
class Conversion:
    """What ``convert`` has done."""

    episodes: int  # written now
    frames: int
    already: int  # episodes that were there
    skipped: list[Problem]
    seconds: float
    bytes: int  # that the folder takes on the disk, all its episodes together

    def __str__(self) -> str:
        rate = self.frames / self.seconds if self.seconds > 0 else 0.0
        return (
            f"{self.episodes} episodes written ({self.frames} frames, {self.seconds:.1f} s, {rate:.0f} frames/s), "
            f"{self.already} were there, {len(self.skipped)} skipped; {self.bytes / 2**20:.1f} MiB on the disk"
        )


def convert(
    source: EpisodeSource,
    out: Path,
    to: Format,
    *,
    size: tuple[int, int] | None = None,
    fit: Fit = "stretch",
    encoding: str | None = None,
    quality: int | None = None,
    workers: int | None = None,
    on_bad_episode: OnBadEpisode = "error",
) -> Conversion:
    """Write all episodes of ``source`` into the folder ``out``; those that it holds already are left alone.

    Args:
        to: the format. size: (h, w) of all images; as they are if None. fit: how they are brought to it.
        encoding: of the images: ``raw``, ``jpeg`` or ``avif`` for ``packed``; ``image`` or ``video`` for ``lerobot``. None:
            without loss. quality: of jpeg and avif, 1 to 100; 95 and 85 if None.
        workers: processes that decode, all cores if None; with 1 nothing is started.
        on_bad_episode: whether an episode that cannot be read, or that the format cannot hold, is left out and listed.

    Raises:
        DataError: such an episode, or the folder cannot be written. ConfigError: the format does not hold these actions, or the
        folder holds something else.
    """
    began = time.perf_counter()
    place = Path(source.name)
    if out.resolve() == place or out.resolve().is_relative_to(place):
        raise ConfigError(f"{out} lies in the data that are converted; choose another folder")
    if encoding is not None and encoding not in ENCODINGS[to]:
        raise ConfigError(f"{to} has no encoding {encoding!r}; known: {', '.join(ENCODINGS[to]) or 'none to choose'}")
    episodes = [source.episode(i) for i in range(len(source))]
    coding: Coding | None = next((coding for coding in QUALITY if coding == encoding), None)
    if coding is not None:
        check_coding(coding)
    elif quality is not None:
        raise ConfigError("a quality is of the encodings jpeg and avif")
    images = Images(size, fit, coding, 0 if coding is None else quality or QUALITY[coding])
    skipped: list[Problem] = []
    written = frames = 0
    with _open_writer(source, episodes, out, to, images, video=encoding == "video") as writer:
        plan = list(_plan(episodes, writer))
        already = len(episodes) - len(plan)
        with _decoder(plan, images, workers) as decoder, progress_bar(f"convert to {to}", len(episodes), already) as bar:
            for number, (episode, _) in enumerate(plan):
                try:
                    writer.add(_prepared(number, episode, decoder))
                    written, frames = written + 1, frames + episode.length
                except DataError as error:
                    decoder.drop(number)
                    if on_bad_episode == "error" or _is_full(error):
                        raise DataError(f"{error} (on_bad_episode=skip leaves such episodes out)") from error
                    skipped.append(Problem(episode.name, str(error)))
                bar.advance(note=f"{frames / (time.perf_counter() - began):.0f} frames/s")
    seconds = time.perf_counter() - began
    return Conversion(written, frames, already, [*source.problems, *skipped], seconds, disk_use(out))


def disk_use(folder: Path) -> int:
    """Bytes that the files below ``folder`` take on the disk; holes take none."""
    return sum(512 * file.stat().st_blocks for file in folder.rglob("*") if file.is_file())


def _open_writer(
    source: EpisodeSource, episodes: Sequence[Episode], out: Path, to: Format, images: Images, video: bool
) -> EpisodeWriter:
    if to == "mobile_h5":
        return MobileH5Writer(out, source.spec)
    if to == "lerobot":
        from anyvla.data.writers.lerobot import LeRobotWriter

        return LeRobotWriter(out, source.spec, episodes[0].fps, cameras="video" if video else "image")
    return PackedWriter(
        out,
        source.spec,
        source.cameras,
        state_names=next((episode.state_names for episode in episodes if episode.state_names), ()),
        encoding=images.coding or "raw",
        quality=images.quality or None,
        size=images.size,
        fit=images.fit,
        source=source.name,
    )


def _plan(episodes: Sequence[Episode], writer: EpisodeWriter) -> Iterator[tuple[Episode, int]]:
    """The episodes to write, and from which frame on their images are needed.

    A packed store gets them sorted so that those of one recording follow each other by their first frames.
    """
    missing = [episode for episode in episodes if episode.name not in writer]
    if not isinstance(writer, PackedWriter):
        yield from ((episode, 0) for episode in missing)
        return
    order: dict[str, int] = {}
    for episode in missing:
        order.setdefault(recording_of(episode)[0], len(order))
    missing.sort(key=lambda episode: (order[recording_of(episode)[0]], recording_of(episode)[1]))
    ends: dict[tuple[str, tuple[str, ...]], int] = {}  # of each recording, the frame up to which it will be stored
    for episode in missing:
        recording, first = recording_of(episode)
        key = recording, episode.cameras
        start = writer.missing_from(episode)
        if first <= ends.get(key, -1):
            start = max(start, min(ends[key] - first, episode.length))
        ends[key] = max(ends.get(key, 0), first + episode.length)
        yield episode, start


@dataclass(frozen=True)
class _Prepared:
    """An episode on its way to the writer: what it has itself, with images decoded, fitted and coded."""

    name: str
    fingerprint: str
    length: int
    fps: float
    instruction: str
    task: str
    actions: np.ndarray
    state_names: tuple[str, ...]
    state: np.ndarray | None
    cameras: tuple[str, ...]
    recording: tuple[str, int]
    number: int
    decoder: _Decoder

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        parts = self.decoder.frames(self.number, start, stop)
        if len(parts) == 1:
            return {camera: np.asarray(parts[0][camera]) for camera in cameras}
        return {camera: np.concatenate([part[camera] for part in parts]) for camera in cameras}

    def read_coded(self, start: int, stop: int, camera: str, coding: Coding) -> list[bytes] | None:
        if self.decoder.images.coding != coding:
            return None
        return [data for part in self.decoder.frames(self.number, start, stop) for data in part[camera]]


def _prepared(number: int, episode: Episode, decoder: _Decoder) -> Episode:
    return _Prepared(
        episode.name,
        episode.fingerprint,
        episode.length,
        episode.fps,
        episode.instruction,
        episode.task,
        episode.actions,
        episode.state_names,
        episode.state,
        episode.cameras,
        recording_of(episode),
        number,
        decoder,
    )


class _Decoder:
    """Blocks of frames of the planned episodes, decoded ahead of the writer where there is a pool of processes."""

    def __init__(self, plan: Plan, images: Images, pool: ProcessPoolExecutor | None, ahead: int) -> None:
        """``ahead``: blocks that are decoded before they are asked for."""
        self.images = images
        self._plan = plan
        self._pool = pool
        self._ahead = ahead
        self._jobs = iter(
            (number, begin, end)
            for number, (episode, first) in enumerate(plan)
            for begin, end in _blocks(first, episode.length)
        )
        self._waiting: dict[tuple[int, int], Future[Decoded | str]] = {}  # (number, end of the block) -> what will be there
        self._held: dict[tuple[int, int], tuple[int, Decoded]] = {}  # the same -> first frame, what is there

    def frames(self, number: int, start: int, stop: int) -> list[Decoded]:
        """Frames ``start`` to ``stop`` of an episode, in parts. What lies before them is forgotten."""
        for key in [key for key in (*self._held, *self._waiting) if key < (number, start + 1)]:
            self._held.pop(key, None)
            self._waiting.pop(key, None)
        parts = []
        length = self._plan[number][0].length
        for begin, end in _blocks(start, stop):
            last = min(end - end % -BLOCK, length)  # where the whole block ends
            first, part = self._block(number, begin, last)
            parts.append({camera: frames[begin - first : end - first] for camera, frames in part.items()})
        return parts

    def drop(self, number: int) -> None:
        """The rest of this episode is not wanted."""
        for key in [key for key in self._waiting if key[0] == number]:
            self._waiting.pop(key).cancel()

    def _block(self, number: int, begin: int, end: int) -> tuple[int, Decoded]:
        self._start_more()
        key = number, end
        episode, first = self._plan[number]
        if key in self._waiting:
            first = max(first, (end - 1) // BLOCK * BLOCK)
            try:
                self._held[key] = first, _whole(self._waiting.pop(key).result())
            except BrokenProcessPool as error:
                raise DataError("a decoding process died, perhaps for lack of memory; what was converted is kept") from error
            self._start_more()
        if key not in self._held or self._held[key][0] > begin:
            first = (end - 1) // BLOCK * BLOCK
            self._held[key] = first, _whole(_decode(episode, first, end, self.images))
        return self._held[key]

    def _start_more(self) -> None:
        while self._pool is not None and len(self._waiting) < self._ahead:
            job = next(self._jobs, None)
            if job is None:
                return
            number, begin, end = job
            with interrupts_held():  # this may start a process
                self._waiting[number, end] = self._pool.submit(_decode, self._plan[number][0], begin, end, self.images)


@contextmanager
def _decoder(plan: Plan, images: Images, workers: int | None) -> Iterator[_Decoder]:
    processes = workers or os.cpu_count() or 1
    if processes == 1 or sum(episode.length - first for episode, first in plan) < _FEW_FRAMES:
        yield _Decoder(plan, images, None, 0)
        return
    pool = ProcessPoolExecutor(processes, get_context("spawn"), leave_interrupts_to_the_main_process)
    try:
        yield _Decoder(plan, images, pool, 4 * processes)
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(episode: Episode, start: int, stop: int, images: Images) -> Decoded | str:
    """These frames of all cameras, or what is wrong with them: not every error can be sent from one process to another."""
    try:
        if images.coding is not None:
            coding, quality = images.coding, images.quality
            return {
                camera: coded_frames(episode, start, stop, camera, coding, quality, images.size, images.fit)
                for camera in episode.cameras
            }
        decoded: Decoded = dict(episode.read(start, stop, episode.cameras))
        if images.size is not None:
            for camera, frames in decoded.items():
                decoded[camera] = resize_frames(np.asarray(frames), images.size, images.fit)
        return decoded
    except AnyVLAError as error:
        return str(error)


def _whole(decoded: Decoded | str) -> Decoded:
    if isinstance(decoded, str):
        raise DataError(decoded)
    return decoded


def _blocks(start: int, stop: int) -> Iterable[tuple[int, int]]:
    """``start`` to ``stop`` cut at the multiples of BLOCK."""
    for begin in range(start - start % BLOCK, stop, BLOCK):
        yield max(begin, start), min(begin + BLOCK, stop)


def _is_full(error: DataError) -> bool:
    """Whether the disk was the reason, so that no other episode would fare better."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _FULL
