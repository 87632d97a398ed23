from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from anyvla.config import load_config
from anyvla.data import prepare
from anyvla.data.direct import DirectFrames
from anyvla.data.prepare import prepare_data
from anyvla.data.sampler import Item
from anyvla.data.store import FrameStore
from anyvla.errors import DataError


def _data(overrides: list[str], folder: Path, *more: str):
    return prepare_data(load_config("nav-tiny", [*overrides, f"data.source.path={folder}", *more]))


def test_windows_are_the_same_from_the_cache_and_direct(make_episodes, tiny_overrides) -> None:
    folder = make_episodes(9, 2, 7, 9)
    cached, direct = (_data(tiny_overrides, folder, f"data.store={store}") for store in ("cache", "direct"))
    assert cached.fingerprint() == direct.fingerprint()
    for i in range(len(cached.train)):
        a, b = cached.train[Item(0, i)], direct.train[Item(0, i)]
        assert a.keys() == b.keys()
        np.testing.assert_array_equal(a["images"]["front"], b["images"]["front"])
        np.testing.assert_array_equal(a["actions"], b["actions"])


def test_auto_takes_the_cache_as_long_as_the_disk_has_room(make_episodes, tiny_overrides, monkeypatch, tmp_path: Path) -> None:
    folder = make_episodes(9, 9)
    assert isinstance(_data(tiny_overrides, folder).train._store, FrameStore)
    monkeypatch.setattr(prepare, "free_room", lambda cache: 1000)
    # what is stored already needs no more room
    assert isinstance(_data(tiny_overrides, folder).train._store, FrameStore)
    other = f"data.cache={tmp_path / 'other'}"
    assert isinstance(_data(tiny_overrides, folder, other).train._store, DirectFrames)
    assert not (tmp_path / "other" / "frames").exists()


def test_frames_that_turn_out_unreadable_stop_the_run_or_are_replaced(make_episodes, tiny_overrides, caplog) -> None:
    folder = make_episodes(9, 9, 9)
    stopped = _data(tiny_overrides, folder, "data.store=direct", "data.validation=0").train
    skipping = _data(tiny_overrides, folder, "data.store=direct", "data.validation=0", "data.on_bad_episode=skip").train
    with h5py.File(folder / "episode_001_1box_hori_right.h5", "r+") as file:
        del file["images"]
    bad = stopped.windows.first(1)
    with pytest.raises(DataError, match="episode_001"):
        stopped[Item(0, bad)]
    assert skipping[Item(0, bad)]["name"].startswith("episode_002")
    assert "episode_001" in caplog.text
    for path in folder.iterdir():
        with h5py.File(path, "r+") as file:
            if "images" in file:
                del file["images"]
    with pytest.raises(DataError, match="no frames of any episode"):
        skipping[Item(0, bad)]
