"""Object arrays (``.npy`` files of dtype object), which are pickles, read without running anything that they name.

A pickle is a program, and may name any function to be called. Here the names that NumPy writes stand for functions of this
file, which check what they are given; every other name is refused. So NumPy's own reconstruction is never handed a forged
shape, type or flag, which it would trust. Opcodes that object arrays do not need are refused before anything runs.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.data.sources.npy import array_from, header_of, read_file
from anyvla.errors import DataError

_LARGEST = 2**30  # bytes; the language annotations of all of CALVIN have less than a tenth of it
_MOST_TUPLES = 80_000  # all of CALVIN has 23 000 annotations; more, inside each other, overflow the stack when they are hashed
_REFUSED = {"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}
_REFUSED |= {"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER"}
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, ValueError, AttributeError, AssertionError),
    *(MemoryError, OverflowError, RecursionError, ImportError, struct.error),
)


def read_object_array(path: Path) -> Any:
    """What the 0-d object array at ``path`` holds (``numpy.load(path, allow_pickle=True).item()``), or an array of numbers.

    Made of numbers, texts, bytes, lists, tuples, dicts, sets and arrays. Raises DataError if it is damaged or names other
    things.
    """
    data = read_file(path, _LARGEST)
    dtype, shape, _, start = header_of(data, str(path))
    if not dtype.hasobject:
        return array_from(data, str(path))
    if shape != ():
        raise DataError(f"{path}: an object array of the shape {shape} and the type {dtype}; only a single object is read")
    try:
        _check_opcodes(data[start:])
        array = _Unpickler(io.BytesIO(data[start:])).load()
    except _DAMAGE as error:
        raise DataError(f"{path}: {error if isinstance(error, _RefusedError) else f'damaged pickle ({error})'}") from error
    if not isinstance(array, np.ndarray) or array.shape != () or not array.dtype.hasobject:
        raise DataError(f"{path}: the pickle is not the object array that the header says")
    return array.item()


class _RefusedError(pickle.UnpicklingError):
    """The pickle is whole, but wants what is not read."""


def _check_opcodes(data: bytes) -> None:
    """Refuse what object arrays do not need, and what would exhaust memory or stack: the unpickler trusts its input there."""
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name in _REFUSED:
            raise _RefusedError(f"holds the pickle opcode {opcode.name}, which is not read")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= max(count, 255):
            raise pickle.UnpicklingError(f"memo number {argument}")  # there would be a table of as many pointers
        tuples += opcode.name.startswith("TUPLE")
    if tuples > _MOST_TUPLES:
        raise pickle.UnpicklingError(f"{tuples} tuples")


class _Unpickler(pickle.Unpickler):
    """The one unpickler of this project."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _Reconstruct()
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return _Scalar()
        if (module, name) == ("numpy", "ndarray"):
            return _ArrayType()
        if (module, name) == ("numpy", "dtype"):
            return _MakeType()
        if (module, name) == ("_codecs", "encode"):
            return _Encode()
        raise _RefusedError(f"holds {module}.{name}, which is not read")


# Objects, not classes, and without attributes: a forged pickle can neither make instances of them nor change them.


class _ArrayType:
    """Stands for ``numpy.ndarray``, as an argument."""

    __slots__ = ()


class _Reconstruct:
    """Stands for NumPy's ``_reconstruct``, which makes an empty array whose content follows."""

    __slots__ = ()

    def __call__(self, kind: object, shape: object, code: object) -> np.ndarray:
        if not isinstance(kind, _ArrayType) or shape != (0,):
            raise pickle.UnpicklingError("an array begins otherwise than NumPy writes it")
        return np.empty(0, dtype=np.int8).view(_Array)


class _Encode:
    """Stands for ``codecs.encode``, through which the oldest pickles of Python 3 write bytes."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding != "latin1":
            raise pickle.UnpicklingError("bytes are otherwise than Python writes them")
        return text.encode("latin-1")


class _MakeType:
    """Stands for ``numpy.dtype``."""

    __slots__ = ()

    def __call__(self, code: object, align: object = False, copy: object = True) -> _Type:
        if not isinstance(code, str) or not re.fullmatch(r"(?:b1|[iu][1248]|f[248]|O8?|[SU]\d{1,6})", code):
            raise _RefusedError(f"holds an array of the type {code!r}, which is not read")
        return _Type(code)


class _Type:
    """A dtype whose byte order follows."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise pickle.UnpicklingError("a type goes on otherwise than NumPy writes it")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("O" if self.code[0] == "O" else f"{self.order}{self.code}")


class _Array(np.ndarray):
    """An array that takes only a content which its shape and type have room for."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, content = state
        lengths = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**40 for n in shape) and len(shape) <= 8
        if not lengths or not isinstance(kind, _Type):
            raise pickle.UnpicklingError("an array goes on otherwise than NumPy writes it")
        dtype = kind.dtype
        as_list = dtype.hasobject
        length = math.prod(shape) * (1 if as_list else dtype.itemsize)
        if type(content) is not (list if as_list else bytes) or len(content) != length:
            raise pickle.UnpicklingError(f"the content of an array is not of the shape {shape} and the type {dtype}")
        checked: Any = (1, shape, dtype, bool(fortran), content)
        super().__setstate__(checked)


class _Scalar:
    """Stands for NumPy's ``scalar``, which makes a single number."""

    __slots__ = ()

    def __call__(self, kind: object, content: object = None) -> Any:
        if not isinstance(kind, _Type) or kind.dtype.hasobject or type(content) is not bytes:
            raise pickle.UnpicklingError("a number is otherwise than NumPy writes it")
        if len(content) != kind.dtype.itemsize or not content:
            raise pickle.UnpicklingError(f"the content of a number is not of the type {kind.dtype}")
        return np.frombuffer(content, kind.dtype)[0]
