from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from anyvla.actions.spec import ARM7, NAV2, NAV3
from anyvla.cli import app
from anyvla.config import load_config
from anyvla.data.convert import Images, _Decoder, convert
from anyvla.data.direct import DirectFrames
from anyvla.data.prepare import prepare_data
from anyvla.data.sampler import Item
from anyvla.data.sources.lerobot import LeRobotSource
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.data.sources.opening import open_source, source_at
from anyvla.data.sources.packed import PackedSource
from anyvla.data.writers.mobile_h5 import file_name
from anyvla.errors import ConfigError, DataError
from tests.calvin_data import write_calvin
from tests.data.packing import ListSource, assert_same, cut, make_episode

RUN = CliRunner()


def nav(count: int = 4, **changes) -> ListSource:
    lengths = [18, 1, 37, 16, 20]
    episodes = [
        make_episode(NAV3, f"sub/ep_{i}.h5", lengths[i], cameras=["front", "rear"], state=["x", "yaw"], seed=i, **changes)
        for i in range(count)
    ]
    return ListSource(NAV3, [replace(e, task=e.task if i else "1box_hori_left") for i, e in enumerate(episodes)])


def open_again(path: Path, kind: str):
    if kind == "lerobot":
        return LeRobotSource(path, cache=path.parent / "cache")
    return PackedSource(path) if kind == "packed" else MobileH5Source(path, NAV3)


@pytest.mark.parametrize("first", ["packed", "lerobot", "mobile_h5"])
@pytest.mark.parametrize("second", ["packed", "lerobot", "mobile_h5"])
def test_every_format_keeps_everything_through_every_other(tmp_path: Path, first: str, second: str) -> None:
    source = nav()
    done = convert(source, tmp_path / "a", first, workers=1)
    assert (done.episodes, done.frames, done.already, done.skipped) == (4, 72, 0, [])
    assert done.bytes > 0
    convert(open_again(tmp_path / "a", first), tmp_path / "b", second, workers=1)
    result = open_again(tmp_path / "b", second)
    assert len(result) == 4
    by_name = {result.episode(i).name: result.episode(i) for i in range(4)}
    for episode in source.episodes:
        assert_same(by_name[episode.name], episode)


def test_a_second_run_adds_only_what_is_missing(tmp_path: Path) -> None:
    source = nav(5)
    convert(ListSource(NAV3, source.episodes[:2]), tmp_path, "packed", workers=1)
    before = (tmp_path / "front.raw").read_bytes()
    done = convert(source, tmp_path, "packed", workers=1)
    assert (done.episodes, done.already) == (3, 2)
    assert (tmp_path / "front.raw").read_bytes().startswith(before)
    assert convert(source, tmp_path, "packed", workers=1).episodes == 0
    assert [PackedSource(tmp_path).episode(i).name for i in range(5)] == [e.name for e in source.episodes]


@pytest.mark.parametrize(
    ("to", "encoding"), [("packed", "raw"), ("packed", "jpeg"), ("packed", "avif"), ("lerobot", None), ("mobile_h5", None)]
)
def test_several_processes_write_what_one_writes(tmp_path: Path, to: str, encoding: str | None) -> None:
    source = nav(5)
    long = replace(source.episodes[0], name="long.h5", **_longer(source.episodes[0], 40))
    source = ListSource(NAV3, [*source.episodes, long])
    for workers in (1, 2):
        convert(source, tmp_path / str(workers), to, encoding=encoding, size=(5, 9), workers=workers)
    one, two = (open_again(tmp_path / str(workers), to) for workers in (1, 2))
    for i in range(len(source)):
        assert_same(one.episode(i), two.episode(i))
        assert one.episode(i).read(0, 1, ["rear"])["rear"].shape == (1, 5, 9, 3)
    if to == "packed":
        assert (tmp_path / "1" / f"front.{encoding}").read_bytes() == (tmp_path / "2" / f"front.{encoding}").read_bytes()


def _longer(episode, times: int) -> dict[str, object]:
    return {
        "actions": np.tile(episode.actions, (times, 1)),
        "state": np.tile(episode.state, (times, 1)),
        "images": {camera: np.tile(frames, (times, 1, 1, 1)) for camera, frames in episode.images.items()},
    }


