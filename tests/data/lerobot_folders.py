"""Small LeRobotDatasets for the tests, of v3.0 and of v2.1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anyvla.actions import ARM7, ActionSpec
from anyvla.data.episode import ArrayEpisode
from anyvla.data.video import VideoWriter
from anyvla.data.writers.lerobot import LeRobotWriter


def smooth_frames(length: int, size: tuple[int, int], phase: float = 0.0) -> np.ndarray:
    """(T, H, W, 3) uint8: waves that a video codec keeps well, different in every frame."""
    y, x = np.mgrid[: size[0], : size[1]]
    frames = [
        [128 + 90 * np.sin((x + 9 * t) / 9 + phase), 128 + 90 * np.cos((y + 5 * t) / 7), 0 * x + 8 * t] for t in range(length)
    ]
    return np.clip(np.moveaxis(np.array(frames), 1, -1), 0, 255).astype(np.uint8)


def make_episode(
    seed: int, length: int = 12, spec: ActionSpec = ARM7, size: tuple[int, int] = (24, 32), fps: float = 10.0, **changes
) -> ArrayEpisode:
    """A random episode of two cameras and two numbers of state; ``changes`` replace its fields."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(spec.low, spec.high, (length, len(spec)))
    actions[:, spec.binary] = actions[:, spec.binary].round()
    fields = {
        "name": f"made_{seed}",
        "instruction": f"Push the button {seed % 2}.",
        "actions": actions.astype(np.float32),
        "images": {"top": smooth_frames(length, size, seed), "wrist": rng.integers(0, 256, (length, *size, 3), dtype=np.uint8)},
        "fps": fps,
        "task": f"push_{seed % 2}",
        "state_names": ("x", "gap"),
        "state": rng.normal(size=(length, 2)).astype(np.float32),
    }
    return ArrayEpisode(**(fields | changes))


def write_v3(folder: Path, episodes: list[ArrayEpisode], spec: ActionSpec = ARM7, **options) -> Path:
    """A dataset of v3.0; the camera ``top`` is stored as video unless ``cameras`` says otherwise."""
    options = {"cameras": {"top": "video", "wrist": "image"}} | options
    with LeRobotWriter(folder, spec, episodes[0].fps, **options) as writer:
        for episode in episodes:
            writer.add(episode)
    return folder


def write_v21(folder: Path, episodes: list[ArrayEpisode]) -> Path:
    """The same in the layout of v2.1: the camera ``top`` alone, as video; action names in a mapping, as it often has them."""
    fps = episodes[0].fps
    sentences = sorted({episode.instruction for episode in episodes})
    first = 0
    for i, episode in enumerate(episodes):
        table = pa.table(
            {
                "action": pa.array(episode.actions.tolist(), pa.list_(pa.float32())),
                "observation.state": pa.array(episode.state.tolist(), pa.list_(pa.float32())),
                "timestamp": pa.array(np.arange(episode.length) / fps, pa.float32()),
                "frame_index": np.arange(episode.length),
                "episode_index": np.full(episode.length, i),
                "index": np.arange(episode.length) + first,
                "task_index": np.full(episode.length, sentences.index(episode.instruction)),
            }
        )
        first += episode.length
        data = folder / "data" / f"chunk-{i // 2:03d}" / f"episode_{i:06d}.parquet"
        video = folder / "videos" / f"chunk-{i // 2:03d}" / "observation.images.top" / f"episode_{i:06d}.mp4"
        for path in (data, video):
            path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, data)
        frames = episode.images["top"]
        with VideoWriter(video, frames.shape[1:3], fps, "h264") as writer:
            writer.add(frames)
    names = list(ARM7.names)
    info = {
        "codebase_version": "v2.1",
        "fps": fps,
        "chunks_size": 2,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "splits": {"train": "0:2", "val": f"2:{len(episodes)}"},
        "features": {
            "action": {"dtype": "float32", "shape": [len(names)], "names": {"motors": names}},
            "observation.state": {"dtype": "float32", "shape": [2], "names": None},
            "observation.images.top": {"dtype": "video", "shape": [*frames.shape[1:]], "names": ["height", "width", "channel"]},
        },
    }
    meta = folder / "meta"
    meta.mkdir()
    (meta / "info.json").write_text(json.dumps(info))
    tasks = [{"task_index": i, "task": sentence} for i, sentence in enumerate(sentences)]
    rows = [{"episode_index": i, "tasks": [e.instruction], "length": e.length} for i, e in enumerate(episodes)]
    for name, lines in (("tasks", tasks), ("episodes", rows)):
        (meta / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
