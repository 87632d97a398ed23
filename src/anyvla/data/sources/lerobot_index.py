"""The numbers of all frames of a LeRobotDataset (actions, state, time stamps) in raw files that are mapped into memory.

Reading them out of thousands of Parquet files takes a while, so it is done once. The index is a folder in the cache:

    about.json      the files that it was made from, with their sizes and times; the rows of each; what is wrong with others
    <column>.raw    float32 (rows, width), or float64 (rows,) for ``timestamp``, int64 for ``episode_index`` and ``task_index``

A folder appears under its name when it is complete; an index of files that have changed is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.data.sources.lerobot_meta import ACTION, STATE, Meta, numbers, read_parquet
from anyvla.data.store import default_cache
from anyvla.errors import DataError
from anyvla.progress import progress_bar

_VERSION = 1
_MANY_FILES = 300
_TOGETHER = 32  # files read at a time


class FrameIndex:
    """Columns of all rows of all readable data files, one after the other. Mapped when first used, in every process anew."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder, self._about = folder, about
        self.broken: dict[str, str] = about["broken"]  # data file -> what is wrong with it
        self.files: dict[str, tuple[int, int]] = {name: (first, count) for name, first, count in about["files"]}
        self.rows = sum(count for _, count in self.files.values())
        self._arrays: dict[str, np.ndarray] = {}

    def __reduce__(self) -> tuple[type[FrameIndex], tuple[Path, dict[str, Any]]]:
        return FrameIndex, (self._folder, self._about)

    def __contains__(self, column: str) -> bool:
        return column in self._about["columns"]

    def column(self, name: str) -> np.ndarray:
        """(rows,) or (rows, width)."""
        if name not in self._arrays:
            dtype, width = self._about["columns"][name]
            shape = (self.rows,) if width is None else (self.rows, width)
            try:
                mapped = np.memmap(self._folder / f"{name}.raw", dtype=dtype, mode="r", shape=shape)
            except (OSError, ValueError) as error:
                raise DataError(f"{self._folder}: the index was removed or cut while in use ({error})") from error
            self._arrays[name] = mapped
        return self._arrays[name]


def open_index(meta: Meta, cache: Path | None) -> FrameIndex:
    """The index of a dataset, made if there is none of the files as they are now.

    Raises DataError if the cache cannot be written. Data files that cannot be read are listed in ``broken``.
    """
    columns = _columns(meta)
    stats = [(name, *_size_and_time(meta.root / name)) for name in sorted(set(meta.data.paths))]
    key = {"version": _VERSION, "columns": columns, "files": stats}
    place = hashlib.sha256(str(meta.root.resolve()).encode()).hexdigest()[:16]
    state = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    parent = (cache or default_cache()) / "index"
    folder = parent / f"lerobot-{place}-{state}"
    try:
        if not (folder / "about.json").exists():
            parent.mkdir(parents=True, exist_ok=True)
            for old in parent.glob(f"lerobot-{place}-*"):
                shutil.rmtree(old, ignore_errors=True)  # of the files as they were
            _build(meta, [name for name, *_ in stats], columns, folder)
        return FrameIndex(folder, json.loads((folder / "about.json").read_text()))
    except OSError as error:
        raise DataError(f"{folder}: the index cannot be written ({error}); set data.cache to another folder") from error


def _columns(meta: Meta) -> dict[str, tuple[str, int | None]]:
    """Column -> its dtype in the index, and its width."""
    columns: dict[str, tuple[str, int | None]] = {
        ACTION: ("float32", meta.features[ACTION]["shape"][0]),
        "timestamp": ("float64", None),
        "episode_index": ("int64", None),
        "task_index": ("int64", None),
    }
    state = meta.features.get(STATE)
    if state is not None and len(state["shape"]) == 1:
        columns[STATE] = ("float32", state["shape"][0])
    return columns


def _build(meta: Meta, files: list[str], columns: dict[str, tuple[str, int | None]], folder: Path) -> None:
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    rows: list[tuple[str, int, int]] = []
    broken: dict[str, str] = {}
    first = 0
    read = _reader(meta, columns)
    with (
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
        progress_bar("index frames", len(files), shown=len(files) > _MANY_FILES) as bar,
    ):
        outputs = {column: (partial / f"{column}.raw").open("wb") for column in columns}
        try:
            for begin in range(0, len(files), _TOGETHER):  # by so many, so that memory stays small
                names = files[begin : begin + _TOGETHER]
                for name, found in zip(names, pool.map(read, names), strict=True):
                    bar.advance()
                    if isinstance(found, str):
                        broken[name] = found
                        continue
                    for column, output in outputs.items():
                        output.write(found[column].tobytes())
                    count = len(found["timestamp"])
                    rows.append((name, first, count))
                    first += count
        finally:
            for output in outputs.values():
                output.close()
    about = {"root": str(meta.root.resolve()), "columns": columns, "files": rows, "broken": broken}
    (partial / "about.json").write_text(json.dumps(about))
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / "about.json").exists():
            raise
        shutil.rmtree(partial)  # another process was faster


def _reader(meta: Meta, columns: dict[str, tuple[str, int | None]]) -> Callable[[str], dict[str, np.ndarray] | str]:
    def read(name: str) -> dict[str, np.ndarray] | str:
        """The columns of one file, or what is wrong with it."""
        path = meta.root / name
        try:
            table = read_parquet(path, list(columns))
            with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 becomes infinite, and is found
                found = {key: numbers(path, table, key, width).astype(dtype) for key, (dtype, width) in columns.items()}
        except DataError as error:
            return str(error)
        return found if len(table) else f"{path}: holds no frames"

    return read


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return -1, 0  # reading it says what is wrong
    return stat.st_size, stat.st_mtime_ns
