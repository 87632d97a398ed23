from __future__ import annotations

import json
import pickle
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyvla.actions.spec import ARM7, DELTA7, NAV2, NAV3, ActionSpec
from anyvla.data.sources.opening import detect_format, open_source, source_at
from anyvla.data.sources.packed import PackedSource
from anyvla.data.writers.packed import PackedWriter
from anyvla.errors import ConfigError, DataError
from tests.data.packing import assert_same, cut, make_episode

TWO = ("static", "gripper")


def write(path: Path, *episodes, spec: ActionSpec = ARM7, cameras=TWO, state=(), **options) -> Path:
    with PackedWriter(path, spec, cameras, state_names=state, **options) as writer:
        for episode in episodes:
            writer.add(episode)
    return path


def arm(name: str = "a", length: int = 9, seed: int = 0, **changes):
    return make_episode(ARM7, name, length, cameras=TWO, state=("x", "y"), seed=seed, **changes)


def test_what_is_packed_is_read_back_exactly(tmp_path: Path) -> None:
    episodes = [arm("a", 5), arm("나/b", 40, 1), arm("c", 1, 2)]
    write(tmp_path, *episodes, state=("x", "y"), source="a robot")
    assert detect_format(tmp_path) == "packed"
    source = open_source(source_at(tmp_path))
    assert (source.spec, source.cameras, len(source), source.problems) == (ARM7, TWO, 3, [])
    for i, episode in enumerate(episodes):
        assert_same(source.episode(i), episode)
        assert source.episode(i).recording == (episode.name, 0)
    middle = source.episode(1).read(17, 30, ["gripper"])
    np.testing.assert_array_equal(middle["gripper"], episodes[1].images["gripper"][17:30])
    assert PackedSource(tmp_path).verify() == []


def test_a_raw_window_is_a_view_of_one_memory_map(tmp_path: Path) -> None:
    source = PackedSource(write(tmp_path, arm(), state=("x", "y")))
    episode = source.episode(0)
    window, again = (episode.read(2, 6, ["static"])["static"] for _ in range(2))
    assert window.base is not None
    assert np.shares_memory(window, again)
    assert not window.flags.writeable
    assert np.shares_memory(episode.actions, source.episode(0).actions)
    assert source.ready == {"static": (6, 8), "gripper": (6, 8)}


def test_a_source_and_its_episodes_can_be_sent_to_another_process(tmp_path: Path) -> None:
    source = PackedSource(write(tmp_path, arm(length=50), state=("x", "y")))
    source.episode(0).read(0, 1, ["static"])
    for sent in (source.episode(0), source):
        data = pickle.dumps(sent)
        assert len(data) < 3000
        back = pickle.loads(data)  # noqa: S301  our own bytes
        assert_same(back if sent is not source else back.episode(0), source.episode(0))


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 25)), min_size=1, max_size=6), st.booleans())
def test_overlapping_episodes_of_a_recording_share_frames(tmp_path_factory, windows: list[tuple[int, int]], jpeg: bool) -> None:
    path = tmp_path_factory.mktemp("packed")
    whole = make_episode(ARM7, "play", 60, cameras=TWO)
    cuts = [cut(ARM7, whole, first, first + length) for first, length in sorted(set(windows))]
    encoding = "jpeg" if jpeg else "raw"
    write(path, *cuts, encoding=encoding)
    source = PackedSource(path)
    assert source.verify() == []
    distinct = {frame for c in cuts for frame in range(c.recording[1], c.recording[1] + c.length)}
    assert (path / "static.frames").stat().st_size == 16 * len(distinct)
    for i, episode in enumerate(cuts):
        assert source.episode(i).recording == episode.recording
        if not jpeg:
            assert_same(source.episode(i), episode)


