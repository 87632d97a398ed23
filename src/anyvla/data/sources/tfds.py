"""A folder of TensorFlow Datasets without TensorFlow: ``features.json``, ``dataset_info.json``, its splits and shards.

<dataset>/<version>/features.json                    what an example is made of
                    dataset_info.json                splits, examples in each shard, names of the files
                    <dataset>-<split>.tfrecord-SSSSS-of-NNNNN
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from anyvla.errors import ConfigError, DataError, did_you_mean

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_PART = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<from>[^:\]]*):(?P<to>[^:\]]*)\])?(?:\((?P<rounding>\w+)\))?")
_BOUND = re.compile(r"(?P<value>-?\d+)(?P<percent>%?)")
_MOST_SHARDS = 10**6


@dataclass(frozen=True)
class FeatureSpec:
    """One leaf of features.json."""

    kind: Literal["tensor", "image", "text"]
    shape: tuple[int | None, ...]
    dtype: str
    encoding: str  # of a tensor: none, bytes or zlib
    in_steps: bool  # there are T of them in an episode

    @property
    def size(self) -> int:
        """How many numbers one of them has; 0 if that is not fixed."""
        total = 1
        for n in self.shape:
            total *= n or 0
        return total


@dataclass(frozen=True)
class Shard:
    """One file of a split: its ``length`` examples are number ``first`` and following of the split."""

    path: Path
    split: str
    first: int
    length: int


@dataclass(frozen=True)
class DatasetFolder:
    """What the two JSON files say."""

    path: Path
    name: str
    features: dict[str, FeatureSpec]  # by the name that it has in a record, such as steps/observation/image
    splits: dict[str, list[Shard]]


@dataclass(frozen=True)
class Slice:
    """Examples ``start`` to ``stop`` (exclusive) of a split."""

    split: str
    start: int
    stop: int


def find_version(path: Path, dataset: str | None = None) -> Path | None:
    """The version folder at ``path``: itself, its newest version, or that of ``dataset`` in it; None if there is none."""
    for folder in (path, path / dataset) if dataset else (path,):
        if (folder / "features.json").is_file():
            return folder
        versions = list(folder.glob("*/features.json")) if folder.is_dir() else []
        if versions:
            return max((p.parent for p in versions), key=_version_order)
    return None


def read_folder(path: Path) -> DatasetFolder:
    """Read and check the two JSON files of a version folder. Raises DataError."""
    features: dict[str, FeatureSpec] = {}
    _collect(path / "features.json", _read_json(path / "features.json"), "", False, features)
    info_path = path / "dataset_info.json"
    info = _read_json(info_path)
    name = info.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise DataError(f"{info_path}: key 'name': {name!r} is no name of a dataset")
    splits = {}
    for entry in _list(info_path, info, "splits"):
        split = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(split, str) or not re.fullmatch(r"[\w.-]+", split):
            raise DataError(f"{info_path}: key 'splits': {split!r} is no name of a split")
        splits[split] = _shards(path, info_path, name, str(info.get("fileFormat", "tfrecord")), split, entry)
    if not splits:
        raise DataError(f"{info_path}: names no split")
    return DatasetFolder(path, name, features, splits)


def parse_split(text: str, folder: DatasetFolder) -> list[Slice]:
    """``train``, ``train[:95%]``, ``train[10:20]``, ``train+val``, ``all``: as TensorFlow Datasets reads them.

    Percent are rounded to the nearest example (with ``(pct1_dropremainder)`` behind it, one percent is N // 100 examples),
    and a negative bound counts from the end.

    Raises:
        ConfigError: not of this form, no such split, a slice beyond its end, or slices that overlap or hold nothing.
    """
    lengths = {name: sum(shard.length for shard in shards) for name, shards in folder.splits.items()}
    parts = [part for name in text.split("+") for part in (lengths if name.strip() == "all" else [name.strip()])]
    slices: list[Slice] = []
    for part in parts:
        match = _PART.fullmatch(part)
        if not match:
            raise ConfigError(f"split {text!r}: {part!r} is not of the form train, train[:95%], train[10:20] or train+val")
        name = match["name"]
        if name not in lengths:
            raise ConfigError(f"split {text!r}: {folder.path} has no split {name!r}{did_you_mean(name, lengths)}")
        start, stop = _bounds(text, match, lengths[name])
        for other in slices:
            if other.split == name and start < other.stop and other.start < stop:
                raise ConfigError(f"split {text!r}: {part!r} names episodes that another part names too")
        slices.append(Slice(name, start, stop))
    if all(part.start >= part.stop for part in slices):
        raise ConfigError(f"split {text!r} of {folder.path} holds no episode")
    return slices


def _bounds(text: str, match: re.Match[str], length: int) -> tuple[int, int]:
    bounds = []
    for group, default in (("from", 0), ("to", length)):
        bound = (match[group] or "").strip()
        if not bound:
            bounds.append(default)
            continue
        number = _BOUND.fullmatch(bound)
        if not number or len(bound) > 12:
            raise ConfigError(f"split {text!r}: {bound!r} is neither a number of episodes nor a percentage")
        value = int(number["value"])
        if number["percent"]:
            if abs(value) > 100:
                raise ConfigError(f"split {text!r}: {bound} is more than there is")
            if match["rounding"] == "pct1_dropremainder":
                value *= length // 100
            else:
                value = round(value * length / 100)
        if abs(value) > length:
            raise ConfigError(f"split {text!r}: {bound} is beyond its {length} episodes")
        bounds.append(value + length if value < 0 else value)
    if match["rounding"] not in (None, "closest", "pct1_dropremainder"):
        raise ConfigError(f"split {text!r}: no rounding {match['rounding']!r}; known: closest, pct1_dropremainder")
    return bounds[0], bounds[1]


def _shards(folder: Path, info: Path, dataset: str, file_format: str, split: str, entry: dict[str, Any]) -> list[Shard]:
    lengths = []
    for text in _list(info, entry, "shardLengths"):
        if not (isinstance(text, (str, int)) and re.fullmatch(r"\d{1,12}", str(text))):
            raise DataError(f"{info}: split {split!r}: key 'shardLengths': {text!r} is no number of episodes")
        lengths.append(int(text))
    if len(lengths) > _MOST_SHARDS:
        raise DataError(f"{info}: split {split!r} has {len(lengths)} shards")
    if file_format != "tfrecord":
        raise DataError(f"{info}: key 'fileFormat': {file_format!r} is not read, only tfrecord")
    template = entry.get("filepathTemplate") or _TEMPLATE
    shards, first = [], 0
    for index, length in enumerate(lengths):
        fields = {
            "DATASET": dataset,
            "SPLIT": split,
            "FILEFORMAT": file_format,
            "SHARD_INDEX": f"{index:05d}",
            "NUM_SHARDS": f"{len(lengths):05d}",
            "SHARD_X_OF_Y": f"{index:05d}-of-{len(lengths):05d}",
        }
        name = str(template)
        for field, value in fields.items():
            name = name.replace(f"{{{field}}}", value)
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\0" in name or "{" in name:
            raise DataError(
                f"{info}: split {split!r}: filepathTemplate {template!r} leads to {name!r}, out of the dataset's folder"
            )
        shards.append(Shard(folder / name, split, first, length))
        first += length
    return shards


def _collect(path: Path, node: Any, name: str, in_steps: bool, found: dict[str, FeatureSpec]) -> None:
    """Add the leaves below ``node`` to ``found``; what is no tensor, image or text is passed over."""
    node = _mapping(path, name, node)
    if "featuresDict" in node:
        children = _mapping(path, name, node["featuresDict"]).get("features")
        if name.count("/") > 20:
            raise DataError(f"{path}: {name}: features within features without an end")
        for key, child in _mapping(path, name, children).items():
            _collect(path, child, f"{name}/{key}".lstrip("/"), in_steps, found)
    elif "sequence" in node:
        if name == "steps":  # other sequences have no fixed length; nothing that is known to us needs one
            _collect(path, _mapping(path, name, node["sequence"]).get("feature"), name, True, found)
    elif "image" in node:
        found[name] = FeatureSpec("image", _shape(path, name, node["image"]), "uint8", "none", in_steps)
    elif "text" in node:
        found[name] = FeatureSpec("text", (), "string", "none", in_steps)
    elif "tensor" in node:
        tensor = _mapping(path, name, node["tensor"])
        dtype, encoding = str(tensor.get("dtype")), str(tensor.get("encoding") or "none").lower()
        kind: Literal["text", "tensor"] = "text" if dtype in ("string", "object") else "tensor"
        found[name] = FeatureSpec(kind, _shape(path, name, tensor), dtype, encoding, in_steps)


def _mapping(path: Path, name: str, node: Any) -> dict[str, Any]:
    if not isinstance(node, dict):
        raise DataError(f"{path}: {name or 'the file'}: {node!r} is no description of a feature")
    return node


def _shape(path: Path, name: str, node: Any) -> tuple[int | None, ...]:
    dimensions = _mapping(path, name, _mapping(path, name, node).get("shape") or {}).get("dimensions", [])
    if not isinstance(dimensions, list) or not all(re.fullmatch(r"-1|\d{1,9}", str(n)) for n in dimensions):
        raise DataError(f"{path}: {name}: the shape {dimensions!r} is no list of sizes")
    return tuple(None if int(n) < 0 else int(n) for n in dimensions)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; an RLDS dataset has features.json and dataset_info.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: a mapping is expected")
    return value


def _list(path: Path, node: dict[str, Any], key: str) -> list[Any]:
    value = node.get(key, [])
    if not isinstance(value, list):
        raise DataError(f"{path}: key {key!r}: a list is expected")
    return value


def _version_order(folder: Path) -> tuple[list[int], str]:
    return [int(n) for n in re.findall(r"\d+", folder.name)[:4]], folder.name
