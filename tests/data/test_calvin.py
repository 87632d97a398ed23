from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from anyvla.actions import ARM7, DELTA7, NAV2, POSE7
from anyvla.actions.frames import tcp_to_world
from anyvla.config import load_config
from anyvla.config.sources import CalvinConfig
from anyvla.data.prepare import prepare_data
from anyvla.data.sources.calvin import STATE_NAMES, CalvinSource
from anyvla.data.sources.calvin_index import read_frame
from anyvla.data.sources.npz import members_of, read_members
from anyvla.data.sources.opening import detect_format, open_source, source_at
from anyvla.data.sources.restricted_npy import read_object_array
from anyvla.errors import ConfigError, DataError
from tests.calvin_data import ANNOTATIONS, frame_arrays, frame_file, write_annotations, write_calvin, write_frame


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_calvin(tmp_path / "calvin")


def opened(folder: Path, spec=None, on_bad_episode="error", state=None, **settings) -> CalvinSource:
    return CalvinSource(CalvinConfig(path=folder, **settings), spec, on_bad_episode, state, folder.parent / "cache")


def names(source: CalvinSource) -> list[str]:
    return [source.episode(i).name for i in range(len(source))]


def stacked(key: str, first: int, last: int) -> np.ndarray:
    return np.stack([frame_arrays(frame)[key] for frame in range(first, last + 1)])


def test_annotations_are_episodes_with_their_last_frame(folder: Path) -> None:
    source = opened(folder)
    assert source.spec == ARM7
    assert source.cameras == ("rgb_static", "rgb_gripper")
    assert len(source) == len(ANNOTATIONS)
    for i, (first, last, text, task) in enumerate(ANNOTATIONS):
        episode = source.episode(i)
        assert (episode.length, episode.fps, episode.instruction, episode.task) == (last - first + 1, 30, text, task)
        expected = stacked("rel_actions", first, last)
        np.testing.assert_allclose(episode.actions[:, :6], expected[:, :6], atol=1e-7)
        np.testing.assert_array_equal(episode.actions[:, 6], expected[:, 6] > 0)
        assert episode.actions.dtype == np.float32
        assert episode.state_names == STATE_NAMES
        np.testing.assert_allclose(episode.state, stacked("robot_obs", first, last), atol=1e-7)
        images = episode.read(2, episode.length, ["rgb_gripper", "rgb_static"])
        for camera in source.cameras:
            np.testing.assert_array_equal(images[camera], stacked(camera, first + 2, last))
    with pytest.raises(IndexError):
        episode.read(0, episode.length + 1, ["rgb_static"])


def test_play_is_cut_into_pieces_that_hold_every_frame_once(folder: Path) -> None:
    source = opened(folder, language="play", play_length=10, play_instruction="do something")
    episodes = [source.episode(i) for i in range(len(source))]
    assert [frame for e in episodes for frame in range(e.first, e.last + 1)] == [*range(58, 81), *range(100, 113)]
    assert [episode.length for episode in episodes] == [7, 8, 8, 6, 7]
    assert {episode.instruction for episode in episodes} == {"do something"}
    both = opened(folder, language="both", play_length=10)
    assert names(both) == names(opened(folder)) + names(source)
    assert len(set(names(both))) == len(both)


def test_actions_are_relative_or_absolute_in_the_units_asked_for(folder: Path) -> None:
    absolute = opened(folder, actions="absolute")
    assert absolute.spec == POSE7
    np.testing.assert_allclose(absolute.episode(0).actions[:, :6], stacked("actions", 58, 66)[:, :6], atol=1e-6)
    metres = opened(folder, DELTA7).episode(0).actions
    expected = stacked("rel_actions", 58, 66)[:, :6] * [0.02, 0.02, 0.02, 0.05, 0.05, 0.05]
    np.testing.assert_allclose(metres[:, :6], expected, atol=1e-7)
    tcp = opened(folder, frame="tcp").episode(0).actions
    assert np.abs(tcp[:, :6] - stacked("rel_actions", 58, 66)[:, :6]).max() > 0.1
    back = tcp_to_world(tcp, stacked("robot_obs", 58, 66)[:, 3:6])
    np.testing.assert_allclose(back, opened(folder).episode(0).actions, atol=1e-4)


