"""The bytes of messages on the wire and in bags (CDR), by rosbags; no ROS is needed."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

from anyvla.errors import DataError, MissingExtraError
from anyvla.ros2.messages import ROS_TYPES, STAMPED, Maker, build, content, stamp_of, stamp_seconds
from anyvla.ros2.transport import Kind

_LITTLE_ENDIAN = 1


@cache
def typestore() -> Any:
    """Definitions of the types of ROS 2 Jazzy; those used here have not changed since ROS 2 Foxy.

    Raises MissingExtraError without rosbags.
    """
    try:
        from rosbags.typesys import Stores, get_typestore
    except ImportError as error:
        raise MissingExtraError("rosbags", "ros2") from error
    return get_typestore(Stores.ROS2_JAZZY)


def serialize(kind: Kind, data: Any, stamp: float) -> bytes:
    """``Message.data`` -> CDR; raises DataError if it is not of the kind."""
    store = typestore()
    message = build(kind, data, stamp, Maker(lambda name, /, **fields: store.types[name](**fields), lambda values: values))
    return bytes(store.serialize_cdr(message, ROS_TYPES[kind]))


def compressed_file(raw: bytes) -> bytes:
    """The JPEG or PNG file in a CompressedImage, as it is. Raises DataError where the bytes are none."""
    return bytes(_decoded("compressed_image", raw).data)


def deserialize(kind: Kind, raw: bytes) -> tuple[Any, float | None]:
    """CDR -> ``Message.data`` and the header's stamp in seconds; raises DataError where the bytes are none of this kind."""
    message = _decoded(kind, raw)
    try:
        return content(kind, message), stamp_of(kind, message)
    except (ValueError, OverflowError) as error:
        raise DataError(f"a message of the type {ROS_TYPES[kind]} contradicts itself ({error})") from error


def _decoded(kind: Kind, raw: bytes) -> Any:
    from rosbags.serde import SerdeError

    try:
        return typestore().deserialize_cdr(raw, ROS_TYPES[kind])
    except (SerdeError, struct.error, ValueError, IndexError, KeyError, AssertionError, OverflowError, MemoryError) as error:
        raise DataError(f"{len(raw)} bytes are no message of the type {ROS_TYPES[kind]} ({error})") from error


def peek_stamp(kind: Kind, raw: bytes) -> float | None:
    """The header's stamp without reading the rest: it stands first, behind four bytes that tell the order of bytes."""
    if kind not in STAMPED:
        return None
    if len(raw) < 12 or raw[0] != 0:
        raise DataError(f"{len(raw)} bytes are no message of the type {ROS_TYPES[kind]}")
    sec, nanosec = struct.unpack_from("<iI" if raw[1] & _LITTLE_ENDIAN else ">iI", raw, 4)
    return stamp_seconds(sec, nanosec)
