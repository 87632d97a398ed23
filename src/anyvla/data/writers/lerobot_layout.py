"""What the files of a LeRobotDataset v3.0 that we write look like: names, features, schema, ``info.json``.

Beside what the format asks for, ``info.json`` has the key ``anyvla`` with the action spec, and the table of episodes has the
columns ``anyvla/name``, ``anyvla/task`` and ``anyvla/histogram/<feature>`` (of the pixel values, 256 counts a channel). Other
software leaves these aside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anyvla.actions.spec import ActionSpec
from anyvla.data.sources.lerobot_meta import ACTION, OWN_KEY, STATE, load_pyarrow
from anyvla.errors import DataError

VERSION = "v3.0"
IMAGES = "observation.images."
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_PER_CHUNK = 1000
# of every frame, in any LeRobotDataset
COUNTERS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}

ImageKind = Literal["image", "video"]


@dataclass(frozen=True)
class CameraLayout:
    """How one camera is stored, and the (H, W) of its frames."""

    kind: ImageKind
    size: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """What all episodes of a dataset have in common."""

    spec: ActionSpec
    fps: float
    cameras: dict[str, CameraLayout]
    state_names: tuple[str, ...]
    robot_type: str | None

    @property
    def videos(self) -> dict[str, str]:
        """Camera -> its feature, of the cameras that are stored as videos."""
        return {camera: IMAGES + camera for camera, how in self.cameras.items() if how.kind == "video"}

    def features(self) -> dict[str, Any]:
        """The features as ``info.json`` describes them."""
        found: dict[str, Any] = {}
        for camera, how in self.cameras.items():
            feature: dict[str, Any] = {"dtype": how.kind, "shape": [*how.size, 3], "names": ["height", "width", "channels"]}
            if how.kind == "video":
                feature["info"] = {
                    "video.height": how.size[0],
                    "video.width": how.size[1],
                    "video.channels": 3,
                    "video.pix_fmt": "yuv420p",
                    "video.fps": _number(self.fps),
                    "video.is_depth_map": False,
                    "has_audio": False,
                }
            found[IMAGES + camera] = feature
        if self.state_names:
            found[STATE] = {"dtype": "float32", "shape": [len(self.state_names)], "names": list(self.state_names)}
        found[ACTION] = {"dtype": "float32", "shape": [len(self.spec)], "names": list(self.spec.names)}
        found |= {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in COUNTERS.items()}
        return found

    def schema(self) -> Any:
        """The Arrow schema of the frames: every feature but the videos."""
        pa, _ = load_pyarrow()
        fields = []
        for key, feature in self.features().items():
            (count, *_) = feature["shape"]
            if feature["dtype"] == "image":
                fields.append(pa.field(key, pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
            elif feature["dtype"] != "video":
                scalar = pa.from_numpy_dtype(feature["dtype"])
                fields.append(pa.field(key, scalar if count == 1 else pa.list_(scalar, count)))
        return pa.schema(fields)

    def info(self, *, episodes: int, frames: int, tasks: int, data_mb: int, video_mb: int) -> dict[str, Any]:
        """The content of ``info.json``."""
        return {
            "codebase_version": VERSION,
            "robot_type": self.robot_type,
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": data_mb,
            "video_files_size_in_mb": video_mb,
            "fps": _number(self.fps),
            "splits": {"train": f"0:{episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.videos else None,
            "features": self.features(),
            OWN_KEY: {"action_spec": self.spec.to_dict()},
        }


def stored_layout(root: Path) -> Layout | None:
    """The layout of the dataset in ``root``; None if there is none yet. Raises DataError for one that we have not written."""
    path = root / "meta" / "info.json"
    if not path.exists():
        return None
    try:
        info = json.loads(path.read_text())
        features: Mapping[str, Any] = info["features"]
        cameras = {
            key.removeprefix(IMAGES): CameraLayout(feature["dtype"], (feature["shape"][0], feature["shape"][1]))
            for key, feature in features.items()
            if key.startswith(IMAGES)
        }
        return Layout(
            spec=ActionSpec.from_dict(info[OWN_KEY]["action_spec"]),
            fps=float(info["fps"]),
            cameras=cameras,
            state_names=tuple(features[STATE]["names"]) if STATE in features else (),
            robot_type=info["robot_type"],
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(
            f"{path}: not what this writer leaves ({type(error).__name__}: {error}); "
            "only datasets that it has written are added to"
        ) from error


def _number(fps: float) -> int | float:
    """The format wants whole numbers; control rates such as 2.5 are read all the same."""
    return int(fps) if fps == int(fps) else fps
