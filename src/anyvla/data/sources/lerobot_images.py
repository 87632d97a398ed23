"""Images in the columns of Parquet files: structs of encoded bytes and a name."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image

from anyvla.data.sources.lerobot_meta import load_pyarrow
from anyvla.errors import DataError


class OpenImages:
    """The image columns that a process reads, the last few row groups of them in memory. Copied, it is empty."""

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._groups: OrderedDict[tuple[Path, str, int], Any] = OrderedDict()
        self._starts: dict[Path, np.ndarray] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[OpenImages], tuple[int]]:
        return OpenImages, (self._most,)

    def read(self, path: Path, column: str, start: int, stop: int) -> np.ndarray:
        """(stop - start, H, W, 3) uint8 RGB of these rows of a file.

        Raises DataError: the file or an image is damaged, a row is missing, or the images are of different sizes.
        """
        if self._process != os.getpid():  # the lock of a forked process may be taken for ever
            self._begin()
        with self._lock:
            encoded = self._encoded(path, column, start, stop)
        frames = [_decode(path, column, start + i, content) for i, content in enumerate(encoded)]
        if len({frame.shape for frame in frames}) != 1:
            raise DataError(f"{path}: column {column!r}: rows {start}-{stop} hold images of different sizes")
        return np.stack(frames)

    def _encoded(self, path: Path, column: str, start: int, stop: int) -> list[Any]:
        pa, pq = load_pyarrow()
        try:
            if path not in self._starts:
                about = pq.read_metadata(path)
                lengths = [about.row_group(i).num_rows for i in range(about.num_row_groups)]
                self._starts[path] = np.concatenate([[0], np.cumsum(lengths)])
            starts = self._starts[path]
            first, last = np.searchsorted(starts, [start, stop - 1], side="right") - 1
            cells: list[Any] = []
            for group in range(first, min(int(last) + 1, len(starts) - 1)):
                key = (path, column, group)
                values = self._groups.pop(key, None)
                if values is None:
                    with pq.ParquetFile(path, page_checksum_verification=True) as file:
                        values = file.read_row_group(group, columns=[column])[column]
                    values.validate(full=True)
                    if not pa.types.is_struct(values.type):
                        raise DataError(
                            f"{path}: column {column!r}: {values.type} is not an image (a struct of bytes and path)"
                        )
                self._groups[key] = values
                if len(self._groups) > self._most:
                    self._groups.popitem(last=False)
                low = max(start - int(starts[group]), 0)
                cells += values.slice(low, max(stop - int(starts[group]) - low, 0)).to_pylist()
        except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
            raise DataError(f"{path}: column {column!r}: rows {start}-{stop} cannot be read ({error})") from error
        if len(cells) != stop - start:
            raise DataError(f"{path}: column {column!r}: has no rows {start}-{stop}")
        return [cell.get("bytes") if cell is not None else None for cell in cells]


def _decode(path: Path, column: str, row: int, content: Any) -> np.ndarray:
    where = f"{path}: column {column!r}, row {row}"
    if not isinstance(content, bytes):
        raise DataError(f"{where}: holds no image")
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (
        OSError,
        SyntaxError,
        ValueError,
        LookupError,
        EOFError,
        ArithmeticError,
        MemoryError,
        Image.DecompressionBombError,
    ) as error:
        raise DataError(f"{where}: cannot be decoded ({error})") from error
