"""The metadata of a LeRobotDataset, v3.0 and v2.x, in one form: what its features are, and where each episode lies.

    v3.0   meta/info.json, meta/tasks.parquet, meta/episodes/*/*.parquet: many episodes in a file, which the rows say
    v2.x   meta/info.json, meta/tasks.jsonl, meta/episodes.jsonl: one data file, and one video per camera, an episode

Nothing in these files is trusted: paths stay in the folder, and every number is checked before it is used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from anyvla.actions.spec import ActionSpec
from anyvla.errors import ConfigError, DataError, MissingExtraError

OWN_KEY = "anyvla"  # what LeRobotWriter keeps beside the format
JOURNAL = ".journal"  # where LeRobotWriter finishes episodes
ACTION, STATE = "action", "observation.state"
_FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")


@dataclass(frozen=True)
class Places:
    """In which file each of E episodes is, and from when on."""

    paths: list[str]  # relative to the folder
    file: np.ndarray  # (E,) int64, into paths
    start: np.ndarray  # (E,) float64 seconds; 0 for data files


@dataclass(frozen=True)
class Meta:
    """Everything that is known of E episodes without opening their data."""

    root: Path
    fps: float
    features: dict[str, dict[str, Any]]
    spec: ActionSpec | None  # where LeRobotWriter left it
    splits: dict[str, str]
    tasks: dict[int, str]
    index: np.ndarray  # (E,) int64 number of the episode
    length: np.ndarray  # (E,) int64
    data: Places
    videos: dict[str, Places]  # feature -> places
    names: list[str]
    task_names: list[str]

    def feature_names(self, key: str) -> list[str]:
        """A name for each number of a feature: its own, or such as ``action_0``."""
        feature = self.features[key]
        count = feature["shape"][0]
        names = feature.get("names")
        if isinstance(names, dict):  # such as {"motors": [...]}
            names = [name for group in names.values() for name in (group if isinstance(group, list) else [group])]
        if isinstance(names, list) and len(names) == count and len(set(map(str, names))) == count:
            return [str(name) for name in names]
        return [f"{key.rsplit('.', 1)[-1]}_{i}" for i in range(count)]


def load_pyarrow() -> tuple[Any, Any]:
    """The modules ``pyarrow`` and ``pyarrow.parquet``; raises MissingExtraError where they are not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "lerobot") from error
    return pyarrow, pyarrow.parquet


def read_meta(root: Path) -> Meta:
    """The metadata of the dataset in ``root``. Raises DataError, naming the file and the key."""
    path = root / "meta" / "info.json"
    info = _mapping(path, _json(path))
    version = str(info.get("codebase_version"))
    fps = info.get("fps")
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not (math.isfinite(fps) and fps > 0):
        raise DataError(f"{path}: 'fps' is {fps!r}, not a positive number")
    features = {str(key): _feature(path, key, value) for key, value in _mapping(path, info.get("features"), "features").items()}
    if ACTION not in features or len(features[ACTION]["shape"]) != 1:
        raise DataError(f"{path}: 'features' has no {ACTION!r} of one dimension; there are {', '.join(features)}")
    videos = [key for key, feature in features.items() if feature["dtype"] == "video"]
    if version.startswith("v3."):
        tasks, columns = _read_v3(root, path, info, videos)
    elif version.startswith("v2."):
        tasks, columns = _read_v2(root, path, info, videos)
    else:
        raise DataError(f"{path}: 'codebase_version' is {version}; v3.0 and v2.x can be read")
    index, length = columns["index"], columns["length"]
    if len(index) == 0:
        raise DataError(f"{root}: the dataset has no episodes")
    if len(np.unique(index)) != len(index) or index.min() < 0 or length.min() < 1:
        raise DataError(f"{root / 'meta'}: episodes must have different numbers, from 0 on, and at least one frame each")
    return Meta(
        root=root,
        fps=float(fps),
        features=features,
        spec=_own_spec(path, info),
        splits={str(k): str(v) for k, v in info["splits"].items()} if isinstance(info.get("splits"), dict) else {},
        tasks=tasks,
        **columns,
    )


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> Any:
    """A table of a Parquet file, with checksums verified where the file has them.

    Raises DataError: the file is missing or damaged, or has no such column.
    """
    pa, pq = load_pyarrow()
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            there = file.schema_arrow.names
            missing = [column for column in columns or () if column not in there]
            if missing:
                raise DataError(f"{path}: no column {missing[0]!r}; there are {', '.join(there[:20])}")
            table = file.read(columns)
            table.validate(full=True)
            return table
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error


