from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from anyvla.actions import ARM7, DELTA7
from anyvla.data.sources.lerobot import LeRobotSource
from anyvla.data.writers.lerobot import LeRobotWriter, finish
from anyvla.errors import ConfigError, DataError
from tests.data.lerobot_folders import make_episode, write_v3

EPISODES = [make_episode(i, 6 + 3 * i) for i in range(4)]
# writes as many as it may, and is killed: after an episode, while one is read, or while episodes are made into files
CHILD = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from anyvla.data.writers import lerobot_files
from anyvla.data.writers.lerobot import LeRobotWriter
from tests.data.test_lerobot_writer import ARM7, EPISODES

class Deadly(type(EPISODES[0])):
    def read(self, start, stop, cameras):
        if start:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(start, stop, cameras)

folder, when, where = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
writer = LeRobotWriter(folder, ARM7, 10.0, cameras={"top": "video", "wrist": "image"})
if when == "packing":
    setattr(lerobot_files, ("write_tasks", "shutil")[where], None)  # so that this step raises, and the child kills itself
for i, episode in enumerate(EPISODES):
    if when == "between" and i == where:
        os.kill(os.getpid(), signal.SIGKILL)
    if when == "inside" and i == where:
        long = {name: frames.repeat(4, 0) for name, frames in episode.images.items()}
        changes = {"actions": episode.actions.repeat(4, 0), "state": episode.state.repeat(4, 0), "images": long}
        episode = Deadly(**{**vars(episode), **changes})
    writer.add(episode)
try:
    writer.close()
except (TypeError, AttributeError):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def read_all(folder: Path) -> LeRobotSource:
    source = LeRobotSource(folder, cache=folder.parent / "cache")
    for i in range(len(source)):
        read, written = source.episode(i), EPISODES[i]
        assert (read.name, read.instruction, read.task) == (written.name, written.instruction, written.task)
        assert np.array_equal(read.actions, written.actions)
        frames = read.read(0, read.length, ["top", "wrist"])
        assert np.array_equal(frames["wrist"], written.images["wrist"])
        assert np.abs(frames["top"].astype(int) - written.images["top"]).mean() < 9
    return source


@pytest.mark.parametrize(
    ("when", "where", "kept"), [("between", 1, 1), ("inside", 0, 0), ("inside", 2, 2), ("packing", 0, 4), ("packing", 1, 4)]
)
def test_a_killed_writer_loses_the_open_episode_only(tmp_path: Path, when: str, where: int, kept: int) -> None:
    folder = tmp_path / "data"
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder), when, str(where)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    if kept and when != "packing":
        with pytest.raises(DataError, match=f"{kept} episodes are not part of the dataset yet"):
            read_all(folder)
        assert finish(folder) == kept
        assert len(read_all(folder)) == kept
    with LeRobotWriter(folder, ARM7, 10.0, cameras={"top": "video", "wrist": "image"}) as writer:
        assert len(writer) == kept
        assert writer.names == {episode.name for episode in EPISODES[:kept]}
        for episode in EPISODES[kept:]:
            writer.add(episode)
    assert len(read_all(folder)) == len(EPISODES)
    table = pq.read_table(folder / "data")
    assert table["index"].to_pylist() == list(range(sum(episode.length for episode in EPISODES))), "no row is there twice"
    assert not list(folder.glob(".*"))


def test_a_folder_is_added_to(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "data", EPISODES[:2])
    write_v3(folder, EPISODES[2:])
    assert len(read_all(folder)) == 4
    info = json.loads((folder / "meta" / "info.json").read_text())
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (4, 6 + 9 + 12 + 15, 2)
    assert info["splits"] == {"train": "0:4"}


