"""Windows per second of CALVIN, packed and as published, and what packing costs.

    python benchmarks/packed_windows.py [--frames 1200]

A made data set in the layout of CALVIN: a compressed npz a frame (200 x 200 and 84 x 84 pixels) and annotated windows of 64
frames that overlap. The plain loader does for every window what the usual one does: open the W + L npz files, take actions and
images from each, and resize both cameras to 224 with PIL. Ours give the same W frames, and L actions for each, from
what ``anyvla convert`` has written: images of 224 kept raw (a memory map), images of the original size kept raw and resized at
reading, JPEG and AVIF of 224. W = 8, L = 10. Every byte that a window has is copied.
"""

from __future__ import annotations

import argparse
import os
import pickle
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import milliseconds, report
from PIL import Image

from anyvla.actions.chunks import chunk_targets
from anyvla.data.convert import convert, disk_use
from anyvla.data.images import resize_frames
from anyvla.data.sources.opening import open_source, source_at

WINDOW, CHUNK, SIZE = 8, 10, (224, 224)
CAMERAS = {"rgb_static": 200, "rgb_gripper": 84}


def make_calvin(folder: Path, frames: int) -> list[tuple[int, int]]:
    """A recording of moving shapes on a textured ground, with annotations; returns their first and last frames."""
    split = folder / "training"
    (split / "lang_annotations").mkdir(parents=True)
    rng = np.random.default_rng(0)
    grounds = {camera: _ground(rng, side) for camera, side in CAMERAS.items()}
    for t in range(frames):
        images: dict[str, Any] = {}
        for camera, side in CAMERAS.items():
            image = grounds[camera].copy()
            for k in range(5):
                x, y = (np.array([0.5 + 0.4 * np.sin(t / 30 + k), 0.5 + 0.4 * np.cos(t / 40 + 2 * k)]) * side).astype(int)
                image[max(0, y - side // 12) : y + side // 12, max(0, x - side // 12) : x + side // 12] = 40 * k
            images[camera] = np.clip(image + rng.integers(-2, 3, image.shape), 0, 255).astype(np.uint8)
        motion = np.clip(rng.normal(0, 0.3, 7), -1, 1)
        motion[6] = 1.0 if t % 64 < 32 else -1.0
        numbers: dict[str, Any] = {
            "actions": motion,
            "rel_actions": motion,
            "robot_obs": rng.normal(size=15),
            "scene_obs": rng.normal(size=24),
        }
        np.savez_compressed(split / f"episode_{t:07d}.npz", **numbers, **images)
    spans = [(first, first + 63) for first in range(0, frames - 64, 48)]
    np.save(split / "ep_start_end_ids.npy", np.array([[0, frames - 1]]))
    words = {"ann": [f"push block {i}" for i in range(len(spans))], "task": ["push_block"] * len(spans)}
    annotations = np.array({"language": words, "info": {"episodes": [], "indx": spans}}, dtype=object)
    np.save(split / "lang_annotations" / "auto_lang_ann.npy", annotations, allow_pickle=True)
    return spans


def _ground(rng: np.random.Generator, side: int) -> np.ndarray:
    rough = rng.integers(60, 200, (12, 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC)).astype(np.int16)


def plain_window(folder: Path, start: int, last: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Both cameras of W frames, and the W + L actions, with a file opened and both images resized for each of W + L frames."""
    images: list[np.ndarray] = []
    actions = []
    for t in range(start, start + WINDOW + CHUNK):
        with np.load(folder / "training" / f"episode_{min(t, last):07d}.npz") as file:
            actions.append(file["rel_actions"])
            resized = [_resized(file[camera]) for camera in CAMERAS]
        images += resized if t < start + WINDOW else []
    return images, np.stack(actions)


def _resized(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize(SIZE, Image.Resampling.BICUBIC))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=1200)
    arguments = parser.parse_args()
    results: dict[str, Any] = {"frames": arguments.frames, "window": WINDOW, "chunk": CHUNK, "cameras": "2 at 224 x 224"}
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache = Path(scratch) / "calvin", Path(scratch) / "cache"
        spans = make_calvin(folder, arguments.frames)
        results["original"] = {"MiB": _mib(folder)}
        source = open_source(source_at(folder), cache=cache)
        rng = np.random.default_rng(0)

        def draw() -> tuple[int, int]:
            i = int(rng.integers(len(spans)))
            return i, int(rng.integers(0, spans[i][1] - spans[i][0] + 2 - WINDOW))

        def plain() -> object:
            i, start = draw()
            return plain_window(folder, spans[i][0] + start, spans[i][1])

        plain_ms = milliseconds(plain, 40)
        results["plain"] = {"ms_per_window": plain_ms, "windows_per_s": round(1e3 / plain_ms["p50"], 1)}
        settings: dict[str, dict[str, Any]] = {
            "packed raw 224": {"size": SIZE},
            "packed raw as recorded": {},
            "packed jpeg 224": {"size": SIZE, "encoding": "jpeg"},
            "packed avif 224": {"size": SIZE, "encoding": "avif"},
        }
        for name, options in settings.items():
            out = Path(scratch) / name.replace(" ", "_")
            done = convert(source, out, "packed", workers=2, **options)
            packed = open_source(source_at(out))
            stored = (out / "rgb_static.frames").stat().st_size // 16  # frames in several episodes are there once
            numbers = {packed.episode(i).name: i for i in range(len(packed))}
            order = [numbers[source.episode(i).name] for i in range(len(source))]

            def ours() -> object:
                i, start = draw()
                episode = packed.episode(order[i])  # noqa: B023
                frames = episode.read(start, start + WINDOW, tuple(CAMERAS))
                images = {c: np.array(resize_frames(frames[c], SIZE)) for c in CAMERAS}
                return images, chunk_targets(episode.actions, start, WINDOW, CHUNK)

            # the same actions as the plain loader, and the same pixels, to 2 of 255, unless they are coded with loss
            frames = packed.episode(order[0]).read(3, 3 + WINDOW, tuple(CAMERAS))
            images, actions = plain_window(folder, spans[0][0] + 3, spans[0][1])
            errors = [
                resize_frames(frames[camera], SIZE) - np.stack(images[k :: len(CAMERAS)]).astype(np.int16)
                for k, camera in enumerate(CAMERAS)
            ]
            assert "encoding" in options or max(np.abs(error).max() for error in errors) <= 2
            assert np.allclose(packed.episode(order[0]).actions[3:, :6][: WINDOW + CHUNK], actions[:, :6])
            psnr = [round(float(10 * np.log10(255**2 / np.square(error.astype(float)).mean())), 1) for error in errors]
            ours_ms = milliseconds(ours, 2000 if name == "packed raw 224" else 100)
            began = time.perf_counter()
            wrong = packed.verify()  # type: ignore[attr-defined]
            assert not wrong
            results[name] = {
                "ms_per_window": ours_ms,
                "windows_per_s": round(1e3 / ours_ms["p50"], 1),
                "over_plain": round(plain_ms["p50"] / ours_ms["p50"], 1),
                "psnr_db_of_each_camera": psnr,
                "MiB": _mib(out),
                "frames_stored": stored,
                "conversion_frames_per_s": round(stored / done.seconds, 1),
                "conversion_seconds": round(done.seconds, 1),
                "verify_seconds": round(time.perf_counter() - began, 2),
                "episode_pickled_bytes": len(pickle.dumps(packed.episode(0))),
            }
            print(name, results[name], flush=True)
    results["load_average"] = round(os.getloadavg()[0], 1)  # of the machine, on which others may have been working
    report("packed_windows", results)


def _mib(folder: Path) -> float:
    return round(disk_use(folder) / 2**20, 1)


if __name__ == "__main__":
    main()