def test_actions_of_another_robot_are_refused(folder: Path) -> None:
    for spec, settings in ((NAV2, {}), (POSE7, {}), (ARM7, {"actions": "absolute"})):
        with pytest.raises(ConfigError, match=r"does not go with CALVIN's (relative|absolute) actions"):
            opened(folder, spec, **settings)


def test_the_state_is_the_numbers_asked_for(folder: Path) -> None:
    episode = opened(folder, state=["joint_7", "tcp_x"]).episode(1)
    assert episode.state_names == ("joint_7", "tcp_x")
    np.testing.assert_allclose(episode.state, stacked("robot_obs", 64, 80)[:, [13, 0]], atol=1e-7)
    assert opened(folder, state=[]).episode(0).state is None
    with pytest.raises(ConfigError, match="has no 'tcp_w'; did you mean 'tcp_yaw'"):
        opened(folder, state=["tcp_w"])


def test_tasks_scenes_and_shares_select_annotations(folder: Path) -> None:
    assert names(opened(folder, tasks=["turn_on_lightbulb"])) == ["annotation_00004_turn_on_lightbulb"]
    with pytest.raises(ConfigError, match="did you mean 'open_drawer'"):
        opened(folder, tasks=["open_drawr"])
    assert {e.task for e in map(opened(folder, scenes=["B"]).episode, range(2))} == {"open_drawer"}
    with pytest.raises(DataError, match="no frames of scene A in this split; it has calvin_scene_B, calvin_scene_D"):
        opened(folder, scenes=["A"])
    one = opened(folder, per_task=1)
    assert sorted(one.episode(i).task for i in range(len(one))) == ["open_drawer", "push_red_block_left", "turn_on_lightbulb"]
    assert names(opened(folder, fraction=0.5)) == names(one)
    assert set(names(one)) < set(names(opened(folder, per_task=2)))
    assert len({tuple(names(opened(folder, per_task=1, draw=draw))) for draw in range(8)}) > 1
    assert len(opened(folder, per_task=1, language="both")) == 5  # three sentences and two recordings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame": "tcp", "actions": "absolute"}, "only relative actions"),
        ({"per_task": 1, "fraction": 0.5}, "say the same thing"),
        ({"language": "play", "tasks": ["a"]}, "tasks selects annotations"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CalvinConfig(**settings)


def test_it_is_found_as_a_data_set_and_as_a_split(folder: Path) -> None:
    assert detect_format(folder) == detect_format(folder / "training") == "calvin"
    assert names(opened(folder / "training")) == names(opened(folder))
    source = open_source(source_at(folder, ["language=play"]), cache=folder.parent / "cache")
    assert len(source) == 2
    with pytest.raises(DataError, match="no CALVIN data: no validation/ep_start_end_ids"):
        opened(folder, split="validation")


def test_float32_arrays_are_read_too(folder: Path) -> None:
    before = opened(folder).episode(0).actions
    for frame in range(58, 67):
        small = {key: value.astype(np.float32) for key, value in frame_arrays(frame).items() if value.dtype == np.float64}
        write_frame(folder, frame, **small)
    np.testing.assert_array_equal(opened(folder).episode(0).actions, before)


def test_a_source_can_be_sent_to_another_process(folder: Path) -> None:
    source = opened(folder)
    again = pickle.loads(pickle.dumps(source))  # noqa: S301  our own bytes
    assert len(pickle.dumps(source)) < 3000
    np.testing.assert_array_equal(again.episode(3).actions, source.episode(3).actions)
    np.testing.assert_array_equal(again.episode(3).read(0, 2, ["rgb_static"])["rgb_static"], stacked("rgb_static", 103, 104))


def test_numbers_are_read_once_and_again_where_a_file_has_changed(folder: Path, monkeypatch) -> None:
    read: list[int] = []
    from anyvla.data.sources import calvin_index

    original = calvin_index.read_frame
    monkeypatch.setattr(calvin_index, "read_frame", lambda where, frame: (read.append(frame), original(where, frame))[1])
    first = opened(folder)
    annotated = {frame for start, stop, *_ in ANNOTATIONS for frame in range(start, stop + 1)}
    assert set(read) == annotated
    assert len(read) == len(annotated)
    read.clear()
    opened(folder)
    assert read == []
    opened(folder, language="both")  # what was read is kept
    assert set(read) == {*range(58, 81), *range(100, 113)} - annotated
    read.clear()
    changed = frame_arrays(60)["rel_actions"] / 2
    write_frame(folder, 60, rel_actions=np.array([*changed[:6], 1.0]))
    before = first.episode(0).fingerprint
    second = opened(folder)
    assert read == [60]
    np.testing.assert_allclose(second.episode(0).actions[2, :6], changed[:6], atol=1e-6)
    assert second.episode(0).fingerprint != before
    assert second.episode(2).fingerprint == first.episode(2).fingerprint


def test_an_index_that_cannot_be_read_is_made_anew(folder: Path) -> None:
    actions = opened(folder).episode(0).actions
    (index,) = (folder.parent / "cache" / "index").glob("*.safetensors")
    content = index.read_bytes()
    for damaged in (b"", content[:100], content[:-50], b"\xff" * len(content)):
        index.write_bytes(damaged)
        np.testing.assert_array_equal(opened(folder).episode(0).actions, actions)


def test_images_are_never_taken_from_a_file_that_has_changed(folder: Path) -> None:
    episode = opened(folder).episode(0)
    write_frame(folder, 59)
    os.utime(frame_file(folder, 59), ns=(1, 1))
    with pytest.raises(DataError, match=r"episode_0000059.npz: has changed since its index was made"):
        episode.read(0, 3, ["rgb_static"])


def test_several_processes_make_the_same_index(folder: Path, monkeypatch) -> None:
    alone = opened(folder).episode(3).actions
    monkeypatch.setattr("anyvla.data.sources.calvin_index._FEW", 5)
    monkeypatch.setattr("anyvla.data.sources.calvin_index._BLOCK", 15)
    config = CalvinConfig(path=folder)
    together = CalvinSource(config, cache=folder.parent / "another").episode(3).actions
    np.testing.assert_array_equal(alone, together)


# damage


def _truncate(folder: Path) -> None:
    path = frame_file(folder, 60)
    path.write_bytes(path.read_bytes()[:-30])


def _break_numbers(folder: Path) -> None:
    path = frame_file(folder, 60)
    content = bytearray(path.read_bytes())
    at = content.index(b"rel_actions.npy") + 60
    content[at : at + 40] = b"\x00" * 40
    path.write_bytes(content)


def _nan(key: str, number: int, value: float) -> np.ndarray:
    values = frame_arrays(60)[key]
    values[number] = value
    return values


DAMAGES = {
    "truncated": (_truncate, "it ends without its directory"),
    "empty": (lambda folder: frame_file(folder, 60).write_bytes(b""), "it ends without its directory"),
    "broken": (_break_numbers, "key 'rel_actions': damaged npz file"),
    "missing": (lambda folder: frame_file(folder, 60).unlink(), "no such file; 1 of frames 58 to 66 are missing"),
    "no_key": (lambda folder: write_frame(folder, 60, rel_actions=None), "no key 'rel_actions'; did you mean 'actions'"),
    "shape": (lambda folder: write_frame(folder, 60, rel_actions=np.zeros(6)), r"shape \(6,\), float64 is not \(7,\)"),
    "text": (
        lambda folder: write_frame(folder, 60, rel_actions=np.array(["a"] * 7)),
        "is not (7,) of numbers".replace("(", r"\(").replace(")", r"\)"),
    ),
    "objects": (
        lambda folder: write_frame(folder, 60, rel_actions=np.array([{}] * 7)),
        "holds Python objects, which are not read",
    ),
    "nan": (lambda folder: write_frame(folder, 60, rel_actions=_nan("rel_actions", 2, np.nan)), "number 2 is nan"),
    "range": (lambda folder: write_frame(folder, 60, rel_actions=_nan("rel_actions", 3, -1.5)), r"-1.5, outside \[-1, 1\]"),
    "gripper": (lambda folder: write_frame(folder, 60, rel_actions=_nan("rel_actions", 6, 0.0)), "the gripper is 0, neither"),
    "state": (lambda folder: write_frame(folder, 60, robot_obs=_nan("robot_obs", 9, np.inf)), "'robot_obs': number 9 is inf"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_frame_is_named_and_its_episode_can_be_skipped(folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    for _ in range(2):  # from the files, and from the index
        with pytest.raises(DataError, match=message) as caught:
            opened(folder)
        assert "annotation_00000_open_drawer: " in str(caught.value)
        assert "episode_0000060.npz" in str(caught.value)
    source = opened(folder, on_bad_episode="skip")
    assert [problem.episode for problem in source.problems] == ["annotation_00000_open_drawer"]
    assert len(source) == len(ANNOTATIONS) - 1
    write_frame(folder, 60)
    assert len(opened(folder)) == len(ANNOTATIONS)


def test_only_what_is_asked_for_must_be_whole(folder: Path) -> None:
    write_frame(folder, 60, robot_obs=None, actions=None)
    assert len(opened(folder, state=[])) == len(ANNOTATIONS)
    with pytest.raises(DataError, match="no key 'robot_obs'"):
        opened(folder, frame="tcp", state=[])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((20, 20), np.uint8), r"shape \(20, 20\), uint8 is not \(H, W, 3\) uint8"),
        (np.zeros((20, 20, 3)), "float64 is not"),
        (np.zeros((20, 21, 3), np.uint8), "is not that of the frames before"),
    ],
)
def test_wrong_images_are_named_when_they_are_read(folder: Path, image: np.ndarray, message: str) -> None:
    write_frame(folder, 60, rgb_static=image)
    with pytest.raises(DataError, match=rf"episode_0000060.npz: key 'rgb_static': .*{message}"):
        opened(folder).episode(0).read(0, 4, ["rgb_static"])


def test_a_flipped_pixel_is_noticed(folder: Path) -> None:
    path = frame_file(folder, 60)
    np.savez(path, **frame_arrays(60))  # not compressed: only the checksum can tell
    content = bytearray(path.read_bytes())
    content[content.index(b"rgb_static.npy") + 1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="'rgb_static': damaged npz file: wrong length or checksum"):
        opened(folder).episode(0).read(0, 4, ["rgb_static"])


def test_episodes_without_the_gripper_camera_say_so(folder: Path) -> None:
    write_frame(folder, 60, rgb_gripper=None)
    source = opened(folder)
    assert source.cameras == ("rgb_static", "rgb_gripper")
    assert source.episode(0).cameras == ("rgb_static",)
    assert source.episode(1).cameras == source.cameras


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.array([[58, 80]]), r"annotation_00002_push_red_block_left: frames 100 to 108 are not part of one recording"),
        (np.array([[80, 58]]), "recording 0 goes from frame 80 to 58"),
        (np.array([[58, 80], [70, 112]]), "overlap"),
        (np.array([[58.0, 80.0]]), "is not"),
        (np.array([58, 80]), r"shape \(2,\)"),
        (np.array([[0, 10**15]]), "goes from frame 0 to"),
    ],
)
def test_wrong_recordings_are_named(folder: Path, ids: np.ndarray, message: str) -> None:
    np.save(folder / "training" / "ep_start_end_ids.npy", ids)
    with pytest.raises(DataError, match=message):
        opened(folder)


