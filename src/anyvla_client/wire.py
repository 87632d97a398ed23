"""How observations and actions travel: one msgpack map in one binary WebSocket frame, the protocol of openpi's servers.

An array is the map ``{b"__ndarray__": true, b"data": bytes, b"dtype": "<f4", b"shape": [..]}`` in C order, a NumPy scalar
``{b"__npgeneric__": true, b"data": x, b"dtype": ".."}``. Whoever sends may be broken or hostile, so that what is decoded is
bounded and checked: kinds of data b i u f and U only, as many bytes as shape and type say, sizes and nesting limited.
Whatever is wrong with a frame is a WireError.
"""

from __future__ import annotations

import re
from typing import Any, Mapping

import msgpack
import numpy as np

MAX_BYTES = 32 * 2**20  # of a frame; a 1080p image has 6 MiB
MAX_NODES = 20_000  # numbers, texts, lists and maps of a frame; an array is one map of four
MAX_DEPTH = 16
MAX_DIMENSIONS = 8

_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|U(0|[1-9][0-9]{0,5}))")
_ARRAY = {"__ndarray__", "data", "dtype", "shape"}
_SCALAR = {"__npgeneric__", "data", "dtype"}


class WireError(ValueError):
    """A frame is not what the protocol says, or a value cannot be sent."""


def pack(message: Mapping[str, Any]) -> bytes:
    """A map of numbers, texts, bytes, lists, maps, NumPy arrays and scalars -> one frame. Raises WireError."""
    try:
        packed: bytes = msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:  # UnicodeEncodeError is a ValueError
        raise WireError(f"cannot be sent: {error}") from error
    return packed


def unpack(frame: Any, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """One frame -> the map in it; keys are text, tuples come as lists.

    Arrays are views of the frame, without a copy, and so not writable (those of another byte order are copies).
    Raises WireError.
    """
    if not isinstance(frame, (bytes, bytearray, memoryview)):
        raise WireError(f"expected a binary frame, got {type(frame).__name__}")
    size = frame.nbytes if isinstance(frame, memoryview) else len(frame)
    if size > max_bytes:
        raise WireError(f"a frame of {size} bytes; {max_bytes} are allowed")
    budget = _Budget(MAX_NODES)
    try:
        message = msgpack.unpackb(
            frame,
            object_pairs_hook=budget.pairs,
            list_hook=budget.items,
            ext_hook=_no_extension,
            strict_map_key=True,  # texts and bytes alone
            max_str_len=size,
            max_bin_len=size,
            max_array_len=MAX_NODES,
            max_map_len=MAX_NODES,
            max_ext_len=0,
        )
    except WireError:
        raise
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError, OverflowError) as error:
        raise WireError(f"not one msgpack value: {error or type(error).__name__}") from error
    if not isinstance(message, dict):
        raise WireError(f"expected a map, got {type(message).__name__}")
    _check_depth(message)
    return message


class _Budget:
    """Turns what msgpack read into maps, lists and arrays, and stops when there is too much of it."""

    def __init__(self, nodes: int) -> None:
        self._left = nodes

    def _spend(self, count: int) -> None:
        self._left -= count + 1
        if self._left < 0:
            raise WireError(f"more than {MAX_NODES} values in one frame")

    def items(self, items: list[Any]) -> list[Any]:
        self._spend(len(items))
        return items

    def pairs(self, pairs: list[tuple[Any, Any]]) -> Any:
        self._spend(2 * len(pairs))
        named: dict[str, Any] = {}
        for key, value in pairs:
            name = key if isinstance(key, str) else _text(key)
            if name in named:
                raise WireError(f"the key {name!r} is there twice")
            named[name] = value
        if "__ndarray__" in named:
            return _array(named)
        if "__npgeneric__" in named:
            return _scalar(named)
        return named


