"""What the windows bring for auxiliary objectives: the frames behind them, and the sentence that a caption says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anyvla.actions import NAV2
from anyvla.config import load_config
from anyvla.data.augment import Augmentation
from anyvla.data.dataset import collate
from anyvla.data.prepare import PreparedData, prepare_data
from anyvla.data.sampler import Item
from anyvla.data.store import FrameStore
from anyvla.errors import ConfigError
from tests.conftest import write_episode

PLAIN = "data.augment={}"


@pytest.fixture
def prepare(make_episodes: Callable[..., Path], tiny_overrides: list[str]) -> Callable[..., PreparedData]:
    folder = make_episodes(9, 9, 9, 2)

    def make(*more: str) -> PreparedData:
        return prepare_data(
            load_config("nav-tiny", [*tiny_overrides, f"data.source.path={folder}", "data.validation=0.3", *more])
        )

    return make


def test_they_are_the_frames_behind_the_window_and_the_mask_says_which_there_are(prepare: Callable[..., PreparedData]) -> None:
    data = prepare("objectives.future={next: 3}", PLAIN)
    for i in range(len(data.train)):
        sample = data.train[Item(0, i)]
        name, start = sample["name"].rsplit("@", 1)
        length = next(e.length for e in data.train.episodes if e.name == name)
        frames = data.train._store.read(name, 0, length)["front"]
        behind = np.arange(int(start) + 4, int(start) + 7)
        assert sample["images"]["front"].shape[0] == 4
        assert sample["future"]["front"].shape[0] == 3
        assert sample["future_mask"].tolist() == (behind < length).tolist()
        real = sample["future_mask"]
        np.testing.assert_array_equal(sample["future"]["front"][real], frames[behind[real]])
    batch = collate([data.train[Item(0, i)] for i in range(2)])
    assert batch.future["front"].shape == (2, 3, 3, 32, 48)
    assert batch.future_mask.shape == (2, 3)


def test_a_window_is_augmented_as_it_is_without_them_and_they_with_it(prepare: Callable[..., PreparedData]) -> None:
    augment = "data.augment={shift: 0.2, color: 0.3, mirror: 0.5, words: 0.3}"
    on, off = prepare("objectives.future={next: 2}", augment), prepare(augment)
    for i in range(5):
        a, b = on.train[Item(1, i)], off.train[Item(1, i)]
        assert a["prompt"] == b["prompt"]
        np.testing.assert_array_equal(a["images"]["front"], b["images"]["front"])
        np.testing.assert_array_equal(a["actions"], b["actions"])
        assert "future" not in b
        episode, start = on.train.windows[i]
        name, length = on.train.episodes[episode].name, on.train.episodes[episode].length
        frames = on.train._store.read(name, start, min(start + 6, length))
        rng = np.random.default_rng([0, 1, i])
        whole, _, _, _ = Augmentation(0.2, 0.3, 0.5, 0.3)(
            frames, on.train.episodes[episode].instruction, np.zeros((1, 2)), NAV2, rng
        )
        count = len(whole["front"]) - 4
        np.testing.assert_array_equal(a["future"]["front"][:count], whole["front"][4:])


def test_nothing_is_loaded_for_nothing(prepare: Callable[..., PreparedData], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = FrameStore.read

    def note(self: FrameStore, name: str, start: int, stop: int) -> dict[str, np.ndarray]:
        read.append(stop - start)
        return original(self, name, start, stop)

    monkeypatch.setattr(FrameStore, "read", note)
    data = prepare("objectives.future={next: 2}")
    assert prepare().train[Item(0, 0)]
    sample = data.validation[""][Item(0, 0)]
    assert max(read) == 4
    assert "future" not in sample
    assert data.train[Item(0, 0)]
    assert read[-1] == 6


def test_of_each_camera_what_is_wanted_and_black_frames_where_it_is_absent(tiny_overrides: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    for i in range(4):
        rear = {"rear": np.full((9, 8, 8, 3), 200, np.uint8)} if i < 3 else {}
        write_episode(folder / f"{i}_1box_hori_left.h5", 9, seed=i, further_images=rear)
    overrides = [*tiny_overrides, f"data.source.path={folder}", "data.validation=0", "observation.cameras=[front, rear]"]
    overrides += ["observation.optional_cameras=[rear]", PLAIN, "objectives.future={next: 2, cameras: [rear]}"]
    windows = prepare_data(load_config("nav-tiny", overrides)).train
    for i in range(len(windows)):
        sample = windows[Item(0, i)]
        assert {len(images) for images in sample["images"].values()} == {4}
        assert set(sample["future"]) == {"rear"}
        there = not sample["name"].startswith("3_")
        assert sample["present"].tolist() == [True, there]
        assert (sample["future"]["rear"] == (200 if there else 0)).all()
        assert sample["future"]["rear"].shape == (2, 32, 48, 3)


def test_a_camera_that_is_not_there_is_named(prepare: Callable[..., PreparedData]) -> None:
    with pytest.raises(ConfigError, match=r"objectives\.future\.cameras: the model has no camera 'fron'; did you mean 'front'"):
        prepare("objectives.future={cameras: [fron]}")


def test_a_caption_is_the_whole_sentence_of_what_is_seen(prepare: Callable[..., PreparedData]) -> None:
    """Mirrored with the images, and with no word left out."""
    data = prepare("data.augment={mirror: 0.5, words: 0.9}", "observation.prompt='Task: {instruction}'")
    captions = set()
    for i in range(len(data.train)):
        sample = data.train[Item(0, i)]
        captions.add(sample["caption"])
        assert ("left" in sample["prompt"]) == ("left" in sample["caption"])
        assert len(sample["prompt"]) < len(sample["caption"])
    assert captions == {f"Pass the box on the {side} and stop at the ball." for side in ("left", "right")}
