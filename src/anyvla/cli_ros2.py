"""``anyvla ros2 <verb>``: on the robot, over topics."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Annotated, Literal

import typer

from anyvla.errors import ConfigError

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