def test_the_layout_of_the_format(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "data", EPISODES)
    data = pq.ParquetFile(folder / "data" / "chunk-000" / "file-000.parquet")
    assert [data.metadata.row_group(i).num_rows for i in range(4)] == [episode.length for episode in EPISODES]
    columns = set(data.schema_arrow.names)
    info = json.loads((folder / "meta" / "info.json").read_text())
    assert columns == {key for key, feature in info["features"].items() if feature["dtype"] != "video"}
    assert {"timestamp", "frame_index", "episode_index", "index", "task_index"} < columns
    assert info["features"]["action"] == {"dtype": "float32", "shape": [7], "names": list(ARM7.names)}
    row = pq.read_table(folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet").to_pylist()[2]
    assert (row["dataset_from_index"], row["dataset_to_index"], row["tasks"]) == (15, 27, ["Push the button 0."])
    assert row["videos/observation.images.top/from_timestamp"] == pytest.approx(1.5)
    assert row["videos/observation.images.top/to_timestamp"] == pytest.approx(2.7)
    for feature in info["features"]:
        for kind in ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"):
            assert f"stats/{feature}/{kind}" in row
    index = json.loads(pq.read_schema(folder / "meta" / "tasks.parquet").metadata[b"pandas"])["index_columns"]
    assert index == ["task"]


def test_statistics_are_those_of_all_frames(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "data", EPISODES[:2], data_file_mb=0)
    write_v3(folder, EPISODES[2:])
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    actions = np.concatenate([episode.actions for episode in EPISODES]).astype(float)
    pixels = np.concatenate([episode.images["wrist"] for episode in EPISODES]).reshape(-1, 3) / 255
    for key, values, shape in (("action", actions, (7,)), ("observation.images.wrist", pixels, (3, 1, 1))):
        expected = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        expected |= {f"q{round(100 * q):02d}": np.quantile(values, q, axis=0) for q in (0.01, 0.1, 0.5, 0.9, 0.99)}
        for kind, value in expected.items():
            np.testing.assert_allclose(stats[key][kind], value.reshape(shape), atol=1e-9, err_msg=f"{key} {kind}")
        assert stats[key]["count"] == [len(actions)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "made_0"}, "an episode of this name is there already"),
        ({"fps": 5.0}, "has 5 fps, the dataset 10"),
        ({"images": {"top": EPISODES[0].images["top"]}}, "no images of the camera wrist"),
        ({"state_names": ("x", "y")}, "the state has no gap"),
        ({"actions": np.zeros((6, 3), np.float32)}, r"actions must be \(T, 7\)"),
        ({"actions": np.full((6, 7), np.nan, np.float32)}, "actions hold non-finite values, first at frame 0"),
        (
            {"images": {camera: frames[:, :20] for camera, frames in EPISODES[0].images.items()}},
            "not .* uint8 as in this dataset",
        ),
        ({"images": {camera: frames[:3] for camera, frames in EPISODES[0].images.items()}}, "not .* uint8 as in this dataset"),
    ],
)
def test_what_does_not_go_with_the_others_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    with LeRobotWriter(tmp_path / "data", ARM7, 10.0, cameras={"top": "video", "wrist": "image"}) as writer:
        writer.add(EPISODES[0])
        with pytest.raises(DataError, match=message):
            writer.add(make_episode(9, 6, **changes))
        writer.add(EPISODES[1])
    assert len(read_all(tmp_path / "data")) == 2


def test_what_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "data", EPISODES[:1])
    with pytest.raises(ConfigError, match=r"arm7 .* at 10 fps; delta7 .* cannot be added"):
        LeRobotWriter(folder, DELTA7, 10.0)
    with LeRobotWriter(folder, ARM7, 10.0) as writer:
        with pytest.raises(DataError, match="another process is writing"):
            LeRobotWriter(folder, ARM7, 10.0)
        writer.close()
        with pytest.raises(DataError, match="the writer is closed"):
            writer.add(EPISODES[1])
    info = folder / "meta" / "info.json"
    info.write_text(json.dumps({"codebase_version": "v3.0", "features": {}}))
    with pytest.raises(DataError, match="only datasets that it has written are added to"):
        LeRobotWriter(folder, ARM7, 10.0)
    with pytest.raises(DataError, match="no dataset that LeRobotWriter has begun"):
        finish(tmp_path)
    with (
        pytest.raises(DataError, match="even height and width, not 23 x 32"),
        LeRobotWriter(tmp_path / "odd", ARM7, 10.0, cameras="video") as writer,
    ):
        writer.add(make_episode(0, size=(23, 32)))


def test_cameras_and_state_that_are_written_can_be_chosen(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "data", EPISODES[:2], cameras={"wrist": "image"}, state_names=["gap"])
    episode = LeRobotSource(folder, cache=tmp_path / "cache").episode(1)
    assert (episode.cameras, episode.state_names) == (("wrist",), ("gap",))
    assert np.array_equal(episode.state, EPISODES[1].state[:, 1:])
    without = write_v3(tmp_path / "without", EPISODES[:2], cameras="image", state_names=[])
    assert LeRobotSource(without, cache=tmp_path / "cache").episode(0).state is None


def test_h264_is_another_codec(tmp_path: Path) -> None:
    assert len(read_all(write_v3(tmp_path / "data", EPISODES, codec="h264"))) == 4
