from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anyvla.actions import NAV2
from anyvla.config import load_config
from anyvla.data.dataset import collate
from anyvla.data.inspect import inspect_data
from anyvla.data.prepare import PreparedData, prepare_data
from anyvla.data.sampler import Item
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.data.state import fit_state
from anyvla.data.transforms import Transforms
from anyvla.errors import ConfigError, DataError
from tests.conftest import write_episode

NAMES = ("speed", "yaw", "gear")
SETTINGS = ("observation.state=[yaw,speed]", "observation.mirrored_state=[yaw]", "data.augment.mirror=0")


def _states(length: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(100 + seed)
    return np.stack([rng.uniform(0, 2, length), rng.uniform(-3, 3, length), np.full(length, 4.0)], axis=1).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "episodes"
    folder.mkdir()
    for i, length in enumerate((9, 9, 9, 2)):
        write_episode(folder / f"{i}_1box_hori_left.h5", length, seed=i, states=_states(length, i), state_names=NAMES)
    return folder


@pytest.fixture
def prepare(folder: Path, tiny_overrides):
    def prepare(*changes: str) -> PreparedData:
        overrides = [*tiny_overrides, f"data.source.path={folder}", "data.validation=0.25", *SETTINGS, *changes]
        return prepare_data(load_config("nav-tiny", overrides))

    return prepare


def test_what_is_written_is_read_back_and_picked_by_name(folder: Path) -> None:
    episode = MobileH5Source(folder, NAV2).episode(1)
    assert episode.state_names == NAMES
    np.testing.assert_array_equal(episode.state, _states(9, 1))
    chosen = MobileH5Source(folder, NAV2, state=["gear", "speed"]).episode(1)
    assert chosen.state_names == ("gear", "speed")
    np.testing.assert_array_equal(chosen.state, _states(9, 1)[:, [2, 0]])
    none = MobileH5Source(folder, NAV2, state=[]).episode(1)
    assert (none.state_names, none.state) == ((), None)


def test_an_episode_without_the_state_asked_for_is_named_or_skipped(folder: Path) -> None:
    write_episode(folder / "bad_1box_hori_left.h5", 5)
    assert MobileH5Source(folder, NAV2).episode(4).state is None
    with pytest.raises(DataError, match=r"bad_1box_hori_left\.h5: no dataset 'states'.*observation\.state=null"):
        MobileH5Source(folder, NAV2, state=["yaw"])
    source = MobileH5Source(folder, NAV2, "skip", state=["yaw"])
    assert [problem.episode for problem in source.problems] == ["bad_1box_hori_left.h5"]
    with pytest.raises(DataError, match=r"0_1box.*the state has no 'yawn'; did you mean 'yaw'"):
        MobileH5Source(folder, NAV2, state=["yawn"])


def test_a_batch_holds_the_states_of_its_frames_on_the_models_scale(prepare) -> None:
    data = prepare()
    states = {episode.name: episode.state for episode in data.train.episodes}
    every = np.concatenate(list(states.values())).astype(np.float64)
    q01, q99 = np.quantile(every, [0.01, 0.99], axis=0)
    batch = collate([data.train[Item(0, i)] for i in range(len(data.train))])
    assert batch.state.shape == (len(data.train), 4, 2)
    for name, state in zip(batch.names, batch.state.numpy(), strict=True):
        episode, start = name.split("@")
        frames = np.minimum(int(start) + np.arange(4), len(states[episode]) - 1)  # the last one again, behind a short episode
        expected = 2 * (np.clip(states[episode][frames], q01, q99) - q01) / (q99 - q01) - 1
        np.testing.assert_allclose(state, expected, atol=1e-6)
    assert data.transforms.state.names == ("yaw", "speed")
    assert prepare("observation.state=null", "observation.mirrored_state=null").train[Item(0, 0)]["state"] is None


def test_what_never_changes_becomes_0_and_what_changes_rarely_counts() -> None:
    values = np.zeros((1000, 3))
    values[:, 0] = np.linspace(-5, 15, 1000)
    values[:, 1] = 7.0
    values[:5, 2] = 1.0  # a button, pressed in 5 frames of 1000
    quantiles = np.quantile(values, [0.01, 0.99], axis=0)
    statistics = {"q01": quantiles[0], "q99": quantiles[1], "min": values.min(0), "max": values.max(0)}
    state = fit_state(["position", "constant", "button"], statistics)
    np.testing.assert_allclose(state([5.0, 7.0, 0.0]), [0, 0, -1], atol=1e-6)
    np.testing.assert_allclose(state([99.0, 99.0, 1.0]), [1, 0, 1], atol=1e-6)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "lacks the robot's state: yaw, speed"),
        ([1.0], r"must be 2 numbers \(yaw, speed\); it has the shape \(1,\)"),
        ([[1.0, 2.0]], r"the shape \(1, 2\)"),
        (3.0, r"the shape \(\)"),
        ([1.0, np.nan], "speed is nan"),
        ([np.inf, 1.0], "yaw is inf"),
        (["a", "b"], "must be 2 numbers"),
    ],
)
def test_a_wrong_state_is_answered_with_what_is_expected(prepare, state, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare().transforms.normalize_state(state)


def test_a_state_that_nobody_asked_for_is_refused(prepare) -> None:
    transforms = prepare("observation.state=null", "observation.mirrored_state=null").transforms
    assert transforms.normalize_state(None) is None
    with pytest.raises(DataError, match="trained without one"):
        transforms.normalize_state([1.0, 2.0])


def test_transforms_keep_the_state_to_the_bit_and_older_ones_have_none(prepare) -> None:
    transforms = prepare().transforms
    again = Transforms.from_json(transforms.to_json())
    assert again.to_json() == transforms.to_json()
    states = _states(50, 7)[:, :2]
    np.testing.assert_array_equal(again.normalize_state(states, 50), transforms.normalize_state(states, 50))
    older = json.loads(transforms.to_json())
    del older["state"], older["optional_cameras"]
    loaded = Transforms.from_json(json.dumps(older))
    assert (loaded.state, loaded.optional_cameras) == (None, ())


def test_mirroring_changes_the_sign_of_what_is_said_to_change(prepare, folder: Path) -> None:
    for path in folder.iterdir():  # as likely to the left as to the right, so that statistics are symmetric
        length = len(MobileH5Source(path, NAV2).episode(0).actions)
        states = np.stack([np.linspace(0, 1, length), np.linspace(-2, 2, length), np.zeros(length)], axis=1)
        write_episode(path, length, instruction="Go left.", states=states, state_names=NAMES)
    plain, mirrored = prepare(), prepare("data.augment.mirror=1")
    for i in range(len(plain.train)):
        a, b = plain.train[Item(0, i)], mirrored.train[Item(0, i)]
        assert (a["prompt"] != b["prompt"]) == ("left" in a["prompt"])
        np.testing.assert_allclose(b["state"], a["state"] * [-1, 1], atol=1e-6)


def test_mirroring_needs_to_know_what_it_does_to_the_state() -> None:
    with pytest.raises(ConfigError, match=r"name in observation\.mirrored_state"):
        load_config("nav-tiny", ["observation.state=[yaw]"])
    load_config("nav-tiny", ["observation.state=[yaw]", "observation.mirrored_state=[]"])
    load_config("nav-tiny", ["observation.state=[yaw]", "data.augment.mirror=0"])
    with pytest.raises(ConfigError, match="mirrored_state: 'yawn' is not in state; did you mean 'yaw'"):
        load_config("nav-tiny", ["observation.state=[yaw]", "observation.mirrored_state=[yawn]"])
    with pytest.raises(ConfigError, match="mirrored_state: 'yaw' is not in state"):
        load_config("nav-tiny", ["observation.mirrored_state=[yaw]"])
    with pytest.raises(ConfigError, match="state: 'yaw' is named twice"):
        load_config("nav-tiny", ["observation.state=[yaw,yaw]", "observation.mirrored_state=[]"])


def test_statistics_come_from_the_training_episodes_only(prepare) -> None:
    data = prepare()
    training = np.concatenate([episode.state for episode in data.train.episodes])
    held_out = np.concatenate([episode.state for episode in data.validation[""].episodes])
    mean = data.transforms.state.statistics["mean"]
    np.testing.assert_allclose(mean, training.mean(0), rtol=1e-5)
    assert np.abs(mean - np.concatenate([training, held_out]).mean(0)).max() > 1e-3


def test_other_states_are_other_data(prepare, folder: Path) -> None:
    before = prepare()
    path = folder / before.train.episodes[0].name
    states = _states(before.train.episodes[0].length, 0)
    write_episode(path, len(states), seed=int(path.name[0]), states=states + 0.5, state_names=NAMES)
    assert prepare().fingerprint() != before.fingerprint()
    stateless = [prepare("observation.state=null", "observation.mirrored_state=null").fingerprint() for _ in range(2)]
    assert stateless[0] == stateless[1]


def test_inspection_tells_of_states_and_of_episodes_without(folder: Path, tmp_path: Path) -> None:
    report = inspect_data(MobileH5Source(folder, NAV2), tmp_path / "a")
    assert report.summary["state"]["names"] == list(NAMES)
    assert report.summary["state"]["episodes"] == 4
    assert report.summary["state"]["max"][2] == 4.0
    assert not any("different states" in warning for warning in report.warnings)
    write_episode(folder / "z_1box_hori_left.h5", 5)
    warnings = inspect_data(MobileH5Source(folder, NAV2), tmp_path / "b").warnings
    assert any("4 have speed, yaw, gear; 1 have none" in warning for warning in warnings)
