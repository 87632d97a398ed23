from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.rlds_writer import encode_image

from anyvla.actions import ARM7
from anyvla.actions.spec import DELTA7, ActionSpec
from anyvla.config.sources import RLDSConfig, RLDSLayout
from anyvla.data.sources.opening import detect_format, open_source, source_at
from anyvla.data.sources.rlds import RLDSSource
from anyvla.errors import ConfigError, DataError
from tests.data.rlds_made import made_steps, make_dataset

BRIDGE = "bridge_dataset"


@pytest.fixture
def opened(tmp_path: Path):
    """Open a dataset with an index of its own."""

    def open_(path: Path, on_bad_episode: str = "error", state: list[str] | None = None, **settings: Any) -> RLDSSource:
        return RLDSSource(RLDSConfig(path=path, **settings), None, on_bad_episode, state, tmp_path / "cache")

    return open_


def _bridge(tmp_path: Path, *lengths: int, **changes: Any) -> Path:
    return make_dataset(tmp_path, BRIDGE, [made_steps(BRIDGE, n, seed, **changes) for seed, n in enumerate(lengths)])


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_written_is_read_back_exactly(tmp_path: Path, opened, packed: bool) -> None:
    made = [made_steps(BRIDGE, n, seed) for seed, n in enumerate((5, 9, 4))]
    for values in made:
        values["action"][:, 6] = 1
    source = opened(make_dataset(tmp_path, BRIDGE, made[:2], made[2:], packed=packed))
    assert [source.episode(i).name for i in range(len(source))] == ["train/0", "train/1", "train/2"]
    assert source.cameras == ("primary", "secondary", "tertiary", "quaternary")
    for i, values in enumerate(made):
        episode = source.episode(i)
        assert (episode.length, episode.fps, episode.instruction) == (len(values["action"]) - 1, 5, f"push the block {i}")
        np.testing.assert_allclose(episode.actions, values["action"][1:], atol=1e-7)  # the first step is left out
        np.testing.assert_array_equal(episode.state, values["observation/state"][1:])
        frames = episode.read(1, 3, ["primary", "quaternary"])
        np.testing.assert_array_equal(frames["primary"], values["observation/image_0"][2:4])
        np.testing.assert_array_equal(frames["quaternary"], values["observation/image_3"][2:4])


def test_a_part_of_a_split_keeps_the_names_of_its_episodes(tmp_path: Path, opened) -> None:
    made = [[made_steps(BRIDGE, 4, 10 * shard + i) for i in range(3)] for shard in range(3)]
    folder = make_dataset(tmp_path, BRIDGE, *made)
    whole, part = opened(folder), opened(folder, split="train[4:8]")
    names = [part.episode(i).name for i in range(len(part))]
    assert names == [f"train/{i}" for i in range(4, 8)]
    for i in range(4):
        np.testing.assert_array_equal(part.episode(i).actions, whole.episode(i + 4).actions)
        assert part.episode(i).fingerprint == whole.episode(i + 4).fingerprint
    halves = [opened(folder, split=split) for split in ("train[:50%]", "train[50%:]")]
    assert sum(map(len, halves)) == 9


def test_the_index_is_made_once_and_anew_when_a_file_changes(tmp_path: Path, opened, monkeypatch) -> None:
    from anyvla.data.sources import rlds_index

    made = [made_steps(BRIDGE, 4, seed) for seed in range(4)]
    folder = make_dataset(tmp_path, BRIDGE, made[:2], made[2:])
    indexed: list[str] = []
    original = rlds_index._index_shard

    def note(part: Path, shard, *rest: Any) -> Any:
        indexed.append(shard.path.name[-14:])
        return original(part, shard, *rest)

    monkeypatch.setattr(rlds_index, "_index_shard", note)
    first = opened(folder)
    opened(folder)
    assert indexed == ["00000-of-00002", "00001-of-00002"]
    shard = sorted(folder.glob("*00001-of*"))[0]
    os.utime(shard, ns=(1, 1))
    opened(folder)
    assert len(indexed) == 4
    with pytest.raises(DataError, match="has changed since it was opened"):
        first.episode(3).read(0, 1, ["primary"])