def test_recordings_beyond_the_files_are_damaged_episodes(folder: Path) -> None:
    np.save(folder / "training" / "ep_start_end_ids.npy", np.array([[58, 80], [100, 5000]]))
    with pytest.raises(DataError, match=r"episode_0000113.npz: no such file; \d+ of frames 100 to"):
        opened(folder, language="play")
    source = opened(folder, None, "skip", language="play", play_length=1000)
    assert len(source) == 1
    assert len(source.problems) == 5
    np.save(folder / "training" / "ep_start_end_ids.npy", np.array([[0, 10**11]]))
    with pytest.raises(DataError, match="more frames than"):
        opened(folder, language="play")


def test_annotations_of_no_frames_are_skipped_if_asked(folder: Path) -> None:
    write_annotations(folder, [*ANNOTATIONS, (81, 99, "wave", "wave")])
    with pytest.raises(DataError, match=r"annotation_00005_wave: frames 81 to 99 are not part of one recording"):
        opened(folder)
    assert [problem.episode for problem in opened(folder, on_bad_episode="skip").problems] == ["annotation_00005_wave"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"language": {"ann": ["a"]}}, r"no \['language'\]\['task'\]"),
        ({"language": {"ann": ["a"], "task": ["a", "b"]}, "info": {"indx": [(58, 60)]}}, "1 sentences, 2 tasks and 1 windows"),
        ({"language": {"ann": ["a"], "task": ["a"]}, "info": {"indx": [(60, 58)]}}, r"\(60, 58\) is not a first and a last"),
        ({"language": {"ann": ["a"], "task": ["a"]}, "info": {"indx": [("x", None)]}}, "is not a first and a last"),
        ({"language": {"ann": [7], "task": ["a"]}, "info": {"indx": [(58, 60)]}}, "must be texts"),
        ([1, 2], r"no \['language'\]"),
    ],
)
def test_annotations_of_another_form_are_named(folder: Path, content: object, message: str) -> None:
    path = folder / "training" / "lang_annotations" / "auto_lang_ann.npy"
    array = np.empty((), dtype=object)
    array[()] = content
    np.save(path, array)
    with pytest.raises(DataError, match=message) as caught:
        opened(folder)
    assert "auto_lang_ann.npy" in str(caught.value)


