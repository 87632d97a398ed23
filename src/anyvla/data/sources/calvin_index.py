"""The numbers of a CALVIN split (actions, robot state), and where its images lie, gathered once from its many files.

CALVIN has one file a frame. What training needs of every frame at once is 29 numbers; opening 100 000 files for them takes
minutes on a hard disk. So they are kept in the cache as one memory-mapped file (a safetensors file, 180 bytes a frame), for the
frames that were ever asked for:

    frame    int64   (N,)        numbers of the frames, ascending
    stat     int64   (N, 2)      size and modification time of the file of each
    image    uint32  (N, C, 5)   where each camera's array lies in it (see ``npz.Member``); zeros where it lacks it
    numbers  float32 (N, 29)     rel_actions, actions, robot_obs; NaN where they cannot be read
    bad      int64   (K, 2)      number of a frame, and bits: which of these three cannot be used (1, 2, 4)

A frame is read anew when its file has another size or time. That is looked up for a sample of the files when the index is
opened, and for every file that images are read from.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.data.sources.npz import Member, members_of, read_members
from anyvla.data.store import default_cache
from anyvla.errors import DataError, did_you_mean
from anyvla.processes import interrupts_held, leave_interrupts_to_the_main_process, locked
from anyvla.progress import progress_bar

CAMERAS = ("rgb_static", "rgb_gripper")
KEYS = {"rel_actions": slice(0, 7), "actions": slice(7, 14), "robot_obs": slice(14, 29)}  # columns of ``numbers``
_WIDTH = 29
_NOWHERE = [0] * 5
_VERSION = 1
_SAMPLE = 256  # files looked at when the index is opened
_BLOCK = 1000  # frames that a process reads at a time
_FEW = 30_000  # below this, starting processes takes longer than reading
_TOLERANCE = 1e-3

_BIT = {key: 1 << i for i, key in enumerate(KEYS)}
_DTYPES = {"I64": np.int64, "U32": np.uint32, "F32": np.float32}

Columns = dict[str, np.ndarray]


def frame_path(folder: Path, frame: int) -> Path:
    return folder / f"episode_{frame:07d}.npz"


class CalvinIndex:
    """The index of one split, memory-mapped. Sent to another process, it is opened there anew."""

    def __init__(self, path: Path, folder: Path) -> None:
        """``path``: of the index. ``folder``: of the split. Raises DataError if the index cannot be read."""
        self.path, self.folder = path, folder
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, 100_000)))
            self._columns = {name: _map(path, 8 + length, column) for name, column in header.items() if name != "__metadata__"}
            self.frames: np.ndarray = self._columns["frame"]
            self.cameras = tuple(header["__metadata__"]["cameras"].split())  # those that any frame has
            self.complete = header["__metadata__"]["complete"] == "true"  # whether every frame has all of these
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: the index cannot be read ({error}); delete it, and it is made anew") from error

    def __reduce__(self) -> tuple[type[CalvinIndex], tuple[Any, ...]]:
        return CalvinIndex, (self.path, self.folder)

    def rows(self, first: int, last: int) -> slice:
        """Where frames ``first`` to ``last`` (inclusive) lie. Raises DataError, with the file's name, if one is missing."""
        start, stop = (int(i) for i in np.searchsorted(self.frames, (first, last + 1)))
        if stop - start != last + 1 - first:
            there = self.frames[start:stop]
            gaps = np.flatnonzero(there != first + np.arange(len(there)))
            missing = first + int(gaps[0] if len(gaps) else len(there))
            lacking = last + 1 - first - (stop - start)
            raise DataError(
                f"{frame_path(self.folder, missing)}: no such file; {lacking} of frames {first} to {last} are missing"
            )
        return slice(start, stop)

    def complete_rows(self, firsts: np.ndarray, lasts: np.ndarray) -> np.ndarray:
        """(M,) bool: whether all frames from ``firsts`` to ``lasts`` (M,) are in the index."""
        found = np.searchsorted(self.frames, lasts, "right") - np.searchsorted(self.frames, firsts)
        return found == lasts + 1 - firsts

    def numbers(self, key: str, first: int, last: int) -> np.ndarray:
        """(T, n) float32 view of ``key`` in frames ``first`` to ``last`` (inclusive)."""
        return np.asarray(self._columns["numbers"][self.rows(first, last), KEYS[key]])

    def bad_frames(self, keys: Sequence[str]) -> np.ndarray:
        """Numbers of the frames in which one of ``keys`` cannot be used, ascending."""
        bits = sum(_BIT[key] for key in keys)
        bad = self._columns["bad"]
        return bad[(bad[:, 1] & bits) > 0, 0]

    def cameras_of(self, first: int, last: int) -> tuple[str, ...]:
        """Those that all frames from ``first`` to ``last`` (inclusive) have."""
        if self.complete:
            return self.cameras
        packed = self._columns["image"][self.rows(first, last), :, 1]
        return tuple(camera for c, camera in enumerate(CAMERAS) if packed[:, c].all())

    def fingerprint(self, first: int, last: int) -> str:
        """Of sizes and times of the files."""
        return hashlib.sha256(self._columns["stat"][self.rows(first, last)].tobytes()).hexdigest()[:16]

    def read(self, first: int, last: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        """Camera -> (T, H, W, 3) uint8 of frames ``first`` to ``last`` (inclusive)."""
        rows = self.rows(first, last)
        images = self._columns["image"][rows][:, [CAMERAS.index(camera) for camera in cameras]].tolist()
        stats = self._columns["stat"][rows].tolist()
        frames: dict[str, np.ndarray] = {}
        for t, (places, stat) in enumerate(zip(images, stats, strict=True)):
            path = frame_path(self.folder, first + t)
            with _opened(path) as (fd, found):
                if [found.st_size, found.st_mtime_ns] != stat:
                    raise DataError(f"{path}: has changed since its index was made; delete {self.path}, and it is made anew")
                members = [Member(*place) for place in places]
                arrays = read_members(fd, members, cameras, str(path))
            for camera, pixels in zip(cameras, arrays, strict=True):
                if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
                    raise DataError(f"{path}: key {camera!r}: shape {pixels.shape}, {pixels.dtype} is not (H, W, 3) uint8")
                if camera not in frames:
                    frames[camera] = np.empty((last + 1 - first, *pixels.shape), np.uint8)
                if frames[camera].shape[1:] != pixels.shape:
                    before = frames[camera].shape[1:]
                    raise DataError(f"{path}: key {camera!r}: shape {pixels.shape} is not that of the frames before, {before}")
                frames[camera][t] = pixels
        return frames

    def columns(self) -> Columns:
        """The whole index, by name."""
        return self._columns

    def is_current(self) -> bool:
        """Whether a sample of the files, spread evenly, has the sizes and times that are written here."""
        for row in np.unique(np.linspace(0, len(self.frames) - 1, min(_SAMPLE, len(self.frames))).astype(int)):
            if _stat(frame_path(self.folder, int(self.frames[row]))) != self._columns["stat"][row].tolist():
                return False
        return True

    def serves(self, spans: np.ndarray, keys: Sequence[str]) -> bool:
        """Whether it holds all frames of ``spans`` (M, 2), both ends inclusive, and ``keys`` of all of them can be used."""
        if not self.complete_rows(spans[:, 0], spans[:, 1]).all():
            return False
        return not spans_with(self.bad_frames(keys), spans).any()


def spans_with(frames: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """(M,) int64: how many of ``frames`` (ascending) lie in each of ``spans`` (M, 2), both ends inclusive."""
    return np.searchsorted(frames, spans[:, 1], "right") - np.searchsorted(frames, spans[:, 0])


def open_index(folder: Path, spans: np.ndarray, keys: Sequence[str], cache: Path | None) -> CalvinIndex:
    """The index of the split in ``folder``, after reading what it does not hold yet.

    Args:
        spans: (M, 2) int64, first and last frame (inclusive) of what is needed. Frames without a file are left out.
        keys: which arrays are needed. cache: folder of all caches.

    Raises:
        DataError: the cache cannot be written, or a process died.
    """
    digest = hashlib.sha256(f"calvin {_VERSION} {folder}".encode()).hexdigest()[:16]
    path = (cache or default_cache()) / "index" / f"calvin-{digest}.safetensors"
    index = _opened_index(path, folder)
    if index is not None and index.serves(spans, keys) and index.is_current():
        return index
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            _extend(path, folder, spans, _opened_index(path, folder))
    except OSError as error:
        raise DataError(f"{path}: the index cannot be written ({error}); set data.cache to another folder") from error
    return CalvinIndex(path, folder)


def read_frame(folder: Path, frame: int) -> tuple[list[int], list[list[int]], np.ndarray, dict[str, str]]:
    """Size and time of the file of ``frame``, places of its images, its numbers (29,), and key -> what is wrong with it."""
    path = frame_path(folder, frame)
    numbers = np.full(_WIDTH, np.nan, dtype=np.float32)
    about = [0, 0]
    try:
        with _opened(path) as (fd, stat):
            about = [stat.st_size, stat.st_mtime_ns]
            members = members_of(fd, stat.st_size, str(path))
            keys = [key for key in KEYS if key in members]
            arrays = read_members(fd, [members[key] for key in keys], keys, str(path))
    except DataError as error:
        return about, [_NOWHERE] * len(CAMERAS), numbers, dict.fromkeys(KEYS, str(error))
    wrong = {key: f"{path}: no key {key!r}{did_you_mean(key, members)}" for key in KEYS if key not in members}
    for key, values in zip(keys, arrays, strict=True):
        fault = _fault(key, values)
        if fault is None:
            numbers[KEYS[key]] = values
        else:
            wrong[key] = f"{path}: key {key!r}: {fault}"
    places = [list(members[camera]) if camera in members else _NOWHERE for camera in CAMERAS]
    return about, places, numbers, wrong


def _fault(key: str, values: np.ndarray) -> str | None:
    """What is wrong with the numbers of one frame."""
    width = KEYS[key].stop - KEYS[key].start
    if values.shape != (width,) or values.dtype.kind not in "fiu":
        return f"shape {values.shape}, {values.dtype} is not ({width},) of numbers"
    if not np.isfinite(values).all():
        bad = int(np.argmin(np.isfinite(values)))
        return f"number {bad} is {values[bad]}"
    if key != "robot_obs" and abs(abs(values[-1]) - 1) > _TOLERANCE:
        return f"the gripper is {values[-1]:g}, neither -1 (closed) nor 1 (open)"
    bad = int(np.argmax(np.abs(values)))
    if key == "rel_actions" and abs(values[bad]) > 1 + _TOLERANCE:
        return f"number {bad} is {values[bad]:g}, outside [-1, 1]"
    return None


def _extend(path: Path, folder: Path, spans: np.ndarray, old: CalvinIndex | None) -> None:
    """Write the index anew, with what ``old`` holds of files that have not changed, and the frames of ``spans``."""
    there = _frames_in(folder)
    wanted = there[_covered(there, spans)]
    keep = np.zeros(0, dtype=bool)
    if old is not None:
        keep = np.array([_stat(frame_path(folder, frame)) for frame in old.frames.tolist()]) == old.columns()["stat"]
        keep = keep.reshape(-1, 2).all(1)
        wanted = np.union1d(wanted, np.intersect1d(old.frames, there))
    kept = old.frames[keep] if old is not None else there[:0]
    new = np.setdiff1d(wanted, kept)
    if old is not None and keep.all() and not len(new):
        return
    parts = list(_read_all(folder, new))
    if old is not None:
        columns = old.columns()
        of_kept = {name: columns[name][keep] for name in ("frame", "stat", "image", "numbers")}
        parts.append({**of_kept, "bad": columns["bad"][np.isin(columns["bad"][:, 0], kept)]})
    merged = {name: np.concatenate([part[name] for part in parts]) for name in _EMPTY} if parts else _EMPTY
    order = np.argsort(merged["frame"])
    merged = {name: column[np.argsort(column[:, 0]) if name == "bad" else order] for name, column in merged.items()}
    _write(path, merged)


def _write(path: Path, columns: Columns) -> None:
    from safetensors.numpy import save_file

    has = columns["image"][:, :, 1] > 0
    about = {
        "cameras": " ".join(camera for c, camera in enumerate(CAMERAS) if has[:, c].any()),
        "complete": str(bool((has == has.any(0)).all())).lower(),
    }
    partial = path.with_suffix(".partial")
    save_file({name: np.ascontiguousarray(column) for name, column in columns.items()}, partial, about)
    os.replace(partial, path)


def _frames_in(folder: Path) -> np.ndarray:
    """Numbers of the frames that have a file, ascending; (N,) int64."""
    numbers = array("q")
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            digits = name[8:-4]
            if name.startswith("episode_") and name.endswith(".npz") and digits.isdecimal() and 7 <= len(digits) < 19:
                numbers.append(int(digits))
    return np.sort(np.frombuffer(numbers, dtype=np.int64)) if numbers else np.zeros(0, dtype=np.int64)


def _covered(frames: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """(N,) bool: which of ``frames`` (ascending) lie in any of ``spans`` (M, 2), both ends inclusive."""
    change = np.zeros(len(frames) + 1, dtype=np.int64)
    np.add.at(change, np.searchsorted(frames, spans[:, 0]), 1)
    np.add.at(change, np.searchsorted(frames, spans[:, 1], "right"), -1)
    return np.cumsum(change[:-1]) > 0


def _read_all(folder: Path, frames: np.ndarray) -> Iterator[Columns]:
    """The columns of ``frames``, by blocks, in some order."""
    blocks = [frames[i : i + _BLOCK] for i in range(0, len(frames), _BLOCK)]
    processes = min(os.cpu_count() or 1, len(blocks))
    with progress_bar("index frames", len(frames), shown=len(frames) >= _FEW) as bar:
        if processes <= 1 or len(frames) < _FEW:
            for block in blocks:
                yield _read_block(folder, block)
                bar.advance(len(block))
            return
        pool = ProcessPoolExecutor(processes, get_context("spawn"), leave_interrupts_to_the_main_process)
        try:
            with interrupts_held():  # this starts the processes
                waiting = [pool.submit(_read_block, folder, block) for block in blocks]
            for future in as_completed(waiting):
                columns = future.result()
                yield columns
                bar.advance(len(columns["frame"]))
        except BrokenProcessPool as error:
            raise DataError("a process that reads frames died, perhaps for lack of memory") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _read_block(folder: Path, frames: np.ndarray) -> Columns:
    read = [read_frame(folder, frame) for frame in frames.tolist()]
    bad = [(frame, sum(_BIT[key] for key in wrong)) for frame, (*_, wrong) in zip(frames.tolist(), read, strict=True) if wrong]
    return {
        "frame": frames,
        "stat": np.array([about for about, *_ in read], dtype=np.int64),
        "image": np.array([places for _, places, *_ in read], dtype=np.uint32),
        "numbers": np.stack([numbers for _, _, numbers, _ in read]),
        "bad": np.array(bad, dtype=np.int64).reshape(-1, 2),
    }


_EMPTY: Columns = {
    "frame": np.zeros(0, np.int64),
    "stat": np.zeros((0, 2), np.int64),
    "image": np.zeros((0, len(CAMERAS), len(_NOWHERE)), np.uint32),
    "numbers": np.zeros((0, _WIDTH), np.float32),
    "bad": np.zeros((0, 2), np.int64),
}


def _opened_index(path: Path, folder: Path) -> CalvinIndex | None:
    """None where there is none, or none that can be read: it is made anew."""
    try:
        return CalvinIndex(path, folder)
    except DataError:
        return None


def _map(path: Path, start: int, column: dict[str, Any]) -> np.ndarray:
    """A column of a safetensors file; ``column`` is its entry in the header, whose data begin at ``start``."""
    dtype, shape = np.dtype(_DTYPES[column["dtype"]]), tuple(column["shape"])
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", start + column["data_offsets"][0], shape)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """The open file and its state. Raises DataError if it cannot be opened or read."""
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            yield fd, os.fstat(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _stat(path: Path) -> list[int]:
    try:
        stat = os.stat(path)
    except OSError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]