def numbers(path: Path, table: Any, column: str, width: int | None = None) -> np.ndarray:
    """A column of numbers as (T,), or of lists of ``width`` numbers as (T, width). Raises DataError for anything else."""
    pa, _ = load_pyarrow()
    import pyarrow.compute as pc

    values = table[column]
    kind = values.type
    if width is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        lengths = pc.min_max(pc.list_value_length(values)).as_py()
        if len(values) and set(lengths.values()) != {width}:
            raise DataError(f"{path}: column {column!r}: lists of {lengths['min']} to {lengths['max']} numbers, not of {width}")
        if values.null_count:
            raise DataError(f"{path}: column {column!r}: a frame has no value")
        flat = pc.list_flatten(values)
    elif width in (None, 1):
        flat = values
    else:
        raise DataError(f"{path}: column {column!r}: {kind}, not lists of {width} numbers")
    scalar = flat.type
    if not (pa.types.is_floating(scalar) or pa.types.is_integer(scalar) or pa.types.is_boolean(scalar)) or flat.null_count:
        raise DataError(f"{path}: column {column!r}: {kind} with {flat.null_count} nulls, not numbers alone")
    found: np.ndarray = flat.to_numpy(zero_copy_only=False) if isinstance(flat, pa.Array) else flat.to_numpy()
    return found if width is None else found.reshape(-1, width)