# training


def _overrides(folder: Path, tiny: list[str]) -> list[str]:
    return [
        *tiny,
        f"data.source={{type: calvin, path: {folder}}}",
        "data.augment={}",
        "observation={cameras: [rgb_static, rgb_gripper], state: [tcp_x, gripper_width], image_size: [32, 32]}",
        "actions={spec: arm7, window: 4, chunk: 3, normalization: bounds, bounds: [-0.65, 0.65]}",
        "training.steps=2",
        "training.warmup=1",
    ]


def test_fixed_bounds_scale_what_is_continuous_and_leave_the_gripper(folder: Path, tiny_overrides: list[str]) -> None:
    data = prepare_data(load_config("nav-tiny", _overrides(folder, tiny_overrides)))
    gripper = ARM7.binary
    low, high = data.transforms.normalizer.low[~gripper], data.transforms.normalizer.high[~gripper]
    assert (low == -0.65).all()
    assert (high == 0.65).all()
    actions = data.train.episodes[0].actions
    scaled = data.transforms.normalizer.normalize(actions)
    np.testing.assert_array_equal(scaled[:, gripper], actions[:, gripper])
    assert set(scaled[:, 6]) == {0.0, 1.0}
    np.testing.assert_allclose(scaled[:, ~gripper], np.clip(actions[:, ~gripper] / 0.65, -1, 1), atol=1e-6)


