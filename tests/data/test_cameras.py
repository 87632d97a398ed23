from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from anyvla.actions import NAV2
from anyvla.config import load_config
from anyvla.data.augment import drop_cameras
from anyvla.data.dataset import collate
from anyvla.data.images import resize_frame
from anyvla.data.inspect import inspect_data
from anyvla.data.prepare import PreparedData, prepare_data
from anyvla.data.sampler import Item
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.data.store import open_store
from anyvla.errors import ConfigError, DataError
from tests.conftest import write_episode

SIZE = (32, 48)


def _rear(seed: int, length: int) -> dict[str, np.ndarray]:
    return {"rear": np.random.default_rng(50 + seed).integers(1, 256, (length, 20, 30, 3), dtype=np.uint8)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every second episode has a rear camera beside the front one."""
    folder = tmp_path / "episodes"
    folder.mkdir()
    for i, length in enumerate((7, 5, 7, 5, 2, 3)):
        further = _rear(i, length) if i % 2 == 0 else None
        write_episode(folder / f"{i}_1box_hori_left.h5", length, seed=i, further_images=further)
    return folder


@pytest.fixture
def prepare(folder: Path, tiny_overrides) -> Callable[..., PreparedData]:
    def prepare(*changes: str) -> PreparedData:
        overrides = [*tiny_overrides, f"data.source.path={folder}", "data.augment={}", "data.validation=0", *changes]
        return prepare_data(load_config("nav-tiny", overrides))

    return prepare


def test_further_cameras_are_read_by_name(folder: Path) -> None:
    source = MobileH5Source(folder, NAV2)
    assert source.cameras == ("front", "rear")
    assert [source.episode(i).cameras for i in range(2)] == [("front", "rear"), ("front",)]
    frames = source.episode(0).read(2, 5, ["rear", "front"])
    np.testing.assert_array_equal(frames["rear"], _rear(0, 7)["rear"][2:5])
    assert frames["front"].shape == (3, 36, 64, 3)


def test_what_is_no_rgb_image_is_no_camera(folder: Path) -> None:
    with h5py.File(folder / "1_1box_hori_left.h5", "a") as file:
        file["images_depth"] = np.zeros((5, 36, 64), np.float32)
    assert MobileH5Source(folder, NAV2).cameras == ("front", "rear")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_store_is_black_where_a_camera_is_absent_and_right_everywhere_else(
    folder: Path, tmp_path: Path, processes: int, monkeypatch
) -> None:
    monkeypatch.setattr("anyvla.data.store._FEW_FRAMES", 0)
    source = MobileH5Source(folder, NAV2)
    for _ in range(2):  # made, and opened again
        store, _ = open_store(source, ["rear", "front"], SIZE, cache=tmp_path / "cache", processes=processes)
        for i in range(len(source)):
            episode = source.episode(i)
            stored = store.read(episode.name, 0, episode.length)
            for camera in ("front", "rear"):
                if camera in episode.cameras:
                    expected = [resize_frame(one, SIZE) for one in episode.read(0, episode.length, [camera])[camera]]
                    np.testing.assert_array_equal(stored[camera], expected)
                else:
                    assert not stored[camera].any()


def test_a_batch_says_which_cameras_are_there(prepare) -> None:
    data = prepare("observation.optional_cameras=[rear]")
    assert data.transforms.cameras == ("front", "rear")
    batch = collate([data.train[Item(0, i)] for i in range(len(data.train))])
    has_rear = [int(name[0]) % 2 == 0 for name in batch.names]
    assert batch.present.tolist() == [[True, there] for there in has_rear]
    assert list(batch.images) == ["front", "rear"]
    black = batch.images["rear"].flatten(1).max(1).values == 0
    assert torch.equal(black, ~batch.present[:, 1])
    whole = [i for i, there in enumerate(has_rear) if there]
    assert collate([data.train[Item(0, i)] for i in whole]).present is None


def test_an_episode_without_a_needed_camera_is_named_or_left_out(prepare) -> None:
    with pytest.raises(DataError, match=r"1_1box_hori_left\.h5: no images of the camera rear .*optional_cameras"):
        prepare()
    data = prepare("data.on_bad_episode=skip")
    assert [problem.episode[0] for problem in data.problems] == ["1", "3", "5"]
    assert [episode.name[0] for episode in data.train.episodes] == ["0", "2", "4"]
    assert len(prepare("observation.cameras=[front]").train.episodes) == 6
    with pytest.raises(DataError, match="no images of the camera rear"):  # of nothing at all
        prepare("observation.cameras=[rear]", "observation.optional_cameras=[rear]")


def test_the_fingerprint_knows_which_cameras_there_are(prepare, folder: Path) -> None:
    before = prepare("observation.optional_cameras=[rear]").fingerprint()
    write_episode(folder / "0_1box_hori_left.h5", 7, seed=0)  # the same without its rear camera
    assert prepare("observation.optional_cameras=[rear]").fingerprint() != before


def test_a_policy_must_have_a_chance_to_learn_to_do_without(prepare) -> None:
    with pytest.raises(ConfigError, match=r"every training episode has 'front'.*data\.augment\.drop_camera"):
        prepare("observation.optional_cameras=[front,rear]")
    prepare("observation.optional_cameras=[front,rear]", "data.augment.drop_camera=0.1")


def test_optional_cameras_are_left_out_as_often_as_asked_and_never_all_of_them(prepare) -> None:
    data = prepare("observation.optional_cameras=[rear]", "data.augment.drop_camera=0.25", "data.on_bad_episode=skip")
    with_rear = [i for i in range(len(data.train)) if data.train[Item(0, i)]["name"][0] in "024"]
    kept = []
    for epoch in range(60):
        for i in with_rear:
            sample = data.train[Item(epoch, i)]
            assert sample["present"][0]
            assert sample["images"]["rear"].any() == sample["present"][1]
            kept.append(sample["present"][1])
    assert np.mean(kept) == pytest.approx(0.75, abs=0.06)
    a, b = data.train[Item(3, 0)], data.train[Item(3, 0)]
    assert (a["present"] == b["present"]).all()


def test_one_camera_always_stays() -> None:
    images = {name: np.zeros(1) for name in "abc"}
    left = [drop_cameras(images, ("a", "b", "c"), 1.0, np.random.default_rng(seed)) for seed in range(100)]
    assert all(len(kept) == 1 for kept in left)
    assert {next(iter(kept)) for kept in left} == {"a", "b", "c"}
    assert list(drop_cameras(images, ("b",), 1.0, np.random.default_rng(0))) == ["a", "c"]
    assert len(images) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["observation.cameras=[front]", "observation.optional_cameras=[frontt]"], "'frontt' is not in cameras; did you mean"),
        (["observation.cameras=[front,front]"], "'front' is named twice"),
        (["data.augment.drop_camera=0.5"], "name them in observation.optional_cameras"),
    ],
)
def test_contradictory_settings_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config("nav-tiny", changes)


def test_an_optional_camera_that_the_data_lack_is_refused(prepare) -> None:
    with pytest.raises(ConfigError, match="no camera 'reer'; did you mean 'rear'"):
        prepare("observation.optional_cameras=[reer]")


def test_the_robot_may_lack_what_is_optional_and_nothing_else(prepare) -> None:
    image = np.zeros((36, 64, 3), np.uint8)
    transforms = prepare("observation.optional_cameras=[rear]").transforms
    assert list(transforms.images({"front": image})) == ["front"]
    assert list(transforms.images({"rear": image, "front": image, "left": image})) == ["front", "rear"]
    with pytest.raises(DataError, match="lacks the camera 'front'; it has: rear"):
        transforms.images({"rear": image})
    both = prepare("observation.optional_cameras=[front,rear]", "data.augment.drop_camera=0.5").transforms
    with pytest.raises(DataError, match=r"none of the policy's cameras \(front, rear\); it has: left"):
        both.images({"left": image})


def test_inspection_counts_cameras(folder: Path, tmp_path: Path) -> None:
    report = inspect_data(MobileH5Source(folder, NAV2), tmp_path)
    assert report.summary["cameras"] == {"front": 6, "rear": 3}
    assert any("3 episodes lack the camera rear, such as 1_1box" in warning for warning in report.warnings)
