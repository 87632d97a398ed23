"""Writing the packed store; see ``anyvla.data.sources.packed_files`` for its layout."""

from __future__ import annotations

import fcntl
import os
import zlib
from bisect import bisect_right, insort
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from anyvla.actions.spec import ActionSpec
from anyvla.config.settings import Fit
from anyvla.data.coding import QUALITY, check_coding, coded_size, encode
from anyvla.data.episode import Coding, Episode, recording_of, stored_images
from anyvla.data.images import resize_frames
from anyvla.data.sources.packed_files import (
    ACTIONS,
    FRAME_RECORD,
    HEADER,
    INDEX,
    STATE,
    Encoding,
    Entry,
    Header,
    check_camera,
    read_header,
    read_index,
    sizes,
)
from anyvla.errors import ConfigError, DataError

BLOCK = 16  # frames read at a time: 44 MB at 720p

Segment = tuple[int, int, int]  # first and last + 1 of a recording's frames that lie together, and the row of the first


class PackedWriter:
    """Appends episodes to a packed store; see ``anyvla.data.episode.EpisodeWriter``.

    Frames of a recording are stored once if its episodes come in the order of their first frames, with no other between them.
    """

    def __init__(
        self,
        path: Path,
        spec: ActionSpec,
        cameras: Sequence[str],
        *,
        state_names: Sequence[str] = (),
        encoding: Encoding = "raw",
        quality: int | None = None,
        size: tuple[int, int] | None = None,
        fit: Fit = "stretch",
        source: str = "",
    ) -> None:
        """
        Args:
            state_names: of the state that episodes have; an episode without any is stored without.
            size: (h, w) of all images; as they come if None, which must be the same for all images of a camera.
            quality: of jpeg and avif, 1 to 100; 95 and 85 if None.
            source: where the episodes come from, for people.

        Raises:
            ConfigError: the folder holds a store of other actions, cameras, state, size or encoding; no AVIF here.
            DataError: it is damaged, cannot be written, or is being written by another process.
        """
        if encoding != "raw":
            check_coding(encoding)
        for camera in cameras:
            check_camera(camera)
        if len(set(cameras)) != len(cameras) or not cameras:
            raise DataError(f"a packed store needs one or more different cameras, not {list(cameras)}")
        self.path = path
        self.spec = spec
        self._size = size
        self._fit: Fit = fit
        self._open = ExitStack()
        known: dict[str, tuple[int, int] | None] = dict.fromkeys(cameras)
        wanted = Header(
            spec=spec.to_dict(),
            state=list(state_names),
            cameras={**known, **(dict.fromkeys(cameras, size) if size else {})},
            encoding=encoding,
            quality=None if encoding == "raw" else quality or QUALITY[encoding],
            source=source,
            episodes=0,
            frames=0,
        )
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = self._open.enter_context((path / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.header = self._resume(wanted)
            names = [ACTIONS, INDEX, *([STATE] if self.header.state else [])]
            names += [name for camera in cameras for name in (f"{camera}.frames", f"{camera}.{encoding}")]
            self._files: dict[str, IO[bytes]] = {name: self._open.enter_context((path / name).open("ab")) for name in names}
            self._where = self._committed()
            self._roll_back()
        except BlockingIOError as error:
            self._open.close()
            raise DataError(f"{path}: another process is writing this packed store") from error
        except OSError as error:
            self._open.close()
            raise DataError(f"{path}: cannot be written ({error})") from error
        except BaseException:
            self._open.close()
            raise

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Note in the header how much there is, by which a store that is cut short later is recognised."""
        if self._files:
            self._write_header()
            self._open.close()
            self._files = {}

    def add(self, episode: Episode) -> None:
        try:
            self._add(episode)
        except OSError as error:
            self._roll_back()
            raise DataError(f"{self.path}: {episode.name} cannot be written ({error})") from error
        except BaseException:
            self._roll_back()
            raise

    def missing_from(self, episode: Episode) -> int:
        """The first frame of the episode that is not in the store; its length if all are."""
        recording, first = recording_of(episode)
        segment = self._segment(recording, episode.cameras, first)
        return min(episode.length, segment[1] - first) if segment else 0

    def _add(self, episode: Episode) -> None:
        if episode.name in self._entries:
            raise DataError(f"{self.path}: holds an episode {episode.name!r} already")
        actions, state = self._checked(episode)
        recording, first = recording_of(episode)
        segment = self._segment(recording, episode.cameras, first)
        have = self.missing_from(episode)
        frames = self._where["frames"]
        row = frames if segment is None else segment[2] + first - segment[0]
        if have < episode.length:
            if segment is not None and row + have != frames:  # other frames lie behind: these would not be in one piece
                segment, have, row = None, 0, frames
            self._append_frames(episode, have)
        data = actions.tobytes() + (b"" if state is None else state.tobytes())
        entry = Entry(
            name=episode.name,
            first=self._where["rows"],
            rows=episode.length,
            frame=row,
            fps=float(episode.fps),
            instruction=episode.instruction,
            task=episode.task,
            cameras=list(episode.cameras),
            state=bool(episode.state_names),
            recording=(recording, first),
            fingerprint=episode.fingerprint,
            crc=zlib.crc32(data),
        )
        self._files[ACTIONS].write(actions.tobytes())
        if state is not None:
            self._files[STATE].write(state.tobytes())
        if any(size is not None and self.header.cameras[camera] is None for camera, size in self._sizes.items()):
            self.header = self.header.model_copy(update={"cameras": dict(self._sizes)})
            self._write_header()
        for name, file in self._files.items():
            if name != INDEX:
                file.flush()
        self._files[INDEX].write(entry.line().encode())  # last: with its line, the episode is there
        self._files[INDEX].flush()
        self._where = self._positions()
        self._remember(entry)

    def _checked(self, episode: Episode) -> tuple[np.ndarray, np.ndarray | None]:
        """Its actions and state (zeros where it has none) as they are stored; raises DataError for what does not fit."""
        where, rows = f"{self.path}: {episode.name}", episode.length
        actions = np.ascontiguousarray(episode.actions, dtype="<f4")
        if rows < 1 or actions.shape != (rows, len(self.spec)):
            raise DataError(f"{where}: actions of the shape {actions.shape} for {rows} frames and {len(self.spec)} dimensions")
        names = self.header.state
        state = np.zeros((rows, len(names)), dtype="<f4") if names else None
        if episode.state is not None:
            if list(episode.state_names) != names:
                raise DataError(f"{where}: the state is {list(episode.state_names)}, that of the store {names}")
            state = np.ascontiguousarray(episode.state, dtype="<f4")
            if state.shape != (rows, len(names)):
                raise DataError(f"{where}: state of the shape {state.shape} for {rows} frames and {len(names)} names")
        for what, values in (("actions", actions), ("state", state)):
            if values is not None and not np.isfinite(values).all():
                raise DataError(f"{where}: {what} hold non-finite values")
        if not episode.cameras:
            raise DataError(f"{where}: no images")
        for camera in episode.cameras:
            if camera not in self.header.cameras:
                raise DataError(f"{where}: camera {camera!r} is not one of the store's ({', '.join(self.header.cameras)})")
        return actions, state

    def _append_frames(self, episode: Episode, start: int) -> None:
        """Write the frames from ``start`` on, of all cameras of the store, empty where the episode lacks one."""
        begin, encoding, quality = start, self.header.encoding, self.header.quality
        while begin < episode.length:
            end = min(begin - begin % BLOCK + BLOCK, episode.length)
            decoded = episode.read(begin, end, episode.cameras) if encoding == "raw" else {}
            for camera in self.header.cameras:
                if camera not in episode.cameras:
                    stored: list[Any] = [b""] * (end - begin)
                elif encoding == "raw":
                    stored = [frame.data for frame in self._fitted(episode, camera, decoded[camera])]
                else:
                    assert quality is not None
                    stored = coded_frames(episode, begin, end, camera, encoding, quality, self._size, self._fit)
                    for data in stored:
                        self._check_size(episode, camera, coded_size(data, encoding, f"{self.path}: {episode.name}: {camera}"))
                if len(stored) != end - begin:
                    raise DataError(
                        f"{self.path}: {episode.name}: {len(stored)} frames of {camera} where {end - begin} are wanted"
                    )
                self._write_frames(camera, stored)
            begin = end

    def _write_frames(self, camera: str, stored: list[Any]) -> None:
        """Append the bytes of frames and their records; of a camera that an episode lacks, the bytes are none."""
        images = self._files[f"{camera}.{self.header.encoding}"]
        records = np.zeros(len(stored), dtype=FRAME_RECORD)
        records["bytes"] = [memoryview(data).nbytes for data in stored]
        records["crc"] = [zlib.crc32(data) for data in stored]
        records["offset"] = images.tell() + np.cumsum([0, *records["bytes"][:-1].tolist()])
        for data in stored:
            images.write(data)
        size = self._sizes[camera]
        if self.header.encoding == "raw" and size and not records["bytes"].any():
            _lengthen(images, images.tell() + len(stored) * size[0] * size[1] * 3)
        self._files[f"{camera}.frames"].write(records.tobytes())

    def _fitted(self, episode: Episode, camera: str, frames: np.ndarray) -> np.ndarray:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise DataError(
                f"{self.path}: {episode.name}: {camera} gives {frames.shape} {frames.dtype}, not (T, H, W, 3) uint8"
            )
        if self._size:
            frames = resize_frames(frames, self._size, self._fit)
        self._check_size(episode, camera, (frames.shape[1], frames.shape[2]))
        return np.ascontiguousarray(frames)

    def _check_size(self, episode: Episode, camera: str, size: tuple[int, int]) -> None:
        """The first frame of a camera sets the size of all."""
        if (known := self._sizes[camera]) is None:
            self._sizes[camera] = size
            if self.header.encoding == "raw":  # the frames of episodes without this camera, so far without size
                _lengthen(self._files[f"{camera}.raw"], self._where["frames"] * size[0] * size[1] * 3)
        elif known != size:
            raise DataError(
                f"{self.path}: {episode.name}: an image of {camera} is {size[1]}x{size[0]}, others are {known[1]}x{known[0]}; "
                "--size makes them one size"
            )

    def _segment(self, recording: str, cameras: Sequence[str], first: int) -> Segment | None:
        """The piece of a recording that holds its frame ``first``, or ends just before it."""
        pieces = self._segments.get((recording, tuple(cameras)), [])
        i = bisect_right(pieces, (first, 1 << 62, 0)) - 1
        return pieces[i] if i >= 0 and pieces[i][0] <= first <= pieces[i][1] else None

    def _remember(self, entry: Entry) -> None:
        self._entries[entry.name] = entry
        recording, first = entry.recording
        pieces = self._segments.setdefault((recording, tuple(entry.cameras)), [])
        found = self._segment(recording, entry.cameras, first)
        if found and entry.frame == found[2] + first - found[0]:
            pieces[pieces.index(found)] = (found[0], max(found[1], first + entry.rows), found[2])
        else:
            insort(pieces, (first, first + entry.rows, entry.frame))

    def _resume(self, wanted: Header) -> Header:
        """The header of the store in the folder, or a new one; what it lacks is taken from the index."""
        self._entries: dict[str, Entry] = {}
        self._segments: dict[tuple[str, tuple[str, ...]], list[Segment]] = {}
        self._sizes: dict[str, tuple[int, int] | None] = dict(wanted.cameras)
        if not (self.path / HEADER).exists():
            if (self.path / INDEX).exists():
                raise DataError(f"{self.path}: {INDEX} without {HEADER}: a damaged packed store")
            return self._begin(wanted)
        header, _ = read_header(self.path)
        entries, problems = read_index(self.path, header) if (self.path / INDEX).exists() else ([], [])
        if problems:
            raise DataError(f"{problems[0].reason}; nothing can be added to it")
        if not entries:
            return self._begin(wanted)
        for key in ("spec", "state", "encoding", "quality"):
            there, here = getattr(header, key), getattr(wanted, key)
            if there != here:
                raise ConfigError(f"{self.path}: a packed store with {key} {there!r}; {here!r} needs a folder of its own")
        sized = {**header.cameras, **{camera: size for camera, size in wanted.cameras.items() if size}}
        resized = any(size not in (None, sized[camera]) for camera, size in header.cameras.items())
        if resized or sorted(header.cameras) != sorted(wanted.cameras):
            raise ConfigError(f"{self.path}: holds cameras {header.cameras}; {wanted.cameras} need a folder of their own")
        self._sizes = dict(header.cameras)
        for entry in entries:
            self._remember(entry)
        rows, frames = sizes(self.path, header)
        if rows < max(entry.first + entry.rows for entry in entries) or frames < max(e.frame + e.rows for e in entries):
            raise DataError(f"{self.path}: files are shorter than {INDEX} says: damaged; nothing can be added to it")
        return header

    def _begin(self, wanted: Header) -> Header:
        self.header = wanted
        self._write_header()
        return wanted

    def _committed(self) -> dict[str, int]:
        """Where each file ends by what the index says."""
        entries = list(self._entries.values())
        rows = max((entry.first + entry.rows for entry in entries), default=0)
        frames = max((entry.frame + entry.rows for entry in entries), default=0)
        where = {"rows": rows, "frames": frames, ACTIONS: 4 * rows * len(self.spec), STATE: 4 * rows * len(self.header.state)}
        index = self.path / INDEX
        where[INDEX] = index.read_bytes().rfind(b"\n") + 1 if index.exists() else 0
        for camera, size in self._sizes.items():
            records = f"{camera}.frames"
            where[records] = frames * FRAME_RECORD.itemsize
            images = f"{camera}.{self.header.encoding}"
            if self.header.encoding == "raw":
                where[images] = frames * size[0] * size[1] * 3 if size else 0
            else:
                where[images] = 0
                if frames and size:
                    last = np.memmap(self.path / records, FRAME_RECORD, "r", shape=(frames,))[-1]
                    where[images] = int(last["offset"]) + int(last["bytes"])
        return where

    def _positions(self) -> dict[str, int]:
        where = {name: file.tell() for name, file in self._files.items()}
        camera = next(iter(self.header.cameras))
        rows = where[ACTIONS] // (4 * len(self.spec))
        return {**where, "rows": rows, "frames": where[f"{camera}.frames"] // FRAME_RECORD.itemsize}

    def _roll_back(self) -> None:
        """Cut off what was written of an episode that has not become whole."""
        self._sizes = {camera: self.header.cameras[camera] or self._size for camera in self.header.cameras}
        for name, file in self._files.items():
            try:
                file.flush()
            except OSError:  # a full disk: what the buffer holds is given up
                with suppress(OSError):
                    file.close()
                file = self._files[name] = self._open.enter_context((self.path / name).open("ab"))
            file.truncate(self._where[name])
            file.seek(0, os.SEEK_END)

    def _write_header(self) -> None:
        frames = self._where["frames"] if hasattr(self, "_where") else 0
        self.header = self.header.model_copy(update={"episodes": len(self._entries), "frames": frames})
        partial = self.path / f"{HEADER}.partial"
        partial.write_text(self.header.model_dump_json(indent=1) + "\n")
        os.replace(partial, self.path / HEADER)


def coded_frames(
    episode: Episode, start: int, stop: int, camera: str, coding: Coding, quality: int, size: tuple[int, int] | None, fit: Fit
) -> list[bytes]:
    """These frames as files: those that the episode has, where they have the ``size`` wanted; else coded here."""
    stored = stored_images(episode, start, stop, camera, coding)
    if stored is not None and (size is None or all(coded_size(data, coding, episode.name) == size for data in stored)):
        return stored
    frames = episode.read(start, stop, [camera])[camera]
    return [encode(frame, coding, quality) for frame in (resize_frames(frames, size, fit) if size else frames)]


def _lengthen(file: IO[bytes], size: int) -> None:
    """Give the file ``size`` bytes; what is added is a hole, which takes no room."""
    file.flush()
    file.truncate(size)
    file.seek(0, os.SEEK_END)
