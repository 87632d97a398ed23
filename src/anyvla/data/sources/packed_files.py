"""The packed store: episodes of any source in a few large files, for random access without opening anything.

    packed.json          version, action spec, names of the state, cameras and their size, encoding, origin
    episodes.index       a line an episode: CRC-32 of the rest in hexadecimal, a space, JSON (``Entry``)
    actions.f32          (rows, A) little-endian float32
    state.f32            (rows, S)
    <camera>.raw         (frames, h, w, 3) uint8                            encoding raw
    <camera>.jpeg        JPEG files, one behind the other                   encoding jpeg
    <camera>.avif        AVIF files, one behind the other                   encoding avif
    <camera>.frames      a record a frame: offset, bytes and CRC-32         no bytes where an episode lacks the camera

Frames have rows of their own, the same for all cameras: episodes that are cut from one recording share the frames in which
they overlap. Everything is appended, an episode's line last, so that a store holds whole episodes whenever its writing ends.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anyvla.actions.spec import ActionSpec
from anyvla.data.episode import Problem
from anyvla.errors import ConfigError, DataError

HEADER, INDEX, ACTIONS, STATE = "packed.json", "episodes.index", "actions.f32", "state.f32"
VERSION = 1
FRAME_RECORD = np.dtype([("offset", "<u8"), ("bytes", "<u4"), ("crc", "<u4")])
_CAMERA = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")  # a camera's name is part of a file's name

Encoding = Literal["raw", "jpeg", "avif"]
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
    quality: Annotated[int, Field(ge=1, le=100)] | None  # of the encodings jpeg and avif
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
        """(frames, h, w, 3) uint8 of the encoding raw, or all bytes of the others."""
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


def stored_bytes(files: PackedFiles, camera: str, row: int) -> np.ndarray:
    """The bytes of one frame, as a flat array; fewer than they should be if the file is shorter."""
    images = files.images(camera)
    if files.header.encoding == "raw":
        return images[row].reshape(-1)
    record = files.records(camera)[row]
    return images[int(record["offset"]) : int(record["offset"]) + int(record["bytes"])]


def is_whole(files: PackedFiles, camera: str, row: int, record: np.ndarray) -> bool:
    stored = stored_bytes(files, camera, row)
    return len(stored) == int(record["bytes"]) and zlib.crc32(stored.data) == int(record["crc"])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
