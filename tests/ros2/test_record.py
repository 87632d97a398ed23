from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rosbags")
pytest.importorskip("pyarrow")

from anyvla.actions.spec import NAV3
from anyvla.data.sources.opening import open_source, source_at
from anyvla.data.writers.lerobot import LeRobotWriter
from anyvla.errors import ConfigError, DataError
from anyvla.ros2.bag import BagWriter
from anyvla.ros2.episodes import Rules
from anyvla.ros2.mapping import twist_mapping
from anyvla.ros2.memory import MemoryTransport
from anyvla.ros2.record import COMMANDS, Recorder, keep_settings, record
from anyvla.ros2.spool import NOT_KEPT, FrameSpool
from anyvla.ros2.synchronize import cut, message_times
from anyvla.ros2.transport import Message
from tests.ros2.made import command_at, frame_at, seconds_in

TOPIC = "/camera/image_raw"
STEP = 1 / 128  # seconds, without rounding errors


class Drive:
    """A robot in a memory transport: commands at 64 Hz, frames at 21.3 Hz that arrive 23 ms late."""

    def __init__(self, start: float = 1000.0) -> None:
        self.line = MemoryTransport(start)
        self.ticks = 0

    def run(self, seconds: float, camera: bool = True) -> None:
        for _ in range(round(seconds / STEP)):
            t = self.ticks * STEP
            if self.ticks % 2 == 0:
                self.line.publish("/cmd_vel", "twist", command_at(t))
            if camera and self.ticks % 6 == 3:
                self.line.inject(TOPIC, "image", frame_at(t - 3 * STEP), 1000 + t - 3 * STEP)
            self.line.advance(STEP)
            self.ticks += 1


def recorder(folder: Path, robot: Drive, **more: object) -> Recorder:
    writer = LeRobotWriter(folder, NAV3, 5.0)
    options = {"instruction": "/instruction", "control": "/anyvla/record", "text": "Drive."} | more
    return Recorder(robot.line, writer, {"front": TOPIC}, twist_mapping("/cmd_vel", NAV3), Rules(), **options)  # type: ignore[arg-type]


def read(made: Recorder, folder: Path, cache: Path) -> list:
    made.close()
    made._writer.close()
    source = open_source(source_at(folder), cache=cache)
    return [source.episode(i) for i in range(len(source))]


def test_a_recorded_episode_is_what_happened(tmp_path: Path) -> None:
    robot = Drive()
    made = recorder(tmp_path / "out", robot)
    robot.line.publish("/instruction", "string", "Go left.")
    robot.run(1.0)
    made.start()
    robot.run(4.0)
    (name,) = made.stop()
    (episode,) = read(made, tmp_path / "out", tmp_path / "cache")
    assert (episode.name, episode.instruction, episode.fps) == (name, "Go left.", 5.0)
    assert episode.length == 20
    shown = np.array([seconds_in(frame) for frame in episode.read(0, episode.length, ["front"])["front"]])
    ticks = 1.0 + np.arange(episode.length) / 5  # the beat is that of the start, at 1 s
    assert np.allclose(shown, np.floor(ticks / STEP / 6) * 6 * STEP, atol=0.03)
    assert (shown <= ticks + 0.03).all()
    assert np.allclose(episode.actions, [command_at(t)[[0, 1, 5]] for t in ticks], atol=0.015)
    assert not (tmp_path / "out" / ".recording").exists()


def test_recorder_and_importer_agree(tmp_path: Path) -> None:
    robot = Drive()
    made = recorder(tmp_path / "out", robot)
    heard: list[tuple[str, Message]] = []
    robot.line.subscribe(TOPIC, "image", lambda m: heard.append((TOPIC, m)))
    robot.line.subscribe("/cmd_vel", "twist", lambda m: heard.append(("/cmd_vel", m)))
    made.start()
    robot.run(3.0)
    made.stop()
    (live,) = read(made, tmp_path / "out", tmp_path / "cache")
    with BagWriter(tmp_path / "bag") as writer:
        for topic, message in heard:
            writer.write(topic, message.kind, message.data, message.received, message.stamp)
    bag = open_source(source_at(tmp_path / "bag", ["text=Drive."])).episode(0)
    assert bag.length == live.length
    assert np.array_equal(bag.actions, live.actions)
    assert np.array_equal(bag.read(0, bag.length, ["front"])["front"], live.read(0, live.length, ["front"])["front"])


