"""Windows per second from 720p HDF5 episodes: the frame store, cold and warm, beside a plain h5py + PIL reader.

    python benchmarks/window_loading.py [--episodes 40]

The plain reader does for every window what a straightforward dataset does: open the file, read the window's frames, resize each
one with PIL. Both give (8, 64, 112, 3) uint8 for the same random windows, at most 2 of 255 apart. "cold" is the store's first
pass over all episodes, decoding included, in windows that it makes available per second; "warm" is reading them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from common import milliseconds, report
from PIL import Image

from anyvla.actions import NAV2
from anyvla.actions.chunks import Windows
from anyvla.config import load_config
from anyvla.data.dataset import collate
from anyvla.data.prepare import prepare_data
from anyvla.data.sampler import Item
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.data.store import open_store
from anyvla.simulation.collect import collect_nav

WINDOW, SIZE = 8, (64, 112)


def plain_window(path: Path, start: int) -> np.ndarray:
    with h5py.File(path, "r") as file:
        frames = file["images"][start : start + WINDOW]
    return np.stack(
        [np.asarray(Image.fromarray(frame).resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC)) for frame in frames]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "data", Path(scratch) / "cache"
        collect_nav(folder, "1box", arguments.episodes, 0, (720, 1280))
        source = MobileH5Source(folder, NAV2)
        windows = Windows([source.episode(i).length for i in range(len(source))], WINDOW)
        began = time.perf_counter()
        store, _ = open_store(source, ["front"], SIZE, cache=cache)
        cold = time.perf_counter() - began
        began = time.perf_counter()
        store, _ = open_store(source, ["front"], SIZE, cache=cache)
        reopen = time.perf_counter() - began

        rng = np.random.default_rng(0)

        def draw() -> tuple[int, int]:
            return windows[int(rng.integers(len(windows)))]

        def ours() -> np.ndarray:
            episode, start = draw()
            frames = store.read(source.episode(episode).name, start, start + WINDOW)["front"]
            return np.array(frames)  # a copy: every byte is read

        def plain() -> np.ndarray:
            episode, start = draw()
            return plain_window(source.episode(episode).path, start)

        for episode, start in (windows[0], windows[len(windows) - 1]):
            name = source.episode(episode).name
            theirs = plain_window(source.episode(episode).path, start).astype(np.int16)
            difference = np.abs(store.read(name, start, start + WINDOW)["front"] - theirs).max()
            assert difference <= 2, "the two readers must give the same pixels, but for the rounding of resizing"
        warm_ms, plain_ms = milliseconds(ours, 2000), milliseconds(plain, 40)

        config = load_config("nav-tiny", [f"data.source.path={folder}", f"data.cache={cache}"])
        train = prepare_data(config).train
        indices = iter(rng.integers(len(train), size=10_000).tolist())
        sample_ms = milliseconds(lambda: train[Item(0, next(indices))], 500)
        batch_ms = milliseconds(lambda: collate([train[Item(0, next(indices))] for _ in range(16)]), 60)
    report(
        "window_loading",
        {
            "episodes": arguments.episodes,
            "windows": len(windows),
            "frame": "720x1280 gzip level 1, one chunk a frame",
            "plain_ms_per_window": plain_ms,
            "plain_windows_per_s": round(1e3 / plain_ms["p50"], 1),
            "cold_windows_per_s": round(len(windows) / cold, 1),
            "cold_seconds": round(cold, 2),
            "reopen_seconds": round(reopen, 4),
            "warm_ms_per_window": warm_ms,
            "warm_windows_per_s": round(1e3 / warm_ms["p50"], 1),
            "warm_over_plain": round(plain_ms["p50"] / warm_ms["p50"], 1),
            "augmented_sample_with_targets_ms": sample_ms,
            "augmented_sample_over_plain": round(plain_ms["p50"] / sample_ms["p50"], 1),
            "training_batch_of_16_ms": batch_ms,
        },
    )


if __name__ == "__main__":
    main()