def test_an_interrupted_index_goes_on_where_it_stopped(tmp_path: Path, opened, monkeypatch) -> None:
    from anyvla.data.sources import rlds_index

    made = [[made_steps(BRIDGE, 4, seed)] for seed in range(3)]
    folder = make_dataset(tmp_path, BRIDGE, *made)
    original = rlds_index._index_shard
    indexed: list[str] = []

    def interrupt(part: Path, shard, *rest: Any) -> Any:
        if len(indexed) == 2:
            indexed.append("")
            raise KeyboardInterrupt
        indexed.append(shard.path.name[-14:-9])
        return original(part, shard, *rest)

    monkeypatch.setattr(rlds_index, "_index_shard", interrupt)
    with pytest.raises(KeyboardInterrupt):
        opened(folder)
    part = next((tmp_path / "cache").rglob("1.npz"))
    part.write_bytes(part.read_bytes()[:100])  # as after a power cut
    source = opened(folder)
    assert indexed == ["00000", "00001", "", "00001", "00002"]
    assert [source.episode(i).instruction for i in range(3)] == [f"push the block {i}" for i in range(3)]
    assert not list((tmp_path / "cache").rglob("*.partial*"))


def test_processes_that_index_give_the_same(tmp_path: Path, opened, monkeypatch) -> None:
    from anyvla.data.sources import rlds_index

    made = [[made_steps(BRIDGE, 4, 2 * shard + i) for i in range(2)] for shard in range(2)]
    folder = make_dataset(tmp_path, BRIDGE, *made)
    one = opened(folder)
    monkeypatch.setattr(rlds_index, "_SMALL", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    many = RLDSSource(RLDSConfig(path=folder), cache=tmp_path / "other")
    for i in range(4):
        a, b = one.episode(i), many.episode(i)
        assert (a.name, a.fingerprint, a.instruction) == (b.name, b.fingerprint, b.instruction)
        np.testing.assert_array_equal(a.actions, b.actions)
        np.testing.assert_array_equal(a.read(0, 3, ["primary"])["primary"], b.read(0, 3, ["primary"])["primary"])


def test_a_source_and_an_episode_can_be_sent_to_another_process(tmp_path: Path, opened) -> None:
    source = opened(_bridge(tmp_path, 5, 6))
    again = pickle.loads(pickle.dumps(source))  # noqa: S301  our own bytes
    episode = pickle.loads(pickle.dumps(source.episode(1)))  # noqa: S301
    assert len(pickle.dumps(episode)) < 4000  # not the arrays of all the others
    for other in (again.episode(1), episode):
        np.testing.assert_array_equal(
            other.read(0, 2, ["primary"])["primary"], source.episode(1).read(0, 2, ["primary"])["primary"]
        )


def test_a_camera_without_pictures_is_absent(tmp_path: Path, opened) -> None:
    black = encode_image(np.zeros((8, 10, 3), np.uint8))
    made = [
        made_steps(BRIDGE, 4, 0, observation__image_1=[black] * 4, observation__image_3=[b""] * 4),
        made_steps(BRIDGE, 4, 1, observation__image_3=[black] * 4),
    ]
    source = opened(make_dataset(tmp_path, BRIDGE, made))
    assert source.cameras == ("primary", "secondary", "tertiary")
    assert source.episode(0).cameras == ("primary", "tertiary")
    assert source.episode(1).cameras == ("primary", "secondary", "tertiary")


def test_a_still_picture_is_no_absent_camera(tmp_path: Path, opened) -> None:
    still = encode_image(np.full((8, 10, 3), 30, np.uint8))
    source = opened(make_dataset(tmp_path, BRIDGE, [made_steps(BRIDGE, 4, 0, observation__image_1=[still] * 4)]))
    assert "secondary" in source.cameras


def test_episodes_without_a_sentence_are_left_out_and_told(tmp_path: Path, opened) -> None:
    made = [made_steps(BRIDGE, 4, i, language_instruction=text) for i, text in enumerate(("", "go", "  "))]
    folder = make_dataset(tmp_path, BRIDGE, made)
    source = opened(folder)
    assert [source.episode(i).instruction for i in range(len(source))] == ["go"]
    assert "2 of 3 episodes have no sentence" in source.problems[0].reason
    assert len(opened(folder, unlabelled=True)) == 3


def test_the_first_sentence_that_is_not_empty_is_taken(tmp_path: Path, opened) -> None:
    values = made_steps("droid", 4, language_instruction="", language_instruction_2="second", language_instruction_3="third")
    assert opened(make_dataset(tmp_path, "droid", [values])).episode(0).instruction == "second"
    values = made_steps("language_table", 3)
    assert opened(make_dataset(tmp_path, "language_table", [values])).episode(0).instruction == "push the block 0"


def test_motion_that_was_reached(tmp_path: Path, opened) -> None:
    values = made_steps(BRIDGE, 6)
    values["action"][:, 6] = [1, 1, 0, 0, 1, 1]
    values["observation/state"][:, 5] = [0, 3.1, -3.1, -3.0, -3.0, -3.0]  # past the half turn
    folder = make_dataset(tmp_path, BRIDGE, [values])
    episode = opened(folder, motion="reached").episode(0)
    assert episode.length == 4  # without the first, and the last, which leads nowhere
    state = values["observation/state"]
    np.testing.assert_allclose(episode.actions[:, :5], np.diff(state[1:, :5], axis=0), atol=1e-6)
    np.testing.assert_allclose(episode.actions[:, 5], [2 * np.pi - 6.2, 0.1, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(episode.actions[:, 6], [1, 0, 0, 1])
    np.testing.assert_array_equal(episode.read(3, 4, ["primary"])["primary"][0], values["observation/image_0"][4])


def test_the_state_that_is_asked_for(tmp_path: Path, opened) -> None:
    folder = _bridge(tmp_path, 4)
    every = opened(folder).episode(0)
    assert every.state_names == ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    some = opened(folder, state=["gripper", "x"]).episode(0)
    np.testing.assert_array_equal(some.state, every.state[:, [6, 0]])
    assert opened(folder, state=[]).episode(0).state is None
    with pytest.raises(ConfigError, match="no 'griper'; did you mean 'gripper'"):
        opened(folder, state=["griper"])


def test_only_what_fits_delta7_can_be_asked_for(tmp_path: Path) -> None:
    config = RLDSConfig(path=_bridge(tmp_path, 4))
    place = ActionSpec("place", DELTA7.dims[:3])
    assert open_source(config, place, cache=tmp_path).episode(0).actions.shape == (3, 3)
    from anyvla.actions import NAV2

    with pytest.raises(ConfigError, match=r"no action dimension 'linear_x'.*rlds fits delta7"):
        open_source(config, NAV2, cache=tmp_path)
    assert set(ARM7.names) == set(DELTA7.names)


def test_a_few_steps_beyond_the_limits_are_clipped_and_many_are_another_unit(tmp_path: Path, opened) -> None:
    values = [made_steps(BRIDGE, 101, 0), made_steps(BRIDGE, 100, 1)]
    values[0]["action"][50, 0] = 0.4
    source = opened(make_dataset(tmp_path / "a", BRIDGE, values))
    assert source.episode(0).actions[:, 0].max() == np.float32(0.25)
    assert "1 of 199 steps are beyond the limits of delta7, most often dx beyond [-0.25, 0.25] m" in source.problems[0].reason
    values[0]["action"][:, 0] *= 1000
    folder = make_dataset(tmp_path / "b", BRIDGE, values)
    with pytest.raises(DataError, match="recorded in another unit"):
        opened(folder)


def test_an_unknown_dataset_is_refused_with_advice_or_described(tmp_path: Path, opened) -> None:
    folder = _bridge(tmp_path, 4)
    info = json.loads((folder / "dataset_info.json").read_text())
    name = "mine-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}".replace("mine", BRIDGE)
    info["name"], info["splits"][0]["filepathTemplate"] = "bridge_datset", name
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ConfigError) as caught:
        opened(folder)
    for said in ("'bridge_datset'; did you mean 'bridge_dataset'?", "data.source.layout", "observation/image_0", "action (7)"):
        assert said in str(caught.value)
    known = opened(folder, dataset=BRIDGE)
    layout = RLDSLayout(
        cameras={"front": "observation/image_2"},
        translation="action[:3]",
        rotation="action[3:6]",
        gripper="action[-1]",
        state={"observation/state[0:2]": ["x", "y"]},
        fps=7.5,
    )
    mine = opened(folder, layout=layout).episode(0)
    assert (mine.fps, mine.cameras, mine.state_names, mine.length) == (7.5, ("front",), ("x", "y"), 4)
    np.testing.assert_array_equal(mine.actions[1:], known.episode(0).actions)
    np.testing.assert_array_equal(mine.read(1, 2, ["front"])["front"], known.episode(0).read(0, 1, ["tertiary"])["tertiary"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": {"a": "observation/imag_0"}}, "no feature 'observation/imag_0'; did you mean 'observation/image_0'"),
        ({"cameras": {"a": "observation/state"}}, "no colour images in 'observation/state'"),
        ({"translation": "acton[0:3]"}, "no numbers 'acton'; did you mean 'action'"),
        ({"translation": "action[0:4]"}, "is not 1 or 2 or 3 of its 7 columns"),
        ({"translation": "action[5:9]"}, "'action[5:9]' is not 1 or 2 or 3 of its 7 columns"),
        ({"translation": "action[]"}, "is not of the form name, name[3] or name[0:6]"),
        ({"rotation": "action[3:6]", "rotation_form": "quaternion"}, "is not 4 of its 7 columns"),
        ({"state": {"observation/state": ["x"]}}, "is not 1 of its 7 columns"),
        ({"state": {"observation/state[0]": ["x"], "observation/state[1]": ["x"]}}, "a name stands there twice"),
        ({"instruction": ["langage_instruction"]}, "did you mean 'language_instruction'"),
    ],
)
def test_a_layout_that_does_not_fit_is_answered(tmp_path: Path, opened, change: dict[str, Any], message: str) -> None:
    folder = _bridge(tmp_path, 4)
    settings = {"cameras": {"a": "observation/image_0"}, "gripper": "action[6]", "fps": 5, **change}
    with pytest.raises(ConfigError) as caught:
        opened(folder, layout=RLDSLayout(**settings))
    assert message in str(caught.value)


def _shard(folder: Path) -> Path:
    return next(folder.glob("*.tfrecord*"))


def _flip(position: int):
    def damage(folder: Path) -> None:
        data = bytearray(_shard(folder).read_bytes())
        data[position] ^= 0xFF
        _shard(folder).write_bytes(data)

    return damage


def _truncate(folder: Path) -> None:
    _shard(folder).write_bytes(_shard(folder).read_bytes()[:-5])


def _info(**changes: Any):
    def damage(folder: Path) -> None:
        info = json.loads((folder / "dataset_info.json").read_text())
        info["splits"][0] |= changes
        (folder / "dataset_info.json").write_text(json.dumps(info))

    return damage


def _features(old: str, new: str):
    def damage(folder: Path) -> None:
        path = folder / "features.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return damage


DAMAGES = {
    "payload": (_flip(200), "record 0 at byte 0 is damaged: its checksum is wrong"),
    "length": (_flip(3), "the checksum of its length is wrong"),
    "truncated": (_truncate, "is cut short"),
    "too_few": (_info(shardLengths=["3"]), "has 2 of the 3 episodes"),
    "too_many": (_info(shardLengths=["1"]), "has more than the 1 episodes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_named_and_the_rest_can_be_used(tmp_path: Path, opened, name: str) -> None:
    folder = _bridge(tmp_path, 4, 5)
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(DataError, match=message) as caught:
        opened(folder)
    assert "tfrecord-00000-of-00001" in str(caught.value)
    if name == "length":  # nothing behind it can be found
        with pytest.raises(DataError, match="none of its episodes can be used"):
            opened(folder, "skip")
        return
    source = opened(folder, "skip")
    assert len(source.problems) == 1
    assert {source.episode(i).name for i in range(len(source))} <= {"train/0", "train/1"}
    assert len(source) == {"payload": 1, "truncated": 1, "too_few": 2, "too_many": 1}[name]


RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "lengths": ({"action": np.zeros((3, 7), np.float32)}, "features of different lengths, in steps: .*image_0 4.*action 3"),
    "size": ({"action": np.zeros(27, np.float32)}, "steps/action: 27 numbers are no multiple of 7"),
    "kind": ({"action": np.zeros((4, 7), np.int64)}, "steps/action: holds a list of int, not of float"),
    "text_for_numbers": ({"action": "go"}, "steps/action: holds a list of bytes"),
    "nan": ({"action": np.full((4, 7), np.nan, np.float32)}, "action"),
    "infinite_state": ({"observation__state": np.full((4, 7), np.inf, np.float32)}, "state x at step 1 is inf"),
    "no_steps": ({"action": np.zeros((0, 7), np.float32)}, "different lengths"),
    "not_utf8": ({"language_instruction": [b"\xff"] * 4}, "steps/language_instruction: no UTF-8 text"),
    "damaged_still": ({"observation__image_0": [b"\x89PNG"] * 4}, "camera 'primary', step 0: a damaged image"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_disagrees_is_named(tmp_path: Path, opened, name: str) -> None:
    changes, message = RECORDS[name]
    made = [made_steps(BRIDGE, 4, 0), made_steps(BRIDGE, 4, 1, **changes)]
    folder = make_dataset(tmp_path, BRIDGE, made)
    with pytest.raises(DataError, match=rf"record 1: .*{message}"):
        opened(folder)
    assert [problem.episode for problem in opened(folder, "skip").problems] == ["train/1"]


def test_features_that_disagree_with_the_record(tmp_path: Path, opened) -> None:
    folder = _bridge(tmp_path, 4)
    for old, new, message in (
        ('"action"', '"actions"', "no numbers 'action'; did you mean 'actions'"),
        ('["7"]', '["5"]', "'observation/state' is not 7 of its 5 columns"),
        ('"dtype": "float32"', '"dtype": "complex64"', "stored as none complex64, not known here"),
        ('"dtype": "float32"', '"dtype": "int32"', "holds a list of float, not of int"),
        ('"encoding": "none"', '"encoding": "zlib"', "holds a list of float, not of bytes"),
    ):
        before = (folder / "features.json").read_text()
        _features(old, new)(folder)
        with pytest.raises((ConfigError, DataError)) as caught:
            opened(folder)
        assert message in str(caught.value), (new, caught.value)
        (folder / "features.json").write_text(before)


def test_damaged_images_are_found_when_they_are_read(tmp_path: Path, opened) -> None:
    values = made_steps(BRIDGE, 5)
    good = [encode_image(image) for image in values["observation/image_0"]]
    wide = encode_image(np.ones((8, 11, 3), np.uint8))
    values["observation/image_0"] = [good[0], good[1][:40], good[2], wide, good[4]]
    episode = opened(make_dataset(tmp_path, BRIDGE, [values])).episode(0)
    assert episode.read(1, 2, ["primary"])["primary"].shape == (1, 8, 10, 3)
    with pytest.raises(DataError, match=r"tfrecord.*episode train/0: camera 'primary', frame 0: a damaged image"):
        episode.read(0, 2, ["primary"])
    with pytest.raises(DataError, match=r"frame 2: an image of 8 x 11, where features.json says 8 x 10"):
        episode.read(1, 3, ["primary"])


def test_missing_splits_and_shards_are_named(tmp_path: Path, opened) -> None:
    folder = make_dataset(tmp_path, BRIDGE, [made_steps(BRIDGE, 4, 0)], [made_steps(BRIDGE, 4, 1)])
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"].append({**info["splits"][0], "name": "val"})
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(
        DataError, match=r"split 'val' is named in dataset_info.json, but none of its 2 files is here .*; here: train"
    ):
        opened(folder, split="train+val")
    (folder / "bridge_dataset-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(DataError, match=r"00001-of-00002: no such file, although dataset_info.json names it"):
        opened(folder)
    source = opened(folder, "skip")
    assert (len(source), source.problems[0].episode) == (1, "train/1-1")
    assert len(opened(folder, split="train[:1]")) == 1  # the other is not needed
    with pytest.raises(DataError, match="no RLDS dataset"):
        opened(tmp_path / "cache")
    with pytest.raises(DataError, match="no such file or folder"):
        opened(tmp_path / "nowhere")


def test_the_format_is_found_by_what_lies_there(tmp_path: Path) -> None:
    folder = _bridge(tmp_path, 4)
    assert detect_format(folder) == detect_format(folder.parent) == "rlds"
    settings = source_at(folder.parent, ["split=train[:1]", "motion=reached"])
    assert settings == RLDSConfig(path=folder.parent, split="train[:1]", motion="reached")
    assert len(open_source(RLDSConfig(path=tmp_path, dataset=BRIDGE), cache=tmp_path)) == 1  # a folder of several datasets