def test_an_order_that_was_given_before_the_recorder_began_is_not_obeyed(tmp_path: Path) -> None:
    robot = Drive()
    robot.line.publish("/anyvla/record", "string", "start")
    robot.run(0.5)
    made = recorder(tmp_path / "out", robot)
    assert made.commands.empty()
    assert "'start' was said 0.5 s before" in made.old.get_nowait()
    robot.line.publish("/anyvla/record", "string", "start")
    assert made.commands.get_nowait() == "start"
    made.close()


def test_start_stop_and_discard_by_topic(tmp_path: Path) -> None:
    robot, said = Drive(), []
    made = recorder(tmp_path / "out", robot)
    thread = threading.Thread(target=record, args=(made, said.append, 0.01))
    thread.start()

    def order(word: str, answer: str) -> None:
        robot.line.publish("/anyvla/record", "string", word)
        done = threading.Event()
        for _ in range(1000):
            if any(answer in line for line in said):
                said.clear()
                return
            done.wait(0.01)
        raise AssertionError(f"{word}: {said}")

    order("stop", "not done: no episode is being recorded")
    order("start", "recording")
    order("start", "not done: an episode is being recorded already")
    robot.run(2.0)
    order("discard", "discarded")
    order("start", "recording")
    robot.run(2.0)
    order("stop", "written: ")
    order("x\n", "not done")
    order("strat", "not understood: 'strat'; known: start, stop, discard")
    order("start", "recording")
    robot.run(0.3)
    order("stop", "the longest of")
    order("start", "recording")  # left open
    robot.run(2.0)
    robot.line.publish("/anyvla/record", "string", "quit")
    thread.join(20)
    assert not thread.is_alive()
    assert made.close()
    assert not made.close()
    assert len(read(made, tmp_path / "out", tmp_path / "cache")) == 1


def test_a_camera_that_fails_splits_and_a_new_instruction_too(tmp_path: Path) -> None:
    robot = Drive()
    made = recorder(tmp_path / "out", robot)
    made.start()
    robot.run(2.0)
    robot.run(1.0, camera=False)
    robot.run(2.0)
    robot.line.publish("/instruction", "string", "Now back.")
    robot.run(2.0)
    assert len(made.stop()) == 3
    episodes = read(made, tmp_path / "out", tmp_path / "cache")
    assert [e.instruction for e in episodes] == ["Drive.", "Drive.", "Now back."]


def test_the_state_of_topics_is_told(tmp_path: Path) -> None:
    robot = Drive()
    made = recorder(tmp_path / "out", robot, text=None)
    assert made.status() == f"{TOPIC} NO MESSAGE YET | /cmd_vel NO MESSAGE YET | NO INSTRUCTION | 0 episodes"
    robot.run(1.0)
    assert f"{TOPIC} 21.3 Hz, 23 ms old | /cmd_vel 64.0 Hz" in made.status()
    robot.line.advance(1.5)
    assert f"{TOPIC} SILENT for 1.5 s" in made.status()
    for i in range(20):
        robot.line.inject(TOPIC, "image", frame_at(i), robot.line.now() + 7)
        robot.line.advance(0.5)
    made.start()
    assert "ONLY" in made.status()
    robot.line.inject("/instruction", "string", "Go.", None)
    assert "instruction 'Go.' | RECORDING 0.0 s" in made.status()
    made.close()
    made._writer.close()


