"""Faults injected while the robot drives: zero within 0.3 s, latched until a reset, the cause in the log."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from anyvla.actions import NAV2
from anyvla.ros2.drive_settings import DriveSettings
from anyvla.ros2.node import DriveNode, drive
from anyvla.ros2.sources import Answers, DrivenBy, Failure, Observation
from anyvla.serving.monitor import Monitor
from anyvla_client.stops import StopLog
from tests.ros2.simulated_drive import CAMERA, FAST, OPERATOR, Drive, rests

IN_TIME = 0.3  # s
SEEDS = range(10)  # of each fault: 20 x 10 faults


def _spoil(change: Callable[[np.ndarray], object]) -> Callable[[Drive], Callable[[], None]]:
    """The policy's next answer is changed in place; returns how to mend it."""

    def inject(drive: Drive) -> Callable[[], None]:
        def spoiled(actions: np.ndarray) -> np.ndarray:
            drive.fault_at = drive.steady
            result = change(actions)
            return actions if result is None else result

        def mend() -> None:
            drive.policy.spoil = lambda actions: actions

        drive.fault_at = np.inf  # when the answer comes
        drive.policy.spoil = spoiled
        return mend

    return inject


def _drop_camera(drive: Drive) -> Callable[[], None]:
    drive.camera_on = False
    return lambda: setattr(drive, "camera_on", True)


def _freeze_camera(drive: Drive) -> Callable[[], None]:
    drive.frozen = True
    return lambda: setattr(drive, "frozen", False)


def _late_images(drive: Drive) -> Callable[[], None]:
    before, drive.camera_delay = drive.camera_delay, drive.rng.uniform(0.4, 3.0)
    return lambda: setattr(drive, "camera_delay", before)


def _stamps_go_back(drive: Drive) -> Callable[[], None]:
    began, before = drive.transport.now(), drive.stamp_of
    drive.stamp_of = lambda taken: 2 * began - taken - 0.01
    return lambda: setattr(drive, "stamp_of", before)


def _stamps_of_the_future(drive: Drive) -> Callable[[], None]:
    before, ahead = drive.stamp_of, drive.rng.uniform(0.5, 100.0)
    drive.stamp_of = lambda taken: taken + ahead
    return lambda: setattr(drive, "stamp_of", before)


def _hang(drive: Drive) -> Callable[[], None]:
    before, count = drive.policy.latency, len(drive.policy.asked)
    drive.policy.latency = np.inf
    drive.fault_at = np.inf

    class Asked(list):
        def append(self, observation: Observation) -> None:
            super().append(observation)
            if len(self) == count + 1:
                drive.fault_at = drive.steady  # the call that hangs

    drive.policy.asked = Asked(drive.policy.asked)
    drive.policy._settle()
    if drive.policy._open is not None:
        drive.fault_at = drive.steady - drive.policy.waiting()
    return lambda: setattr(drive.policy, "latency", before)


def _exception(drive: Drive) -> Callable[[], None]:
    drive.policy.error = Failure("policy_error", "RuntimeError: out of memory")
    drive.fault_at = drive.steady + 1 / drive.policy.about.fps + drive.policy.latency - IN_TIME / 2  # at the next answer
    return lambda: setattr(drive.policy, "error", None)


def _server_death(drive: Drive) -> Callable[[], None]:
    drive.policy.dead = Failure("server_lost", "ConnectionResetError")
    return lambda: setattr(drive.policy, "dead", None)


def _clock_jump(sign: int) -> Callable[[Drive], Callable[[], None]]:
    def inject(drive: Drive) -> Callable[[], None]:
        drive.transport.advance(sign * float(np.exp(drive.rng.uniform(np.log(0.12), np.log(1e4)))))
        return lambda: None

    return inject


def _stall(drive: Drive) -> Callable[[], None]:
    drive.pass_time(drive.rng.uniform(0.3, 3.0))
    drive.fault_at = drive.steady  # while the loop stands nothing can be sent: that is what the base's own watchdog is for
    return lambda: None


