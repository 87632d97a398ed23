from __future__ import annotations

import http.client
import json
import math
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from anyvla.actions import ARM7, NAV2, NAV3
from anyvla.config import load_config
from anyvla.data.sources.mobile_h5 import MobileH5Source
from anyvla.errors import ConfigError, MissingExtraError
from anyvla.evaluation.navigation import evaluate_nav
from anyvla.policies.policy import Policy
from anyvla.serving.monitor import ROBOTS, Moment, Monitor
from anyvla.training.loop import train
from anyvla.watch.choose import Options, open_episodes, watch_it
from anyvla.watch.drawing import GroundCamera, describe_moment, ground_way
from anyvla.watch.recordings import Episodes, Results
from anyvla.watch.server import Live, WatchServer

SCRIPT = "<script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


def a_moment(robot: str = "robot", **changes) -> Moment:
    rng = np.random.default_rng(0)
    values = {
        "instruction": SCRIPT,
        "images": {"front": rng.integers(0, 256, (36, 64, 3), dtype=np.uint8)},
        "chunk": np.full((10, 2), 0.3, dtype=np.float32),
        "action": np.array([0.3, 0.3], dtype=np.float32),
        "step_ms": 12.0,
    } | changes
    return Moment(robot=robot, **values)


class TestGroundWay:
    def test_straight_ahead_and_to_the_side(self) -> None:
        way = ground_way(np.array([[1.0, 0.0], [1.0, 0.5]]), NAV2, fps=2.0)
        np.testing.assert_allclose(way, [[0, 0], [0.5, 0], [1.0, 0.25]])

    def test_a_constant_turn_is_a_circle(self) -> None:
        """Forward speed v and turn w drive a circle of radius v / w; a whole turn comes back."""
        steps, v, w = 16, 0.8, 1.0
        fps = steps * w / (2 * math.pi)
        way = ground_way(np.tile([v, 0.0, w], (steps, 1)), NAV3, fps)
        np.testing.assert_allclose(way[-1], [0, 0], atol=1e-9)
        np.testing.assert_allclose(np.hypot(way[:, 0], way[:, 1] - v / w), v / w)

    def test_other_actions_have_none(self) -> None:
        assert ground_way(np.zeros((3, 7)), ARM7, 10.0) is None


def test_points_are_drawn_where_the_simulated_camera_sees_them() -> None:
    from anyvla.data.scenarios import SCENARIOS
    from anyvla.simulation.scene import Scene
    from anyvla.simulation.world import sample_world

    size = (126, 224)
    scene, world = Scene(size), sample_world(SCENARIOS["1box_hori_left"], 3)
    scene.show(world)
    looks = world.looks
    camera = GroundCamera(looks.camera_height, math.degrees(looks.camera_pitch), math.degrees(looks.camera_fov))
    points = np.array([[0.8, 0.0], [1.5, 0.7], [3.0, -1.0]])
    x, y, yaw = scene.pose
    turned = points @ np.array([[math.cos(yaw), math.sin(yaw)], [-math.sin(yaw), math.cos(yaw)]])
    identity = scene.model.camera("forward").id
    place, axes = scene.data.cam_xpos[identity], scene.data.cam_xmat[identity].reshape(3, 3)
    half = math.tan(math.radians(scene.model.cam_fovy[identity]) / 2)
    drawn = camera.project(points, size[0] / size[1])
    for (forward, left), pixel in zip(turned, drawn, strict=True):
        seen = axes.T @ (np.array([x + forward, y + left, 0.0]) - place)
        u = 0.5 + seen[0] / -seen[2] / half / 2 * size[0] / size[1]
        v = 0.5 - seen[1] / -seen[2] / half / 2
        np.testing.assert_allclose(pixel, [u, v], atol=2e-3)
    assert camera.project(np.array([[-2.0, 0.0]]), 0.5) == [None]