def _read_v3(root: Path, info_path: Path, info: dict[str, Any], videos: list[str]) -> tuple[dict[int, str], dict[str, Any]]:
    tasks_path = root / "meta" / "tasks.parquet"
    table = read_parquet(tasks_path)
    column = next((name for name in ("task", "__index_level_0__") if name in table.column_names), None)
    if column is None or "task_index" not in table.column_names:
        raise DataError(f"{tasks_path}: needs the columns 'task_index' and 'task'; there are {', '.join(table.column_names)}")
    sentences = map(str, table[column].to_pylist())
    tasks = dict(zip(numbers(tasks_path, table, "task_index").tolist(), sentences, strict=True))

    paths = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise DataError(f"{root / 'meta' / 'episodes'}: no table of episodes (*/*.parquet)")
    where = [f"videos/{key}/{name}" for key in videos for name in ("chunk_index", "file_index", "from_timestamp")]
    needed = ["episode_index", "length", "data/chunk_index", "data/file_index", *where]
    parts = []
    texts: dict[str, list[str]] = {"name": [], "task": []}
    for path in paths:
        table = read_parquet(path)
        missing = [name for name in needed if name not in table.column_names]
        if missing:
            raise DataError(f"{path}: no column {missing[0]!r}")
        parts.append({name: numbers(path, table, name) for name in needed})
        for kind, values in texts.items():
            own = f"{OWN_KEY}/{kind}"
            values += map(str, table[own].to_pylist()) if own in table.column_names else [""] * len(table)
    column_of = {name: np.concatenate([part[name] for part in parts]) for name in needed}
    index = column_of["episode_index"].astype(np.int64)
    template = {"data": info.get("data_path"), "video": info.get("video_path")}

    def places(prefix: str, template: Any, start: np.ndarray, **fixed: str) -> Places:
        numbered = np.stack([column_of[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")], 1).astype(np.int64)
        different, file = np.unique(numbered, axis=0, return_inverse=True)
        relative = [
            fill_path(info_path, template, {"chunk_index": chunk, "file_index": number, **fixed})
            for chunk, number in different.tolist()
        ]
        return Places(relative, file.reshape(-1), start)

    names = [name or f"episode_{i:06d}" for name, i in zip(texts["name"], index.tolist(), strict=True)]
    return tasks, {
        "index": index,
        "length": column_of["length"].astype(np.int64),
        "data": places("data", template["data"], np.zeros(len(index))),
        "videos": {
            key: places(
                f"videos/{key}", template["video"], column_of[f"videos/{key}/from_timestamp"].astype(np.float64), video_key=key
            )
            for key in videos
        },
        "names": _unique(names, index),
        "task_names": texts["task"],
    }


def _read_v2(root: Path, info_path: Path, info: dict[str, Any], videos: list[str]) -> tuple[dict[int, str], dict[str, Any]]:
    tasks = {
        _integer(path, row, "task_index"): str(row.get("task")) for path, row in _json_lines(root / "meta" / "tasks.jsonl")
    }
    rows = [
        (_integer(path, row, "episode_index"), _integer(path, row, "length"))
        for path, row in _json_lines(root / "meta" / "episodes.jsonl")
    ]
    chunk_size = _integer(info_path, info, "chunks_size")
    if chunk_size < 1:
        raise DataError(f"{info_path}: 'chunks_size' is {chunk_size}")
    count = len(rows)

    def places(template: Any, **fixed: str) -> Places:
        relative = [
            fill_path(info_path, template, {"episode_chunk": index // chunk_size, "episode_index": index, **fixed})
            for index, _ in rows
        ]
        return Places(relative, np.arange(count), np.zeros(count))

    index = np.array([index for index, _ in rows], dtype=np.int64)
    return tasks, {
        "index": index,
        "length": np.array([length for _, length in rows], dtype=np.int64),
        "data": places(info.get("data_path")),
        "videos": {key: places(info.get("video_path"), video_key=key) for key in videos},
        "names": [f"episode_{i:06d}" for i in index.tolist()],
        "task_names": [""] * count,
    }


def fill_path(where: Path, template: Any, values: dict[str, int | str]) -> str:
    """A path template such as ``data/chunk-{chunk_index:03d}/...`` with its fields filled in.

    Raises DataError for other fields or formats, and where the path would leave the folder.
    """
    if not isinstance(template, str):
        raise DataError(f"{where}: a path of data or video files is {template!r}")

    def field(match: re.Match[str]) -> str:
        value = values.get(match[1])
        if value is None or (match[2] and not isinstance(value, int)):
            raise DataError(f"{where}: the path {template!r} has the unknown field {match[0]}")
        return f"{value:0{match[2] or 0}d}" if isinstance(value, int) else value

    path = _FIELD.sub(field, template)
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or any(c in path for c in "\\\0{}"):
        raise DataError(f"{where}: the path {path!r} leaves the dataset's folder, or is none")
    return path


def _feature(path: Path, key: str, value: Any) -> dict[str, Any]:
    feature = _mapping(path, value, f"features.{key}")
    shape, dtype = feature.get("shape"), feature.get("dtype")
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise DataError(f"{path}: feature {key!r} needs a dtype and a shape, not {dtype!r} and {shape!r}")
    if not all(isinstance(n, int) and 0 < n < 2**24 for n in shape):
        raise DataError(f"{path}: feature {key!r}: shape {shape!r}")
    return feature


def _own_spec(path: Path, info: dict[str, Any]) -> ActionSpec | None:
    own = info.get(OWN_KEY)
    if not isinstance(own, dict) or "action_spec" not in own:
        return None
    try:
        return ActionSpec.from_dict(own["action_spec"])
    except ConfigError as error:
        raise DataError(f"{path}: key {OWN_KEY!r}: {error}") from error


def _unique(names: list[str], index: np.ndarray) -> list[str]:
    """Merged datasets may have a name twice: then the number of the episode makes the difference."""
    if len(set(names)) == len(names):
        return names
    return [f"{name}#{i}" for name, i in zip(names, index.tolist(), strict=True)]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from error


def _json_lines(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as lines of JSON ({error})") from error
    for row in rows:
        yield path, _mapping(path, row)


def _mapping(path: Path, value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{path}: {repr(key) + ' is' if key else 'holds'} {str(value)[:80]!r}, not a mapping")
    return value


def _integer(path: Path, row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**48:
        raise DataError(f"{path}: {key!r} is {value!r}, not a number from 0 on")
    return value
