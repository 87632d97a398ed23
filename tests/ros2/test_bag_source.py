from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")

from anyvla.actions.spec import NAV2, ActionDim, ActionSpec
from anyvla.data.sources.opening import detect_format, open_source, source_at
from anyvla.data.sources.ros2_bag import BagSource
from anyvla.errors import AnyVLAError, ConfigError, DataError
from anyvla.ros2.bag import BagWriter, Storage
from tests.ros2.made import MAPPING, command_at, frame_at, seconds_in, write_arm, write_drive


def opened(path: Path, *settings: str, **more: object) -> BagSource:
    source = open_source(source_at(path, settings), **more)  # type: ignore[arg-type]
    assert isinstance(source, BagSource)
    return source


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("stamped", [True, False])
def test_a_drive_is_an_episode(tmp_path: Path, storage: Storage, compressed: bool, stamped: bool) -> None:
    path = write_drive(tmp_path / "drive", storage=storage, compressed=compressed, stamped=stamped)
    assert detect_format(path) == "bag"
    source = pickle.loads(pickle.dumps(opened(path)))  # noqa: S301
    assert (len(source), source.cameras, source.spec.name, source.problems) == (1, ("front",), "nav3", [])
    episode = source.episode(0)
    assert (episode.name, episode.fps, episode.instruction, episode.length) == ("drive", 5.0, "Go to the ball.", 20)
    # the frame of each tick is the one of that very moment, and the command is the one given then
    shown = [seconds_in(frame) for frame in episode.read(0, 20, ["front"])["front"]]
    assert shown == pytest.approx([i / 5 for i in range(20)], abs=0.03)
    expected = np.array([command_at(i / 5)[[0, 1, 5]] for i in range(20)])
    assert np.abs(episode.actions - expected).max() < 0.02
    assert episode.actions.dtype == np.float32
    part = episode.read(7, 9, ["front"])["front"]
    assert np.array_equal(part, episode.read(0, 20, ["front"])["front"][7:9])


