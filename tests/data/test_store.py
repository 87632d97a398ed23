from __future__ import annotations

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from anyvla.actions import NAV2
from anyvla.data.images import resize_frame
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.data.store import open_store
from anyvla.errors import DataError
from tests.conftest import write_episode

SIZE = (16, 24)


def _open(folder: Path, cache: Path, **options):
    return open_store(MobileH5Source(folder, NAV2), ["front"], SIZE, cache=cache, **options)


def _expected(folder: Path, name: str) -> np.ndarray:
    with h5py.File(folder / name) as file:
        return np.stack([resize_frame(image, SIZE) for image in file["images"]])


def test_it_holds_every_frame_resized(make_episodes, tmp_path: Path) -> None:
    folder = make_episodes(18, 5, 1)
    store, problems = _open(folder, tmp_path / "cache")
    assert problems == []
    for path in folder.iterdir():
        expected = _expected(folder, path.name)
        np.testing.assert_array_equal(store.read(path.name, 0, len(expected))["front"], expected)
    with pytest.raises(IndexError):
        store.read(path.name, 0, 100)


def test_several_processes_make_the_same_store(make_episodes, tmp_path: Path) -> None:
    folder = make_episodes(*[40] * 10)
    alone, _ = _open(folder, tmp_path / "a", processes=1)
    together, _ = _open(folder, tmp_path / "b", processes=2)
    for path in folder.iterdir():
        np.testing.assert_array_equal(alone.read(path.name, 0, 40)["front"], together.read(path.name, 0, 40)["front"])


def test_it_is_made_once_and_only_what_changed_is_decoded_again(make_episodes, tmp_path: Path, monkeypatch) -> None:
    folder = make_episodes(6, 6, 6)
    _open(folder, tmp_path / "cache")
    decoded: list[str] = []
    original = MobileH5Source.episode(MobileH5Source(folder, NAV2), 0).__class__.read

    def read(self, start, stop, cameras):
        decoded.append(self.name)
        return original(self, start, stop, cameras)

    monkeypatch.setattr("anyvla.data.sources.mobile_h5.MobileH5Episode.read", read)
    _open(folder, tmp_path / "cache")
    assert decoded == []
    changed = folder / "episode_001_1box_hori_right.h5"
    write_episode(changed, 9, seed=99)
    write_episode(folder / "new_1box_hori_right.h5", 4, seed=100)
    store, _ = _open(folder, tmp_path / "cache")
    assert set(decoded) == {changed.name, "new_1box_hori_right.h5"}
    np.testing.assert_array_equal(store.read(changed.name, 0, 9)["front"], _expected(folder, changed.name))


@pytest.mark.parametrize("cut", ["frames", "index"])
def test_after_an_interruption_it_goes_on_from_the_whole_episodes(make_episodes, tmp_path: Path, cut: str) -> None:
    folder = make_episodes(6, 6, 6)
    _open(folder, tmp_path / "cache")
    (store_folder,) = (tmp_path / "cache" / "frames").iterdir()
    path = store_folder / ("front.frames" if cut == "frames" else "index.jsonl")
    os.truncate(path, path.stat().st_size - 10)
    store, _ = _open(folder, tmp_path / "cache")
    for episode in folder.iterdir():
        np.testing.assert_array_equal(store.read(episode.name, 0, 6)["front"], _expected(folder, episode.name))


def _spoil_pixels(path: Path) -> None:
    """Overwrite compressed pixels: the file opens, reading them fails."""
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)


def test_an_episode_whose_pixels_cannot_be_decoded_is_named_or_skipped(make_episodes, tmp_path: Path) -> None:
    folder = make_episodes(6, 6)
    bad = folder / "episode_001_1box_hori_right.h5"
    _spoil_pixels(bad)
    with pytest.raises(DataError, match=r"episode_001.*'images'"):
        _open(folder, tmp_path / "cache")
    store, problems = _open(folder, tmp_path / "cache", on_bad_episode="skip")
    assert [problem.episode for problem in problems] == [bad.name]
    assert bad.name not in store
    assert "episode_000_1box_hori_left.h5" in store


def test_it_is_sent_to_another_process_without_its_frames(make_episodes, tmp_path: Path) -> None:
    store, _ = _open(make_episodes(18, 18, size=(36, 64)), tmp_path / "cache")
    sent = pickle.dumps(store)
    assert len(sent) < 2000
    name = "episode_001_1box_hori_right.h5"
    again = pickle.loads(sent)  # noqa: S301  our own bytes
    np.testing.assert_array_equal(again.read(name, 3, 9)["front"], store.read(name, 3, 9)["front"])


def test_nothing_readable_is_an_error_even_when_skipping(make_episodes, tmp_path: Path) -> None:
    folder = make_episodes(6)
    _spoil_pixels(folder / "episode_000_1box_hori_left.h5")
    with pytest.raises(DataError, match=r"no episode can be read; the first: .*'images'"):
        _open(folder, tmp_path / "cache", on_bad_episode="skip")


def test_a_place_that_was_lost_and_filled_again_does_not_bring_back_what_stood_there(make_episodes, tmp_path: Path) -> None:
    folder = make_episodes(6, 6)
    _open(folder, tmp_path / "cache")
    (store_folder,) = (tmp_path / "cache" / "frames").iterdir()
    os.truncate(store_folder / "front.frames", 0)
    last = folder / "episode_001_1box_hori_right.h5"
    kept = last.read_bytes()
    last.write_bytes(b"")
    _open_bad = MobileH5Source(folder, NAV2, on_bad_episode="skip")
    open_store(_open_bad, ["front"], SIZE, cache=tmp_path / "cache")  # stores the first one at the place of both
    assert "episode_001" not in (store_folder / "index.jsonl").read_text()
    last.write_bytes(kept)
    store, _ = _open(folder, tmp_path / "cache")
    np.testing.assert_array_equal(store.read(last.name, 0, 6)["front"], _expected(folder, last.name))


def test_a_folder_of_the_same_name_elsewhere_has_a_store_of_its_own(tmp_path: Path, monkeypatch) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "data").mkdir(parents=True)
        write_episode(tmp_path / place / "data" / "e_1box_hori_left.h5", 4, seed=ord(place))
        monkeypatch.chdir(tmp_path / place)
        _open(Path("data"), tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "frames").iterdir())) == 2


def test_a_cache_that_cannot_be_written_says_which_setting_helps(make_episodes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"data\.cache"):
        _open(make_episodes(3), tmp_path / "file")


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_resizing_keeps_or_cuts_what_it_says(fit) -> None:
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:, :, 0] = 200  # red everywhere
    frame[:, 30:50, 1] = 200  # a yellow bar in the middle
    out = resize_frame(frame, (20, 20), fit)
    assert out.shape == (20, 20, 3)
    black_rows = (out.max((1, 2)) < 20).sum()
    yellow = (out[10, :, 1] > 100).sum()
    assert black_rows == (10 if fit == "pad" else 0)
    assert yellow == pytest.approx({"stretch": 5, "pad": 5, "crop": 10}[fit], abs=1)
