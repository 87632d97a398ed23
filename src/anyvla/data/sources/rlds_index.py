"""The index of the shards of an RLDS dataset: made once, in parallel, and memory-mapped from then on.

    <cache>/index/<digest>/
        index.json      what it is made of (names, sizes and times of the shards), sentences, problems; written last
        episodes.npy    (E,) shard, number, place and checksum of each record, its rows, its cameras, its sentence
        actions.npy     (rows, 7) float32
        state.npy       (rows, S) float32
        images.npy      (rows, cameras, 2) uint32: start and stop of each image in its record
        parts/          shards that are done, while the index is being made

About 28 + 4 S + 8 bytes a camera for each step: a million steps take some 80 MB of disk, and of memory only what is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from anyvla.data.episode import Problem
from anyvla.data.sources.rlds_steps import Plan, read_steps
from anyvla.data.sources.tfds import Shard
from anyvla.data.sources.tfrecord import read_records
from anyvla.errors import DataError
from anyvla.processes import interrupts_held, leave_interrupts_to_the_main_process, locked
from anyvla.progress import progress_bar

_VERSION = 1  # of the layout of the index and of what is computed for it; a change makes old ones unused
_SMALL = 2**26  # bytes of shards below which starting processes takes longer than reading
_EPISODE = np.dtype(
    [
        ("shard", "<i4"),
        ("number", "<i4"),  # in the shard
        ("offset", "<i8"),
        ("length", "<i8"),  # in bytes
        ("checksum", "<u4"),
        ("first", "<i8"),  # row
        ("steps", "<i4"),
        ("cameras", "<u8"),  # one bit each
        ("sentence", "<i4"),
    ]
)
_ARRAYS = ("actions", "state", "images")


@dataclass(frozen=True)
class Index:
    """All episodes of some shards, in their order."""

    episodes: np.ndarray  # (E,) of _EPISODE
    actions: np.ndarray  # (rows, 7) float32
    state: np.ndarray  # (rows, S) float32
    images: np.ndarray  # (rows, cameras, 2) uint32
    sentences: list[str]
    problems: list[Problem]
    stamps: list[tuple[int, int]]  # of each shard: its size, and the time of its last change in ns


def open_index(folder: Path, shards: Sequence[Shard], plan: Plan, checksum: bool, cache: Path) -> Index:
    """The index of ``shards``, made first where it is not there or the files have changed.

    Args:
        folder: of the version. checksum: check the payload of every record. cache: folder of all caches.

    Raises:
        DataError: a shard is not there (see ``Index.problems`` for damaged ones), or the cache cannot be written.
    """
    identity = {
        "version": _VERSION,
        "folder": str(folder.resolve()),
        "shards": [[shard.path.name, shard.first, shard.length] for shard in shards],
        "plan": repr(plan),
        "checksum": checksum,
    }
    place = cache / "index" / hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]
    stamps = [_stamp(shard) for shard in shards]
    try:
        place.mkdir(parents=True, exist_ok=True)
        with locked(place / "lock"):  # another process may be making the same one
            index = _read(place, stamps)
            if index is None:
                (place / "index.json").unlink(missing_ok=True)
                counts = _index_all(place / "parts", shards, stamps, plan, checksum)
                _merge(place, shards, stamps, counts)
                index = _read(place, stamps)
    except OSError as error:
        raise DataError(f"{place}: the index cannot be written ({error}); set data.cache to another folder") from error
    if index is None:
        raise DataError(f"{place}: the index cannot be read back; remove the folder")
    return index


def _stamp(shard: Shard) -> tuple[int, int]:
    try:
        stat = shard.path.stat()
    except OSError:
        return (-1, -1)  # indexing says what is the matter
    return stat.st_size, stat.st_mtime_ns


def _read(place: Path, stamps: list[tuple[int, int]]) -> Index | None:
    """The index at ``place`` if it is whole and of these files."""
    try:
        about = json.loads((place / "index.json").read_text())
        if about["stamps"] != [list(stamp) for stamp in stamps]:
            return None
        arrays = {
            name: np.asarray(np.load(place / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            for name in ("episodes", *_ARRAYS)
        }
        problems = [Problem(**problem) for problem in about["problems"]]
        index = Index(**arrays, sentences=about["sentences"], problems=problems, stamps=stamps)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    rows = int(index.episodes["steps"].sum())
    return index if all(len(arrays[name]) == rows for name in _ARRAYS) else None


def _index_all(
    parts: Path, shards: Sequence[Shard], stamps: list[tuple[int, int]], plan: Plan, checksum: bool
) -> list[dict[str, Any]]:
    """Index every shard that is not done yet; returns what ``_part`` says of each."""
    parts.mkdir(exist_ok=True)
    done = {i: about for i in range(len(shards)) if (about := _done(parts / f"{i}.npz", stamps[i])) is not None}
    left = [i for i in range(len(shards)) if i not in done]
    size = sum(max(stamps[i][0], 0) for i in left)
    processes = min(os.cpu_count() or 1, len(left))
    with progress_bar("index shards", len(shards), len(done), shown=size > _SMALL) as bar:
        if processes <= 1 or size < _SMALL:
            for i in left:
                done[i] = _index_shard(parts / f"{i}.npz", shards[i], stamps[i], plan, checksum)
                bar.advance()
        else:
            pool = ProcessPoolExecutor(processes, get_context("spawn"), leave_interrupts_to_the_main_process)
            try:
                with interrupts_held():
                    arguments = ((parts / f"{i}.npz", shards[i], stamps[i], plan, checksum) for i in left)
                    waiting = {pool.submit(_index_shard, *argument): i for i, argument in zip(left, arguments, strict=True)}
                for future in as_completed(waiting):
                    done[waiting[future]] = future.result()
                    bar.advance()
            except BrokenProcessPool as error:
                raise DataError("an indexing process died, perhaps for lack of memory; what was indexed is kept") from error
            finally:
                pool.shutdown(cancel_futures=True)
    return [done[i] for i in range(len(shards))]


def _index_shard(part: Path, shard: Shard, stamp: tuple[int, int], plan: Plan, checksum: bool) -> dict[str, Any]:
    """Write the arrays of one shard to ``part``; returns its counts, sentences and problems."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in _ARRAYS}
    episodes: list[tuple[int, ...]] = []
    sentences: dict[str, int] = {}
    problems: list[Problem] = []
    first = number = 0
    try:
        if shard.length and stamp[0] < 0:
            raise DataError(f"{shard.path}: no such file, although dataset_info.json names it")
        for record, payload in read_records(shard.path, checksum=checksum) if stamp[0] >= 0 else ():
            number = record.number + 1
            if number > shard.length:
                raise DataError(f"{shard.path}: has more than the {shard.length} episodes of dataset_info.json")
            try:
                if isinstance(payload, DataError):
                    raise payload
                steps = read_steps(payload, plan)
            except DataError as error:
                where = "" if error is payload else f"{shard.path}: record {record.number}: "
                problems.append(Problem(f"{shard.split}/{shard.first + record.number}", f"{where}{error}"))
                continue
            cameras = sum(1 << i for i, there in enumerate(steps.present) if there)
            sentence = sentences.setdefault(steps.instruction, len(sentences))
            place = (0, record.number, record.offset, record.length, record.checksum)
            episodes.append((*place, first, len(steps.actions), cameras, sentence))
            for name in _ARRAYS:
                rows[name].append(getattr(steps, name))
            first += len(steps.actions)
        if number < shard.length:
            raise DataError(f"{shard.path}: has {number} of the {shard.length} episodes of dataset_info.json")
    except DataError as error:
        problems.append(Problem(f"{shard.split}/{shard.first + number}-{shard.first + shard.length - 1}", str(error)))
    about = {
        "stamp": list(stamp),
        "rows": first,
        "episodes": len(episodes),
        "sentences": list(sentences),
        "problems": [asdict(problem) for problem in problems],
    }
    arrays = {
        "episodes": np.array(episodes, dtype=_EPISODE),
        "actions": np.concatenate([np.empty((0, 7), np.float32), *rows["actions"]]),
        "state": np.concatenate([np.empty((0, len(plan.state_names)), np.float32), *rows["state"]]),
        "images": np.concatenate([np.empty((0, len(plan.cameras), 2), np.int64), *rows["images"]]).astype(np.uint32),
    }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    partial = part.with_suffix(".partial.npz")
    np.savez(partial, allow_pickle=False, **arrays)
    os.replace(partial, part)
    return about


