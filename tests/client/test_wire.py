"""The wire codec: what is sent arrives, and what is malformed is a WireError and nothing else."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from anyvla_client.wire import MAX_DEPTH, MAX_DIMENSIONS, MAX_NODES, WireError, pack, unpack
from tests.client.malformed import malformed_frames

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(sizes=(16, 32, 64), endianness="?"),
    hnp.unicode_string_dtypes(endianness="?", max_len=5),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def _words(length: int) -> st.SearchStrategy[str]:
    """Texts that fit an array's type; NumPy drops zeros at their end."""
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=length).map(lambda text: text.rstrip("\0"))


ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements=_words(dtype.itemsize // 4) if dtype.kind == "U" else None,
    )
)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), TEXT, st.binary(max_size=8), ARRAYS)
SCALARS = ARRAYS.filter(lambda array: array.size > 0 and array.dtype.kind != "U").map(lambda array: array.reshape(-1)[0])
KEYS = TEXT.filter(lambda key: key not in ("__ndarray__", "__npgeneric__"))
VALUES = st.recursive(
    LEAVES | SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def assert_same(sent: Any, received: Any) -> None:
    if isinstance(sent, dict):
        assert list(sent) == list(received)
        for key in sent:
            assert_same(sent[key], received[key])
    elif isinstance(sent, list):
        assert len(sent) == len(received)
        for one, other in zip(sent, received, strict=True):
            assert_same(one, other)
    elif isinstance(sent, np.ndarray | np.generic):
        # a float64 is a Python float to msgpack
        assert isinstance(received, np.ndarray | np.generic | float)
        assert np.asarray(received).dtype == np.asarray(sent).dtype.newbyteorder("=")
        np.testing.assert_array_equal(np.asarray(received), np.asarray(sent).astype(np.asarray(received).dtype), strict=True)
    else:
        assert type(sent) is type(received)
        np.testing.assert_equal(received, sent)


@settings(max_examples=60)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_what_is_sent_arrives(message: dict[str, Any]) -> None:
    assert_same(message, unpack(pack(message)))


@given(ARRAYS, st.randoms(use_true_random=False))
def test_arrays_that_lie_otherwise_in_memory_arrive_in_their_order(array: np.ndarray, random: Any) -> None:
    axes = list(range(array.ndim))
    random.shuffle(axes)
    turned = array.transpose(axes)[..., ::-1] if array.ndim else array
    assert_same({"a": turned}, unpack(pack({"a": turned})))
    assert_same({"a": np.asfortranarray(array)}, unpack(pack({"a": np.asfortranarray(array)})))


def test_the_frame_is_that_of_openpi() -> None:
    """Written out by hand: map with bytes keys, C order, type with byte order."""
    array = np.arange(6, dtype=np.int16).reshape(2, 3)
    by_hand = {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": "<i2", b"shape": [2, 3]}
    number = {b"__npgeneric__": True, b"data": 2.5, b"dtype": "<f4"}
    frame = msgpack.packb({"a": by_hand, "n": number, "s": "left"})
    assert pack({"a": array, "n": np.float32(2.5), "s": "left"}) == frame
    assert_same({"a": array, "n": np.float32(2.5), "s": "left"}, unpack(frame))


def test_an_image_is_not_copied() -> None:
    image = np.zeros((224, 224, 3), np.uint8)
    received = unpack(pack({"image": image}))["image"]
    assert received.base is not None
    assert not received.flags.writeable


@pytest.mark.parametrize("keys", ["text", "bytes"])
@pytest.mark.parametrize("kind", ["text", "bytes"])
def test_keys_and_types_may_be_bytes_or_text(keys: str, kind: str) -> None:
    def name(text: str) -> Any:
        return text if keys == "text" else text.encode()

    dtype = "<f8" if kind == "text" else b"<f8"
    array = {name("__ndarray__"): True, name("data"): np.ones(2).tobytes(), name("dtype"): dtype, name("shape"): [2]}
    np.testing.assert_array_equal(unpack(msgpack.packb({name("a"): array}))["a"], [1, 1])


def _array(**changes: Any) -> bytes:
    good = {b"__ndarray__": True, b"data": bytes(24), b"dtype": "<f4", b"shape": [2, 3]}
    return msgpack.packb({"a": {**good, **{key.encode(): value for key, value in changes.items()}}})


def _nested(levels: int) -> bytes:
    return b"\x81\xa1a" + b"\x91" * levels + b"\xc0"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ("text", "binary frame, got str"),
        (b"", "not one msgpack value"),
        (b"\x80\x80", "not one msgpack value"),
        (b"\x93\x01\x02\x03", "expected a map"),
        (b"\x81\x01\x02", "not one msgpack value"),  # a number as a key
        (b"\x82\xa1a\x01\xa1a\x02", "'a' is there twice"),
        (b"\x82\xa1a\x01\xc4\x01a\x02", "'a' is there twice"),
        (b"\x81\xa1a\xd4\x05\x00", "not one msgpack value"),  # an extension
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "not one msgpack value"),  # a list of 2^32 that are not there
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "not one msgpack value"),
        (b"\x81\xa1a\xa2\xff\xff", "not one msgpack value"),  # no UTF-8
        (_array(dtype="|O"), "'|O' is not allowed"),
        (_array(dtype="<c8"), "not allowed"),
        (_array(dtype="<M8[s]"), "not allowed"),
        (_array(dtype="V4"), "not allowed"),
        (_array(dtype="<f4,<f4"), "not allowed"),
        (_array(dtype="S4"), "not allowed"),
        (_array(dtype="<f4\n"), "not allowed"),
        (_array(dtype=4), "expected a text"),
        (_array(data="x" * 24), "data of an array are str"),
        (_array(data=bytes(23)), "has 24 bytes, not 23"),
        (_array(shape=[2, 3, -1]), "list of whole numbers"),
        (_array(shape=[2.0, 3]), "list of whole numbers"),
        (_array(shape=[True, 6]), "list of whole numbers"),
        (_array(shape=6), "list of whole numbers"),
        (_array(shape=[2**40, 2**40]), "not 24"),
        (_array(shape=[6, *[1] * MAX_DIMENSIONS]), "dimensions"),
        (_array(shape=[0, 2**40], data=b""), "an array of shape"),
        (_array(shape=[2**30], dtype="<U0", data=b""), "an array of shape"),
        (_array(extra=1), "an array has the keys"),
        (_array(dtype="|b1", shape=[24], data=bytes(23) + b"\x02"), "other bytes than 0 and 1"),
        (_array(dtype="<U2", shape=[3], data=b"\xff" * 24), "no character"),
        (_array(dtype=">U2", shape=[3], data=b"\x00\x00\xd8\x00" * 6), "no character"),
        (msgpack.packb({"a": {"__npgeneric__": True, "data": 300, "dtype": "|u1"}}), "300 is no uint8"),
        (msgpack.packb({"a": {"__npgeneric__": True, "data": "x", "dtype": "<f4"}}), "cannot be str"),
        (msgpack.packb({"a": {"__npgeneric__": True, "data": b"x"}}), "a scalar has the keys"),
        (_nested(MAX_DEPTH + 1), "levels"),
        (_nested(100_000), "not one msgpack value|levels"),
        (msgpack.packb({"a": [[0] * 99] * 1000}), f"more than {MAX_NODES} values"),
        (msgpack.packb({"a": [0] * 100_000}), "not one msgpack value"),
    ],
)
def test_malformed_frames_are_refused(frame: Any, message: str) -> None:
    with pytest.raises(WireError, match=message):
        unpack(frame)


def test_a_frame_has_a_largest_size() -> None:
    frame = pack({"image": np.zeros(1000, np.uint8)})
    assert len(unpack(frame, max_bytes=len(frame))["image"]) == 1000
    with pytest.raises(WireError, match="are allowed"):
        unpack(frame, max_bytes=len(frame) - 1)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, complex),
        np.array([None]),
        np.array(["2026"], "M8[Y]"),
        np.zeros(1, "f4,f4"),
        np.zeros((1,) * (MAX_DIMENSIONS + 1)),
        np.zeros(2, np.longdouble),
        np.complex64(1),
        object(),
        2**70,
        "\ud800",
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_sent_is_refused_by_the_sender(value: Any) -> None:
    with pytest.raises(WireError):
        pack({"a": value})


def test_ten_thousand_malformed_frames_are_nothing_but_wire_errors() -> None:
    refused = 0
    for frame in malformed_frames(10_000, seed=0):
        try:
            unpack(frame)
        except WireError:
            refused += 1
    assert refused > 6000  # a flipped bit in a pixel is another pixel
