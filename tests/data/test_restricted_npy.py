from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anyvla.config.sources import CalvinConfig
from anyvla.data.sources.calvin import CalvinSource
from anyvla.data.sources.npy import array_from
from anyvla.data.sources.restricted_npy import read_object_array
from anyvla.errors import DataError
from tests.calvin_data import write_annotations, write_calvin


def save(path: Path, content: object) -> Path:
    array = np.empty((), dtype=object)
    array[()] = content
    np.save(path, array)
    return path


def forge(path: Path, program: bytes) -> Path:
    """An object array whose pickle is ``program``."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    path.write_bytes(header.getvalue() + program)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_it_gives_what_numpy_would(tmp_path: Path, protocol: int) -> None:
    content = {
        "texts": ["열다", "close"],
        "numbers": np.arange(12.0).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "words": np.array(["a", "bcd"]),
        "objects": np.array([(1, 2), None, "x"], dtype=object),
        "scalar": np.int64(7),
        "empty": np.zeros((0, 4)),
        "pairs": [(1, 2), (np.int32(3), 2**70)],
        "nested": {"flag": True, "nothing": None, "set": {1, 2}},
    }
    if protocol < 4:  # which has no sets of its own
        content["nested"].pop("set")
    if protocol < 3:  # nor any way to write no bytes but a call
        content.pop("empty")
    array = np.empty((), dtype=object)
    array[()] = content
    path = forge(tmp_path / "a.npy", pickle.dumps(array, protocol))
    found, plain = read_object_array(path), np.load(path, allow_pickle=True).item()
    assert found.keys() == plain.keys()
    for key, value in plain.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[key], value)
            assert found[key].dtype == value.dtype
        else:
            assert found[key] == value


def test_an_array_of_numbers_is_read_as_one(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(4))
    np.testing.assert_array_equal(read_object_array(tmp_path / "a.npy"), np.arange(4))


class _Harm:
    """Unpickled in the usual way, it makes a file."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, exec, open, print, getattr, np.load, np.memmap, object, Path])
def test_a_pickle_never_runs_what_it_names(tmp_path: Path, function: Callable[..., object]) -> None:
    path = save(tmp_path / "a.npy", {"language": _Harm(function, f"{tmp_path}/made")})
    name = f"{function.__module__}.{getattr(function, '__name__', '')}"
    with pytest.raises(DataError, match=r"holds [\w.]+, which is not read") as caught:
        read_object_array(path)
    assert str(path) in str(caught.value)
    assert name.split(".")[-1] in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_the_proof_is_one_because_numpy_runs_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npy", _Harm(os.mkdir, f"{tmp_path}/made"))
    np.load(path, allow_pickle=True)  # what a plain loader does
    assert (tmp_path / "made").exists()


def test_forged_annotations_are_refused_by_the_source(tmp_path: Path) -> None:
    folder = write_calvin(tmp_path / "calvin")
    save(write_annotations(folder), {"language": _Harm(os.mkdir, f"{tmp_path}/made")})
    for on_bad_episode in ("error", "skip"):
        with pytest.raises(DataError, match=r"auto_lang_ann.npy: holds posix.mkdir, which is not read"):
            CalvinSource(CalvinConfig(path=folder), None, on_bad_episode, None, tmp_path)
    assert not (tmp_path / "made").exists()


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
NDARRAY = b"cnumpy\nndarray\n"
OBJECTS = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8I00\nI01\ntR(I3\nX\x01\x00\x00\x00|NNNI-1\nI-1\nI63\ntb"


def array_program(shape: bytes, dtype: bytes, content: bytes, start: bytes = b"(I0\nt") -> bytes:
    return b"\x80\x03" + RECONSTRUCT + b"(" + NDARRAY + start + b"C\x01btR(I1\n" + shape + dtype + b"I00\n" + content + b"tb."


FORGED = {
    "shape larger than its list": array_program(b"(I1000000000\nt", OBJECTS, b"]"),
    "shape larger than its bytes": array_program(b"(I1000000000\nt", OBJECTS.replace(b"O8", b"f8"), b"C\x01b"),
    "negative shape": array_program(b"(I-1\nt", OBJECTS, b"]"),
    "numbers as a list": array_program(b"(I1\nt", OBJECTS.replace(b"O8", b"f8"), b"(I7\nl"),
    "pointers as bytes": array_program(b"(I1\nt", OBJECTS, b"C\x0812345678"),
    "a large beginning": array_program(b"(t", OBJECTS, b"]", start=b"(I1000000000000\nt"),
    "records": array_program(b"(t", OBJECTS.replace(b"NNN", b"]]]"), b"]"),
    "a wide type": array_program(b"(t", OBJECTS.replace(b"\x02\x00\x00\x00O8", b"\x0a\x00\x00\x00U999999999"), b"]"),
    "a type of a subclass": b"\x80\x03" + NDARRAY + b")\x81.",
    "an attribute of the constructor": b"\x80\x03" + RECONSTRUCT + b"}X\x08\x00\x00\x00__call__K\x01sb.",
    "a memo of gigabytes": b"\x80\x03Nr\xff\xff\xff\x7f.",
    "bytes of terabytes": b"\x80\x05\x96" + struct.pack("<Q", 2**42) + b".",
    "text of terabytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**42) + b".",
    "a persistent id": b"\x80\x03Pid\n.",
    "an extension": b"\x80\x03\x82\x01.",
    "an old instance": b"(ios\nsystem\n.",
    "an empty stack": b"\x80\x03.",
    "not an array": b"\x80\x03}.",
    "nothing": b"",
    "no end": b"\x80\x03}",
    "tuples inside each other": b"\x80\x03})" + b"\x85" * 1_000_000 + b"K\x01s.",
    "a list that holds itself": b"\x80\x03]q\x00h\x00a.",
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_pickles_are_refused_without_harm(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"a.npy: "):
        read_object_array(forge(tmp_path / "a.npy", FORGED[name]))


def test_the_forgeries_differ_from_an_array_only_where_they_say(tmp_path: Path) -> None:
    program = array_program(b"(t", OBJECTS, b"(K\x07l")
    assert read_object_array(forge(tmp_path / "a.npy", program)) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b"(4,)", b"(99999999999,)"), "are not an array of the shape"),
        ((b"(4,)", b"(4,)*9**9"), "damaged .npy header"),
        ((b"<i8", b"<V8"), "damaged .npy header"),
        ((b"\x93NUMPY\x01", b"\x93NUMPY\x03"), "not a .npy file of version 1 or 2"),
        ((b"False", b"exit()"), "damaged .npy header"),
    ],
)
def test_headers_are_not_trusted(change: tuple[bytes, bytes], message: str) -> None:
    file = io.BytesIO()
    np.save(file, np.arange(4, dtype="<i8"))
    whole = file.getvalue()
    np.testing.assert_array_equal(array_from(whole, "a"), np.arange(4))
    with pytest.raises(DataError, match=message):
        array_from(whole.replace(*change), "a")