def test_episodes_of_a_recording_in_another_order_are_whole_all_the_same(tmp_path: Path) -> None:
    whole, other = arm("play", 40), arm("other", 5, 1)
    cuts = [cut(ARM7, whole, 10, 20), other, cut(ARM7, whole, 12, 25), cut(ARM7, whole, 0, 12), cut(ARM7, whole, 14, 24)]
    source = PackedSource(write(tmp_path, *cuts, state=("x", "y")))
    for i, episode in enumerate(cuts):
        assert_same(source.episode(i), episode)


@pytest.mark.parametrize("encoding", ["jpeg", "avif"])
def test_a_coded_frame_is_close_small_and_never_coded_twice(tmp_path: Path, encoding: str) -> None:
    smooth = np.linspace(0, 255, 9 * 64 * 64 * 3).reshape(9, 64, 64, 3).astype(np.uint8)
    episode = replace(arm(), images={"static": smooth, "gripper": smooth[:, ::2, ::2]})
    first = PackedSource(write(tmp_path / "a", episode, state=("x", "y"), encoding=encoding))
    frames = first.episode(0).read(0, 9, TWO)
    assert np.abs(frames["static"].astype(int) - smooth).max() < 12
    assert first.ready == {}
    assert (tmp_path / "a" / f"static.{encoding}").stat().st_size < smooth.nbytes / 4
    second = PackedSource(write(tmp_path / "b", first.episode(0), state=("x", "y"), encoding=encoding, quality=10))
    assert_same(second.episode(0), first.episode(0))
    other = "avif" if encoding == "jpeg" else "jpeg"
    third = PackedSource(write(tmp_path / "c", first.episode(0), state=("x", "y"), encoding=other))
    assert np.abs(third.episode(0).read(0, 9, TWO)["static"].astype(int) - smooth).max() < 16


def test_images_are_resized_where_asked(tmp_path: Path) -> None:
    source = PackedSource(write(tmp_path, arm(), state=("x", "y"), size=(12, 10)))
    frames = source.episode(0).read(0, 2, TWO)
    assert frames["static"].shape == frames["gripper"].shape == (2, 12, 10, 3)


def test_an_episode_may_lack_cameras_and_state(tmp_path: Path) -> None:
    only = [
        make_episode(ARM7, "a", 4, cameras=["gripper"]),
        make_episode(ARM7, "b", 5, cameras=["static"], state=["x"], seed=1),
        make_episode(ARM7, "c", 3, cameras=TWO, seed=2),
        make_episode(ARM7, "d", 3, cameras=["gripper"], seed=3),
    ]
    for encoding in ("raw", "jpeg", "avif"):
        path = write(tmp_path / encoding, *only, state=["x"], encoding=encoding)
        source = PackedSource(path)
        assert source.verify() == []
        for i, episode in enumerate(only):
            assert source.episode(i).cameras == episode.cameras
            assert source.episode(i).state_names == episode.state_names
            if encoding == "raw":
                assert_same(source.episode(i), episode)
        with pytest.raises(DataError, match="no camera 'static'"):
            source.episode(0).read(0, 1, ["static"])
        with pytest.raises(DataError, match=r"a: it has no state .*on_bad_episode"):
            PackedSource(path, state=["x"])
        assert [p.episode for p in PackedSource(path, on_bad_episode="skip", state=["x"]).problems] == ["a", "c", "d"]


def test_a_spec_may_ask_for_fewer_dimensions_or_another_order(tmp_path: Path) -> None:
    episode = make_episode(NAV3)
    path = write(tmp_path, episode, spec=NAV3, cameras=["front"])
    np.testing.assert_array_equal(PackedSource(path, NAV2).episode(0).actions, episode.actions[:, :2])
    turned = ActionSpec("turned", NAV3.dims[::-1])
    np.testing.assert_array_equal(PackedSource(path, turned).episode(0).actions, episode.actions[:, ::-1])
    narrow = ActionSpec("slow", (replace(NAV3.dims[0], low=-0.1, high=0.1),))
    with pytest.raises(DataError, match=r"linear_x is .* outside \[-0.1, 0.1\]"):
        PackedSource(path, narrow)


