"""The packed store: episodes of any source in a few large files, for random access without opening anything.

    packed.json          version, action spec, names of the state, cameras and their size, encoding, origin
    episodes.index       a line an episode: CRC-32 of the rest in hexadecimal, a space, JSON (``Entry``)
    actions.f32          (rows, A) little-endian float32
    state.f32            (rows, S)
    <camera>.raw         (frames, h, w, 3) uint8                            encoding raw
    <camera>.jpeg        JPEG files, one behind the other                   encoding jpeg
    <camera>.frames      a record a frame: offset, bytes and CRC-32         no bytes where an episode lacks the camera

Frames have rows of their own, the same for all cameras: episodes that are cut from one recording share the frames in which
they overlap. Everything is appended, an episode's line last, so that a store holds whole episodes whenever its writing ends.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anyvla.actions.spec import ActionSpec
from anyvla.data.episode import Problem
from anyvla.errors import ConfigError, DataError, did_you_mean
from anyvla.progress import progress_bar
from anyvla.settings import OnBadEpisode

HEADER, INDEX, ACTIONS, STATE = "packed.json", "episodes.index", "actions.f32", "state.f32"
VERSION = 1
FRAME_RECORD = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("crc", "<u4")])
_BLOCK = 64  # frames checked, or rows of a table read, at a time by one thread
_TABLE_BLOCK = 1 << 20
_CAMERA = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")  # a camera's name is part of a file's name

Encoding = Literal["raw", "jpeg"]
Count = Annotated[int, Field(ge=0, lt=2**48)]
Side = Annotated[int, Field(ge=1, le=65535)]


class _Stored(BaseModel):
    """What is kept as JSON: unknown keys and other types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Header(_Stored):
    """``packed.json``; sizes are None until a camera's first frame is stored."""

    format: Literal["anyvla-packed"] = "anyvla-packed"
    version: int = VERSION
    spec: dict[str, Any]
    state: list[str]
    cameras: dict[str, tuple[Side, Side] | None]  # (h, w)
    encoding: Encoding
    quality: Annotated[int, Field(ge=1, le=100)] | None  # of the encoding jpeg
    source: str
    episodes: Count  # at least so many, and so many frames, are in the store: it was closed with them
    frames: Count


class Entry(_Stored):
    """A line of ``episodes.index``."""

    name: str
    first: Count  # row in actions and state
    rows: Annotated[int, Field(ge=1, lt=2**48)]
    frame: Count  # row of the first frame
    fps: Annotated[float, Field(gt=0)]
    instruction: str
    task: str
    cameras: list[str]
    state: bool
    recording: tuple[str, int]
    fingerprint: str  # of the episode that was packed
    crc: Annotated[int, Field(ge=0, lt=2**32)]  # of the rows of actions, then of state

    def line(self) -> str:
        text = self.model_dump_json()
        return f"{zlib.crc32(text.encode()):08x} {text}\n"


class PackedFiles:
    """The files of a store, mapped into memory when they are first used; another process maps them anew."""

    def __init__(self, folder: Path, header: Header, rows: int, frames: int) -> None:
        self.folder = folder
        self.header = header
        self.rows = rows
        self.frames = frames
        self._maps: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def table(self, name: str, width: int) -> np.ndarray:
        """(rows, width) float32 of ``actions.f32`` or ``state.f32``."""
        return self._map(name, np.dtype("<f4"), (self.rows, width))

    def records(self, camera: str) -> np.ndarray:
        """(frames,) of FRAME_RECORD."""
        return self._map(f"{camera}.frames", FRAME_RECORD, (self.frames,))

    def images(self, camera: str) -> np.ndarray:
        """(frames, h, w, 3) uint8 of the encoding raw, or all bytes of the encoding jpeg."""
        size, raw = self.header.cameras[camera], self.header.encoding == "raw"
        if size is None:
            raise DataError(f"{self.folder / HEADER}: no size of the camera {camera!r}, whose frames episodes have")
        name = f"{camera}.{self.header.encoding}"
        return self._map(name, np.dtype(np.uint8), (self.frames, *size, 3) if raw else None)

    def _map(self, name: str, dtype: np.dtype, shape: tuple[int, ...] | None) -> np.ndarray:
        if name not in self._maps:
            path = self.folder / name
            try:
                mapped = np.memmap(path, dtype=dtype, mode="r", shape=shape)
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read, or is shorter than the {self.frames} frames ({error})") from error
            self._maps[name] = np.asarray(mapped)
        return self._maps[name]


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
        if self.files.header.encoding == "raw":
            return {camera: self.files.images(camera)[rows] for camera in cameras}
        return {camera: np.stack([self._decode(camera, row) for row in range(rows.start, rows.stop)]) for camera in cameras}

    def read_jpeg(self, start: int, stop: int, camera: str) -> list[bytes] | None:
        """The JPEG files of these frames, or None with the encoding raw."""
        rows = self._frame_rows(start, stop, [camera])
        if self.files.header.encoding == "raw":
            return None
        return [_stored(self.files, camera, row).tobytes() for row in range(rows.start, rows.stop)]

    def _frame_rows(self, start: int, stop: int, cameras: Sequence[str]) -> slice:
        if not 0 <= start < stop <= self.length:
            raise DataError(f"{self.files.folder}: frames {start}-{stop} of {self.name}, which has {self.length}")
        for camera in cameras:
            if camera not in self.entry.cameras:
                raise DataError(
                    f"{self.files.folder}: {self.name} has no camera {camera!r}{did_you_mean(camera, self.cameras)}"
                )
        return slice(self.entry.frame + start, self.entry.frame + stop)

    def _decode(self, camera: str, row: int) -> np.ndarray:
        where = f"{self.files.folder / camera}.jpeg: {self.name}: frame {row - self.entry.frame}"
        size = self.files.header.cameras[camera]
        try:
            with Image.open(BytesIO(_stored(self.files, camera, row).tobytes()), formats=("JPEG",)) as image:
                if (image.height, image.width) != size:  # before it is decoded: a forged size fills the memory
                    raise DataError(f"{where} is {image.height} x {image.width}, not {size}")
                return np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{where} is damaged ({error})") from error


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
            ConfigError: ``spec`` has a dimension that the store does not hold, or holds in another unit.
        """
        header, stored = read_header(path)
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
            return [row for row in block.tolist() if not _is_whole(self._files, camera, row, records[row])]

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


def read_header(folder: Path) -> tuple[Header, ActionSpec]:
    """``packed.json``, checked; raises DataError."""
    path = folder / HEADER
    try:
        value = json.loads(path.read_bytes())
        if isinstance(value, dict) and value.get("format") == "anyvla-packed" and value.get("version") != VERSION:
            raise DataError(
                f"{path}: version {value.get('version')!r} of the packed store; this program reads version {VERSION}"
            )
        header = Header.model_validate_json(json.dumps(value))
        spec = ActionSpec.from_dict(header.spec)
    except (OSError, ValidationError, ConfigError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not the header of a packed store ({error})") from error
    for camera in header.cameras:
        if not _CAMERA.fullmatch(camera):
            raise DataError(f"{path}: the camera's name {camera!r} cannot be part of a file's name")
    if len(set(header.state)) != len(header.state):
        raise DataError(f"{path}: a name of the state stands there twice: {', '.join(header.state)}")
    return header, spec


def check_camera(camera: str) -> None:
    """Raise DataError if the name cannot be part of a file's name."""
    if not _CAMERA.fullmatch(camera):
        raise DataError(f"a packed store cannot hold a camera of the name {camera!r}: letters, digits, '_', '-' and '.' only")


