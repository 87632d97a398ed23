"""Arrays from the bytes of a ``.npy`` file, which may be damaged or forged."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from anyvla.errors import DataError

_MAGIC = b"\x93NUMPY"
_LARGEST_HEADER = 10_000
# what NumPy writes; its own reader evaluates the header as Python text
_HEADER = re.compile(
    r"\{'descr': '([<>|](?:b1|[iu][1248]|f[248]|O|[SU][1-9]\d{0,8}))', 'fortran_order': (False|True), "
    r"'shape': \((|\d{1,15},|\d{1,15}(?:, \d{1,15}){1,7})\), \}\s*"
)


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
    header = _HEADER.fullmatch(data[8 + width : start].decode("latin-1"))
    if header is None:
        raise DataError(f"{where}: damaged .npy header, or an array of records")
    code, fortran, shape = header.groups()
    lengths = tuple(int(length) for length in shape.split(",") if length.strip())
    return np.dtype(code), lengths, fortran == "True", start
