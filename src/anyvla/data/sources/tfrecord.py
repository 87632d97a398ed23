"""TFRecord files: records one after the other, each with checksums of its length and of its payload.

    uint64 length | uint32 checksum of the length | payload | uint32 checksum of the payload       little-endian

A checksum is crc32c, rotated right by 15 bits plus 0xa282ead8 ("masked"), so that a checksum of checksums is no weak spot.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from anyvla.errors import DataError

_HEADER = 12  # bytes before the payload
_FOOTER = 4  # and behind it
_LARGEST = 2**31  # a record holds one protocol buffer, which cannot be larger


@dataclass(frozen=True)
class Record:
    """One record: where its payload lies in the file, and the checksum that is stored with it."""

    number: int
    offset: int
    length: int
    checksum: int


def masked_crc32c(data: bytes) -> int:
    """The checksum that stands in the file for ``data``."""
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_records(path: Path, *, checksum: bool = True) -> Iterator[tuple[Record, bytes | DataError]]:
    """Every record of a file with its payload, or with what is wrong with it (then the next record follows).

    Args:
        checksum: check payloads too; those of lengths are always checked.

    Raises:
        DataError: the file cannot be read, or not from here on: a damaged length, or fewer bytes than the length says.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            number = position = 0
            while position < size:
                length = _read_length(path, file, number, position, size)
                payload = file.read(length)
                footer = file.read(_FOOTER)
                if len(payload) != length or len(footer) != _FOOTER:
                    raise DataError(
                        f"{path}: record {number} at byte {position} is cut short: the file shrinks while it is read"
                    )
                (stored,) = struct.unpack("<I", footer)
                record = Record(number, position + _HEADER, length, stored)
                if checksum and masked_crc32c(payload) != stored:
                    yield record, DataError(f"{path}: record {number} at byte {position} is damaged: its checksum is wrong")
                else:
                    yield record, payload
                number += 1
                position += _HEADER + length + _FOOTER
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _read_length(path: Path, file: BinaryIO, number: int, position: int, size: int) -> int:
    where = f"{path}: record {number} at byte {position}"
    header = file.read(_HEADER)
    if len(header) < _HEADER:
        raise DataError(f"{where} is cut short: {len(header)} of {_HEADER} bytes before the payload; copy the file anew")
    length, stored = struct.unpack("<QI", header)
    if masked_crc32c(header[:8]) != stored:
        raise DataError(f"{where} is damaged: the checksum of its length is wrong, so the records behind it cannot be found")
    if length > _LARGEST:
        raise DataError(f"{where} says that it has {length} bytes; no record has more than {_LARGEST}")
    left = size - position - _HEADER - _FOOTER
    if length > left:
        raise DataError(f"{where} is cut short: {max(left, 0)} of {length} bytes are there; copy the file anew")
    return length