class TestMonitor:
    def test_who_drives_never_waits(self) -> None:
        monitor = Monitor(NAV2, 2.5)
        assert monitor.show(a_moment())
        with monitor._lock:
            assert not monitor.show(a_moment())
        assert monitor.dropped == 1
        assert monitor.show(a_moment())
        assert monitor.shown().step == 2

    def test_a_lasting_stop_is_one_line(self) -> None:
        monitor = Monitor(NAV2, 2.5)
        for _ in range(3):
            monitor.show(a_moment(stop="stale_observation"))
        monitor.show(a_moment())
        monitor.stop("robot", "frozen camera")
        assert [(cause, count) for _, _, cause, count in monitor.shown().stops] == [
            ("stale_observation", 3),
            ("frozen camera", 1),
        ]

    def test_robots_are_kept_apart_and_are_bounded(self) -> None:
        monitor = Monitor(NAV2, 2.5)
        for i in range(ROBOTS + 5):
            monitor.show(a_moment(f"robot {i}"))
        assert len(monitor.robots()) == ROBOTS
        assert monitor.shown("robot 20").moment.robot == "robot 20"
        assert monitor.shown("robot 0").moment.robot == f"robot {ROBOTS + 4}"  # gone: whoever spoke last

    def test_many_threads(self) -> None:
        monitor = Monitor(NAV2, 2.5)
        threads = [threading.Thread(target=lambda i=i: [monitor.show(a_moment(f"{i}")) for _ in range(200)]) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        steps = sum(monitor.shown(name).step for name in monitor.robots())
        assert steps + monitor.dropped <= 800  # the count of drops is itself unlocked, and may miss some
        assert steps >= 4


def test_what_is_not_finite_is_said_in_json() -> None:
    chunk = np.full((3, 2), np.nan, dtype=np.float32)
    described = describe_moment(a_moment(chunk=chunk, action=np.array([np.inf, 0.0])), NAV2, 2.5, GroundCamera())
    assert described["action"] == [None, 0.0]
    assert described["ways"]["predicted"]["ground"] is None
    json.dumps(described, allow_nan=False)


def _ask(server: WatchServer, path: str, **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Security-Policy", ""), answer.read()
    finally:
        connection.close()


@pytest.fixture
def live():
    monitor = Monitor(NAV2, 2.5)
    server = WatchServer(Live(monitor, "test"))
    yield monitor, server
    server.close()


class TestServer:
    def test_the_page_and_its_data(self, live) -> None:
        monitor, server = live
        status, policy, page = _ask(server, "/")
        assert status == 200
        assert b'<script src="page.js">' in page
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert json.loads(_ask(server, "/api/now")[2]) == {}
        monitor.show(a_moment(stop="stale_action"))
        moment = json.loads(_ask(server, "/api/now")[2])
        assert moment["instruction"] == SCRIPT
        assert moment["images"]["front"].startswith("data:image/jpeg;base64,")
        assert len(moment["ways"]["predicted"]["drawn"]["front"]) == 11
        assert moment["stops"][0][1:] == ["robot", "stale_action", 1]
        again = json.loads(_ask(server, f"/api/now?after={moment['number']}")[2])
        assert "images" not in again
        assert again["number"] == moment["number"]

    @pytest.mark.parametrize("path", ["/nothing", "/../pyproject.toml", "/api/moment?item=0", "/api/now?after=x", "/api"])
    def test_what_is_not_there(self, live, path: str) -> None:
        assert _ask(live[1], path)[0] == 404

    def test_another_name_for_this_machine_is_refused(self, live) -> None:
        assert _ask(live[1], "/", Host="evil.example")[0] == 403
        assert _ask(live[1], "/", Host="localhost:1")[0] == 200
        assert _ask(live[1], "/", Host="[::1]:1")[0] == 200

    def test_nothing_can_be_changed(self, live) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", live[1].port, timeout=5)
        connection.request("POST", "/api/now", body=b"{}")
        assert connection.getresponse().status == 501
        connection.close()

    def test_clients_that_misbehave_disturb_nobody(self, live) -> None:
        monitor, server = live
        monitor.show(a_moment())
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]  # they say nothing
        for one in held[:10]:
            one.sendall(b"GET /\x00\xff garbage\r\n\r\n")
        held[10].sendall(b"GET /" + b"a" * 100_000)
        assert _ask(server, "/api/now")[0] == 200
        for one in held:
            one.close()
        assert _ask(server, "/api/now")[0] == 200

    def test_a_taken_port_is_said(self, live) -> None:
        with pytest.raises(ConfigError, match="--port"):
            WatchServer(Live(live[0]), port=live[1].port)


@pytest.fixture
def run(make_episodes, tiny_overrides) -> Path:
    return train(load_config("nav-tiny", [*tiny_overrides, f"data.source.path={make_episodes(9, 9, 9)}", "training.steps=2"]))


def test_episodes_show_what_was_recorded_and_what_a_policy_says(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "episodes"
    policy = Policy.load(run)
    source = MobileH5Source(folder, NAV2)
    episodes = Episodes(source, "test", policy)
    assert [item["length"] for item in episodes.about()["items"]] == [9, 9, 9]
    episode = source.episode(1)
    late = episodes.moment(1, 8)  # a policy with history sees all frames before
    policy.reset(episode.instruction)
    for t in range(9):
        policy.act({"front": episode.read(t, t + 1, ["front"])["front"][0]})
        chunk = policy._session.chunk
        shown = episodes.moment(1, t)
        np.testing.assert_allclose(shown["ways"]["predicted"]["chunk"], chunk, atol=1e-5)
        np.testing.assert_allclose(shown["ways"]["recorded"]["chunk"], episode.actions[t : t + 3], atol=1e-5)
    assert episodes.moment(1, 8)["ways"] == late["ways"]
    for item, step in ((3, 0), (-1, 0), (0, 9), (0, -1)):
        with pytest.raises(IndexError):
            episodes.moment(item, step)


def test_a_policy_of_other_actions_is_refused(run: Path, make_episodes, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="actions are linear_x"):
        Episodes(MobileH5Source(tmp_path / "episodes", NAV3), "test", Policy.load(run))


def test_a_result_file_shows_the_ways_driven(tmp_path: Path) -> None:
    result = evaluate_nav(None, scenario="1box", episodes=2, workers=1)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result))
    results = Results(path)
    about = results.about()
    first = result["results"][0]
    assert about["items"][0]["length"] == len(first["path"])
    last = results.moment(0, len(first["path"]) - 1)
    assert last["pose"] == first["path"][-1]
    assert last["outcome"] == ("success" if first["success"] else first["failure"])
    assert len(last["layout"]["boxes"]) == 1
    assert results.moment(0, 0)["outcome"] is None
    with pytest.raises(IndexError):
        results.moment(0, len(first["path"]))
    with pytest.raises(IndexError):
        results.moment(-1, 0)


