"""Frames as a broken or hostile sender makes them."""

from __future__ import annotations

from collections.abc import Iterator

import msgpack
import numpy as np

from anyvla_client.wire import pack

_DTYPES = [
    "|O",
    "<c8",
    "<f4",
    "<f8",
    "<i8",
    "|u1",
    "|b1",
    "<U3",
    ">U3",
    "V8",
    "M8[s]",
    "<f4,<i4",
    "",
    "\0",
    "O",
    "<U0",
    "f16",
    "S5",
]
_SIZES = [0, 1, 2, 3, -1, 2**31, 2**32, 2**63, 2.5, None, "3", True]


def malformed_frames(count: int, seed: int) -> Iterator[bytes]:
    """Cut, flipped, spliced and random bytes, and well-formed msgpack that forges arrays, lengths and nesting."""
    rng = np.random.default_rng(seed)
    good = [
        pack({"images": {"front": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)}, "prompt": "left", "state": np.ones(3)}),
        pack({"observation/front": np.zeros((4, 4, 3), np.uint8), "prompt": "go", "reset": True, "stamp": 1.5}),
        pack({"a": np.array(["x", "yy"]), "b": np.float32(1), "c": [1, [2, {"d": None}]]}),
    ]
    makers = [_cut, _flipped, _spliced, _random, _forged, _lengths, _nested]
    for i in range(count):
        yield makers[i % len(makers)](rng, good[int(rng.integers(len(good)))])


def _cut(rng: np.random.Generator, good: bytes) -> bytes:
    return good[: int(rng.integers(len(good)))]


def _flipped(rng: np.random.Generator, good: bytes) -> bytes:
    frame = bytearray(good)
    for _ in range(int(rng.integers(1, 9))):
        frame[int(rng.integers(min(len(frame), 80)))] ^= 1 << int(rng.integers(8))
    return bytes(frame)


def _spliced(rng: np.random.Generator, good: bytes) -> bytes:
    at = int(rng.integers(len(good)))
    return good[:at] + rng.bytes(int(rng.integers(1, 20))) + good[at + int(rng.integers(4)) :]


def _random(rng: np.random.Generator, good: bytes) -> bytes:
    start = bytes([int(rng.choice([0x80, 0x81, 0x82, 0x85, 0xDE, 0xDF, 0x90, 0xC1, 0xC7, 0xD6, 0xFF]))])
    return start + rng.bytes(int(rng.integers(200)))


def _forged(rng: np.random.Generator, good: bytes) -> bytes:
    shape = [_SIZES[int(rng.integers(len(_SIZES)))] for _ in range(int(rng.integers(5)))]
    array = {
        b"__ndarray__": True,
        b"data": rng.bytes(int(rng.integers(64))),
        b"dtype": _DTYPES[int(rng.integers(len(_DTYPES)))],
        b"shape": shape,
    }
    for key in list(array):
        if rng.random() < 0.1:
            del array[key]
    return msgpack.packb({"images": {"front": array}, "prompt": "left", "state": array})


def _lengths(rng: np.random.Generator, good: bytes) -> bytes:
    kind = int(rng.choice([0xC4, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF]))
    return b"\x81\xa6images" + bytes([kind]) + rng.bytes(int(rng.integers(1, 12)))


def _nested(rng: np.random.Generator, good: bytes) -> bytes:
    opening = [b"\x91", b"\x81\xa1a", b"\xdc\x00\x01"][int(rng.integers(3))]
    return b"\x81\xa1a" + opening * int(rng.choice([20, 200, 2000, 20000])) + b"\xc0"