def test_a_small_model_trains_on_it(folder: Path, tiny_overrides: list[str]) -> None:
    from anyvla.policies.policy import Policy
    from anyvla.training.loop import train

    run = train(load_config("nav-tiny", _overrides(folder, tiny_overrides)))
    policy = Policy.load(run)
    policy.reset("open the drawer")
    images = {"rgb_static": np.zeros((200, 200, 3), np.uint8), "rgb_gripper": np.zeros((84, 84, 3), np.uint8)}
    action = policy.act(images, state=[0.0, 0.04])
    assert action.shape == (7,)
    assert np.isfinite(action).all()


# the real sample


def test_a_small_model_trains_on_the_real_sample(sample_data: Path, tiny_overrides: list[str]) -> None:
    from anyvla.training.loop import train

    run = train(load_config("nav-tiny", [*_overrides(sample_data / "calvin_small", tiny_overrides)]))
    assert (run / "config.yaml").exists()


def test_the_real_sample_is_read_as_numpy_reads_it(sample_data: Path, tmp_path: Path) -> None:
    folder = sample_data / "calvin_small"
    source = CalvinSource(CalvinConfig(path=folder), cache=tmp_path)
    instructions = [source.episode(i).instruction for i in range(len(source))]
    assert instructions == [
        "grasp the handle of the drawer and open it",
        "slide right the blue block",
        "push the blue block towards the left",
    ]
    assert [source.episode(i).length for i in range(3)] == [43, 41, 42]
    episode = source.episode(0)
    images = episode.read(0, episode.length, source.cameras)
    for t in range(episode.length):
        with np.load(frame_file(folder, 58 + t)) as file:
            np.testing.assert_array_equal(images["rgb_static"][t], file["rgb_static"])
            np.testing.assert_array_equal(images["rgb_gripper"][t], file["rgb_gripper"])
            np.testing.assert_allclose(episode.actions[t, :6], file["rel_actions"][:6], atol=1e-6)
            np.testing.assert_allclose(episode.state[t], file["robot_obs"], atol=1e-6)


