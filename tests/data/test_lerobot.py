from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from anyvla.actions import ARM7, NAV2, NAV3, ActionSpec
from anyvla.cli import app
from anyvla.config import load_config
from anyvla.data.episode import ArrayEpisode
from anyvla.data.prepare import prepare_data
from anyvla.data.sources.lerobot import LeRobotSource
from anyvla.data.sources.lerobot_meta import fill_path
from anyvla.data.sources.opening import open_source, source_at
from anyvla.errors import ConfigError, DataError, MissingExtraError
from tests.data.lerobot_folders import make_episode, write_v3, write_v21

EPISODES = [make_episode(0, 12), make_episode(1, 5), make_episode(2, 9)]


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    return write_v3(tmp_path / "v3", EPISODES)


def opened(folder: Path, *arguments, **options) -> LeRobotSource:
    return LeRobotSource(folder, *arguments, cache=folder.parent / "cache", **options)


def same_numbers(read, written: ArrayEpisode) -> bool:
    return np.array_equal(read.actions, written.actions) and np.array_equal(read.state, written.state)


def change_json(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(("spec", "fps"), [(ARM7, 10.0), (NAV3, 2.5), (NAV2, 29.97)], ids=lambda value: str(value)[:8])
def test_what_is_written_is_read_back(tmp_path: Path, spec: ActionSpec, fps: float) -> None:
    episodes = [make_episode(i, 7 + 4 * i, spec, fps=fps) for i in range(3)]
    source = opened(write_v3(tmp_path / "data", episodes, spec))
    assert (source.spec, source.cameras, source.problems) == (spec, ("top", "wrist"), [])
    for i, written in enumerate(episodes):
        read = source.episode(i)
        for field in ("name", "length", "fps", "instruction", "task", "state_names"):
            assert getattr(read, field) == getattr(written, field)
        assert same_numbers(read, written)
        frames = read.read(0, read.length, ["top", "wrist"])
        assert np.array_equal(frames["wrist"], written.images["wrist"])
        difference = np.abs(frames["top"].astype(int) - written.images["top"]).mean((1, 2, 3))
        assert difference.max() < 9, "the right frame, as a lossy codec gives it (a neighbour differs by more than 20)"


@pytest.mark.parametrize("camera", ["top", "wrist"])
def test_any_window_is_the_same_as_in_the_whole_episode(v3: Path, camera: str) -> None:
    source = opened(v3)
    whole = [source.episode(i).read(0, source.episode(i).length, [camera])[camera] for i in range(3)]
    rng = np.random.default_rng(0)
    for _ in range(60):
        i = int(rng.integers(3))
        start = int(rng.integers(len(whole[i])))
        stop = int(rng.integers(start, len(whole[i]))) + 1
        assert np.array_equal(source.episode(i).read(start, stop, [camera])[camera], whole[i][start:stop])


def test_a_source_works_in_another_process(v3: Path) -> None:
    source = opened(v3)
    mine = source.episode(1).read(1, 4, ["top", "wrist"])
    for method in ("spawn", "fork"):
        with ProcessPoolExecutor(1, get_context(method)) as pool:
            theirs = pool.submit(source.episode(1).read, 1, 4, ["top", "wrist"]).result()
        assert all(np.array_equal(mine[camera], theirs[camera]) for camera in mine)


def test_v21_is_read(tmp_path: Path) -> None:
    source = opened(write_v21(tmp_path / "v21", EPISODES), ARM7)
    assert len(source) == 3
    for i, written in enumerate(EPISODES):
        read = source.episode(i)
        assert (read.instruction, read.state_names) == (written.instruction, ("state_0", "state_1"))
        assert same_numbers(read, written)
        assert np.abs(read.read(2, 5, ["top"])["top"].astype(int) - written.images["top"][2:5]).mean() < 9
    assert [opened(tmp_path / "v21", split="val").episode(0).name] == ["episode_000002"]


def test_episodes_are_found_where_the_table_says(tmp_path: Path) -> None:
    """With many small files, and a table whose rows are in another order."""
    folder = write_v3(tmp_path / "data", EPISODES, data_file_mb=0)
    assert len(list((folder / "data").rglob("*.parquet"))) == len(list((folder / "videos").rglob("*.mp4"))) == 3
    table = pa.concat_tables([pq.read_table(path) for path in sorted((folder / "meta" / "episodes").rglob("*.parquet"))])
    for path in (folder / "meta" / "episodes").rglob("*.parquet"):
        path.unlink()
    pq.write_table(table.take([2, 0, 1]), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    source = opened(folder)
    assert [source.episode(i).name for i in range(3)] == [episode.name for episode in EPISODES]
    for i, written in enumerate(EPISODES):
        assert same_numbers(source.episode(i), written)
        assert np.array_equal(source.episode(i).read(1, 3, ["wrist"])["wrist"], written.images["wrist"][1:3])


def test_a_split_or_some_episodes(v3: Path) -> None:
    change_json(v3 / "meta" / "info.json", lambda info: info.update(splits={"train": "0:2", "test": "2:3", "odd": "80%"}))
    assert [opened(v3, split="test").episode(0).name] == ["made_2"]
    source = opened(v3, episodes=[2, 0])
    assert [source.episode(i).name for i in range(len(source))] == ["made_0", "made_2"]
    with pytest.raises(ConfigError, match="no 'tests'; did you mean 'test'"):
        opened(v3, split="tests")
    with pytest.raises(DataError, match="split 'odd' is '80%'"):
        opened(v3, split="odd")
    with pytest.raises(ConfigError, match="no episode 2"):
        opened(v3, split="train", episodes=[2])


def test_actions_are_found_by_name(v3: Path) -> None:
    some = ActionSpec("some", (ARM7.dims[6], ARM7.dims[0]))
    assert np.array_equal(opened(v3, some).episode(0).actions, EPISODES[0].actions[:, [6, 0]])
    with pytest.raises(ConfigError, match=r"another robot than the action spec 'nav2' \(linear_x, linear_y\).*dx, dy"):
        opened(v3, NAV2)
    names = ["linear_x", "linear_y", *"abcde"]
    assert np.array_equal(opened(v3, NAV2, action_names=names).episode(0).actions, EPISODES[0].actions[:, :2])
    with pytest.raises(ConfigError, match=r"action_names: .* has 7 actions"):
        opened(v3, NAV2, action_names=names[:2])


def test_a_dataset_of_other_software_gives_a_spec_with_limits_of_its_data(v3: Path) -> None:
    change_json(v3 / "meta" / "info.json", lambda info: info.pop("anyvla"))
    spec = opened(v3).spec
    actions = np.concatenate([episode.actions for episode in EPISODES])
    assert spec.names == ARM7.names
    assert not spec.binary.any()
    assert np.array_equal(spec.high, actions.max(0))


def test_actions_outside_of_the_limits_asked_for_are_refused_by_name(tmp_path: Path) -> None:
    far = make_episode(1)
    far.actions[3, 1] = 1.5
    folder = write_v3(tmp_path / "data", [make_episode(0), far])
    assert len(opened(folder)) == 2, "it is what was written"
    change_json(folder / "meta" / "info.json", lambda info: info.pop("anyvla"))
    with pytest.raises(DataError, match=r"made_1: dy at frame 3 is 1.5 x 0.02 m, outside"):
        opened(folder, ARM7)


def test_the_state_that_is_asked_for(v3: Path) -> None:
    episode = opened(v3, None, "error", ["gap"]).episode(0)
    assert episode.state_names == ("gap",)
    assert np.array_equal(episode.state, EPISODES[0].state[:, 1:])
    assert opened(v3, None, "error", []).episode(0).state is None
    with pytest.raises(DataError, match="the state has no 'gaps'; did you mean 'gap'"):
        opened(v3, None, "error", ["gaps"])


def test_a_depth_camera_is_no_camera(v3: Path) -> None:
    def change(info: dict) -> None:
        info["features"]["observation.images.top"]["info"]["video.is_depth_map"] = True

    change_json(v3 / "meta" / "info.json", change)
    assert opened(v3).cameras == ("wrist",)


def test_the_index_is_made_once_and_anew_when_a_file_changes(v3: Path) -> None:
    opened(v3)
    (index,) = (v3.parent / "cache" / "index").iterdir()
    made = (index / "about.json").stat().st_mtime_ns
    opened(v3)
    assert (index / "about.json").stat().st_mtime_ns == made
    data = v3 / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(data)
    field = table.schema.get_field_index("action")
    pq.write_table(table.set_column(field, "action", pa.array(np.zeros((26, 7)).tolist(), pa.list_(pa.float32()))), data)
    assert not opened(v3).episode(0).actions.any()
    (other,) = (v3.parent / "cache" / "index").iterdir()
    assert other != index


def replace_column(v3: Path, column: str, values) -> None:
    path = v3 / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, values), path)


