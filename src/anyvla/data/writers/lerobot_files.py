"""From finished episodes to the files of a LeRobotDataset v3.0.

An episode is finished when its folder ``.journal/<index>`` has its name:

    episode.json      its row of the table of episodes, without where its frames will be
    frames.parquet    its rows, as they will be
    <feature>.mp4     its frames, for each camera that is stored as a video

``pack`` makes one data file, one video per camera and one file of episode rows of all that wait there. The rows come last:
an episode that they name is complete, and a folder in the journal of an episode that they name is left from an interruption.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.data.sources.lerobot_meta import JOURNAL, OWN_KEY, load_pyarrow, read_parquet
from anyvla.data.video import join_videos
from anyvla.data.writers.files import replacing
from anyvla.data.writers.lerobot_layout import (
    DATA_PATH,
    EPISODES_PATH,
    FILES_PER_CHUNK,
    IMAGES,
    VIDEO_PATH,
    Layout,
)
from anyvla.data.writers.lerobot_stats import column_statistics, pixel_statistics
from anyvla.errors import DataError

_HISTOGRAM = f"{OWN_KEY}/histogram/"


@dataclass
class Stored:
    """What the table of episodes and the journal say."""

    packed: int  # episodes in the data files
    waiting: list[Path]  # folders of finished episodes in the journal
    frames: int
    names: set[str]
    tasks: dict[str, int]
    next_file: int  # 0, 1, ... through all chunks

    def __len__(self) -> int:
        return self.packed + len(self.waiting)


def recover(root: Path) -> Stored:
    """What is whole in ``root``; removes the rest from its journal. Raises DataError where an episode is missing."""
    found = Stored(0, [], 0, set(), {}, 0)
    for chunk, file, table in _episode_tables(root, ["length", f"{OWN_KEY}/name"]):
        found.packed += len(table)
        found.frames += sum(table["length"].to_pylist())
        found.names |= set(table[f"{OWN_KEY}/name"].to_pylist())
        found.next_file = chunk * FILES_PER_CHUNK + file + 1
    tasks = root / "meta" / "tasks.parquet"
    if tasks.exists():
        rows = read_parquet(tasks).to_pydict()
        found.tasks = dict(zip(rows["task"], rows["task_index"], strict=True))
    journal = root / JOURNAL
    for folder in sorted(journal.glob("*")):
        if not folder.name.isdigit() or int(folder.name) < found.packed:
            shutil.rmtree(folder)
            continue
        if int(folder.name) != len(found):
            raise DataError(f"{journal}: episode {len(found)} is missing, but {folder.name} is there")
        row = _row(folder)
        found.waiting.append(folder)
        found.frames += row["length"]
        found.names.add(row[f"{OWN_KEY}/name"])
        for task in row["tasks"]:
            found.tasks.setdefault(task, len(found.tasks))
    return found


def pack(root: Path, layout: Layout, stored: Stored) -> None:
    """Move the episodes that wait in the journal into new files, and note it in ``stored``."""
    pa, pq = load_pyarrow()
    if not stored.waiting:
        return
    place = dict(zip(("chunk_index", "file_index"), divmod(stored.next_file, FILES_PER_CHUNK), strict=True))
    rows = [_row(folder) for folder in stored.waiting]
    with replacing(root / DATA_PATH.format(**place)) as path, frames_writer(path, layout) as writer:
        for folder in stored.waiting:
            table = read_parquet(folder / "frames.parquet")
            writer.write_table(table, row_group_size=len(table))
    lengths = [row["length"] for row in rows]
    for key in layout.videos.values():
        with replacing(root / VIDEO_PATH.format(video_key=key, **place)) as path:
            join_videos([folder / f"{key}.mp4" for folder in stored.waiting], lengths, layout.fps, path)
    write_tasks(root, stored.tasks)
    ends = np.cumsum(lengths)
    for row, end in zip(rows, ends.tolist(), strict=True):
        row |= {f"data/{name}": value for name, value in place.items()}
        row |= {f"meta/episodes/{name}": value for name, value in place.items()}
        for key in layout.videos.values():
            row |= {f"videos/{key}/{name}": value for name, value in place.items()}
            row[f"videos/{key}/from_timestamp"] = (end - row["length"]) / layout.fps
            row[f"videos/{key}/to_timestamp"] = end / layout.fps
    with replacing(root / EPISODES_PATH.format(**place)) as path:
        pq.write_table(pa.Table.from_pylist(rows), path, compression="snappy")
    for folder in stored.waiting:
        shutil.rmtree(folder)
    stored.packed += len(rows)
    stored.waiting = []
    stored.next_file += 1


def frames_writer(path: Path, layout: Layout) -> Any:
    """A Parquet writer of frames. Encoded images are not compressed any further, and every page has a checksum."""
    _, pq = load_pyarrow()
    return pq.ParquetWriter(
        path,
        layout.schema(),
        compression="snappy",
        use_dictionary=False,
        write_statistics=["episode_index", "frame_index", "index", "task_index", "timestamp"],
        write_page_checksum=True,
    )


def write_tasks(root: Path, tasks: dict[str, int]) -> None:
    """``tasks.parquet``: every sentence and its index. Pandas, which others read it with, must index rows by the sentence."""
    pa, pq = load_pyarrow()
    columns = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
        {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
    ]
    about = {"index_columns": ["task"], "column_indexes": [], "columns": columns, "pandas_version": "2.0.0"}
    fields = [pa.field("task_index", pa.int64()), pa.field("task", pa.string())]
    schema = pa.schema(fields, metadata={"pandas": json.dumps(about)})
    with replacing(root / "meta" / "tasks.parquet") as path:
        pq.write_table(
            pa.table([pa.array(tasks.values(), pa.int64()), pa.array(tasks.keys(), pa.string())], schema=schema), path
        )


def dataset_statistics(root: Path, layout: Layout) -> dict[str, Any]:
    """The content of ``stats.json``: of all frames of all packed episodes, quantiles included."""
    tables = list(_episode_tables(root))
    found: dict[str, Any] = {}
    for key, feature in layout.features().items():
        if key.startswith(IMAGES):
            counts = [np.array(row) for _, _, table in tables for row in table[_HISTOGRAM + key].to_pylist()]
            frames = sum(length for _, _, table in tables for length in table["length"].to_pylist())
            found[key] = pixel_statistics(sum(counts, np.zeros(3 * 256, np.int64)).reshape(3, 256), frames)
        else:
            files = [root / DATA_PATH.format(chunk_index=chunk, file_index=file) for chunk, file, _ in tables]
            found[key] = column_statistics(np.concatenate([_column(read_parquet(path, [key])[key], feature) for path in files]))
    return found


def _column(column: Any, feature: dict[str, Any]) -> np.ndarray:
    """(T,) or (T, D) numbers of a column without nulls."""
    values = column.combine_chunks()
    return (values if feature["shape"] == [1] else values.flatten()).to_numpy().reshape(len(column), *feature["shape"])


def episode_row(
    index: int, name: str, task: str, sentence: str, columns: dict[str, np.ndarray], histograms: dict[str, np.ndarray]
) -> dict[str, Any]:
    """One episode's row, without where its frames are. columns: feature -> (T,) or (T, D); histograms: feature -> (3, 256)."""
    frames = columns["index"]
    statistics: dict[str, Any] = {key: column_statistics(values) for key, values in columns.items()}
    statistics |= {key: pixel_statistics(counts, len(frames)) for key, counts in histograms.items()}
    return {
        "episode_index": index,
        "tasks": [sentence],
        "length": len(frames),
        "dataset_from_index": int(frames[0]),
        "dataset_to_index": int(frames[-1]) + 1,
        f"{OWN_KEY}/name": name,
        f"{OWN_KEY}/task": task,
        **{_HISTOGRAM + key: counts.ravel().tolist() for key, counts in histograms.items()},
        **{f"stats/{key}/{kind}": value for key, kinds in statistics.items() for kind, value in kinds.items()},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


def _row(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((folder / "episode.json").read_text())
    return row


def _episode_tables(root: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, int, Any]]:
    """Chunk, file and rows of every file of the table of episodes, in order."""
    for path in sorted((root / "meta" / "episodes").glob("chunk-*/file-*.parquet")):
        yield int(path.parent.name.removeprefix("chunk-")), int(path.stem.removeprefix("file-")), read_parquet(path, columns)