def test_on_the_real_sample_the_hand_goes_where_it_is_told_to(sample_data: Path, tmp_path: Path) -> None:
    """Actions and states belong together: what is commanded at t is measured from t to t + 1, better than any other shift."""
    folder = sample_data / "calvin_small"
    for split in ("training", "validation"):
        source = CalvinSource(CalvinConfig(path=folder, split=split, language="play"), cache=tmp_path)
        agreement = {}
        for shift in (-2, -1, 0, 1, 2):
            commanded, moved = [], []
            for i in range(len(source)):
                actions, state = source.episode(i).actions[:, :3], source.episode(i).state[:, :3]
                step = np.diff(state, axis=0)
                commanded.append(actions[2 : len(step) - 2])
                moved.append(step[2 + shift : len(step) - 2 + shift])
            agreement[shift] = np.corrcoef(np.concatenate(commanded).ravel(), np.concatenate(moved).ravel())[0, 1]
        assert max(agreement, key=agreement.get) in (0, 1)
        assert agreement[0] > 0.8


# fuzzing


def test_mutated_files_give_only_our_own_errors(folder: Path) -> None:
    """Frames, annotations and lists of recordings; each through all that opening and reading a source does with it."""
    rng = np.random.default_rng(0)
    split = folder / "training"
    write_annotations(folder, [(58, 58, "open the drawer", "open_drawer")])
    targets = [frame_file(folder, 58), split / "lang_annotations" / "auto_lang_ann.npy", split / "ep_start_end_ids.npy"]
    whole = {path: path.read_bytes() for path in targets}
    refused = 0
    for case in range(150):
        path = targets[case % len(targets)]
        path.write_bytes(_mutated(whole[path], rng))
        try:
            episode = opened(folder, language="annotated").episode(0)
            episode.read(0, 1, ["rgb_static", "rgb_gripper"])
        except (DataError, ConfigError):
            refused += 1
        path.write_bytes(whole[path])
    assert refused > 75


def test_a_thousand_mutated_archives_and_arrays_give_only_our_own_errors(folder: Path) -> None:
    """As above, without an index in between: many more in the same time."""
    rng = np.random.default_rng(1)
    frame, annotations = frame_file(folder, 58), write_annotations(folder)
    whole = {path: path.read_bytes() for path in (frame, annotations)}
    refused = 0
    for case in range(1000):
        path = (frame, annotations)[case % 2]
        content = _mutated(whole[path], rng)
        path.write_bytes(content)
        try:
            if path == annotations:
                read_object_array(path)
            else:
                assert read_frame(folder / "training", 58)[2].shape == (29,)
                with path.open("rb") as file:
                    members = members_of(file.fileno(), len(content), str(path))
                    read_members(file.fileno(), list(members.values()), list(members), str(path))
        except DataError as error:
            assert str(error).startswith(str(path))  # noqa: PT017  of many cases
            refused += 1
    assert refused > 500


def _mutated(content: bytes, rng: np.random.Generator) -> bytes:
    data = bytearray(content)
    kind = rng.integers(5)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        for at in rng.integers(0, len(data), rng.integers(1, 9)):
            data[at] ^= 1 << rng.integers(8)
    elif kind == 2:
        at = rng.integers(len(data) - 4)
        data[at : at + 4] = b"\xff\xff\xff\x7f"
    elif kind == 3:
        a, b = np.sort(rng.integers(0, len(data), 2))
        data = data[:a] + data[b:] + data[a:b]
    else:  # in the directory, or what is nearest to it
        at = len(data) - 1 - int(rng.integers(min(len(data), 500)))
        data[at] = rng.integers(256)
    return bytes(data)
