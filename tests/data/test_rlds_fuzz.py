"""Mutated files give our own errors and nothing else."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from benchmarks.rlds_writer import encode_image

from anyvla.config.sources import RLDSConfig
from anyvla.data.sources.rlds import RLDSSource
from anyvla.data.sources.rlds_steps import Plan, decode_image, make_plan, read_steps
from anyvla.data.sources.tfds import read_folder
from anyvla.data.sources.tfrecord import masked_crc32c, read_records
from anyvla.errors import ConfigError, DataError
from tests.data.rlds_made import made_steps, make_dataset

BRIDGE = "bridge_dataset"


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: cut off, flip some bytes, swap two parts, leave a part out, repeat one, put absurd numbers in."""
    changed = bytearray(data)
    first, second = sorted(rng.integers(0, len(changed), 2).tolist())
    kind = rng.integers(6)
    if kind == 0:
        del changed[first:]
    elif kind == 1:
        for position in rng.integers(0, len(changed), int(rng.integers(1, 8))).tolist():
            changed[position] = int(rng.integers(256))
    elif kind == 2:
        size = int(rng.integers(1, 50))
        changed[first : first + size], changed[second : second + size] = (
            data[second : second + size],
            data[first : first + size],
        )
    elif kind == 3:
        del changed[first : first + int(rng.integers(1, 100))]
    elif kind == 4:
        changed[first:first] = data[second : second + 100]
    else:
        absurd = (b"\xff" * 9, b"\xff\xff\xff\xff\x07", b"\x80" * 12, b"\0" * 8, struct.pack("<f", float("nan")))
        part = absurd[int(rng.integers(len(absurd)))]
        changed[first : first + len(part)] = part
    return bytes(changed)


def _read_everything(payload: bytes, plan: Plan) -> None:
    steps = read_steps(payload, plan)
    assert np.isfinite(steps.actions).all()
    assert np.isfinite(steps.state).all()
    for t, c in np.ndindex(min(2, len(steps.images)), len(plan.cameras)):
        start, stop = steps.images[t, c].tolist()
        assert 0 <= start <= stop <= len(payload)
        if steps.present[c]:
            decode_image(payload[start:stop])


def _fuzz_records(folder: Path, count: int, rng: np.random.Generator) -> int:
    """Mutate payloads, whose checksums are then right; returns how many were refused."""
    from anyvla.data.sources.oxe import layout_of

    described = read_folder(folder)
    plan = make_plan(layout_of(described.name, described), described, None, False, True)
    payloads = [payload for _, payload in read_records(next(folder.glob("*.tfrecord*"))) if isinstance(payload, bytes)]
    refused = 0
    for i in range(count):
        try:
            _read_everything(mutate(payloads[i % len(payloads)], rng), plan)
        except DataError:
            refused += 1
    return refused


def test_mutated_records_of_a_made_dataset(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, packed in ((BRIDGE, True), (BRIDGE, False), ("kuka", True), ("bc_z", True), ("language_table", True)):
        folder = make_dataset(tmp_path / f"{packed}", name, [made_steps(name, 4, seed) for seed in range(2)], packed=packed)
        assert 0 < _fuzz_records(folder, 150, rng) < 150


def test_mutated_records_of_real_episodes(sample_data: Path) -> None:
    refused = _fuzz_records(sample_data / "bridge_rlds" / "bridge_dataset" / "1.0.0", 1000, np.random.default_rng(1))
    assert 0 < refused < 1000


def _fuzz_folder(folder: Path, scratch: Path, count: int, rng: np.random.Generator) -> int:
    """Mutate one of the three files of a dataset, then open it and read frames; returns how often something was refused."""
    files = [next(folder.glob("*.tfrecord*")), folder / "features.json", folder / "dataset_info.json"]
    refused = 0
    for i in range(count):
        place = scratch / str(i)
        shutil.copytree(folder, place)
        file = files[i % 3]
        (place / file.name).chmod(0o644)
        (place / file.name).write_bytes(mutate(file.read_bytes(), rng))
        for how in ("error", "skip"):
            try:
                source = RLDSSource(RLDSConfig(path=place), None, how, None, scratch / "cache")
                for j in range(len(source)):
                    episode = source.episode(j)
                    episode.read(0, 1, episode.cameras)
                refused += bool(source.problems)
            except (DataError, ConfigError):
                refused += 1
        shutil.rmtree(place)
        shutil.rmtree(scratch / "cache", ignore_errors=True)
    return refused


def test_mutated_datasets(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, "cmu_stretch", [made_steps("cmu_stretch", 3, seed) for seed in range(2)])
    assert _fuzz_folder(folder, tmp_path / "scratch", 90, np.random.default_rng(2)) > 60


@pytest.mark.slow
def test_many_mutated_datasets(tmp_path: Path, sample_data: Path) -> None:
    made = make_dataset(tmp_path, BRIDGE, [made_steps(BRIDGE, 4, seed) for seed in range(3)])
    assert _fuzz_folder(made, tmp_path / "a", 1500, np.random.default_rng(3)) > 1000
    real = sample_data / "bridge_rlds" / "bridge_dataset" / "1.0.0"
    assert _fuzz_folder(real, tmp_path / "b", 500, np.random.default_rng(4)) > 400


def test_mutated_images() -> None:
    rng = np.random.default_rng(5)
    image = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    refused = 0
    for kind in ("PNG", "JPEG"):
        encoded = encode_image(image, kind)
        for _ in range(500):
            try:
                assert decode_image(mutate(encoded, rng)).shape[2] == 3
            except DataError:
                refused += 1
    assert 100 < refused < 1000


def test_forged_values_in_the_json_files(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, BRIDGE, [made_steps(BRIDGE, 4)])
    forged = [None, -1, 0, 2**70, "", "x", "-1", "..", [], {}, [[]], {"a": 1}, True, 1.5, "9" * 30]
    for name in ("features.json", "dataset_info.json"):
        text = (folder / name).read_text()
        for path in _paths(json.loads(text)):
            for value in forged:
                tree = json.loads(text)
                node = tree
                for key in path[:-1]:
                    node = node[key]
                node[path[-1]] = value
                (folder / name).write_text(json.dumps(tree))
                try:
                    described = read_folder(folder)
                    make_plan(_layout(), described, None, False, True)
                except (DataError, ConfigError):
                    pass
                else:
                    assert all(shard.path.is_relative_to(folder) for shards in described.splits.values() for shard in shards)
        (folder / name).write_text(text)


def _layout():
    from anyvla.data.sources.oxe import LAYOUTS

    return LAYOUTS[BRIDGE]


def _paths(node: object, path: tuple = ()) -> list[tuple]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [found for key, child in items for found in [(*path, key), *_paths(child, (*path, key))]]


def test_a_record_with_a_right_checksum_and_absurd_numbers(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, BRIDGE, [made_steps(BRIDGE, 4)])
    shard = next(folder.glob("*.tfrecord*"))
    for length in (0, 1, 2**31 + 1, 2**63, 2**64 - 1):
        head = struct.pack("<Q", length)
        shard.write_bytes(head + struct.pack("<I", masked_crc32c(head)) + b"\0" * 100)
        with pytest.raises(DataError):
            RLDSSource(RLDSConfig(path=folder), cache=tmp_path / "cache")
