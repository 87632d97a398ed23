"""Arrays from the bytes of a ``.npy`` file, which may be damaged or forged."""

from __future__ import annotations

import io
import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from anyvla.errors import DataError

_MAGIC = b"\x93NUMPY"
_LARGEST_HEADER = 10_000


def read_file(path: Path, largest: int) -> bytes:
    """All bytes of ``path``. Raises DataError if it cannot be read, or has more than ``largest``."""
    try:
        size = path.stat().st_size
        if size > largest:
            raise DataError(f"{path}: {size} bytes are more than the {largest} that such a file may have")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def array_from(data: bytes, where: str) -> np.ndarray:
    """The array of numbers or texts in ``data``, the content of a .npy file; a view of ``data``, so it cannot be written to.

    Raises DataError, beginning with ``where``, if it is none, is cut short, or holds Python objects.
    """
    dtype, shape, fortran, start = header_of(data, where)
    if dtype.hasobject:
        raise DataError(f"{where}: holds Python objects, which are not read here")
    count = math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise DataError(f"{where}: {len(data) - start} bytes are not an array of the shape {shape} and the type {dtype}")
    return np.frombuffer(data, dtype, count, start).reshape(shape, order="F" if fortran else "C")


def header_of(data: bytes, where: str) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Type, shape, whether it is in Fortran order, and where the array begins in ``data``. Raises DataError."""
    version = data[6:8]
    width = {b"\x01\x00": 2, b"\x02\x00": 4}.get(version)
    if not data.startswith(_MAGIC) or width is None:
        raise DataError(f"{where}: not a .npy file of version 1 or 2")
    start = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if start > min(len(data), _LARGEST_HEADER):
        raise DataError(f"{where}: damaged .npy header")
    try:
        return *_parse_header(data[:start]), start
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise DataError(f"{where}: damaged .npy header ({str(error).splitlines()[0] if str(error) else 'no sense'})") from error


@lru_cache(maxsize=256)  # the frames of a data set have the same few headers, and parsing one takes as long as inflating it
def _parse_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], bool]:
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file, max_header_size=_LARGEST_HEADER)
    if any(length < 0 for length in shape) or (dtype.itemsize == 0 and not dtype.hasobject):
        raise ValueError(f"no array has the shape {shape} and the type {dtype}")
    return dtype, shape, fortran