def drop_row(v3: Path) -> None:
    path = v3 / "data" / "chunk-000" / "file-000.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def cut(v3: Path, pattern: str) -> None:
    (path,) = v3.glob(pattern)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def set_info(**changes) -> Callable[[Path], None]:
    return lambda v3: change_json(v3 / "meta" / "info.json", lambda info: info.update(changes))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no info": (lambda v3: (v3 / "meta" / "info.json").unlink(), "info.json"),
    "data cut": (lambda v3: cut(v3, "data/*/*.parquet"), r"file-000.parquet: cannot be read as Parquet"),
    "data gone": (lambda v3: (v3 / "data" / "chunk-000" / "file-000.parquet").unlink(), r"data/chunk-000/file-000.parquet"),
    "table cut": (lambda v3: cut(v3, "meta/episodes/*/*.parquet"), r"meta/episodes.*cannot be read as Parquet"),
    "video gone": (lambda v3: next(v3.rglob("*.mp4")).unlink(), r"file-000.mp4: no such file, which episode 0 needs"),
    "a frame too few": (drop_row, r"file-000.parquet: 11 frames of episode 0, which has 12"),
    "text for actions": (lambda v3: replace_column(v3, "action", pa.array(["x"] * 26)), "column 'action': string"),
    "actions too short": (
        lambda v3: replace_column(v3, "action", pa.array([[0.0] * 6] * 26)),
        "column 'action': lists of 6 to 6 numbers, not of 7",
    ),
    "a null": (lambda v3: replace_column(v3, "timestamp", pa.array([None] + [0.1] * 25)), "column 'timestamp'.*1 null"),
    "not finite": (
        lambda v3: replace_column(v3, "action", pa.array([[float("nan")] * 7] * 26)),
        "made_0: dx at frame 0 is nan",
    ),
    "unknown task": (lambda v3: replace_column(v3, "task_index", pa.array([7] * 26)), "'task_index' is 7, but there are 2"),
    "leaves the folder": (set_info(data_path="../{chunk_index:03d}/{file_index}"), "leaves the dataset's folder"),
    "absolute": (set_info(video_path="/etc/passwd"), "leaves the dataset's folder"),
    "an unknown field": (set_info(data_path="data/{chunk_index.__class__}"), "leaves the dataset's folder"),
    "another version": (set_info(codebase_version="v9.1"), "'codebase_version' is v9.1; v3.0 and v2.x can be read"),
    "no rate": (set_info(fps=0), "'fps' is 0"),
    "no features": (set_info(features=[]), "'features' is"),
    "no action": (set_info(features={}), "'features' has no 'action'"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_are_named(v3: Path, damage: str) -> None:
    break_it, message = DAMAGES[damage]
    break_it(v3)
    with pytest.raises(DataError, match=message):
        opened(v3)


def test_damaged_episodes_are_left_out_if_asked(tmp_path: Path) -> None:
    folder = write_v3(tmp_path / "data", EPISODES, data_file_mb=0)
    data = folder / "data" / "chunk-000" / "file-001.parquet"
    data.write_bytes(data.read_bytes()[:-9])
    with pytest.raises(DataError, match="on_bad_episode=skip"):
        opened(folder)
    source = opened(folder, None, "skip")
    assert [source.episode(i).name for i in range(len(source))] == ["made_0", "made_2"]
    assert [problem.episode for problem in source.problems] == ["made_1"]


@pytest.mark.parametrize("keep", [0.2, 0.9])
def test_a_cut_video_is_named_when_it_is_read(v3: Path, keep: float) -> None:
    path = next(v3.rglob("*.mp4"))
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(DataError, match=r"file-000.mp4"):
        opened(v3).episode(2).read(0, 9, ["top"])


def test_a_video_of_too_few_frames_is_named(v3: Path, tmp_path: Path) -> None:
    short = write_v3(tmp_path / "short", EPISODES[:1])
    next(v3.rglob("*.mp4")).write_bytes(next(short.rglob("*.mp4")).read_bytes())
    source = opened(v3)
    source.episode(0).read(0, 12, ["top"])
    with pytest.raises(DataError, match=r"file-000.mp4: has no frame at 1.2000 s"):
        source.episode(1).read(0, 1, ["top"])


def test_a_flipped_byte_in_an_image_is_found(tmp_path: Path) -> None:
    whole = write_v3(tmp_path / "one", EPISODES[:1], cameras={"wrist": "image"})
    path = next(whole.glob("data/*/*.parquet"))
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 50] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"file-000.parquet: column 'observation.images.wrist'"):
        opened(whole).episode(0).read(0, 12, ["wrist"])


