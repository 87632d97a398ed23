"""Random windows per second from the videos of a LeRobotDataset: ours beside opening the file for every window.

    python benchmarks/lerobot_video.py [--episodes 60] [--length 150] [--size 224]

A window is 8 consecutive frames of one camera. The plain way is what a straightforward dataset does: open the video, seek to
the key frame before the first frame, decode up to the last, convert. Both ways use PyAV and must give the same pixels. Measured
for files with a key frame every second frame, as LeRobot (and we) write them, and every 60th, as converters often leave them;
then for images in Parquet columns, where the plain way reads the column of the file for each window.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
from common import milliseconds, report
from PIL import Image

from anyvla.actions import NAV2
from anyvla.data import video
from anyvla.data.episode import ArrayEpisode
from anyvla.data.sources.lerobot import LeRobotEpisode, LeRobotSource
from anyvla.data.writers.lerobot import LeRobotWriter

WINDOW, FPS = 8, 30.0


def moving_frames(length: int, size: int, seed: int) -> np.ndarray:
    """(T, size, size, 3): a textured picture that moves, with some noise, as a camera on a robot sees it."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).resize((2 * size, 2 * size))
    picture = np.asarray(small)
    frames = [picture[(2 * t) % size : (2 * t) % size + size, (3 * t) % size : (3 * t) % size + size] for t in range(length)]
    noise = rng.integers(-4, 5, (length, size, size, 1))
    return (np.stack(frames).astype(np.int16) + noise).clip(0, 255).astype(np.uint8)


def plain_window(path: Path, begin: float) -> np.ndarray:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(int(begin / stream.time_base), stream=stream)
        frames = []
        for frame in container.decode(stream):
            if frame.time >= begin - 1e-4:
                frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == WINDOW:
                break
        return np.stack(frames)


def plain_images(path: Path, column: str, row: int) -> np.ndarray:
    cells = pq.read_table(path, columns=[column])[column].slice(row, WINDOW).to_pylist()
    return np.stack([np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells])


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    began = time.perf_counter()
    source = LeRobotSource(folder, cache=folder.parent / "cache")
    first = time.perf_counter() - began
    began = time.perf_counter()
    source = LeRobotSource(folder, cache=folder.parent / "cache")
    again = time.perf_counter() - began
    rng = np.random.default_rng(0)

    def draw() -> tuple[LeRobotEpisode, int]:
        episode = source.episode(int(rng.integers(len(source))))
        return episode, int(rng.integers(episode.length - WINDOW + 1))

    def ours(episode: LeRobotEpisode, start: int) -> np.ndarray:
        return episode.read(start, start + WINDOW, ["front"])["front"]

    def plain(episode: LeRobotEpisode, start: int) -> np.ndarray:
        if not episode.clips:
            return plain_images(folder / episode.data, "observation.images.front", episode.row + start)
        path, begin = episode.clips["front"]
        return plain_window(folder / path, begin + start / FPS)

    for _ in range(5):
        where = draw()
        assert np.array_equal(ours(*where), plain(*where)), "the two ways must give the same pixels"

    def random(read: Callable[[LeRobotEpisode, int], np.ndarray]) -> dict[str, float]:
        return milliseconds(lambda: read(*draw()), repeats)

    def in_order() -> Callable[[], np.ndarray]:
        windows = (
            (source.episode(i), start)
            for i in range(len(source))
            for start in range(0, source.episode(i).length - WINDOW, WINDOW)
        )
        return lambda: ours(*next(windows))

    mine, theirs = random(ours), random(plain)
    return {
        "ours_ms": mine,
        "plain_ms": theirs,
        "ours_windows_per_s": round(1e3 / mine["p50"], 1),
        "plain_windows_per_s": round(1e3 / theirs["p50"], 1),
        "times": round(theirs["p50"] / mine["p50"], 2),
        "ours_in_order_ms": milliseconds(in_order(), min(repeats, 300)),
        "open_first_s": round(first, 3),
        "open_again_s": round(again, 3),
        "megabytes": round(sum(path.stat().st_size for path in folder.rglob("*.*") if path.is_file()) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--length", type=int, default=150)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--windows", type=int, default=300)
    arguments = parser.parse_args()
    results: dict[str, Any] = vars(arguments) | {"window": WINDOW}
    with tempfile.TemporaryDirectory() as scratch:
        for name, kind, codec, keys in (
            ("av1, key frame every 2", "video", "av1", 2),
            ("h264, key frame every 2", "video", "h264", 2),
            ("h264, key frame every 60", "video", "h264", 60),
            ("png", "image", "av1", 0),
        ):
            folder = Path(scratch) / name.replace(", ", "_").replace(" ", "_") / "data"
            encoder, options = video._ENCODERS["h264"]
            video._ENCODERS["h264"] = (encoder, options | {"g": str(keys or 2)})
            began = time.perf_counter()
            with LeRobotWriter(folder, NAV2, FPS, cameras=kind, codec=codec) as writer:  # type: ignore[arg-type]
                for i in range(arguments.episodes):
                    frames = moving_frames(arguments.length, arguments.size, i)
                    actions = np.zeros((arguments.length, 2), np.float32)
                    writer.add(ArrayEpisode(f"e{i}", "go", actions, {"front": frames}, FPS))
            written = arguments.episodes * arguments.length / (time.perf_counter() - began)
            results[name] = {"frames_written_per_s": round(written, 1), **measure(folder, arguments.windows)}
            subprocess.run(["rm", "-r", str(folder)], check=True)
    report("lerobot_video", results)


if __name__ == "__main__":
    main()
