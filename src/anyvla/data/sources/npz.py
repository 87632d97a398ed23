"""Single arrays out of ``.npz`` files (zip archives of ``.npy`` files) with as few reads and copies as can be.

``numpy.load`` reads the directory of the archive and parses a header for every array, at every opening: for small arrays that
is most of its time. Here the directory is read once, and members that lie side by side come with one read.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from anyvla.data.sources.npy import array_from
from anyvla.errors import DataError

_TAIL = 4096  # bytes read first at the end of a file: the whole directory of a dozen arrays
_LARGEST_DIRECTORY = 2**24
_LARGEST_MEMBER = 2**30  # bytes of an array: what a forged file can make us allocate
_GAP = 2**15  # bytes that are read in vain sooner than asking for a second read
_SMALL = 2**17  # bytes; deflate makes at most 1032 times as many of them
_END = struct.Struct("<4sHHHHIIH")
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_STORED, _DEFLATED = 0, 8


class Member(NamedTuple):
    """Where an array lies in its archive."""

    offset: int  # of its local header
    packed: int  # bytes in the file
    size: int  # bytes of the .npy
    crc: int
    method: int


def members_of(fd: int, size: int, where: str) -> dict[str, Member]:
    """Key -> place, of every array in the open npz file ``fd`` of ``size`` bytes. Raises DataError if it is damaged."""
    tail = os.pread(fd, min(size, _TAIL), max(size - _TAIL, 0))
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < _END.size:
        raise DataError(f"{where}: not a whole npz file ({size} bytes): it ends without its directory")
    _, _, _, _, count, length, start, _ = _END.unpack_from(tail, end)
    if start + length > size - len(tail) + end or length > _LARGEST_DIRECTORY:
        raise DataError(f"{where}: damaged npz file: its directory lies outside of it")
    first = size - len(tail)
    directory = tail[start - first : start - first + length] if start >= first else os.pread(fd, length, start)
    members = {}
    at = 0
    for _ in range(count):
        if at + _ENTRY.size > len(directory):
            raise DataError(f"{where}: damaged npz file: its directory is cut short")
        magic, _, _, flags, method, _, _, crc, packed, unpacked, name, extra, comment, _, _, _, offset = _ENTRY.unpack_from(
            directory, at
        )
        key = directory[at + _ENTRY.size : at + _ENTRY.size + name].decode("utf-8", "replace").removesuffix(".npy")
        if magic != b"PK\x01\x02" or flags & 1 or method not in (_STORED, _DEFLATED):
            raise DataError(f"{where}: damaged npz file, or one of a kind that NumPy does not write: key {key!r}")
        if offset + packed > size or unpacked > _LARGEST_MEMBER:
            raise DataError(f"{where}: damaged npz file: key {key!r} lies outside of it")
        members[key] = Member(offset, packed, unpacked, crc, method)
        at += _ENTRY.size + name + extra + comment
    return members


def read_members(fd: int, members: Sequence[Member], keys: Sequence[str], where: str) -> list[np.ndarray]:
    """The arrays at ``members`` of the open file ``fd``, named ``keys`` in messages. They cannot be written to.

    Raises DataError, with file and key, if one is damaged.
    """
    spans = [(member.offset, member.offset + member.packed + _LOCAL.size + 256) for member in members]
    start, stop = min(span[0] for span in spans), max(span[1] for span in spans)
    together = stop - start <= sum(b - a for a, b in spans) + _GAP
    block = os.pread(fd, stop - start, start) if together else b""
    arrays = []
    for member, key, (a, b) in zip(members, keys, spans, strict=True):
        data, at = (block, a - start) if together else (os.pread(fd, b - a, a), 0)
        arrays.append(array_from(_unpack(fd, data, at, member, f"{where}: key {key!r}"), f"{where}: key {key!r}"))
    return arrays


def _unpack(fd: int, data: bytes, at: int, member: Member, where: str) -> bytes:
    """The .npy of ``member``, whose local header lies at ``at`` in ``data``."""
    if at + _LOCAL.size > len(data) or not data.startswith(b"PK\x03\x04", at):
        raise DataError(f"{where}: damaged npz file")
    name, extra = struct.unpack_from("<HH", data, at + _LOCAL.size - 4)
    begin = at + _LOCAL.size + name + extra
    if begin + member.packed > len(data):  # longer extra fields than any NumPy writes
        data, begin = os.pread(fd, member.packed, member.offset + begin - at), 0
    packed = memoryview(data)[begin : begin + member.packed]
    if member.method == _STORED:
        content = bytes(packed)
    else:
        try:
            if member.packed < _SMALL:  # quicker, and too small to become much
                content = zlib.decompress(packed, -zlib.MAX_WBITS, member.size + 1)
            else:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, member.size + 1)
        except zlib.error as error:
            raise DataError(f"{where}: damaged npz file ({error})") from error
    if len(content) != member.size or zlib.crc32(content) != member.crc:
        raise DataError(f"{where}: damaged npz file: wrong length or checksum")
    return content
