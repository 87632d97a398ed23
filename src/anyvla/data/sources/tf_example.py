"""tf.train.Example without TensorFlow: where each feature lies in the bytes, and its values when they are asked for.

An Example is a protocol buffer, a map from a name to a list of byte strings, float32 or int64:

    Example  { Features features = 1 }
    Features { map<string, Feature> feature = 1 }
    Feature  { BytesList bytes_list = 1 | FloatList float_list = 2 | Int64List int64_list = 3 }
    ...List  { repeated value = 1 }            numbers packed (one run of bytes) or not (each with its tag)

Nothing is copied when the features are located; an image is a range of bytes until somebody decodes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from anyvla.errors import DataError

Kind = Literal["bytes", "float", "int", "empty"]
_KINDS: dict[int, Kind] = {1: "bytes", 2: "float", 3: "int"}
_VARINT, _FIXED64, _RUN, _FIXED32 = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Feature:
    """The bytes ``start`` to ``stop`` of an Example hold this list."""

    kind: Kind
    start: int
    stop: int


def locate_features(data: bytes) -> dict[str, Feature]:
    """Name -> where its list is. Raises DataError if ``data`` is no Example."""
    features: dict[str, Feature] = {}
    for number, wire, start, stop in _fields(data, 0, len(data)):
        if (number, wire) != (1, _RUN):
            continue  # unknown fields are legal
        for inner, inner_wire, entry_start, entry_stop in _fields(data, start, stop):
            if (inner, inner_wire) == (1, _RUN):
                name, feature = _entry(data, entry_start, entry_stop)
                features[name] = feature
    return features


def byte_ranges(data: bytes, feature: Feature, most: int | None = None) -> list[tuple[int, int]]:
    """Start and stop in ``data`` of each string of a bytes list, or of its first ``most``."""
    if feature.kind == "empty":
        return []
    _expect(feature, "bytes")
    ranges: list[tuple[int, int]] = []
    position, end = feature.start, feature.stop
    while position < end and (most is None or len(ranges) < most):
        if data[position] != (1 << 3 | _RUN):  # a loop of its own, as there may be millions of images
            raise DataError("a list of byte strings holds something else")
        length, start = _varint(data, position + 1, end)
        position = start + length
        if position > end:
            raise DataError(f"not a tf.train.Example: a byte string at byte {start} leaves the list it is in")
        ranges.append((start, position))
    return ranges


def byte_strings(data: bytes, feature: Feature, most: int | None = None) -> list[bytes]:
    """Copies of these strings."""
    return [data[start:stop] for start, stop in byte_ranges(data, feature, most)]


def floats(data: bytes, feature: Feature) -> np.ndarray:
    """(N,) float32 of a float list, packed or not."""
    if feature.kind == "empty":
        return np.empty(0, dtype=np.float32)
    _expect(feature, "float")
    parts = []
    for number, wire, start, stop in _fields(data, feature.start, feature.stop):
        if number != 1:
            continue
        if wire not in (_RUN, _FIXED32) or (stop - start) % 4:
            raise DataError("a list of floats holds something else")
        parts.append(np.frombuffer(data, "<f4", (stop - start) // 4, start))
    return np.concatenate(parts).astype(np.float32) if parts else np.empty(0, dtype=np.float32)


def integers(data: bytes, feature: Feature) -> np.ndarray:
    """(N,) int64 of an integer list, packed or not."""
    if feature.kind == "empty":
        return np.empty(0, dtype=np.int64)
    _expect(feature, "int")
    parts = []
    for number, wire, start, stop in _fields(data, feature.start, feature.stop):
        if number != 1:
            continue
        if wire not in (_RUN, _VARINT):
            raise DataError("a list of integers holds something else")
        parts.append(_varints(np.frombuffer(data, np.uint8, stop - start, start)))
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


def _expect(feature: Feature, kind: Kind) -> None:
    if feature.kind != kind:
        raise DataError(f"holds a list of {feature.kind}, not of {kind}")


def _entry(data: bytes, start: int, stop: int) -> tuple[str, Feature]:
    """One entry of the map: a key (1) and a Feature (2)."""
    name, feature = "", Feature("empty", start, start)
    for number, wire, value_start, value_stop in _fields(data, start, stop):
        if wire != _RUN:
            continue
        if number == 1:
            try:
                name = data[value_start:value_stop].decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"not a tf.train.Example: the name of a feature is no UTF-8 ({error})") from error
        elif number == 2:
            for kind, kind_wire, list_start, list_stop in _fields(data, value_start, value_stop):
                if kind in _KINDS and kind_wire == _RUN:
                    feature = Feature(_KINDS[kind], list_start, list_stop)
    return name, feature


def _fields(data: bytes, position: int, end: int) -> list[tuple[int, int, int, int]]:
    """The fields of a message: number, wire type, and where the value starts and stops."""
    found = []
    while position < end:
        tag, position = _varint(data, position, end)
        wire = tag & 7
        if wire == _RUN:
            length, start = _varint(data, position, end)
            position = start + length
        elif wire == _VARINT:
            start = position
            _, position = _varint(data, position, end)
        elif wire in (_FIXED64, _FIXED32):
            start = position
            position += 8 if wire == _FIXED64 else 4
        else:
            raise DataError(f"not a tf.train.Example: wire type {wire} at byte {position}")
        if position > end or tag < 8:
            raise DataError(f"not a tf.train.Example: a field at byte {start} leaves the message it is in")
        found.append((tag >> 3, wire, start, position))
    return found


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """A number of 7 bits a byte, lowest first, and the position behind it."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise DataError(f"not a tf.train.Example: a number at byte {position} has no end")


def _varints(run: np.ndarray) -> np.ndarray:
    """(bytes,) uint8 -> (N,) int64, all numbers of a packed run at once."""
    ends = np.flatnonzero(run < 0x80)
    if len(run) and (len(ends) == 0 or ends[-1] != len(run) - 1):
        raise DataError("a list of integers is cut short")
    if len(ends) == len(run):
        return run.astype(np.int64)  # small numbers, as truth values are
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise DataError("a list of integers holds one of more than 64 bits")
    values = np.zeros(len(ends), dtype=np.uint64)
    for k in range(int(lengths.max())):
        longer = lengths > k
        values[longer] |= (run[starts[longer] + k] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * k)
    return values.view(np.int64)