def test_what_cannot_be_shown_is_said(run: Path, tmp_path: Path) -> None:
    options = Options("127.0.0.1", 0, False, GroundCamera())
    with pytest.raises(ConfigError, match="--env nav"):
        watch_it(str(run), options)
    with pytest.raises(ConfigError, match="shows nothing to watch"):
        watch_it("http://127.0.0.1:9/", options)
    with pytest.raises(ConfigError, match=r"end with \.rrd"):
        watch_it(str(tmp_path / "episodes"), options, save=tmp_path / "out.txt")
    assert open_episodes(tmp_path / "episodes", options, run).fps == 2.5


def test_rerun_is_asked_for_by_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(MissingExtraError, match=r"anyvla\[rerun\]"):
        watch_it(str(tmp_path / "episodes"), Options("127.0.0.1", 0, False, GroundCamera()), save=tmp_path / "out.rrd")


@pytest.mark.slow
def test_rerun_gets_a_file(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    out = tmp_path / "out.rrd"
    watch_it(str(tmp_path / "episodes"), Options("127.0.0.1", 0, False, GroundCamera()), run=run, save=out)
    assert out.stat().st_size > 1000


def test_a_policy_drives_and_is_watched(run: Path) -> None:
    pytest.importorskip("mujoco")
    from anyvla.errors import SimulationError
    from anyvla.watch.live import ROBOT, drive_nav

    policy, outcomes = Policy.load(run), []
    monitor = Monitor(policy.transforms.spec, policy.transforms.fps)
    try:
        drive_nav(
            policy, monitor, episodes=1, image_size=(32, 48), speed=math.inf, on_outcome=lambda *found: outcomes.append(found)
        )
    except SimulationError:
        pytest.skip("no OpenGL here: install libegl1 and libgl1-mesa-dri")
    shown = monitor.shown()
    assert shown.moment.robot == ROBOT
    assert shown.moment.outcome == outcomes[0][1]
    assert len(shown.moment.path) == shown.step