def test_windows_of_a_recording_come_out_of_their_order_and_share_frames(tmp_path: Path) -> None:
    whole, other = make_episode(ARM7, "play", 90, seed=1), make_episode(ARM7, "other", 30, seed=2)
    cuts = [cut(ARM7, whole, 40, 71), cut(ARM7, other, 3, 20), cut(ARM7, whole, 10, 45), cut(ARM7, whole, 12, 20)]
    cuts += [cut(ARM7, other, 0, 8), cut(ARM7, whole, 80, 90), cut(ARM7, whole, 40, 60)]
    convert(ListSource(ARM7, cuts), tmp_path, "packed", workers=1)
    assert (tmp_path / "front.frames").stat().st_size == 16 * (61 + 20 + 10)
    source = PackedSource(tmp_path)
    packed = {source.episode(i).name: source.episode(i) for i in range(len(source))}
    for episode in cuts:
        assert_same(packed[episode.name], episode)
    assert source.verify() == []


def test_annotations_of_calvin_share_frames(tmp_path: Path) -> None:
    source = open_source(source_at(write_calvin(tmp_path / "calvin")), cache=tmp_path)
    convert(source, tmp_path / "packed", "packed", workers=1)
    packed = PackedSource(tmp_path / "packed")
    by_name = {packed.episode(i).name: packed.episode(i) for i in range(len(packed))}
    distinct = set()
    for episode in map(source.episode, range(len(source))):
        assert_same(by_name[episode.name], episode)
        first = episode.recording[1]
        distinct |= set(range(first, first + episode.length))
    camera = source.cameras[0]
    assert (tmp_path / "packed" / f"{camera}.frames").stat().st_size == 16 * len(distinct)
    assert len(distinct) < sum(source.episode(i).length for i in range(len(source)))


def test_only_frames_that_are_not_stored_yet_are_decoded(tmp_path: Path) -> None:
    whole = make_episode(ARM7, "play", 90, seed=1)
    asked: list[tuple[int, int]] = []

    class Watched:
        def __init__(self, episode) -> None:
            self._episode = episode

        def __getattr__(self, name: str):
            return getattr(self._episode, name)

        def read(self, start: int, stop: int, cameras):
            first = self._episode.recording[1]
            asked.append((first + start, first + stop))
            return self._episode.read(start, stop, cameras)

    cuts = [Watched(cut(ARM7, whole, first, first + 40)) for first in (20, 0, 10, 30, 50)]
    convert(ListSource(ARM7, cuts), tmp_path, "packed", workers=1)
    assert sum(stop - start for start, stop in asked) < 90 + 16 * 5


def test_a_decoder_gives_any_frames_in_any_order() -> None:
    episode = make_episode(NAV2, "a", 50)
    decoder = _Decoder([(episode, 20), (episode, 0)], Images(), None, 0)
    for number, start, stop in [
        (0, 20, 33),
        (0, 0, 5),
        (0, 33, 50),
        (0, 3, 50),
        (1, 0, 1),
        (1, 0, 16),
        (1, 15, 17),
        (1, 49, 50),
    ]:
        frames = np.concatenate([part["front"] for part in decoder.frames(number, start, stop)])
        np.testing.assert_array_equal(frames, episode.images["front"][start:stop])


def test_what_a_format_cannot_hold_is_refused_or_skipped_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mobile_h5 holds no action dimension 'dx' .*'arm7'"):
        convert(ListSource(ARM7, [make_episode(ARM7)]), tmp_path / "a", "mobile_h5")
    with pytest.raises(ConfigError, match="no encoding 'jpeg'"):
        convert(nav(), tmp_path / "a", "mobile_h5", encoding="jpeg")
    odd = make_episode(NAV2, "odd", cameras=["rear"])
    small = make_episode(NAV2, "small", size=(2, 2))
    source = ListSource(NAV2, [make_episode(NAV2, "good"), odd, small])
    with pytest.raises(DataError, match=r"odd: mobile_h5 needs a camera 'front'.*on_bad_episode=skip"):
        convert(source, tmp_path / "b", "mobile_h5", workers=1)
    done = convert(source, tmp_path / "b", "mobile_h5", workers=1, on_bad_episode="skip")
    assert (done.episodes, done.already, [p.episode for p in done.skipped]) == (1, 1, ["odd"])
    done = convert(source, tmp_path / "c", "packed", workers=1, on_bad_episode="skip")
    assert [p.episode for p in done.skipped] == ["small"]
    assert len(convert(source, tmp_path / "d", "packed", size=(4, 4), workers=1).skipped) == 0