def test_a_store_of_another_robot_is_refused_naming_both(tmp_path: Path) -> None:
    path = write(tmp_path, arm(), state=("x", "y"))
    with pytest.raises(ConfigError, match=r"arm7.*nav2.*linear_x"):
        PackedSource(path, NAV2)
    with pytest.raises(ConfigError, match=r"'dx' as continuous in 'x 0.02 m' \(spec 'arm7'\).*'m' \(spec 'delta7'\)"):
        PackedSource(path, DELTA7)
    with pytest.raises(DataError, match="the state has no 'z'"):
        PackedSource(path, state=["z"])
    state = PackedSource(path, state=["y"]).episode(0)
    np.testing.assert_array_equal(state.state, arm().state[:, 1:])
    assert PackedSource(path, state=[]).episode(0).state is None


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "avif"])
def test_writing_that_is_broken_off_anywhere_loses_only_the_episode_under_way(tmp_path: Path, encoding: str) -> None:
    whole = arm("play", 40, size=(2, 3))
    episodes = [arm("a", 5, size=(2, 3)), cut(ARM7, whole, 0, 9), cut(ARM7, whole, 5, 14), arm("z", 3, 4, size=(2, 3))]
    complete = write(tmp_path / "complete", *episodes, state=("x", "y"), encoding=encoding)
    wanted = {file.name: file.read_bytes() for file in complete.iterdir()}
    sizes = []
    path = tmp_path / "growing"
    for count in range(len(episodes) + 1):
        write(path, *episodes[count - 1 : count] if count else (), state=("x", "y"), encoding=encoding)
        sizes.append({file.name: file.stat().st_size for file in path.iterdir()})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == wanted  # in four runs as in one
    rng = np.random.default_rng(0)
    header = (path / "packed.json").read_text()
    for count in range(1, len(episodes)):
        for _ in range(8):
            path = tmp_path / f"{encoding}{count}{_}"
            path.mkdir()
            began = json.loads(header) | {"episodes": 0, "frames": 0}
            (path / "packed.json").write_text(json.dumps(began))
            for name, size in sizes[count].items():
                if name not in ("packed.json", "lock"):
                    more = int(rng.integers(0, sizes[count + 1][name] - size + 1))
                    more = min(more, sizes[count + 1][name] - size - 1) if name == "episodes.index" else more
                    (path / name).write_bytes(wanted[name][: size + more])
            assert len(PackedSource(path)) == count
            write(path, *episodes[count:], state=("x", "y"), encoding=encoding)
            assert {file.name: file.read_bytes() for file in path.iterdir()} == wanted


class _Unreadable:
    """An episode whose images end early."""

    def __init__(self, episode) -> None:
        self._episode = episode

    def __getattr__(self, name: str):
        return getattr(self._episode, name)

    def read(self, start: int, stop: int, cameras):
        if stop > 16:
            raise DataError("frame 16 is damaged")
        return self._episode.read(start, stop, cameras)


def test_an_episode_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    good, bad = arm("good", 5), _Unreadable(arm("bad", 40, 1))
    with PackedWriter(tmp_path / "a", ARM7, TWO, state_names=("x", "y")) as writer:
        for _ in range(2):
            with pytest.raises(DataError, match="frame 16"):
                writer.add(bad)
        writer.add(good)
        with pytest.raises(DataError, match=r"bad2: .*gripper is 4x3, others are 8x6; --size"):
            writer.add(replace(arm("bad2"), images={**arm().images, "gripper": np.zeros((9, 3, 4, 3), np.uint8)}))
    write(tmp_path / "b", good, state=("x", "y"))
    assert len(PackedSource(tmp_path / "a")) == 1
    assert_same(PackedSource(tmp_path / "a").episode(0), good)