def _teleop(values: object) -> Callable[[Drive], Callable[[], None]]:
    def inject(drive: Drive) -> Callable[[], None]:
        drive.teleop = np.asarray(values, dtype=np.float64)
        seconds = drive.rng.uniform(0.02, 1.0)
        began = drive.steady
        drive.run(seconds)
        human = np.where(np.isfinite(drive.teleop), drive.teleop, 0)
        assert all(np.array_equal(twist, human) for twist in drive.since(began + 0.02)), "the human's command was not sent"
        drive.teleop = None
        drive.fault_at = drive.steady  # the human lets go
        return lambda: None

    return inject


def _operator_stop(drive: Drive) -> Callable[[], None]:
    drive.operator("stop")
    return lambda: None


FAULTS: dict[str, tuple[Callable[[Drive], Callable[[], None]], str]] = {
    "drop camera": (_drop_camera, "stale_camera"),
    "freeze camera": (_freeze_camera, "frozen_camera"),
    "late images": (_late_images, "stale_camera"),
    "stamps go back": (_stamps_go_back, "stale_camera"),
    "stamps of the future": (_stamps_of_the_future, "stale_camera"),
    "NaN action": (_spoil(lambda actions: actions.__setitem__((slice(None), 1), np.nan)), "non_finite_action"),
    "infinite action": (_spoil(lambda actions: actions.__setitem__(slice(None), -np.inf)), "non_finite_action"),
    "huge action": (_spoil(lambda actions: actions.__imul__(1e9)), "out_of_distribution"),
    "unseen action": (_spoil(lambda actions: actions.__setitem__((slice(None), 0), 1.3)), "out_of_distribution"),
    "malformed chunk": (_spoil(lambda actions: actions[:, :1]), "malformed_action"),
    "short chunk": (_spoil(lambda actions: actions[:1, :] * np.nan), "non_finite_action"),
    "policy exception": (_exception, "policy_error"),
    "policy hang": (_hang, "policy_timeout"),
    "server death": (_server_death, "server_lost"),
    "clock forwards": (_clock_jump(1), "clock_jump"),
    "clock backwards": (_clock_jump(-1), "clock_jump"),
    "stalled loop": (_stall, "loop_stalled"),
    "teleop burst": (_teleop([0.4, 0.0, 0.0, 0.0, 0.0, -0.3]), "teleop"),
    "teleop of zeros and NaN": (_teleop([0.0, np.nan, 0.0, 0.0, 0.0, 0.0]), "teleop"),
    "operator": (_operator_stop, "operator"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_stops_the_robot_until_a_reset(name: str, tmp_path: Path) -> None:
    inject, cause = FAULTS[name]
    for seed in SEEDS:
        log = tmp_path / f"{seed}.jsonl"
        drive = Drive(log, seed)
        drive.say("go to the ball")
        drive.run(3, until=drive.drives)
        drive.run(drive.rng.uniform(0.2, 1.5))
        assert drive.drives(), "it never drove"
        assert drive.node.stopped is None

        drive.fault_at = drive.steady
        mend = inject(drive)
        drive.run(1.5)
        assert drive.node.stopped is not None, f"seed {seed}: no stop"
        assert drive.fault_at < np.inf
        late = [twist for twist in drive.since(drive.fault_at + IN_TIME) if twist.any()]
        assert not late, f"seed {seed}: {len(late)} commands that are not zero"
        assert drive.since(drive.steady - 0.1), "nothing is published any more"

        mend()
        healed = drive.steady
        drive.run(2)
        assert not any(twist.any() for twist in drive.since(healed)), f"seed {seed}: it drives again without a reset"
        stops = [line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "stop"]
        assert [stop["cause"] for stop in stops] == [cause], f"seed {seed}: {stops}"
        assert abs(stops[0]["clock"] - drive.node.stopped.time) < 1e-3

        drive.operator("reset")
        drive.run(3, until=drive.drives)
        assert drive.drives(), f"seed {seed}: a reset does not release it"
        drive.node.close()


def test_a_fault_that_stays_does_not_let_it_drive_after_a_reset(tmp_path: Path) -> None:
    for name in ("drop camera", "NaN action", "server death", "policy hang", "late images"):
        drive = Drive(tmp_path / "log", 3)
        drive.say("go")
        drive.run(3, until=drive.drives)
        FAULTS[name][0](drive)
        drive.run(1)
        drive.operator("reset")
        reset = drive.steady
        drive.run(2)
        moved = [twist for twist in drive.since(reset) if twist.any()]
        assert not moved, name


def test_a_watcher_sees_what_the_node_sees_predicts_and_does(tmp_path: Path) -> None:
    monitor = Monitor(NAV2, 5.0)
    drive = Drive(tmp_path / "log", 3, fps=5.0, monitor=monitor)
    drive.say("go")
    drive.run(3, until=drive.drives)
    drive.run(1)
    shown = monitor.shown()
    assert shown is not None
    moment = shown.moment
    assert (moment.instruction, moment.stop, moment.facts) == ("go", None, {"node": "driving"})
    assert moment.images["front"].shape == (12, 16, 3)
    assert moment.chunk.shape == (10, 2)
    assert any(np.allclose(moment.action, twist[[0, 1]]) for _, twist in drive.sent[-11:])
    before = shown.step
    drive.run(2)
    assert monitor.shown().step - before == pytest.approx(10, abs=1)  # the policy's five a second, not the loop's fifty
    drive.teleop = np.array([0.1, 0, 0, 0, 0, 0])
    drive.run(0.5)
    assert monitor.shown().moment.action is None
    drive.teleop = None
    drive.operator("reset")
    drive.run(3, until=drive.drives)
    drive.camera_on = False
    drive.run(1)
    moment = monitor.shown().moment
    assert moment.stop == "stale_camera"
    assert "newest image" in moment.facts["stopped by"]
    assert [stop[2] for stop in monitor.shown().stops] == ["teleop", "stale_camera"]


def test_a_reset_that_was_said_before_the_stop_does_not_release_it(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "log", 3)
    drive.say("go")
    drive.run(3, until=drive.drives)
    said = drive.transport.now()
    drive.run(0.5)
    drive.operator("stop")
    drive.run(0.5)
    drive.transport.inject(OPERATOR, "string", "reset", None, sent=said)  # latched, and its sender is found only now
    drive.run(2)
    assert drive.node.stopped is not None
    assert not drive.sent[-1][1].any()
    drive.operator("reset")
    drive.run(3, until=drive.drives)
    assert drive.drives()
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events[-3:] == ["stop", "old_reset", "reset"]

    # said after the first stop, but before another one, which does not show since the first one counts
    drive.camera_on = False
    drive.run(0.5)
    assert drive.node.stopped.cause == "stale_camera"
    said = drive.transport.now()
    drive.camera_on = True
    drive.run(0.2)
    drive.operator("stop")
    drive.run(0.2)
    drive.transport.inject(OPERATOR, "string", "reset", None, sent=said)
    drive.run(1)
    assert drive.node.stopped is not None


def test_an_old_reset_does_not_disturb_a_robot_that_drives(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "log", 3)
    drive.say("go")
    drive.run(3, until=drive.drives)
    drive.run(1)
    before = drive.steady
    drive.transport.inject(OPERATOR, "string", "reset", None, sent=drive.transport.now() - 100)
    drive.run(0.5)
    assert all(twist.any() for twist in drive.since(before))


def test_one_image_out_of_order_is_left_out_and_stops_nothing(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "log", 5)
    drive.say("go")
    drive.run(3, until=drive.drives)
    for i in range(20):
        drive.transport.inject(CAMERA, "image", np.full((12, 16, 3), 7, np.uint8), drive.transport.now() - 0.5 - 0.1 * i)
        drive.run(0.1)
    assert drive.drives()
    assert not any((asked.images["front"] == 7).all() for asked in drive.policy.asked)
    stamps = [asked.stamp for asked in drive.policy.asked]
    assert stamps == sorted(stamps)


def test_an_image_of_the_future_is_never_shown_to_the_policy(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "log", 6)
    drive.say("go")
    seen: list[float] = []
    submit = drive.policy.submit
    drive.policy.submit = lambda observation: (seen.append(drive.transport.now() - observation.stamp), submit(observation))[1]
    drive.stamp_of = lambda taken: taken + 0.01 * np.sin(100 * taken)  # now and then a stamp is ahead of the clock
    drive.run(5)
    assert drive.drives()
    assert min(seen) >= 0


def test_a_standing_robot_may_see_the_same_image_for_ever(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "log", 7)
    drive.policy.spoil = lambda actions: actions * 0.01
    drive.frozen = True
    drive.say("stay")
    drive.run(3)
    assert drive.node.driving
    assert drive.node.stopped is None


def test_without_an_instruction_it_waits_and_a_new_one_begins_an_episode(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "log", 8)
    drive.run(1)
    assert not drive.policy.asked
    assert not np.any([twist for _, twist in drive.sent])
    assert len(drive.sent) == 50  # zeros all the while
    drive.say("left")
    drive.run(2)
    assert drive.drives()
    drive.say("right")
    asked = len(drive.policy.asked)
    drive.run(2)
    assert drive.drives()
    assert [one.first for one in drive.policy.asked[asked : asked + 2]] == [True, False]
    assert drive.policy.asked[-1].instruction == "right"
    drive.say(" ")
    quiet = drive.steady + 0.02
    drive.run(1)
    assert not np.any(drive.since(quiet))
    assert drive.node.stopped is None


def test_it_may_go_on_after_a_human_if_it_is_told_so(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "log", 9, settings={"resume_after_teleop": True})
    drive.say("go")
    drive.run(3, until=drive.drives)
    drive.teleop = np.array([0.1, 0, 0, 0, 0, 0.2])
    began = drive.steady
    drive.run(0.5)
    asked = len(drive.policy.asked)
    drive.run(0.5)
    np.testing.assert_array_equal(np.unique(drive.since(began + 0.02), axis=0), [drive.teleop])
    assert len(drive.policy.asked) == asked  # nobody asks the policy meanwhile
    drive.teleop = None
    drive.run(3, until=drive.drives)
    assert drive.drives()
    assert drive.policy.asked[asked].first
    events = [json.loads(line)["event"] for line in (tmp_path / "log").read_text().splitlines()]
    assert events == ["instruction", "takeover", "release"]


def test_speed_changes_no_faster_than_the_spec_allows(tmp_path: Path) -> None:
    drive = Drive(tmp_path / "log", 10)
    drive.policy.spoil = lambda actions: np.tile(np.array([[0.85, 0.75], [-0.15, -0.75]], np.float32), (5, 1))
    drive.say("go")
    drive.run(5)
    changes = np.diff(np.array([twist[:2] for _, twist in drive.sent]), axis=0)
    rate = NAV2.rate * 0.02
    assert (np.abs(changes) <= rate + 1e-9).all()
    assert (np.abs(changes).max(axis=0) > 0.9 * rate).all()


class _RealPolicy:
    """In a real thread: drives, until it is told to fail in a way of its own."""

    def __init__(self) -> None:
        self.fail: Callable[[], np.ndarray] | None = None
        self.failed = threading.Event()

    def __call__(self, observation: Observation) -> np.ndarray:
        if self.fail is None:
            return np.full((10, 2), 0.5)
        self.failed.set()
        return self.fail()


def _raise() -> np.ndarray:
    raise RuntimeError("out of memory")


def _exit() -> np.ndarray:
    sys.exit(3)


@pytest.mark.parametrize(
    ("fail", "cause"),
    [
        (_raise, "policy_error"),
        (_exit, "policy_error"),
        (lambda: threading.Event().wait(60), "policy_timeout"),
        (lambda: np.full((10, 2), np.nan), "non_finite_action"),
        (lambda: np.zeros((10, 3)), "malformed_action"),
        (lambda: "nonsense", "malformed_action"),
        (lambda: np.zeros((0, 2)), "malformed_action"),
    ],
)
def test_a_policy_in_a_real_thread_may_fail_in_any_way(fail: Callable, cause: str, tmp_path: Path) -> None:
    policy = _RealPolicy()
    source = Answers(DrivenBy(NAV2.to_dict(), ("front",), (), (), 10.0), policy)
    world = Drive(tmp_path / "unused")
    transport, sent = world.transport, []
    transport.subscribe("/real", "twist", lambda message: sent.append(message.data))
    settings = DriveSettings({"front": CAMERA}, "/real", instruction="go", watch=FAST)
    node = DriveNode(transport, source, settings, log=StopLog(tmp_path / "log"), steady=lambda: world.steady, rest=rests)
    source.steady = lambda: world.steady
    waited = threading.Event()

    def run_until(condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            world.pass_time(0.02)
            node.step()
            if condition():
                return
            waited.wait(0.001)  # lets the policy's thread work
        raise AssertionError("it never came")

    run_until(lambda: bool(sent[-1].any()))
    policy.fail = fail
    run_until(lambda: node.stopped is not None)
    assert node.stopped.cause == cause
    assert not sent[-1].any()
    node.close()


PROGRAM = """
import sys, threading, time
import numpy as np
from anyvla.actions import NAV2
from anyvla.ros2.memory import MemoryTransport
from anyvla.ros2.drive_settings import DriveSettings
from anyvla.ros2.node import DriveNode, drive, signals_end
from anyvla.ros2.sources import Answers, DrivenBy
from anyvla_client.stops import StopLog
from anyvla_client.supervisor import Watch
from pathlib import Path

class Clocked(MemoryTransport):
    def now(self):
        self._now = time.monotonic()
        return self._now

    def publish(self, topic, kind, data):
        self.inject(topic, kind, data, self.now())

transport = Clocked()
source = Answers(DrivenBy(NAV2.to_dict(), ("front",), (), (), 10.0), lambda observation: np.full((10, 2), 0.5))
transport.subscribe("/cmd_vel", "twist", lambda m: print(*m.data[:2], flush=True))
def camera():
    while True:
        transport.publish("/camera", "image", np.random.randint(0, 256, (8, 8, 3), np.uint8))
        time.sleep(0.02)
threading.Thread(target=camera, daemon=True).start()
patient = Watch(camera_age=20.0, action_age=20.0, inference=20.0, loop_gap=20.0, clock_jump=20.0)
settings = DriveSettings({"front": "/camera"}, instruction="go", watch=patient)
node = DriveNode(transport, source, settings, log=StopLog(Path(sys.argv[1])))
with signals_end(node):
    print("summary", drive(node)["control_steps"] > 0)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_zeros(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", PROGRAM, str(log)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("0.5 0.5"):
                break
        process.send_signal(number)
        rest = process.stdout.read().splitlines()
        assert process.wait(timeout=60) == 0
    assert rest[-1] == "summary True"
    zeros = [line == "0.0 0.0" for line in rest[:-1]]
    assert sum(zeros) == 5
    assert all(zeros[-5:])
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], last["cause"], last["detail"]) == ("stop", "signal", number.name)


def test_an_error_of_the_loop_itself_ends_with_zeros(tmp_path: Path) -> None:
    drive_ = Drive(tmp_path / "log", 1)
    drive_.say("go")
    drive_.run(3, until=drive_.drives)
    publish, broken = drive_.transport.publish, [True]

    def fails_once(*message: object) -> None:
        if broken:
            broken.clear()
            raise OSError("the network is gone")
        publish(*message)

    drive_.transport.publish = fails_once
    with pytest.raises(OSError, match="the network is gone"):
        drive(drive_.node)
    assert not np.any([twist for _, twist in drive_.sent[-5:]])
    assert "node_error" in (tmp_path / "log").read_text()


def test_a_log_that_cannot_be_written_stops_nothing_else(capsys: pytest.CaptureFixture) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here: Linux has it")
    drive_ = Drive(Path("/dev/full"), 2)
    drive_.say("go")
    drive_.run(3, until=drive_.drives)
    drive_.operator("stop")
    drive_.run(1)
    assert not drive_.sent[-1][1].any()
    assert '"cause": "operator"' in capsys.readouterr().err
