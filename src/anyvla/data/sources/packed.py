"""The packed store, read: see ``packed_files`` for what lies where."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from anyvla.actions.spec import ActionSpec
from anyvla.config.settings import OnBadEpisode
from anyvla.data.coding import check_coding, decode
from anyvla.data.episode import Coding, Problem
from anyvla.data.sources.packed_files import (
    ACTIONS,
    HEADER,
    STATE,
    Entry,
    PackedFiles,
    checksum,
    is_whole,
    read_header,
    read_index,
    sizes,
    stored_bytes,
)
from anyvla.errors import ConfigError, DataError, did_you_mean
from anyvla.progress import progress_bar

_BLOCK = 64  # frames checked at a time by one thread
_TABLE_BLOCK = 1 << 20  # rows of a table looked at together


@dataclass(frozen=True)
class PackedEpisode:
    """One line of the index; see ``anyvla.data.episode.Episode``. With the encoding raw, what it gives is not copied."""

    files: PackedFiles
    entry: Entry
    columns: tuple[int, ...] | None  # of the stored actions; None: all
    state_columns: tuple[int, ...] | None

    @property
    def name(self) -> str:
        return self.entry.name

    @cached_property
    def fingerprint(self) -> str:
        header = self.files.header
        stored = [self.entry.fingerprint, self.entry.crc, header.cameras, header.encoding, header.quality]
        return hashlib.sha256(json.dumps(stored).encode()).hexdigest()[:16]

    @property
    def length(self) -> int:
        return self.entry.rows

    @property
    def fps(self) -> float:
        return self.entry.fps

    @property
    def instruction(self) -> str:
        return self.entry.instruction

    @property
    def task(self) -> str:
        return self.entry.task

    @property
    def cameras(self) -> tuple[str, ...]:
        return tuple(self.entry.cameras)

    @property
    def recording(self) -> tuple[str, int]:
        return self.entry.recording

    @property
    def actions(self) -> np.ndarray:
        return self._rows(ACTIONS, len(self.files.header.spec["dims"]), self.columns)

    @property
    def state_names(self) -> tuple[str, ...]:
        names = self.files.header.state
        if not self.entry.state:
            return ()
        return tuple(names if self.state_columns is None else (names[i] for i in self.state_columns))

    @property
    def state(self) -> np.ndarray | None:
        if not self.state_names:
            return None
        return self._rows(STATE, len(self.files.header.state), self.state_columns)

    def _rows(self, name: str, width: int, columns: tuple[int, ...] | None) -> np.ndarray:
        rows = self.files.table(name, width)[self.entry.first : self.entry.first + self.entry.rows]
        return rows if columns is None else rows[:, columns]

    def read(self, start: int, stop: int, cameras: Sequence[str]) -> dict[str, np.ndarray]:
        rows = self._frame_rows(start, stop, cameras)
        encoding = self.files.header.encoding
        if encoding == "raw":
            return {camera: self.files.images(camera)[rows] for camera in cameras}
        return {
            camera: np.stack([self._decoded(camera, row, encoding) for row in range(rows.start, rows.stop)])
            for camera in cameras
        }

    def _decoded(self, camera: str, row: int, coding: Coding) -> np.ndarray:
        where = f"{self.files.folder / camera}.{coding}: {self.name}: frame {row - self.entry.frame}"
        return decode(stored_bytes(self.files, camera, row).tobytes(), coding, self.files.header.cameras[camera], where)

    def read_coded(self, start: int, stop: int, camera: str, coding: Coding) -> list[bytes] | None:
        """The files of these frames, or None if the store has another encoding."""
        rows = self._frame_rows(start, stop, [camera])
        if self.files.header.encoding != coding:
            return None
        return [stored_bytes(self.files, camera, row).tobytes() for row in range(rows.start, rows.stop)]

    def _frame_rows(self, start: int, stop: int, cameras: Sequence[str]) -> slice:
        if not 0 <= start < stop <= self.length:
            raise DataError(f"{self.files.folder}: frames {start}-{stop} of {self.name}, which has {self.length}")
        for camera in cameras:
            if camera not in self.entry.cameras:
                raise DataError(
                    f"{self.files.folder}: {self.name} has no camera {camera!r}{did_you_mean(camera, self.cameras)}"
                )
        return slice(self.entry.frame + start, self.entry.frame + stop)


class PackedSource:
    """A folder with ``packed.json``. Opening it reads the index and compares sizes; ``verify`` reads everything."""

    def __init__(
        self,
        path: Path,
        spec: ActionSpec | None = None,
        on_bad_episode: OnBadEpisode = "error",
        state: Sequence[str] | None = None,
    ) -> None:
        """
        Raises:
            DataError: no packed store, one of another version, or (unless ``on_bad_episode`` is ``skip``) a damaged one.
            ConfigError: ``spec`` has a dimension that the store does not hold, or holds in another unit; images that the
                installed Pillow cannot read.
        """
        header, stored = read_header(path)
        if header.encoding != "raw":
            check_coding(header.encoding)
        columns = _columns(path, spec, stored) if spec else None
        self.name = str(path.resolve())
        self.spec = spec or stored
        self.cameras = tuple(header.cameras)
        self.problems: list[Problem] = []
        self._state_columns = None if state is None else _state_columns(path, state, header.state)
        self._columns = columns
        self._entries: list[Entry] = []
        rows, frames = sizes(path, header)
        self._files = PackedFiles(path, header, rows, frames)

        def refuse(episode: str, reason: str) -> None:
            if on_bad_episode == "error":
                raise DataError(f"{reason} (on_bad_episode=skip leaves such episodes out)")
            self.problems.append(Problem(episode, reason))

        entries, problems = read_index(path, header)
        for problem in problems:
            refuse(problem.episode, problem.reason)
        for entry in entries:
            wrong = self._wrong(entry, state)
            if wrong:
                refuse(entry.name, f"{path}: {entry.name}: {wrong}")
            else:
                self._entries.append(entry)
        if not self._entries:
            first = f"; the first problem: {self.problems[0].reason}" if self.problems else ""
            raise DataError(f"{path}: the packed store holds no episode that can be used{first}")
        if spec is not None:
            self._check_limits(path, spec, stored)

    @property
    def ready(self) -> dict[str, tuple[int, int]]:
        """Camera -> (H, W) of frames that lie there raw, so that reading them costs nothing."""
        header = self._files.header
        return {camera: size for camera, size in header.cameras.items() if size and header.encoding == "raw"}

    def __len__(self) -> int:
        return len(self._entries)

    def episode(self, index: int) -> PackedEpisode:
        return PackedEpisode(self._files, self._entries[index], self._columns, self._state_columns)

    def verify(self) -> list[Problem]:
        """Compare everything that is stored with its checksum; an entry for every episode that has changed."""
        reasons: dict[str, list[str]] = defaultdict(list)
        for entry in self._entries:
            if checksum(self._files, entry) != entry.crc:
                reasons[entry.name].append("actions or state have changed (wrong checksum)")
        for camera in self.cameras:
            entries = [entry for entry in self._entries if camera in entry.cameras]
            for rows in self._changed(camera, entries):
                for entry in entries:
                    hit = rows[(rows >= entry.frame) & (rows < entry.frame + entry.rows)]
                    if len(hit):
                        where = f"{camera}: {len(hit)} frames have changed (wrong checksum), first frame {hit[0] - entry.frame}"
                        reasons[entry.name].append(where)
        return [Problem(name, f"{self.name}: {name}: {'; '.join(found)}") for name, found in reasons.items()]

    def _changed(self, camera: str, entries: list[Entry]) -> list[np.ndarray]:
        """The rows, if any, of frames that are not what they were, each looked at once however many episodes have it."""
        used = np.zeros(self._files.frames + 1, dtype=np.int64)
        for entry in entries:
            used[entry.frame] += 1
            used[entry.frame + entry.rows] -= 1
        rows = np.flatnonzero(np.cumsum(used)[:-1])
        if not len(rows):
            return []
        records, _ = self._files.records(camera), self._files.images(camera)

        def changed(block: np.ndarray) -> list[int]:
            return [row for row in block.tolist() if not is_whole(self._files, camera, row, records[row])]

        blocks = [rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK)]
        with ThreadPoolExecutor() as threads, progress_bar(f"verify {camera}", len(blocks), shown=len(blocks) > 100) as bar:
            found = []
            for bad in threads.map(changed, blocks):
                bar.advance()
                found += bad
        return [np.array(found)] if found else []

    def _wrong(self, entry: Entry, state: Sequence[str] | None) -> str:
        if entry.first + entry.rows > self._files.rows:
            return f"rows to {entry.first + entry.rows} of {ACTIONS} or {STATE}, which end at {self._files.rows}: cut short"
        if entry.cameras and entry.frame + entry.rows > self._files.frames:
            return f"frames to {entry.frame + entry.rows}, but the files of the cameras end at {self._files.frames}: cut short"
        unknown = [camera for camera in entry.cameras if self._files.header.cameras.get(camera) is None]
        if unknown:
            return f"{HEADER} has no size of its camera {unknown[0]!r}"
        if entry.state and not self._files.header.state:
            return f"{HEADER} names no state"
        return "it has no state (observation.state=null trains without the robot's state)" if state and not entry.state else ""

    def _check_limits(self, path: Path, spec: ActionSpec, stored: ActionSpec) -> None:
        """Raise DataError for an action outside the limits wanted, where they are narrower than the stored ones."""
        limits = {dim.name: dim for dim in stored.dims}
        if all(dim.low <= limits[dim.name].low and dim.high >= limits[dim.name].high for dim in spec.dims):
            return
        table = self._files.table(ACTIONS, len(stored))
        for start in range(0, len(table), _TABLE_BLOCK):
            block = table[start : start + _TABLE_BLOCK]
            for dim in spec.dims:
                values = block[:, stored.names.index(dim.name)]
                outside = values[~((values >= dim.low - 1e-3) & (values <= dim.high + 1e-3))]
                if len(outside):
                    raise DataError(
                        f"{path / ACTIONS}: {dim.name} is {outside[0]:g} {dim.unit}, outside [{dim.low:g}, {dim.high:g}] "
                        f"of the action spec {spec.name!r}"
                    )


def _columns(path: Path, spec: ActionSpec, stored: ActionSpec) -> tuple[int, ...] | None:
    """Which stored dimensions are those of ``spec``; None if all are, in their order."""
    known = {dim.name: dim for dim in stored.dims}
    for dim in spec.dims:
        if dim.name not in known:
            raise ConfigError(
                f"{path} holds actions of the spec {stored.name!r} ({', '.join(stored.names)}), not of {spec.name!r}: no "
                f"dimension {dim.name!r}{did_you_mean(dim.name, known)}"
            )
        if (dim.unit, dim.kind) != (known[dim.name].unit, known[dim.name].kind):
            there = known[dim.name]
            raise ConfigError(
                f"{path} holds {dim.name!r} as {there.kind} in {there.unit!r} (spec {stored.name!r}), not as {dim.kind} in "
                f"{dim.unit!r} (spec {spec.name!r})"
            )
    return None if spec.names == stored.names else tuple(stored.names.index(name) for name in spec.names)


def _state_columns(path: Path, wanted: Sequence[str], names: Sequence[str]) -> tuple[int, ...]:
    for name in wanted:
        if name not in names:
            raise DataError(
                f"{path}: the state has no {name!r}{did_you_mean(name, names)} (observation.state=null trains without it)"
            )
    return tuple(names.index(name) for name in wanted)