def test_frames_that_change_their_size_end_the_episode_with_words(tmp_path: Path) -> None:
    robot = Drive()
    made = recorder(tmp_path / "out", robot)
    made.start()
    robot.run(1.0)
    robot.line.publish(TOPIC, "image", np.zeros((8, 8, 3), np.uint8))
    robot.run(1.0)
    with pytest.raises(DataError, match=r"changed from \(24, 32, 3\) to \(8, 8, 3\)"):
        made.stop()
    made.start()  # and the next one is not in its way
    robot.run(2.0)
    assert len(made.stop()) == 1
    made.close()
    made._writer.close()


def test_no_camera_at_all(tmp_path: Path) -> None:
    robot = Drive()
    made = recorder(tmp_path / "out", robot)
    made.start()
    robot.run(2.0, camera=False)
    with pytest.raises(DataError, match="the camera front has no frames"):
        made.stop()
    made.close()
    made._writer.close()


gaps = st.lists(st.floats(0.001, 0.5), min_size=2, max_size=80)


@given(gaps, st.floats(0, 0.9), st.sampled_from([1.0, 2.5, 10.0]), st.integers(0, 2**31))
def test_frames_that_are_asked_for_were_kept(tmp_path_factory, steps: list[float], delay: float, fps: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    spool = FrameSpool(tmp_path_factory.getbasetemp() / "spool.raw", fps, anchor=99.9)
    received = 100 + np.cumsum(steps)
    for i, when in enumerate(received):
        stamp = None if rng.random() < 0.1 else when - delay * rng.uniform(0.9, 1.1)
        spool.add(Message("image", np.full((1, 1, 3), i, np.uint8), stamp, float(when)))
    spool.finish()
    times = message_times(np.array(spool.track.received), np.array(spool.track.stamps))
    order = np.argsort(times, kind="stable")
    for stretch in cut({"front": times[order]}, {}, [(0.0, "go")], fps, 0.25, 99.9):
        chosen = order[stretch.frames["front"]]
        kept = np.array(spool.track.data)[chosen]
        assert (kept != NOT_KEPT).all()
        assert (spool.frames()[kept][:, 0, 0, 0] == chosen).all()
    assert sum(number != NOT_KEPT for number in spool.track.data) <= len(steps)
    spool.remove()


def test_most_frames_of_a_fast_camera_are_not_kept(tmp_path: Path) -> None:
    spool = FrameSpool(tmp_path / "front.raw", fps=2.0, anchor=0.0)
    for i in range(300):
        spool.add(Message("image", frame_at(0), i / 30, i / 30 + 0.01))
    spool.finish()
    assert sum(number != NOT_KEPT for number in spool.track.data) <= 2 * 10 * 2 + 2
    spool.remove()


def test_a_folder_keeps_to_its_settings(tmp_path: Path) -> None:
    fields = twist_mapping("/cmd_vel", NAV3)
    holds: list[int] = []
    writer = type("Writer", (), {"path": tmp_path, "__len__": lambda self: len(holds)})()
    keep_settings(writer, {"front": TOPIC}, fields, Rules(fps=7.0))  # without an episode, nothing is settled
    keep_settings(writer, {"front": TOPIC}, fields, Rules())
    holds.append(1)
    keep_settings(writer, {"front": TOPIC}, fields, Rules())
    stored = json.loads((tmp_path / "recording.json").read_text())
    assert stored["rules"]["command"] == "hold"
    assert stored["mapping"]["actions"][0]["topic"] == "/cmd_vel"
    with pytest.raises(ConfigError, match="recorded with other rules; choose another folder"):
        keep_settings(writer, {"front": TOPIC}, fields, Rules(fps=10.0))
    (tmp_path / "recording.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        keep_settings(writer, {"front": TOPIC}, fields, Rules())


def test_every_command_has_a_key() -> None:
    assert {COMMANDS[key] for key in "sxdq"} == {"start", "stop", "discard", "quit"}