def test_no_frame_is_from_the_future_when_stamps_are(tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive", delay=-0.5)  # a camera whose clock is ahead: arrival counts, so ticks shift with it
    episode = opened(path).episode(0)
    shown = [seconds_in(frame) for frame in episode.read(0, episode.length, ["front"])["front"]]
    commands = np.arctan2(episode.actions[:, 0], episode.actions[:, 2])  # the time at which the command was given
    assert np.allclose((np.array(shown) - commands)[3:-1], 0.5, atol=0.06)


def test_the_mean_command(tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive")
    held, mean = opened(path).episode(0).actions, opened(path, "command=mean").episode(0).actions
    expected = [np.mean([command_at(t)[0] for t in np.arange(i / 5, i / 5 + 0.2, 0.02)]) for i in range(19)]
    assert np.allclose(mean[:19, 0], expected, atol=0.01)
    assert not np.allclose(held, mean, atol=0.01)


def test_gaps_and_instructions_make_episodes(tmp_path: Path) -> None:
    path = write_drive(
        tmp_path / "a",
        6.0,
        extra=lambda writer: writer.write("/instruction", "string", "Now back.", 1003.01),
    )
    write_drive(tmp_path / "b", 2.0, start=5000.0)
    source = opened(tmp_path)
    names = [(source.episode(i).name, source.episode(i).instruction, source.episode(i).length) for i in range(len(source))]
    assert names == [
        ("a-000", "Go to the ball.", 16),
        ("a-001", "Now back.", 14),
        ("b", "Go to the ball.", 10),
    ]
    assert source.episode(0).fingerprint != source.episode(1).fingerprint
    assert opened(path, "fps=2").episode(0).fingerprint != opened(path).episode(0).fingerprint


def test_settings_choose(tmp_path: Path) -> None:
    def more(writer: BagWriter) -> None:
        for i in range(80):
            writer.write("/wrist/image_raw", "image", frame_at(i / 20)[:8, :8], 1000 + i / 20 + 0.01)
            writer.write("/depth/image_raw", "image", frame_at(0), 1000 + i / 20 + 0.01)
            writer.write("/teleop", "twist", np.full(6, 0.125), 1000 + i / 20)

    path = write_drive(tmp_path / "drive", instruction=None, extra=more)
    with pytest.raises(DataError, match="nobody has said an instruction"):
        opened(path, "cmd_vel=/teleop")
    source = opened(path, "cmd_vel=/teleop", "text=Go.", "fps=10", spec=NAV2)
    episode = source.episode(0)
    assert set(episode.cameras) == {"front", "wrist"}
    assert (episode.fps, episode.instruction, episode.actions.shape[1]) == (10.0, "Go.", 2)
    assert (episode.actions == 0.125).all()
    assert episode.read(0, 3, ["wrist"])["wrist"].shape == (3, 8, 8, 3)
    assert opened(path, "cameras.hand=/wrist/image_raw", "text=Go.").cameras == ("hand",)


def test_an_arm_by_a_mapping_file(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(MAPPING)
    path = write_arm(tmp_path / "arm")
    source = opened(path, f"mapping={tmp_path / 'map.yaml'}")
    episode = source.episode(0)
    ticks = np.arange(episode.length) / 5
    j1, lift, turn, push, gripper = episode.actions.T
    assert np.allclose(j1, 0.5 * ticks + 0.05, atol=0.02)
    assert np.allclose(lift[:-1], 0.02, atol=0.004)
    assert np.allclose(turn[:-1], 0.2, atol=0.04)
    assert push.tolist() == pytest.approx([0.3 * (1.0 <= t <= 1.5) for t in ticks])  # zero half a second after it was said
    assert gripper.tolist() == [float(t > 2.04) for t in ticks]
    assert episode.state_names == ("j1", "yaw")
    assert episode.state is not None
    assert np.allclose(episode.state[:, 0], 0.5 * ticks, atol=0.02)
    assert np.allclose(episode.state[:, 1], (ticks + np.pi) % (2 * np.pi) - np.pi, atol=0.04)
    dims = {dim.name: dim for dim in source.spec.dims}
    assert (dims["j1"].low, dims["j1"].high, dims["j1"].unit, dims["gripper"].kind) == (-3, 3, "rad", "binary")
    part = ActionSpec("mine", (ActionDim("push"), ActionDim("j1", low=-4, high=4)))
    chosen = opened(path, f"mapping={tmp_path / 'map.yaml'}", spec=part, state=["yaw"]).episode(0)
    assert np.array_equal(chosen.actions, episode.actions[:, [3, 0]])
    assert chosen.state_names == ("yaw",)


def test_jpeg_files_are_copied_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    from anyvla.data.convert import convert
    from anyvla.ros2.images import decode_compressed

    source = opened(write_drive(tmp_path / "drive"))
    files = source.episode(0).read_coded(3, 5, "front", "jpeg")
    assert files is not None
    frames = source.episode(0).read(3, 5, ["front"])["front"]
    assert np.array_equal([decode_compressed(file, "jpeg") for file in files], frames)
    assert opened(write_drive(tmp_path / "raw", compressed=False)).episode(0).read_coded(0, 1, "front", "jpeg") is None
    convert(source, tmp_path / "packed", "packed", encoding="jpeg", workers=1)
    stored = open_source(source_at(tmp_path / "packed")).episode(0)
    assert np.array_equal(stored.read(3, 5, ["front"])["front"], frames)


def test_bags_on_the_command_line(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from anyvla.cli import app

    for i in range(3):
        write_drive(tmp_path / "bags" / str(i), 3.0, start=1000.0 * (i + 1))
    runner = CliRunner()
    arguments = ["convert", str(tmp_path / "bags"), str(tmp_path / "h5"), "fps=2.5", "--to", "mobile_h5", "--workers", "1"]
    done = runner.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "3 episodes written" in done.output
    looked = runner.invoke(app, ["inspect", "data", str(tmp_path / "bags"), "--out", str(tmp_path / "look")])
    assert looked.exit_code == 0, looked.output
    missing = runner.invoke(app, ["convert", str(tmp_path / "bags"), str(tmp_path / "no"), "cmd_vel=/cmd_val"])
    assert missing.exit_code == 1


@pytest.mark.slow
def test_from_bags_to_a_policy(tmp_path: Path, tiny_overrides: list[str]) -> None:
    from anyvla.config import load_config
    from anyvla.policies.policy import Policy
    from anyvla.training.loop import train

    for i in range(3):
        write_drive(tmp_path / "bags" / str(i), 3.0, start=1000.0 * (i + 1))
    source = f"data.source={{type: bag, path: {tmp_path / 'bags'}}}"
    run = train(load_config("nav-tiny", [*tiny_overrides, source, "training.steps=2", "training.warmup=1"]))
    policy = Policy.load(run)
    policy.reset("Go to the ball.")
    assert np.isfinite(policy.act({"front": frame_at(0)})).all()


def test_converted_it_is_the_same_episode(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    from anyvla.data.writers.lerobot import LeRobotWriter

    source = opened(write_drive(tmp_path / "drive"))
    with LeRobotWriter(tmp_path / "out", source.spec, 5.0) as writer:
        writer.add(source.episode(0))
    read = open_source(source_at(tmp_path / "out"), cache=tmp_path / "cache").episode(0)
    assert np.array_equal(read.actions, source.episode(0).actions)
    assert np.array_equal(read.read(0, 20, ["front"])["front"], source.episode(0).read(0, 20, ["front"])["front"])


def no_twist(writer: BagWriter) -> None:
    for i in range(40):
        writer.write("/image", "image", frame_at(i / 20), 1000 + i / 20)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        (["cmd_vel=/cmdvel"], ConfigError, "no topic '/cmdvel'; did you mean '/cmd_vel'"),
        (["cmd_vel=/instruction"], ConfigError, "/instruction is a std_msgs/msg/String, not a geometry_msgs/msg/Twist or"),
        (["cameras.front=/camera/image_raw"], ConfigError, "did you mean '/camera/image_raw/compressed'"),
        (["instruction=/cmd_vel"], ConfigError, "not a std_msgs/msg/String"),
        (["fps=0"], ConfigError, "fps"),
        (["cmdvel=/x"], ConfigError, "did you mean 'cmd_vel'"),
        (["shortest=60"], DataError, "the longest of 1 stretches has 4.0 s, and shortest is 60 s"),
        (["max_age=0.01"], DataError, "no moment has all|the longest of"),
        (["mapping=nowhere.yaml"], ConfigError, "nowhere.yaml: cannot be read"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, settings: list[str], kind: type[AnyVLAError], message: str) -> None:
    with pytest.raises(kind, match=message):
        opened(write_drive(tmp_path / "drive"), *settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("actions: []", "actions: "),
        ("actions: [{name: a, topic: /cmd_vel, feild: linear.x}]", "actions.0.field: Field required"),
        ("actions: [{name: a, topic: /cmd_vel, field: linear.w}]", "a: a twist has no field 'linear.w'; did you mean 'linear"),
        ("actions: [{name: a, topic: /cmd, field: linear.x}]", "no topic '/cmd'"),
        ("actions: [{name: a, topic: /joint_commands, field: position.j3}]", "no 'position.j3'; did you mean 'position.j1'"),
        ("actions: [{name: a, topic: /x, field: y}, {name: a, topic: /x, field: y}]", "'a' is there twice"),
        ("actions: [", "not valid YAML"),
        ("- 3", "dictionary"),
    ],
)
def test_mistakes_in_a_mapping_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        opened(write_arm(tmp_path / "arm"), f"mapping={tmp_path / 'map.yaml'}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: write_drive(p, 3.0, camera_hz=0), "no topic with images"),
        (lambda p: write_drive(p, 0.3), "the longest of"),
        (lambda p: _bag(p, no_twist), "no commands: no topic with twists"),
    ],
)
def test_bags_without_what_is_needed_are_named_or_left_out(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    make(tmp_path / "bags" / "bad")
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "bags")
    write_drive(tmp_path / "bags" / "good")
    source = opened(tmp_path / "bags", on_bad_episode="skip")
    assert len(source) == 1
    assert [problem.episode for problem in source.problems] == ["bad"]
    assert message in source.problems[0].reason


def test_a_robot_that_is_faster_than_the_spec_is_refused(tmp_path: Path) -> None:
    path = write_drive(tmp_path / "a", extra=lambda writer: writer.write("/cmd_vel", "twist", [9, 0, 0, 0, 0, 0], 1002.0))
    with pytest.raises(DataError, match=r"linear_x at frame 10 is 9 m/s, outside \[-1.15, 1.15\]"):
        opened(path)


def test_a_bag_that_shrinks_is_told(tmp_path: Path) -> None:
    path = write_drive(tmp_path / "drive")
    episode = opened(path).episode(0)
    file = path / "drive.mcap"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(DataError, match="damaged bag"):
        episode.read(0, 5, ["front"])


def test_stamps_that_jump_do_not_move_frames(tmp_path: Path) -> None:
    def jump(writer: BagWriter) -> None:
        for i, stamp in enumerate((1.0, 9e8, 1003.9, 1000.0)):
            when = 1001.003 + i
            writer.write("/camera/image_raw/compressed", "compressed_image", frame_at(when - 1000), when, stamp)

    path = write_drive(tmp_path / "drive", 6.0, extra=jump)
    episode = opened(path).episode(0)
    shown = [seconds_in(frame) for frame in episode.read(0, episode.length, ["front"])["front"]]
    assert np.allclose(shown, np.arange(episode.length) / 5, atol=0.06)
    assert episode.length == 30


def _bag(path: Path, write: Callable[[BagWriter], None]) -> Path:
    with BagWriter(path) as writer:
        write(writer)
    return path