def read_index(folder: Path, header: Header) -> tuple[list[Entry], list[Problem]]:
    """The lines of ``episodes.index`` and what is wrong with others. A last line without its end was being written."""
    path = folder / INDEX
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    entries: dict[str, Entry] = {}
    problems = []
    for number, line in enumerate(lines[:-1], 1):
        where = f"{path}: line {number}"
        try:
            if int(line[:8], 16) != zlib.crc32(line[9:]):
                raise DataError("wrong checksum")
            entry = Entry.model_validate_json(line[9:])
            if entry.name in entries:
                raise DataError(f"the episode {entry.name!r} stands there twice")
            entries[entry.name] = entry
        except (ValueError, DataError) as error:
            problems.append(Problem(f"{INDEX}, line {number}", f"{where} is damaged ({error})"))
    if len(lines) - 1 < header.episodes:
        lost = f"{path}: {len(lines) - 1} of {header.episodes} lines: the file has been cut short"
        problems.append(Problem(INDEX, lost))
    return list(entries.values()), problems


def sizes(folder: Path, header: Header) -> tuple[int, int]:
    """Rows of the tables, and frames, that all files hold whole."""
    width = len(header.spec["dims"])
    rows = _size(folder / ACTIONS) // (4 * width)
    if header.state:
        rows = min(rows, _size(folder / STATE) // (4 * len(header.state)))
    frames = []
    for camera, size in header.cameras.items():
        if size is None:
            continue
        count = _size(folder / f"{camera}.frames") // FRAME_RECORD.itemsize
        images = _size(folder / f"{camera}.{header.encoding}")
        if header.encoding == "raw":
            count = min(count, images // (size[0] * size[1] * 3))
        elif count:
            records = np.memmap(folder / f"{camera}.frames", FRAME_RECORD, "r", shape=(count,))
            ends = records["offset"] + records["bytes"]
            count = int(np.argmax(ends > images)) if (ends > images).any() else count
        frames.append(count)
    return rows, min(frames, default=0)


def checksum(files: PackedFiles, entry: Entry) -> int:
    """CRC-32 of an episode's rows of actions, then of state."""
    rows = slice(entry.first, entry.first + entry.rows)
    crc = zlib.crc32(files.table(ACTIONS, len(files.header.spec["dims"]))[rows].tobytes())
    if files.header.state:
        crc = zlib.crc32(files.table(STATE, len(files.header.state))[rows].tobytes(), crc)
    return crc


def _stored(files: PackedFiles, camera: str, row: int) -> np.ndarray:
    """The bytes of one frame, as a flat array; fewer than they should be if the file is shorter."""
    images = files.images(camera)
    if files.header.encoding == "raw":
        return images[row].reshape(-1)
    record = files.records(camera)[row]
    return images[int(record["offset"]) : int(record["offset"]) + int(record["bytes"])]


def _is_whole(files: PackedFiles, camera: str, row: int, record: np.ndarray) -> bool:
    stored = _stored(files, camera, row)
    return len(stored) == int(record["bytes"]) and zlib.crc32(stored.data) == int(record["crc"])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


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
