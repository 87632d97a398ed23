"""``anyvla ros2 <verb>``: on the robot, over topics."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from anyvla.errors import ConfigError

if TYPE_CHECKING:
    from anyvla.ros2.sources import ActionSource

ros2_app = typer.Typer(help="On the robot, over ROS 2 topics.", no_args_is_help=True)

TransportName = Annotated[Literal["dds", "rclpy"], typer.Option(help="plain DDS, or the rclpy of an installed ROS 2")]
Domain = Annotated[int | None, typer.Option(min=0, max=232, help="ROS domain; ROS_DOMAIN_ID if not given")]
Loopback = Annotated[bool, typer.Option("--loopback", help="talk to programs on this machine only (dds)")]


@ros2_app.command("record")
def record_command(
    camera: Annotated[list[str], typer.Option(help="topic of images, or NAME=TOPIC; the first one gives the beat")],
    out: Annotated[Path, typer.Option(help="folder of the episodes; what it holds already is kept")],
    cmd_vel: Annotated[str, typer.Option(help="topic of the commands of who teleoperates")] = "/cmd_vel",
    stamped: Annotated[bool, typer.Option("--stamped", help="the commands are TwistStamped, not Twist")] = False,
    mapping: Annotated[Path | None, typer.Option(help="YAML file of actions and state, instead of --cmd-vel")] = None,
    instruction: Annotated[str | None, typer.Option(help="sentence that holds until a message gives another")] = None,
    instruction_topic: Annotated[str | None, typer.Option(help="topic of the sentences (String)")] = None,
    control_topic: Annotated[str | None, typer.Option(help="topic of start, stop and discard (String)")] = "/anyvla/record",
    to: Annotated[Literal["mobile_h5", "lerobot"], typer.Option(help="format to write")] = "mobile_h5",
    video: Annotated[bool, typer.Option("--video", help="lerobot: videos, small and lossy, instead of images")] = False,
    fps: Annotated[float, typer.Option(min=0.1, max=1000, help="control steps per second")] = 5.0,
    max_age: Annotated[float, typer.Option(min=0.001, help="seconds; older frames are none")] = 0.25,
    command: Annotated[Literal["hold", "mean"], typer.Option(help="the command in force, or its mean until the next")] = "hold",
    shortest: Annotated[float, typer.Option(min=0, help="seconds; shorter episodes are not written")] = 1.0,
    transport: TransportName = "dds",
    domain: Domain = None,
    loopback: Loopback = False,
) -> None:
    """Record teleoperated episodes: start, stop or discard by topic, or by s, x, d and Enter; q ends.

    Finished episodes are kept whatever happens; one that is open when the recording ends is discarded.
    """
    from anyvla.actions.spec import NAV3
    from anyvla.ros2.episodes import Rules
    from anyvla.ros2.mapping import declared_spec, read_mapping, twist_mapping
    from anyvla.ros2.opening import open_transport
    from anyvla.ros2.record import Recorder, keep_settings, open_writer, record

    fields = twist_mapping(cmd_vel, NAV3, stamped) if mapping is None else read_mapping(mapping)
    spec = NAV3 if mapping is None else declared_spec(fields, mapping)
    cameras = _cameras(camera)
    if instruction_topic is None and not (instruction or "").strip():
        raise ConfigError("episodes need an instruction: --instruction-topic TOPIC, or --instruction SENTENCE")
    rules = Rules(fps, max_age, command, shortest=shortest)
    line = open_transport(transport, domain, loopback)
    try:
        with open_writer(out, to, spec, fps, video) as writer:
            keep_settings(writer, cameras, fields, rules)
            recorder = Recorder(
                line, writer, cameras, fields, rules, instruction=instruction_topic, control=control_topic, text=instruction
            )
            Thread(target=_read_keys, args=(recorder.commands.put,), name="keys", daemon=True).start()
            print("s, x or d and Enter: start, stop, discard; q: end")
            try:
                record(recorder, lambda said: print(said, flush=True))
            finally:
                line.close()
                if recorder.close():
                    print("the open episode is discarded")
                print(f"{out}: {len(writer)} episodes")
    finally:
        line.close()


@ros2_app.command("run")
def run_command(
    run: Annotated[Path | None, typer.Argument(help="a run or checkpoint folder, to compute here", show_default=False)] = None,
    server: Annotated[str | None, typer.Option(help="ws://host:port of `anyvla serve` instead")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="file that holds the server's key")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="topic of images, or NAME=TOPIC; .../compressed is")] = None,
    cmd_vel: Annotated[str, typer.Option(help="topic of the commands")] = "/cmd_vel",
    stamped: Annotated[bool, typer.Option("--stamped", help="send TwistStamped, not Twist")] = False,
    instruction: Annotated[str, typer.Option(help="sentence to obey from the beginning")] = "",
    instruction_topic: Annotated[str | None, typer.Option(help="topic of the sentences (String); empty: wait")] = None,
    teleop_topic: Annotated[str | None, typer.Option(help="topic of a human's commands, which always win (Twist)")] = None,
    teleop_stamped: Annotated[bool, typer.Option("--teleop-stamped", help="they are TwistStamped")] = False,
    resume_after_teleop: Annotated[bool, typer.Option("--resume-after-teleop", help="go on without a reset")] = False,
    reset_topic: Annotated[
        str, typer.Option(help="topic (String): reset releases a stop, anything else stops")
    ] = "/anyvla/reset",
    mapping: Annotated[
        Path | None, typer.Option(help="YAML file as for record: the robot's state, and with command: TOPIC an arm's commands")
    ] = None,
    pose_topic: Annotated[str | None, typer.Option(help="topic of the robot's PoseStamped, for --workspace")] = None,
    workspace: Annotated[str | None, typer.Option(help="x,y,z:x,y,z in metres, corners of a box not to leave")] = None,
    rate: Annotated[float, typer.Option(min=10, max=1000, help="control steps per second")] = 50.0,
    max_image_age: Annotated[float, typer.Option(min=0.001, help="seconds; an older image stops the robot")] = 0.25,
    max_action_age: Annotated[float, typer.Option(min=0.001, help="seconds since what it was predicted from was seen")] = 1.5,
    max_inference: Annotated[float, typer.Option(min=0.001, help="seconds for one answer of the policy")] = 1.0,
    frozen_images: Annotated[int, typer.Option(min=1, help="the same image again, so many times, stops the robot")] = 5,
    watch_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="show what it sees, is told and does in a browser")
    ] = None,
    watch_host: Annotated[str, typer.Option(help="0.0.0.0 to be seen from other machines, by anybody there")] = "127.0.0.1",
    stop_log: Annotated[Path | None, typer.Option(help="append every stop and its cause here, as JSON lines")] = None,
    transport: TransportName = "dds",
    domain: Domain = None,
    loopback: Loopback = False,
) -> None:
    """Drive a robot over topics, until Ctrl-C. Any doubt stops it, until a reset; docs/safety.md says which."""
    import json

    from anyvla.ros2.drive_settings import DriveSettings
    from anyvla.ros2.mapping import read_mapping
    from anyvla.ros2.node import DriveNode, drive, signals_end
    from anyvla.ros2.opening import open_transport
    from anyvla_client.stops import StopLog
    from anyvla_client.supervisor import Watch

    if watch_port is None and watch_host != "127.0.0.1":
        raise ConfigError("--watch-host goes with --watch-port")
    fields = None if mapping is None else read_mapping(mapping)
    actions = () if fields is None or not any(item.command for item in fields.actions) else tuple(fields.actions)
    if actions and (stamped or cmd_vel != "/cmd_vel"):
        raise ConfigError(
            f"{mapping} says where commands are published; --cmd-vel and --stamped are for bases, without such a file"
        )
    settings = DriveSettings(
        cameras=_cameras(camera or []),
        actions=actions,
        command_topic=cmd_vel,
        stamped=stamped,
        instruction=instruction,
        instruction_topic=instruction_topic,
        teleop_topic=teleop_topic,
        teleop_stamped=teleop_stamped,
        resume_after_teleop=resume_after_teleop,
        operator_topic=reset_topic,
        state=() if fields is None else fields.state,
        pose_topic=pose_topic,
        workspace=_box(workspace),
        rate=rate,
        watch=Watch(camera_age=max_image_age, action_age=max_action_age, inference=max_inference, frozen_images=frozen_images),
    )
    try:
        log = StopLog(stop_log)
    except OSError as error:
        raise ConfigError(f"--stop-log {stop_log} cannot be written: {error}") from error
    source = _source(run, server, api_key_file, max_inference)
    monitor = None
    if watch_port is not None:
        from anyvla.actions.spec import action_spec
        from anyvla.serving.monitor import Monitor
        from anyvla.watch.server import start

        monitor = Monitor(action_spec(source.about.action), source.about.fps)
        address = start(monitor, title="robot", host=watch_host, port=watch_port).address
        print(f"looking on: {address}", flush=True)
    line = open_transport(transport, domain, loopback)
    try:
        node = DriveNode(line, source, settings, log=log, on_status=lambda status: print(status, flush=True), monitor=monitor)
        with signals_end(node):
            print(json.dumps(drive(node), indent=1))
    finally:
        line.close()


def _source(run: Path | None, server: str | None, api_key_file: Path | None, timeout: float) -> ActionSource:
    """The policy in ``run`` or behind ``server``."""
    if (run is None) == (server is None):
        raise ConfigError("give a run, or --server ws://host:port")
    if run is not None:
        from anyvla.policies.policy import Policy
        from anyvla.ros2.in_process import in_process

        return in_process(Policy.load(run))
    from anyvla.ros2.remote import behind_server
    from anyvla_client.client import ClientError, PolicyClient

    assert server is not None
    try:
        key = api_key_file.read_text().strip() if api_key_file else None
        return behind_server(PolicyClient(server, key), timeout=timeout)
    except (ClientError, OSError) as error:
        raise ConfigError(f"--server {server}: {error}") from error


def _box(text: str | None) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """``-1,-2,0:3,2,1`` -> its corners."""
    if text is None:
        return None
    try:
        (a, b, c), (x, y, z) = (map(float, corner.split(",")) for corner in text.split(":"))
    except ValueError:
        raise ConfigError(f"--workspace is x,y,z:x,y,z in metres, not {text!r}") from None
    if not (a < x and b < y and c < z):
        raise ConfigError(f"--workspace {text!r}: the first corner must be the smaller one in x, y and z")
    return (a, b, c), (x, y, z)


def _read_keys(put: Callable[[str], None]) -> None:
    for line in sys.stdin:
        if line.strip():
            put(line)


def _cameras(options: list[str]) -> dict[str, str]:
    """``/image`` -> {"front": "/image"}; several, and those with other names, say them: ``NAME=TOPIC``."""
    cameras = {}
    for option in options:
        name, equals, topic = option.partition("=")
        if not equals:
            name, topic = "front", option
        if not (name and topic) or name in cameras:
            raise ConfigError(f"--camera is TOPIC or NAME=TOPIC, every name once, not {option!r}")
        cameras[name] = topic
    return cameras
