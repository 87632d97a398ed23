"""Windows per second from CALVIN's published layout (one npz file a frame), beside a plain NumPy + PIL reader.

    python benchmarks/calvin_windows.py [--frames 6000] [--windows 60] [--sample PATH]

A window is 8 frames of two cameras, resized to 224 x 224, with the robot's state, and the 10 actions that follow each frame.
The plain reader does what a straightforward dataset does for each window: opens the 8 + 10 files with numpy.load, takes both
images, state and action of each, and resizes the images, of all of them ("plain"), or only of the 8 that are seen ("plain, 8
resized"). Both give the same window, which is checked first; pixels may differ by 2 of 255, since AnyVLA resizes with torch.

The data set is made: 300 different frames with all ten arrays of the original, compressed as the original is, under the
names of --frames frames (hard links). Its images are drawn so that they pack about as well as real ones do. --sample takes
the frames of a real data set at PATH instead, under as many names.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import milliseconds, peak_memory_mib, report
from PIL import Image

from anyvla.actions.chunks import Windows, chunk_targets
from anyvla.config.sources import CalvinConfig
from anyvla.data.images import resize_frames
from anyvla.data.sources.calvin import CalvinEpisode, CalvinSource

WINDOW, CHUNK, SIZE = 8, 10, (224, 224)
CAMERAS = ("rgb_static", "rgb_gripper")
RECORDING = 1000  # frames
DIFFERENT = 300  # frames
Window = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # static, gripper, state, actions of W + L frames


def draw_image(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) uint8: smooth surfaces with edges and grain, which deflate packs to about a third, as real frames."""
    coarse = Image.fromarray(rng.integers(60, 200, (5, 5, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).astype(np.int16)
    for _ in range(6):
        y, x = rng.integers(0, size, 2)
        image[y : y + size // 4, x : x + size // 5] = rng.integers(0, 256, 3)
    return np.clip(image + (rng.random((size, size, 1)) < 0.25), 0, 255).astype(np.uint8)


def make_frame(path: Path, rng: np.random.Generator) -> None:
    gripper = rng.choice([-1.0, 1.0], 1)
    np.savez_compressed(
        path,
        actions=np.concatenate([rng.uniform(-1, 1, 6), gripper]),
        rel_actions=np.concatenate([rng.uniform(-1, 1, 6), gripper]),
        robot_obs=rng.uniform(-1, 1, 15),
        scene_obs=rng.uniform(-1, 1, 24),
        rgb_static=draw_image(200, rng),
        rgb_gripper=draw_image(84, rng),
        rgb_tactile=np.zeros((160, 120, 6), np.uint8),
        depth_static=np.linspace(3, 5, 40_000, dtype=np.float32).reshape(200, 200),
        depth_gripper=np.linspace(0, 1, 7056, dtype=np.float32).reshape(84, 84),
        depth_tactile=np.zeros((160, 120, 2), np.float32),
    )


def make_data(folder: Path, frames: int, sample: Path | None) -> None:
    """A split of recordings of ``RECORDING`` frames."""
    different = folder / "different"
    split = folder / "training"
    different.mkdir(parents=True)
    split.mkdir()
    if sample is None:
        rng = np.random.default_rng(0)
        for i in range(DIFFERENT):
            make_frame(different / f"{i:03d}.npz", rng)
    else:
        for i, path in enumerate(sorted(sample.rglob("episode_*.npz"))[:DIFFERENT]):
            (different / f"{i:03d}.npz").write_bytes(path.read_bytes())
    files = sorted(different.iterdir())
    for i in range(frames):
        os.link(files[i % len(files)], split / f"episode_{i:07d}.npz")
    starts = np.arange(0, frames, RECORDING)
    np.save(split / "ep_start_end_ids.npy", np.stack([starts, np.minimum(starts + RECORDING, frames) - 1], axis=1))


def plain_window(split: Path, first: int, resized: int) -> Window:
    """The window that begins at frame ``first``, with the images of its first ``resized`` files resized."""
    images: dict[str, list[np.ndarray]] = {camera: [] for camera in CAMERAS}
    state, actions = [], []
    for i in range(WINDOW + CHUNK):
        with np.load(split / f"episode_{first + i:07d}.npz") as file:
            frame = {key: file[key] for key in (*CAMERAS, "robot_obs", "rel_actions")}
        state.append(frame["robot_obs"])
        actions.append(frame["rel_actions"])
        for camera in CAMERAS if i < resized else ():
            image = Image.fromarray(frame[camera]).resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)
            images[camera].append(np.asarray(image))
    static, gripper = (np.stack(images[camera][:WINDOW]) for camera in CAMERAS)
    return static, gripper, np.stack(state[:WINDOW]), np.stack(actions)


def our_window(episode: CalvinEpisode, start: int) -> Window:
    frames = episode.read(start, start + WINDOW, CAMERAS)
    static, gripper = (resize_frames(frames[camera], SIZE) for camera in CAMERAS)
    assert episode.state is not None
    actions, _ = chunk_targets(episode.actions, start, WINDOW, CHUNK)
    return static, gripper, episode.state[start : start + WINDOW], actions


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--windows", type=int, default=60, help="that are timed of each way")
    parser.add_argument("--sample", type=Path, help="a real data set, whose frames are taken")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "data", Path(scratch) / "cache"
        make_data(folder, arguments.frames, arguments.sample)
        split = folder / "training"
        config = CalvinConfig(path=folder, language="play", play_length=RECORDING)
        began = time.perf_counter()
        CalvinSource(config, cache=cache)
        indexed = time.perf_counter() - began
        began = time.perf_counter()
        source = CalvinSource(config, cache=cache)
        reopened = time.perf_counter() - began
        windows = Windows([source.episode(i).length for i in range(len(source))], WINDOW)
        rng = np.random.default_rng(0)

        def place() -> tuple[CalvinEpisode, int]:
            episode, start = windows[int(rng.integers(len(windows)))]
            return source.episode(episode), min(start, source.episode(episode).length - WINDOW - CHUNK)

        for episode, start in (place(), place()):
            ours, plain = our_window(episode, start), plain_window(split, episode.first + start, WINDOW)
            for i, tolerance in enumerate((2, 2, 1e-6)):
                difference = np.abs(ours[i].astype(float) - plain[i]).max()
                assert difference <= tolerance, "the two readers must give the same window"
            assert np.allclose(ours[3][0, :, :6], plain[3][:CHUNK, :6], atol=1e-6)

        def read_only() -> object:
            episode, start = place()
            return episode.read(start, start + WINDOW, CAMERAS)

        def plainly(resized: int) -> Callable[[], object]:
            def window() -> object:
                episode, start = place()
                return plain_window(split, episode.first + start, resized)

            return window

        ways: dict[str, tuple[Callable[[], object], int]] = {
            "plain": (plainly(WINDOW + CHUNK), arguments.windows),
            "plain, 8 resized": (plainly(WINDOW), arguments.windows),
            "ours": (lambda: our_window(*place()), 4 * arguments.windows),
            "ours, without resizing": (read_only, 4 * arguments.windows),
        }
        times, processor = {}, {}
        for name, (call, repeats) in ways.items():
            began = time.process_time()
            times[name] = milliseconds(call, repeats, warm_up=3)
            processor[name] = round(1e3 * (time.process_time() - began) / (repeats + 3), 2)
        different = len(list((folder / "different").iterdir()))
        size = next(iter(split.glob("*.npz"))).stat().st_size
    report(
        "calvin_windows",
        {
            "frames": arguments.frames,
            "images": "made" if arguments.sample is None else "of a real data set",
            "different_frames": different,
            "bytes_of_a_file": size,
            "milliseconds_a_window": times,
            "processor_milliseconds_a_window": processor,
            "windows_a_second": {name: round(1e3 / value["p50"], 1) for name, value in times.items()},
            "plain_over": {name: round(times["plain"]["p50"] / value["p50"], 2) for name, value in times.items()},
            "plain_over_by_processor_time": {name: round(processor["plain"] / value, 2) for name, value in processor.items()},
            "index_seconds": round(indexed, 2),
            "reopen_seconds": round(reopened, 4),
            "peak_memory_mib": peak_memory_mib(),
        },
    )


if __name__ == "__main__":
    main()
