from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from anyvla.actions import ARM7, NAV2, NAV3
from anyvla.data.scenarios import SCENARIOS, scenario_in, select_scenarios
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.data.writers import write_mobile_h5
from anyvla.errors import ConfigError, DataError
from tests.conftest import write_episode


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (7, 20, 30, 3), dtype=np.uint8)
    actions = rng.uniform(-1.15, 1.15, (7, 3)).astype(np.float32)
    events = ["episode_start"] + ["start_action"] * 6
    write_mobile_h5(tmp_path / "a.h5", images, actions, "병 앞에 멈춰.", fps=2.5, events=events, scenario="1box_vert_left")
    episode = MobileH5Source(tmp_path / "a.h5", NAV3).episode(0)
    assert (episode.length, episode.fps, episode.instruction) == (7, 2.5, "병 앞에 멈춰.")
    assert episode.scenario == SCENARIOS["1box_vert_left"]
    assert episode.events == {"episode_start": 1, "start_action": 6}
    np.testing.assert_array_equal(episode.actions, actions)
    np.testing.assert_array_equal(episode.read(2, 5, ["front"])["front"], images[2:5])


def test_the_file_has_the_published_layout(tmp_path: Path) -> None:
    write_episode(tmp_path / "a.h5", events=["start_action"] * 18)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["images"].dtype == np.uint8
        assert file["images"].shape == (18, 36, 64, 3)
        assert file["actions"].dtype == np.float32
        assert file["actions"].shape == (18, 3)
        assert file["language_instruction"].shape == (1,)
        assert file["language_instruction"][0] == b"Pass the box on the left."
        assert file["action_event_types"].shape == (18,)
        assert set(file.attrs) == {"fps", "robot", "scenario", "schema_version"}


def test_nav2_takes_the_first_two_dimensions(tmp_path: Path) -> None:
    actions = np.tile([0.1, 0.2, 0.3], (18, 1))
    write_episode(tmp_path / "a.h5", actions=actions)
    np.testing.assert_allclose(MobileH5Source(tmp_path, NAV2).episode(0).actions, actions[:, :2], atol=1e-7)


def test_without_a_sentence_the_scenario_in_the_name_says_it(tmp_path: Path) -> None:
    write_episode(tmp_path / "episode_20260129_010422_1box_hori_left_core_medium.h5", instruction=None)
    episode = MobileH5Source(tmp_path, NAV2).episode(0)
    assert episode.instruction == "Navigate around the obstacle on the left and stop in front of the bottle."
    korean = MobileH5Source(tmp_path, NAV2, language="ko").episode(0)
    assert korean.instruction == "장애물을 왼쪽으로 돌아서 병 앞에 멈춰."


def test_scenarios_are_found_in_names_and_by_pattern() -> None:
    assert len(SCENARIOS) == 8
    assert scenario_in("x_2box_vert_right_y.h5") == SCENARIOS["2box_vert_right"]
    assert scenario_in("x_21box_vert_right_y.h5") is None
    assert len(select_scenarios("all")) == 8
    assert {s.name for s in select_scenarios("2box_left")} == {"2box_hori_left", "2box_vert_left"}
    with pytest.raises(ConfigError, match="no scenario matches"):
        select_scenarios("3box")


def test_a_source_can_be_sent_to_another_process(tmp_path: Path) -> None:
    write_episode(tmp_path / "a.h5")
    source = MobileH5Source(tmp_path, NAV2)
    again = pickle.loads(pickle.dumps(source))  # noqa: S301  our own bytes
    np.testing.assert_array_equal(
        again.episode(0).read(0, 1, ["front"])["front"], source.episode(0).read(0, 1, ["front"])["front"]
    )


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _rewrite(key: str, value: object):
    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file[key]
            if value is not None:
                file[key] = value

    return damage


def _set_fps(value: object):
    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            file.attrs["fps"] = value

    return damage


