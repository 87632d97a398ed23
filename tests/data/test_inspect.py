from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anyvla.actions.spec import ARM7, NAV2
from anyvla.data import inspect, video
from anyvla.data.inspect import inspect_data, verify_data
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.errors import DataError, MissingExtraError
from tests.data.packing import ListSource, make_episode


class _Counted:
    """An episode that counts the frames which are read of it."""

    def __init__(self, episode) -> None:
        self._episode = episode
        self.frames = 0

    def __getattr__(self, name: str):
        return getattr(self._episode, name)

    def read(self, start: int, stop: int, cameras):
        self.frames += stop - start
        return self._episode.read(start, stop, cameras)


def arms(count: int, length: int = 30) -> list[_Counted]:
    cameras = ("static", "gripper")
    return [
        _Counted(make_episode(ARM7, f"e{i}", length, cameras=cameras, size=(20, 26), state=["x", "y"], seed=i))
        for i in range(count)
    ]


def test_an_arm_with_two_cameras_is_described_without_reading_all_its_frames(tmp_path: Path, monkeypatch) -> None:
    episodes = arms(40)
    monkeypatch.setattr(inspect, "_ROWS", 100)  # so that the actions come in many blocks
    report = inspect_data(ListSource(ARM7, episodes), tmp_path)
    assert (report.problems, report.warnings) == ([], [])
    assert report.summary["tasks"] == {"different": 3, "most_common": [("task 0", 14), ("task 1", 13), ("task 2", 13)]}
    assert sum(episode.frames for episode in episodes) <= 8 * 6
    assert [p.name for p in report.pictures] == ["contact_sheet.png", "actions.png", "state.png", "tasks.png"]
    for picture in report.pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 100
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["episodes"] == 40
    assert written["tasks"]["different"] == 3


def test_histograms_count_every_frame_once(monkeypatch) -> None:
    episodes = [episode._episode for episode in arms(7, 50)]
    constant = [replace(e, actions=np.where(np.arange(7) == 2, np.float32(1e6 + 1), e.actions)) for e in episodes]
    monkeypatch.setattr(inspect, "_ROWS", 120)
    for chosen in (episodes, constant):
        units, statistics = ("",) * 7, inspect.action_statistics(chosen)
        panels = inspect._Values(ARM7.names, units, chosen, statistics, is_state=False).histograms()
        values = np.concatenate([episode.actions for episode in chosen])
        for dim, panel in enumerate(panels):
            assert panel.counts.sum() == 350
            assert panel.q01 == pytest.approx(np.quantile(values[:, dim].astype(np.float64), 0.01))
            if dim != 2:
                np.testing.assert_array_equal(panel.counts, np.histogram(values[:, dim].astype(np.float64), panel.edges)[0])


def test_a_film_is_an_mp4_or_without_pyav_a_gif(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("av")
    source = ListSource(ARM7, arms(2, 130))
    (film,) = [p for p in inspect_data(source, tmp_path, video=True).pictures if p.stem == "preview"]
    assert film.suffix == ".mp4"
    assert film.stat().st_size > 1000

    def absent() -> None:
        raise MissingExtraError("av", "lerobot")

    monkeypatch.setattr(video, "load_av", absent)
    (film,) = [p for p in inspect_data(source, tmp_path, video=True).pictures if p.stem == "preview"]
    with Image.open(film) as image:
        assert film.suffix == ".gif"
        assert 40 < image.n_frames <= 120


class _Damaged(_Counted):
    def read(self, start: int, stop: int, cameras):
        if stop > 20:
            raise DataError(f"{self.name}: frame 20 is damaged")
        return super().read(start, stop, cameras)


def test_images_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    good, bad = make_episode(NAV2, "good", 40), _Damaged(make_episode(NAV2, "bad", 40, seed=1))
    source = ListSource(NAV2, [good, bad])
    assert [p.episode for p in inspect_data(source, tmp_path, video=True).problems] == ["bad"]
    assert [p.episode for p in verify_data(source)] == ["bad"]


def test_every_format_can_be_verified(make_episodes) -> None:
    source = MobileH5Source(make_episodes(18, 5), NAV2)
    assert verify_data(source) == []
