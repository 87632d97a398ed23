"""Mutated LeRobotDatasets: whatever is in the files, reading them works or raises our own errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from anyvla.data.sources.lerobot import LeRobotSource
from anyvla.errors import ConfigError, DataError
from tests.data.lerobot_folders import make_episode, write_v3, write_v21

EPISODES = [make_episode(i, 4 + i, size=(16, 16)) for i in range(2)]


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut, flip, fill, swap, repeat or remove some bytes."""
    data = bytearray(content)
    kind = rng.integers(6)
    low, high = sorted(rng.integers(0, len(data), 2).tolist())
    high = min(high, low + int(rng.integers(1, 64))) + 1
    if kind == 0:
        return bytes(data[:low])
    if kind == 1:
        for at in rng.integers(0, len(data), rng.integers(1, 8)).tolist():
            data[at] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        data[low:high] = bytes([int(rng.choice([0, 255, 127, 128]))]) * (high - low)
    elif kind == 3:
        data[low:high] = data[low:high][::-1]
    elif kind == 4:
        data[low:high] = data[low:high] * 2
    else:
        del data[low:high]
    return bytes(data)


def mutate_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Put something absurd in the place of one value, wherever it is; sometimes also damage the text."""
    lines = content.decode().splitlines() if content.count(b"\n{") else [content.decode()]
    at = int(rng.integers(len(lines)))
    value = json.loads(lines[at])
    absurd = [None, -1, 0, 2**70, 1e308, "", "../..", "{x}", "/etc", [], {}, [[]], True, [2**40], "video", "image", "string"]
    holder = value
    while isinstance(holder, dict | list) and holder:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = keys[int(rng.integers(len(keys)))]
        if not isinstance(holder[key], dict | list) or not holder[key] or rng.random() < 0.3:
            holder[key] = absurd[int(rng.integers(len(absurd)))]
            break
        holder = holder[key]
    lines[at] = json.dumps(value)
    changed = "\n".join(lines).encode()
    return mutate(changed, rng) if rng.random() < 0.1 else changed


def fuzz(original: Path, scratch: Path, pattern: str, count: int, seed: int) -> int:
    """Read ``count`` datasets with a mutated file each; returns how many of them were refused."""
    rng = np.random.default_rng(seed)
    paths = sorted(path for path in original.glob(pattern) if path.is_file())
    shutil.copytree(original, scratch)
    refused = 0
    for _ in range(count):
        path = paths[int(rng.integers(len(paths)))]
        content = path.read_bytes()
        target = scratch / path.relative_to(original)
        target.write_bytes((mutate_json if path.suffix in (".json", ".jsonl") else mutate)(content, rng))
        try:
            source = LeRobotSource(scratch, cache=scratch.parent / "cache")
            for i in range(len(source)):
                episode = source.episode(i)
                frames = episode.read(0, episode.length, source.cameras)
                assert all(len(images) == episode.length for images in frames.values())
                assert np.isfinite(episode.actions).all()
        except (DataError, ConfigError):
            refused += 1
        finally:
            target.write_bytes(content)
    return refused


@pytest.mark.parametrize("pattern", ["data/**/*", "meta/**/*.parquet", "**/*.mp4", "meta/info.json"])
def test_mutated_files_of_v3(tmp_path: Path, pattern: str) -> None:
    original = write_v3(tmp_path / "original", EPISODES)
    assert fuzz(original, tmp_path / "copy", pattern, 60, seed=0) > 6


def test_mutated_files_of_v21(tmp_path: Path) -> None:
    original = write_v21(tmp_path / "original", EPISODES)
    assert fuzz(original, tmp_path / "copy", "meta/*", 60, seed=1) > 6


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["data/**/*", "meta/**/*.parquet", "**/*.mp4", "meta/info.json"])
@pytest.mark.parametrize("codec", ["av1", "h264"])
def test_many_mutated_files(tmp_path: Path, pattern: str, codec: str) -> None:
    original = write_v3(tmp_path / "original", EPISODES, codec=codec)
    fuzz(original, tmp_path / "copy", pattern, 1000, seed=2)