@pytest.mark.parametrize("package", ["pyarrow", "av"])
def test_a_missing_package_is_named_with_its_extra(v3: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(v3)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"needs the package '{package}': pip install 'anyvla\[lerobot\]'"):
        (opened(v3) if package == "pyarrow" else source).episode(0).read(0, 1, ["top"])


def test_windows_for_training(tmp_path: Path, tiny_overrides: list[str]) -> None:
    folder = write_v3(tmp_path / "data", [make_episode(i, 9, NAV2) for i in range(4)], NAV2)
    source = f"data.source={{type: lerobot, path: {folder}}}"
    data = prepare_data(load_config("nav-tiny", [*tiny_overrides, source, "observation.cameras=[wrist]"]))
    assert data.summary()["training_episodes"] + data.summary()["validation_episodes"] == 4
    assert data.transforms.cameras == ("wrist",)
    assert data.transforms.fps == 10


def test_paths_are_filled_in() -> None:
    where = Path("info.json")
    assert fill_path(where, "a-{n:03d}/{key}.x", {"n": 7, "key": "k"}) == "a-007/k.x"
    for template in ("{n:099999d}", "{m}", "{n!r}", "{key:03d}", "a/../../b", "", "a\0b", "C:\\b", None, 3):
        with pytest.raises(DataError):
            fill_path(where, template, {"n": 7, "key": "k"})
    with pytest.raises(DataError, match="leaves"):
        fill_path(where, "videos/{key}/x", {"key": "../../secret"})


def test_on_the_command_line(v3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    shown = CliRunner().invoke(app, ["inspect", "data", str(v3), "--out", str(tmp_path / "look")])
    assert shown.exit_code == 0, shown.output
    assert "3 episodes, 26 frames" in shown.output
    stats = CliRunner().invoke(app, ["stats", str(v3), "episodes=[0]"])
    assert json.loads(stats.output)["episodes"] == 1
    config = source_at(v3, ["split=train", "action_names=[a,b,c,d,e,f,g]"])
    assert open_source(config, cache=tmp_path / "cache").spec.names == tuple("abcdefg")
