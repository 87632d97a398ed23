"""Small CALVIN data sets in the published layout, and the change of their parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

RECORDINGS = ((58, 80), (100, 112))
ANNOTATIONS = (
    (58, 66, "open the drawer", "open_drawer"),
    (64, 80, "pull the drawer", "open_drawer"),
    (100, 108, "push the red block left", "push_red_block_left"),
    (103, 112, "slide the red block to the left", "push_red_block_left"),
    (101, 110, "turn on the lamp", "turn_on_lightbulb"),
)
Annotation = tuple[int, int, str, str]


def frame_arrays(frame: int) -> dict[str, np.ndarray]:
    """The arrays of one frame; they follow from its number."""
    rng = np.random.default_rng(frame)
    gripper = 1.0 if frame % 3 else -1.0
    return {
        "actions": np.array([*rng.uniform(-0.5, 0.5, 3), *rng.uniform(-3, 3, 3), gripper]),
        "rel_actions": np.array([*rng.uniform(-1, 1, 6), gripper]),
        "robot_obs": np.array([*rng.uniform(-1, 1, 14), gripper]),
        "scene_obs": rng.uniform(-1, 1, 24),
        "rgb_static": rng.integers(0, 256, (20, 20, 3), dtype=np.uint8),
        "rgb_gripper": rng.integers(0, 256, (8, 8, 3), dtype=np.uint8),
        "rgb_tactile": np.zeros((16, 12, 6), np.uint8),
        "depth_static": rng.random((20, 20), dtype=np.float32),
    }


def frame_file(folder: Path, frame: int) -> Path:
    return folder / "training" / f"episode_{frame:07d}.npz"


def write_frame(folder: Path, frame: int, **changes: np.ndarray | None) -> None:
    """``changes`` replace arrays; None leaves one out."""
    arrays = {key: value for key, value in (frame_arrays(frame) | changes).items() if value is not None}
    np.savez_compressed(frame_file(folder, frame), **arrays)


def write_annotations(folder: Path, annotations: Sequence[Annotation] = ANNOTATIONS) -> Path:
    content = {
        "language": {
            "ann": [text for *_, text, _ in annotations],
            "task": [task for *_, task in annotations],
            "emb": np.zeros((len(annotations), 1, 384), np.float32),
        },
        "info": {"episodes": [], "indx": [(first, last) for first, last, *_ in annotations]},
    }
    path = folder / "training" / "lang_annotations" / "auto_lang_ann.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, content)  # type: ignore[arg-type]
    return path


def write_calvin(folder: Path, recordings: Sequence[tuple[int, int]] = RECORDINGS) -> Path:
    """A data set with a training split of these recordings, all in scene B but the last, in scene D."""
    write_annotations(folder)
    for first, last in recordings:
        for frame in range(first, last + 1):
            write_frame(folder, frame)
    split = folder / "training"
    np.save(split / "ep_start_end_ids.npy", np.array(recordings))
    scenes = {"calvin_scene_B": [recordings[0][0], recordings[-1][0] - 1], "calvin_scene_D": list(recordings[-1])}
    np.save(split / "scene_info.npy", scenes)  # type: ignore[arg-type]
    return folder