def _sentence_group(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["language_instruction"]
        file.create_group("language_instruction")


def _add(path: Path, key: str, value: object) -> None:
    with h5py.File(path, "a") as file:
        file[key] = value


def _state(states: object, names: list[str]):
    def damage(path: Path) -> None:
        _add(path, "states", states)
        _add(path, "state_names", np.array([name.encode() for name in names]))

    return damage


def _not_finite() -> np.ndarray:
    states = np.zeros((18, 2), np.float32)
    states[3, 1] = np.inf
    return states


def _actions(frame: int, value: float) -> np.ndarray:
    actions = np.zeros((18, 3), np.float32)
    actions[frame, 1] = value
    return actions


DAMAGES = {
    "truncated": (_truncate, "damaged HDF5 file"),
    "not_hdf5": (lambda path: path.write_text("hello"), "not an HDF5 file"),
    "empty_file": (lambda path: path.write_bytes(b""), "not an HDF5 file"),
    "no_images": (_rewrite("images", None), "no dataset 'images'"),
    "no_actions": (_rewrite("actions", None), "no dataset 'actions'"),
    "image_shape": (_rewrite("images", np.zeros((18, 8, 8), np.uint8)), r"'images': shape \(18, 8, 8\)"),
    "image_dtype": (_rewrite("images", np.zeros((18, 8, 8, 3), np.float32)), "'images': dtype float32"),
    "action_shape": (_rewrite("actions", np.zeros((18, 2), np.float32)), r"'actions': shape \(18, 2\)"),
    "action_dtype": (_rewrite("actions", np.zeros((18, 3), np.int64)), "'actions': dtype int64"),
    "lengths": (_rewrite("actions", np.zeros((17, 3), np.float32)), "18 images but 17 actions"),
    "zero_length": (_rewrite("images", np.zeros((0, 8, 8, 3), np.uint8)), "no frames"),
    "nan": (_rewrite("actions", _actions(5, np.nan)), "linear_y at frame 5 is nan"),
    "out_of_range": (_rewrite("actions", _actions(7, 1.5)), r"linear_y at frame 7 is 1.5 m/s, outside \[-1.15, 1.15\]"),
    "images_without_data": (_rewrite("images", h5py.Empty("u1")), r"'images': shape \(\)"),
    "actions_without_data": (_rewrite("actions", h5py.Empty("f4")), "'actions': shape"),
    "scalar_action": (_rewrite("actions", 1.0), r"'actions': shape \(\)"),
    "fps_text": (_set_fps("abc"), "'fps' is 'abc'"),
    "fps_list": (_set_fps([1.0, 2.0]), r"'fps' is \[1.0, 2.0\]"),
    "fps_zero": (_set_fps(0.0), "'fps' is 0.0"),
    "sentence_is_a_group": (_sentence_group, "'language_instruction': not a list of strings"),
    "sentence_is_a_number": (_rewrite("language_instruction", np.array([7])), "holds 7, not a string"),
    "events_of_another_length": (lambda path: _add(path, "action_event_types", b"x"), "1 events for 18 frames"),
    "not_utf8": (_rewrite("language_instruction", np.array([b"\xff\xfe"])), "'language_instruction': not UTF-8"),
    "state_shape": (_state(np.zeros(18, np.float32), ["x"]), r"'states': shape \(18,\) is not \(18, 1\)"),
    "state_length": (_state(np.zeros((17, 1), np.float32), ["x"]), r"'states': shape \(17, 1\) is not \(18, 1\)"),
    "state_size": (_state(np.zeros((18, 3), np.float32), ["x", "y"]), r"'states': shape \(18, 3\) is not \(18, 2\)"),
    "state_dtype": (_state(np.zeros((18, 1), np.int64), ["x"]), "'states': dtype int64"),
    "state_not_finite": (_state(_not_finite(), ["x", "speed"]), "'states': speed at frame 3 is inf"),
    "state_named_twice": (_state(np.zeros((18, 2), np.float32), ["x", "x"]), "'state_names': a name stands there twice"),
    "state_without_names": (lambda path: _add(path, "states", np.zeros((18, 1), np.float32)), "no dataset 'state_names'"),
    "camera_of_another_length": (
        lambda path: _add(path, "images_rear", np.zeros((17, 8, 8, 3), np.uint8)),
        r"'images_rear': shape \(17, 8, 8, 3\) does not go with 'images'",
    ),
    "no_sentence": (_rewrite("language_instruction", None), "no 'language_instruction', and no scenario"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named_and_can_be_skipped(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    write_episode(tmp_path / "good.h5")
    damage(write_episode(tmp_path / "bad.h5"))
    with pytest.raises(DataError, match=message) as caught:
        MobileH5Source(tmp_path, NAV2)
    assert "bad.h5" in str(caught.value)
    source = MobileH5Source(tmp_path, NAV2, on_bad_episode="skip")
    assert [source.episode(i).name for i in range(len(source))] == ["good.h5"]
    assert [problem.episode for problem in source.problems] == ["bad.h5"]


def test_a_key_of_nearly_the_right_name_is_pointed_out(tmp_path: Path) -> None:
    path = write_episode(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file.move("actions", "action")
    with pytest.raises(DataError, match="did you mean 'action'"):
        MobileH5Source(tmp_path, NAV2)


def test_nothing_usable_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        MobileH5Source(tmp_path / "nowhere", NAV2)
    with pytest.raises(DataError, match=r"no \*\.h5"):
        MobileH5Source(tmp_path, NAV2)
    (tmp_path / "bad.h5").write_text("x")
    with pytest.raises(DataError, match="none of the 1 episodes"):
        MobileH5Source(tmp_path, NAV2, on_bad_episode="skip")


def test_an_arm_spec_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no action dimension 'dx'"):
        MobileH5Source(tmp_path, ARM7)


def test_the_writer_refuses_what_a_reader_would_refuse(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="non-finite"):
        write_episode(tmp_path / "a.h5", actions=np.full((18, 3), np.nan))
    with pytest.raises(DataError, match="images must be"):
        write_episode(tmp_path / "a.h5", images=np.zeros((18, 3), np.uint8))
    for states, names, message in (
        (np.zeros((17, 1)), ["x"], r"states must be \(18, 1\)"),
        (np.zeros((18, 2)), ["x", "x"], "a name each, all different"),
        (None, ["x"], "a name each"),
        (np.full((18, 1), np.inf), ["x"], "states hold non-finite"),
    ):
        with pytest.raises(DataError, match=message):
            write_episode(tmp_path / "a.h5", states=states, state_names=names)
    with pytest.raises(DataError, match="17 images_rear for 18 images"):
        write_episode(tmp_path / "a.h5", further_images={"rear": np.zeros((17, 8, 8, 3), np.uint8)})
    with pytest.raises(DataError, match="the camera front is that of images"):
        write_episode(tmp_path / "a.h5", further_images={"front": np.zeros((18, 8, 8, 3), np.uint8)})
    assert list(tmp_path.iterdir()) == []
