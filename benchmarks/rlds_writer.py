"""Made RLDS datasets, for benchmarks and tests: TFRecord and tf.train.Example written from their definitions."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from PIL import Image

Values = list[bytes] | np.ndarray


def encode_example(features: Mapping[str, Values], packed: bool = True) -> bytes:
    """Name -> byte strings, floats or integers; as one tf.train.Example."""
    entries = []
    for name, values in features.items():
        if isinstance(values, list):
            kind, body = 1, b"".join(_run(1, value) for value in values)
        elif values.dtype.kind == "f":
            raw = values.astype("<f4").ravel()
            loose = b"".join(b"\x0d" + number.tobytes() for number in raw)
            kind, body = 2, _run(1, raw.tobytes()) if packed else loose
        else:
            numbers = [_varint(int(n) & (2**64 - 1)) for n in values.ravel()]
            kind, body = 3, _run(1, b"".join(numbers)) if packed else b"".join(b"\x08" + number for number in numbers)
        entries.append(_run(1, _run(1, name.encode()) + _run(2, _run(kind, body))))
    return _run(1, b"".join(entries))


def write_records(path: Path, payloads: Sequence[bytes]) -> None:
    with path.open("wb") as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + _masked(length) + payload + _masked(payload))


def write_dataset(
    folder: Path, name: str, features: Mapping[str, tuple[Any, ...]], splits: Mapping[str, Sequence[Sequence[bytes]]]
) -> Path:
    """A version folder.

    Args:
        features: full name -> ``("image", (H, W, 3))``, ``("text",)`` or ``("tensor", dtype, shape, encoding)``.
        splits: name -> shards -> payloads of episodes.
    """
    folder.mkdir(parents=True)
    tree: dict[str, Any] = {}
    for key, feature in features.items():
        *parents, leaf = key.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = feature
    (folder / "features.json").write_text(json.dumps(_describe(tree, "")))
    info: dict[str, Any] = {"name": name, "version": "1.0.0", "fileFormat": "tfrecord", "splits": []}
    for split, shards in splits.items():
        lengths = [str(len(payloads)) for payloads in shards]
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        info["splits"].append({"name": split, "shardLengths": lengths, "filepathTemplate": template})
        for i, payloads in enumerate(shards):
            write_records(folder / f"{name}-{split}.tfrecord-{i:05d}-of-{len(shards):05d}", payloads)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def encode_image(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def _describe(node: Any, name: str) -> dict[str, Any]:
    if isinstance(node, tuple):
        if node[0] == "text":
            return {"pythonClassName": "Text", "text": {}}
        if node[0] == "image":
            return {
                "pythonClassName": "Image",
                "image": {"shape": _dimensions(node[1]), "dtype": "uint8"},
            }
        _, dtype, shape, encoding = (*node, "none")[:4]
        return {
            "pythonClassName": "Tensor",
            "tensor": {"shape": _dimensions(shape), "dtype": dtype, "encoding": encoding},
        }
    described = {"featuresDict": {"features": {key: _describe(child, key) for key, child in node.items()}}}
    if name == "steps":
        return {"pythonClassName": "Dataset", "sequence": {"feature": described, "length": "-1"}}
    return {"pythonClassName": "FeaturesDict", **described}


def _dimensions(shape: Sequence[int]) -> dict[str, list[str]]:
    return {"dimensions": [str(n) for n in shape]} if shape else {}


def _run(field: int, body: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