def test_names_of_episodes_lead_nowhere_else(tmp_path: Path) -> None:
    assert file_name("../../evil/../x.h5") == "_/_/evil/_/x.h5"
    assert file_name("/etc/passwd") == "_/etc/passwd.h5"
    assert file_name("a b:c") == "a_b_c.h5"
    convert(ListSource(NAV2, [make_episode(NAV2, "../../evil")]), tmp_path / "deep" / "out", "mobile_h5", workers=1)
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.h5")] == ["deep/out/_/_/evil.h5"]


def test_data_are_not_converted_into_themselves(make_episodes) -> None:
    folder = make_episodes(5)
    with pytest.raises(ConfigError, match="lies in the data"):
        convert(MobileH5Source(folder, NAV3), folder / "packed", "packed")


def test_the_verb_converts_looks_and_verifies(make_episodes, tmp_path: Path) -> None:
    folder = make_episodes(18, 9)
    out = tmp_path / "packed"
    done = RUN.invoke(app, ["convert", str(folder), str(out), "--to", "packed", "--workers", "1", "--size", "32x18"])
    assert done.exit_code == 0, done.output
    assert "2 episodes written (27 frames" in done.output
    source = PackedSource(out)
    assert source.spec == NAV3  # all that the files hold, also where nav2 is what is trained
    assert source.ready == {"front": (18, 32)}
    looked = RUN.invoke(app, ["inspect", "data", str(out), "--out", str(tmp_path / "look"), "--verify"])
    assert looked.exit_code == 0, looked.output
    assert "all 27 frames can be read" in looked.output
    data = bytearray((out / "front.raw").read_bytes())
    data[5] ^= 1
    (out / "front.raw").write_bytes(data)
    looked = RUN.invoke(app, ["inspect", "data", str(out), "--out", str(tmp_path / "look"), "--verify"])
    assert looked.exit_code == 1
    assert "wrong checksum" in looked.output.replace("\n", " ")
    back = RUN.invoke(app, ["convert", str(out), str(tmp_path / "h5"), "--to", "mobile_h5", "--workers", "1"])
    assert back.exit_code == 0, back.output
    assert len(MobileH5Source(tmp_path / "h5", NAV2)) == 2


@pytest.mark.slow
def test_a_killed_conversion_goes_on_where_it_was(tmp_path: Path) -> None:
    source = nav(5)
    episodes = [replace(e, name=f"{i}-{e.name}", **_longer(e, 30)) for i in range(6) for e in source.episodes]
    convert(ListSource(NAV3, episodes), tmp_path / "h5", "mobile_h5", workers=1)
    command = [sys.executable, "-m", "anyvla", "convert", str(tmp_path / "h5"), str(tmp_path / "out"), "--to", "packed"]
    index = tmp_path / "out" / "episodes.index"

    def written() -> int:
        return index.read_bytes().count(b"\n") if index.exists() else 0

    kills = 0
    for wanted in (3, 9, 17, 1000):  # episodes after which it is killed; never the last time
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        while process.poll() is None and written() < wanted:
            time.sleep(0.001)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
            time.sleep(0.2)
        assert process.wait() == (0 if wanted == 1000 else -signal.SIGKILL)
    result = PackedSource(tmp_path / "out")
    assert len(result) == 30
    assert result.verify() == []
    assert kills == 3


def test_a_raw_store_of_the_models_size_is_trained_on_as_it_is(make_episodes, tiny_overrides, tmp_path: Path) -> None:
    folder = make_episodes(9, 2, 7, 9)
    convert(MobileH5Source(folder, NAV3), tmp_path / "packed", "packed", size=(32, 48), workers=1)
    packed = [f"data.source={{type: packed, path: {tmp_path / 'packed'}}}", f"data.cache={tmp_path / 'none'}"]
    first, second = (
        prepare_data(load_config("nav-tiny", [*tiny_overrides, *source])) for source in ([f"data.source.path={folder}"], packed)
    )
    assert isinstance(second.train._store, DirectFrames)
    assert not (tmp_path / "none" / "frames").exists()
    for i in range(len(first.train)):
        a, b = first.train[Item(0, i)], second.train[Item(0, i)]
        np.testing.assert_array_equal(a["images"]["front"], b["images"]["front"])
        np.testing.assert_array_equal(a["actions"], b["actions"])
        assert a["prompt"] == b["prompt"]
