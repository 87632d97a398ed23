from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from benchmarks.rlds_writer import encode_example, write_records
from hypothesis import given
from hypothesis import strategies as st

from anyvla.data.sources.tf_example import byte_strings, floats, integers, locate_features
from anyvla.data.sources.tfrecord import masked_crc32c, read_records
from anyvla.errors import DataError

_INTEGERS = st.lists(st.integers(-(2**63), 2**63 - 1))


def test_the_checksum_is_the_published_one() -> None:
    # crc32c("123456789") is 0xe3069283 (RFC 3720, B.4 has others); rotated right by 15 bits, plus the constant
    crc = 0xE3069283
    assert masked_crc32c(b"123456789") == ((crc >> 15 | (crc << 17) & 0xFFFFFFFF) + 0xA282EAD8) % 2**32


def test_records_come_back_with_their_places(tmp_path: Path) -> None:
    payloads = [b"one", b"", b"three" * 1000]
    path = tmp_path / "a.tfrecord"
    write_records(path, payloads)
    read = list(read_records(path))
    assert [payload for _, payload in read] == payloads
    for record, payload in read:
        assert path.read_bytes()[record.offset : record.offset + record.length] == payload


def test_a_damaged_payload_is_told_and_the_next_record_follows(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    write_records(path, [b"first", b"second"])
    data = bytearray(path.read_bytes())
    data[13] ^= 1
    path.write_bytes(data)
    (_, bad), (_, good) = read_records(path)
    assert isinstance(bad, DataError)
    assert "record 0 at byte 0 is damaged" in str(bad)
    assert good == b"second"
    assert isinstance(next(read_records(path, checksum=False))[1], bytes)


def _with_length(length: int) -> bytes:
    head = struct.pack("<Q", length)
    return head + struct.pack("<I", masked_crc32c(head)) + b"0123456789"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x05", "1 of 12 bytes before the payload"),
        (b"\x05" + b"\0" * 30, "the checksum of its length is wrong"),
        (_with_length(2**63), "no record has more than"),
        (_with_length(2**30), "is cut short: 6 of 1073741824 bytes"),
        (_with_length(10), "is cut short: 6 of 10 bytes"),
    ],
)
def test_a_forged_or_cut_length_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_records(tmp_path / "a"))


@given(st.lists(st.binary()), st.lists(st.floats(width=32)), _INTEGERS, st.booleans())
def test_an_example_comes_back(texts: list[bytes], numbers: list[float], counts: list[int], packed: bool) -> None:
    values = {"t/é": texts, "f": np.array(numbers, np.float32), "i": np.array(counts, np.int64)}
    data = encode_example(values, packed)
    found = locate_features(data)
    assert set(found) == set(values)
    assert byte_strings(data, found["t/é"]) == texts
    np.testing.assert_array_equal(floats(data, found["f"]), values["f"])
    np.testing.assert_array_equal(integers(data, found["i"]), values["i"])


@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_refused(data: bytes) -> None:
    try:
        for feature in locate_features(data).values():
            {"bytes": byte_strings, "float": floats, "int": integers, "empty": floats}[feature.kind](data, feature)
    except DataError:
        pass


def test_a_list_of_another_kind_is_refused() -> None:
    data = encode_example({"a": [b"x"]})
    with pytest.raises(DataError, match="holds a list of bytes, not of float"):
        floats(data, locate_features(data)["a"])