def _done(part: Path, stamp: tuple[int, int]) -> dict[str, Any] | None:
    """What an earlier, interrupted run found in a shard that has not changed since."""
    try:
        with part.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            about: dict[str, Any] = json.loads(stored["about"].tobytes())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return about if about["stamp"] == list(stamp) else None


def _merge(place: Path, shards: Sequence[Shard], stamps: list[tuple[int, int]], counts: list[dict[str, Any]]) -> None:
    """Put the parts behind each other, one at a time, and then say that the index is whole."""
    sentences: dict[str, int] = {}
    rows, total = 0, sum(about["rows"] for about in counts)
    episodes = []
    files: dict[str, np.memmap] = {}
    for i, about in enumerate(counts):
        with np.load(place / "parts" / f"{i}.npz", allow_pickle=False) as part:
            found = part["episodes"]
            translated = np.array([sentences.setdefault(text, len(sentences)) for text in about["sentences"]], dtype=np.int32)
            if len(found):
                found["shard"], found["first"] = i, found["first"] + rows
                found["sentence"] = translated[found["sentence"]]
            episodes.append(found)
            for name in _ARRAYS:
                values = part[name]
                if name not in files:
                    shape = (total, *values.shape[1:])
                    files[name] = np.lib.format.open_memmap(place / f"{name}.npy.partial", "w+", values.dtype, shape)
                files[name][rows : rows + len(values)] = values
        rows += about["rows"]
    for array in files.values():
        array.flush()
    with (place / "episodes.npy.partial").open("wb") as file:
        np.save(file, np.concatenate(episodes), allow_pickle=False)
    for name in ("episodes", *_ARRAYS):
        os.replace(place / f"{name}.npy.partial", place / f"{name}.npy")  # whoever has mapped the old one keeps it
    about = {"stamps": stamps, "sentences": list(sentences), "problems": [p for about in counts for p in about["problems"]]}
    partial = place / "index.json.partial"
    partial.write_text(json.dumps(about))
    os.replace(partial, place / "index.json")
    shutil.rmtree(place / "parts")