def _array(value: Mapping[str, Any]) -> np.ndarray:
    if set(value) != _ARRAY:
        raise WireError(f"an array has the keys {', '.join(sorted(_ARRAY))}, not {', '.join(sorted(value))[:200]}")
    dtype = _dtype(value["dtype"])
    data, shape = value["data"], value["shape"]
    if not isinstance(data, bytes):
        raise WireError(f"the data of an array are {type(data).__name__}, not bytes")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise WireError("the shape of an array must be a list of whole numbers")
    if len(shape) > MAX_DIMENSIONS:
        raise WireError(f"an array of {len(shape)} dimensions; {MAX_DIMENSIONS} are allowed")
    count, extent = 1, 1
    for n in shape:
        count, extent = count * n, extent * max(n, 1)
    if len(data) != count * dtype.itemsize:
        raise WireError(f"an array of shape {shape} and type {dtype.str} has {count * dtype.itemsize} bytes, not {len(data)}")
    # an empty array, or one of empty texts, has no bytes whatever the rest of its shape says
    if extent > MAX_BYTES or (dtype.itemsize == 0 and count > MAX_NODES):
        raise WireError(f"an array of shape {shape}")
    if dtype.itemsize == 0:
        return np.zeros(shape, dtype)
    array = np.frombuffer(data, dtype).reshape(shape)
    _check_content(array, data)
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _check_content(array: np.ndarray, data: bytes) -> None:
    """Bytes that no boolean and no text has are left alone by frombuffer, and trouble whoever reads the array."""
    if array.dtype.kind == "b" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise WireError("a boolean array holds other bytes than 0 and 1")
    if array.dtype.kind == "U":
        points = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
        if points.max(initial=0) > 0x10FFFF or ((points >= 0xD800) & (points <= 0xDFFF)).any():
            raise WireError("a text array holds what is no character")


def _scalar(value: Mapping[str, Any]) -> Any:
    if set(value) != _SCALAR:
        raise WireError(f"a scalar has the keys {', '.join(sorted(_SCALAR))}, not {', '.join(sorted(value))[:200]}")
    dtype, data = _dtype(value["dtype"]).newbyteorder("="), value["data"]
    fits = {"b": (bool,), "i": (int,), "u": (int,), "f": (float, int), "U": (str,)}[dtype.kind]
    if type(data) not in fits:
        raise WireError(f"a scalar of type {dtype.str} cannot be {type(data).__name__}")
    if dtype.kind in "iu" and not np.iinfo(dtype).min <= data <= np.iinfo(dtype).max:
        raise WireError(f"{data} is no {dtype.name}")
    if dtype.kind == "U":
        return np.str_(data)
    with np.errstate(over="ignore"):
        return np.array(data, dtype)[()]


def _dtype(value: Any) -> np.dtype[Any]:
    """Of the few that are allowed; NumPy is not asked what a foreign text might mean."""
    name = value if isinstance(value, str) else _text(value)
    if not _DTYPE.fullmatch(name):
        raise WireError(f"the data type {name[:40]!r} is not allowed: booleans, whole numbers, floats up to 64 bit, texts")
    return np.dtype(name)


def _text(value: Any) -> str:
    if not isinstance(value, bytes):
        raise WireError(f"expected a text, got {type(value).__name__}")
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise WireError(f"no text: {error}") from error


def _check_depth(message: dict[str, Any]) -> None:
    level: list[Any] = [message]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise WireError(f"more than {MAX_DEPTH} levels of lists and maps")


def _no_extension(code: int, data: bytes) -> Any:
    raise WireError(f"msgpack's extension type {code} is not part of the protocol")


def _encode(value: Any) -> Any:
    """What msgpack itself does not know."""
    if isinstance(value, np.ndarray):
        if not _DTYPE.fullmatch(value.dtype.str):
            raise WireError(f"an array of type {value.dtype} cannot be sent")
        if value.ndim > MAX_DIMENSIONS:
            raise WireError(f"an array of {value.ndim} dimensions cannot be sent; {MAX_DIMENSIONS} can")
        # large arrays are not copied once more before msgpack copies them into the frame
        plain = value.flags.c_contiguous and value.nbytes > 4096 and value.dtype.kind != "U"
        data = value.data if plain else value.tobytes()
        return {b"__ndarray__": True, b"data": data, b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        if not _DTYPE.fullmatch(value.dtype.str):
            raise WireError(f"a number of type {value.dtype} cannot be sent")
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"a {type(value).__name__} is not part of the protocol")