def test_a_full_disk_is_named_and_costs_one_episode(tmp_path: Path) -> None:
    import resource

    long = arm("long", 500, 1, size=(20, 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with PackedWriter(tmp_path, ARM7, TWO, state_names=("x", "y")) as writer:
        writer.add(arm("a", size=(20, 20)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(DataError, match=r"long cannot be written .*File too large"):
                writer.add(long)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.add(long)
    source = PackedSource(tmp_path)
    assert source.verify() == []
    assert_same(source.episode(1), long)


def test_what_does_not_go_with_the_store_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, arm(), state=("x", "y"))
    for options, message in (
        ({"spec": DELTA7}, "with spec"),
        ({"state": ("x",)}, "with state"),
        ({"encoding": "jpeg"}, "with encoding 'raw'"),
        ({"cameras": ["static"]}, "cameras"),
        ({"size": (3, 3)}, "cameras"),
    ):
        with pytest.raises(ConfigError, match=message):
            write(path, **({"state": ("x", "y")} | options))
    for episode, message in (
        (arm(), "an episode 'a' already"),
        (make_episode(ARM7, "b", cameras=["wrist"]), "camera 'wrist' is not one"),
        (make_episode(ARM7, "b", cameras=TWO, state=["z"]), r"the state is \['z'\]"),
        (make_episode(NAV2, "b", cameras=TWO), "actions of the shape"),
        (replace(arm("b"), actions=np.full((9, 7), np.nan, np.float32)), "actions hold non-finite"),
        (make_episode(ARM7, "b", cameras=[]), "no images"),
    ):
        with PackedWriter(path, ARM7, TWO, state_names=("x", "y")) as writer, pytest.raises(DataError, match=message):
            writer.add(episode)
    with pytest.raises(DataError, match=r"cannot hold a camera of the name '\.\./x'"):
        PackedWriter(tmp_path / "b", ARM7, ["../x"])
    with PackedWriter(path, ARM7, TWO, state_names=("x", "y")), pytest.raises(DataError, match="another process"):
        write(path, state=("x", "y"))
    assert len(PackedSource(path)) == 1


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("packed.json", lambda b: b.replace(b'"version": 1', b'"version": 9'), "version 9.*reads version 1"),
        ("packed.json", lambda b: b.replace(b"static", b"../static"), "cannot be part of a file's name"),
        ("packed.json", lambda b: b[:100], "not the header"),
        ("packed.json", lambda b: b"[" * 100_000, "not the header"),
        ("episodes.index", lambda b: b.replace(b"task 0", b"task 7"), "line 1 is damaged.*checksum"),
        ("episodes.index", lambda b: b[: len(b) // 2], "1 of 3 lines.*cut short"),
        ("episodes.index", lambda b: b + b.splitlines(keepends=True)[0], "stands there twice"),
        ("static.raw", lambda b: b[:-1], "c: frames to 20.*cut short"),
        ("gripper.frames", lambda b: b[:-1], "c: frames to 20.*cut short"),
        ("actions.f32", lambda b: b[:-1], "c: rows to 20.*cut short"),
    ],
)
def test_damage_is_named_when_the_store_is_opened(tmp_path: Path, file: str, change, message: str) -> None:
    path = write(tmp_path, arm("a", 9), arm("b", 8, 1), arm("c", 3, 2), state=("x", "y"))
    (path / file).write_bytes(change((path / file).read_bytes()))
    with pytest.raises(DataError, match=message):
        PackedSource(path)
    if file != "packed.json":
        source = PackedSource(path, on_bad_episode="skip")
        assert len(source) in (1, 2, 3)
        assert len(source.problems) >= 1
        with pytest.raises(DataError, match=r"damaged|twice|cut short"):
            write(path, arm("d", 4), state=("x", "y"))


@pytest.mark.parametrize("encoding", ["raw", "jpeg", "avif"])
def test_verify_names_every_episode_that_has_changed(tmp_path: Path, encoding: str) -> None:
    whole = arm("play", 40)
    cuts = [cut(ARM7, whole, 0, 20), cut(ARM7, whole, 10, 30), arm("other", 4, 1)]
    path = write(tmp_path, *cuts, state=("x", "y"), encoding=encoding)
    frames = path / f"gripper.{encoding}"
    data = bytearray(frames.read_bytes())
    record = np.frombuffer((path / "gripper.frames").read_bytes(), dtype="<u8,<u4,<u4")[15]
    data[int(record[0]) + 3] ^= 1
    frames.write_bytes(data)
    actions = bytearray((path / "actions.f32").read_bytes())
    actions[-1] ^= 1
    (path / "actions.f32").write_bytes(actions)
    found = {problem.episode: problem.reason for problem in PackedSource(path).verify()}
    assert set(found) == {"play_0_20", "play_10_30", "other"}
    assert "gripper: 1 frames have changed (wrong checksum), first frame 15" in found["play_0_20"]
    assert "first frame 5" in found["play_10_30"]
    assert "actions or state" in found["other"]


def _mutate(rng: np.random.Generator, data: bytes, text: bool) -> bytes:
    changed = bytearray(data)
    kind = rng.integers(5)
    at = int(rng.integers(len(changed))) if changed else 0
    if kind == 0:
        return bytes(changed[:at])
    if kind == 1:
        for i in rng.integers(0, max(1, len(changed)), size=int(rng.integers(1, 8))):
            if len(changed):
                changed[i] = int(rng.integers(256))
    elif kind == 2:
        changed[at:at] = rng.bytes(int(rng.integers(1, 60)))
    elif kind == 3:
        digits = [i for i, byte in enumerate(changed) if 48 <= byte <= 57] if text else []
        if digits:
            i = digits[int(rng.integers(len(digits)))]
            new = [b"-1", b"1e400", b"99999999999999999999", b"null", b"[]", b"0.5", b'"x"', b"0"][int(rng.integers(8))]
            changed[i : i + 1] = new
    else:
        other = int(rng.integers(len(changed))) if changed else 0
        del changed[min(at, other) : max(at, other)]
    return bytes(changed)


def _replace(path: Path, data: bytes) -> None:
    path.unlink()  # a new file: cutting an old one waits for the disk
    path.write_bytes(data)


def test_a_mutated_store_gives_only_our_own_errors(tmp_path: Path) -> None:
    whole = arm("play", 30, size=(4, 4))
    cuts = [cut(ARM7, whole, 0, 9), cut(ARM7, whole, 5, 14), arm("z", 3, 4, size=(4, 4))]
    paths = [write(tmp_path / e, *cuts, state=("x", "y"), encoding=e) for e in ("raw", "jpeg", "avif")]
    rng = np.random.default_rng(0)
    outcomes = {"error": 0, "read": 0}
    for case in range(1200):
        path = paths[case % 3]
        names = sorted(file.name for file in path.iterdir() if file.name != "lock")
        victim = path / names[int(rng.integers(len(names)))]
        original = victim.read_bytes()
        mutated = _mutate(rng, original, victim.suffix in (".json", ".index"))
        if victim.name == "episodes.index" and case % 4:  # forged: with checksums that are right
            lines = [line[9:] for line in mutated.split(b"\n")]
            mutated = b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in lines if line)
        _replace(victim, mutated)
        try:
            source = PackedSource(path, on_bad_episode="skip" if case % 5 else "error")
            for i in range(len(source)):
                episode = source.episode(i)
                assert len(episode.actions) == episode.length
                assert episode.length < 100
                stop = min(2, episode.length)
                frames = episode.read(0, stop, episode.cameras)
                assert all(len(images) == stop for images in frames.values())
                assert episode.state is None or len(episode.state) == episode.length
                assert isinstance(episode.fingerprint, str)
            if case % 4 == 0:
                source.verify()
            outcomes["read"] += 1
        except (DataError, ConfigError):
            outcomes["error"] += 1
        finally:
            _replace(victim, original)
    assert min(outcomes.values()) > 100
