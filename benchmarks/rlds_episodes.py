"""RLDS: episodes per second beside the plain way, and the index of a million steps.

    python benchmarks/rlds_episodes.py [--steps 1000000] [--episodes 200]

The plain way is what one writes without an index: go through the records from the first one, parse the whole Example (every
value of every feature becomes a Python or NumPy object), and decode all images of the episode to take a window of it. Once with
the places of the records already known, and once without. TensorFlow is not installed here. All give the same pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rlds_writer import Values, encode_example, encode_image, write_dataset

from anyvla.config.sources import RLDSConfig
from anyvla.data.sources.rlds import RLDSSource
from anyvla.data.sources.tf_example import Feature, byte_strings, floats, integers, locate_features

WINDOW, STEPS = 8, 40
FEATURES: dict[str, tuple[Any, ...]] = {
    "steps/action": ("tensor", "float32", (7,)),
    "steps/observation/state": ("tensor", "float32", (7,)),
    "steps/language_instruction": ("text",),
    "steps/is_first": ("tensor", "bool", ()),
    "steps/language_embedding": ("tensor", "float32", (512,)),
}


def make(folder: Path, episodes: int, steps: int, size: int, cameras: int, shards: int, embedding: bool) -> Path:
    """Episodes as Bridge's; the images of all of them are the same few."""
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 256, (size // 8, size // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    pictures = [encode_image(np.roll(image, 8 * i, axis=1), "JPEG") for i in range(4)]
    features = {name: feature for name, feature in FEATURES.items() if embedding or "embedding" not in name}
    features |= {f"steps/observation/image_{i}": ("image", (size, size, 3)) for i in range(cameras)}

    def episode(number: int) -> bytes:
        values: dict[str, Values] = {
            "steps/action": rng.uniform(-0.05, 0.05, (steps, 7)),
            "steps/observation/state": rng.uniform(-1, 1, (steps, 7)),
            "steps/language_instruction": [b"put the carrot on plate %d" % (number % 100)] * steps,
            "steps/is_first": (np.arange(steps) == 0).astype(np.int64),
        }
        if embedding:
            values["steps/language_embedding"] = np.zeros((steps, 512))
        for i in range(cameras):
            values[f"steps/observation/image_{i}"] = [pictures[(number + t + i) % 4] for t in range(steps)]
        return encode_example(values)

    payloads = [[episode(i) for i in range(shard, episodes, shards)] for shard in range(shards)]
    return write_dataset(folder / "bridge_dataset" / "1.0.0", "bridge_dataset", features, {"train": payloads})


def plain_window(paths: list[Path], place: tuple[int, int] | int, start: int) -> np.ndarray:
    """(8, H, W, 3) of image_0, after parsing and decoding the whole episode, which is at (file, offset) or number so and so."""
    if isinstance(place, tuple):
        with paths[place[0]].open("rb") as file:
            file.seek(place[1])
            payload = _record(file)
    else:
        left = place
        for path in paths:
            with path.open("rb") as file:
                while left >= 0 and file.tell() < path.stat().st_size:
                    payload = _record(file)
                    left -= 1
            if left < 0:
                break
    decode: dict[str, Callable[[bytes, Feature], Any]] = {"bytes": byte_strings, "float": floats, "int": integers}
    everything = {name: decode[feature.kind](payload, feature) for name, feature in locate_features(payload).items()}
    frames = {
        name: np.stack([np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")) for encoded in values])
        for name, values in everything.items()
        if "/image_" in name
    }
    return frames["steps/observation/image_0"][start : start + WINDOW]


def _record(file: io.BufferedReader) -> bytes:
    (length,) = struct.unpack("<Q", file.read(12)[:8])
    payload = file.read(length)
    file.read(4)
    return payload


def _index(task: dict[str, Any]) -> dict[str, Any]:
    """Index, open again, and make all episodes: seconds and memory of this process."""
    config, cache = RLDSConfig(path=Path(task["folder"])), Path(task["cache"])
    before = _memory_mib("VmRSS")
    began = time.perf_counter()
    RLDSSource(config, cache=cache)
    indexed = time.perf_counter()
    source = RLDSSource(config, cache=cache)
    opened = time.perf_counter()
    episodes = [source.episode(i) for i in range(len(source))]
    steps = sum(episode.length for episode in episodes)
    listed = time.perf_counter()
    return {
        "steps": steps,
        "episodes": len(episodes),
        "index_seconds": round(indexed - began, 2),
        "open_again_seconds": round(opened - indexed, 3),
        "all_episodes_seconds": round(listed - opened, 3),
        "peak_mib_above_start": round(_memory_mib("VmHWM") - before, 1),
        "start_mib": before,
        "largest_indexing_process_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, 1),
        "index_mib": round(sum(f.stat().st_size for f in cache.rglob("*") if f.is_file()) / 2**20, 1),
        "data_mib": round(sum(f.stat().st_size for f in Path(task["folder"]).iterdir()) / 2**20, 1),
    }


def _memory_mib(key: str) -> float:
    """Of this process; ``resource`` would give that of the process which started it, where that is larger."""
    status = Path("/proc/self/status").read_text()
    return round(int(next(line.split()[1] for line in status.splitlines() if line.startswith(key))) / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--task")
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(_index(json.loads(arguments.task))))
        return
    from common import in_fresh_process, report  # here, since every indexing process imports this script

    with tempfile.TemporaryDirectory() as scratch:
        results = windows(Path(scratch), arguments.episodes)
        results["index"] = []
        for part in (10, 4, 2, 1):
            count = arguments.steps // part // STEPS
            folder = make(Path(scratch) / f"million_{part}", count, STEPS, 16, 1, 20, False)
            task = {"folder": str(folder), "cache": str(Path(scratch) / f"cache_{part}")}
            results["index"].append(in_fresh_process(__file__, task, 1))
            for file in folder.iterdir():
                file.unlink()
    report("rlds_episodes", results)


def windows(scratch: Path, episodes: int) -> dict[str, Any]:
    from common import milliseconds

    folder = make(scratch / "bridge", episodes, STEPS, 256, 2, 4, True)
    paths = sorted(folder.glob("*.tfrecord*"))
    began = time.perf_counter()
    source = RLDSSource(RLDSConfig(path=folder), cache=scratch / "cache")
    first = time.perf_counter() - began
    began = time.perf_counter()
    source = RLDSSource(RLDSConfig(path=folder), cache=scratch / "cache")
    again = time.perf_counter() - began
    rng = np.random.default_rng(0)
    skipped = 1  # Bridge's first step
    places = []
    for i in range(len(source)):
        episode = source.episode(i)
        places.append((paths.index(episode.path), episode.offset - 12))

    def draw() -> tuple[int, int]:
        number = int(rng.integers(len(source)))
        return number, int(rng.integers(source.episode(number).length - WINDOW))

    def ours() -> np.ndarray:
        number, start = draw()
        return source.episode(number).read(start, start + WINDOW, ["primary"])["primary"]

    def plain_at() -> np.ndarray:
        number, start = draw()
        return plain_window(paths, places[number], start + skipped)

    def plain_stream() -> np.ndarray:
        number, start = draw()
        return plain_window(paths, number, start + skipped)

    for number, start in (draw() for _ in range(5)):
        same = source.episode(number).read(start, start + WINDOW, ["primary"])["primary"]
        assert (same == plain_window(paths, places[number], start + skipped)).all(), "the two readers must give the same pixels"
        assert (same == plain_window(paths, number, start + skipped)).all(), "the two readers must give the same pixels"
    began = time.perf_counter()
    for i in range(len(source)):
        source.episode(i).read(0, source.episode(i).length, source.episode(i).cameras)
    whole = time.perf_counter() - began
    window, at, stream = milliseconds(ours, 300), milliseconds(plain_at, 40), milliseconds(plain_stream, 20)
    return {
        "episodes": episodes,
        "episode": f"{STEPS} steps, 2 cameras, 256x256 JPEG, language embedding",
        "data_mib": round(sum(path.stat().st_size for path in paths) / 2**20, 1),
        "processes": os.cpu_count(),
        "index_episodes_per_s": round(episodes / first, 1),
        "open_again_seconds": round(again, 4),
        "all_frames_episodes_per_s": round(episodes / whole, 1),
        "window_ms": window,
        "plain_known_place_window_ms": at,
        "plain_stream_window_ms": stream,
        "over_plain_known_place": round(at["p50"] / window["p50"], 1),
        "over_plain_stream": round(stream["p50"] / window["p50"], 1),
    }


if __name__ == "__main__":
    main()
