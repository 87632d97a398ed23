"""What a drive connects to what, and whether that fits the policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from anyvla.errors import ConfigError, did_you_mean
from anyvla.ros2.arm import ArmCommands
from anyvla.ros2.commands import BaseCommands, Commands
from anyvla.ros2.mapping import ActionField, StateField, check_field
from anyvla.ros2.sources import ActionSource
from anyvla.ros2.transport import Kind
from anyvla_client.supervisor import Watch


@dataclass(frozen=True)
class DriveSettings:
    """What is connected to what.

    Attributes:
        cameras: the policy's camera -> topic; a topic that ends in "/compressed" carries compressed images.
        actions: of an arm, where each dimension of the action is published. Empty: the policy drives a base.
        command_topic: where a base's velocities go. stamped: as TwistStamped.
        instruction: said from the beginning. instruction_topic: where it is said and changed; if it is empty the robot waits.
        teleop_topic: a human's velocities. resume_after_teleop: go on when the human is silent, instead of waiting for a reset.
        operator_topic: "reset" releases the latch of a stop, "stop" stops.
        state: where each number of the robot's state comes from, and what targets in ``actions`` begin at.
        pose_topic: the robot's position, for ``workspace``, ((x, y, z), (x, y, z)) in metres: corners of a box not to leave.
        rate: control steps a second. watch: how long is too long. teleop_silence: seconds until the human has let go.
    """

    cameras: Mapping[str, str]
    command_topic: str = "/cmd_vel"
    stamped: bool = False
    instruction: str = ""
    instruction_topic: str | None = None
    teleop_topic: str | None = None
    teleop_stamped: bool = False
    resume_after_teleop: bool = False
    operator_topic: str | None = None
    actions: Sequence[ActionField] = ()
    state: Sequence[StateField] = ()
    pose_topic: str | None = None
    workspace: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    rate: float = 50.0
    watch: Watch = field(default_factory=Watch)
    teleop_silence: float = 0.25


def image_kind(topic: str) -> Kind:
    return "compressed_image" if topic.endswith("/compressed") else "image"


def commands_of(settings: DriveSettings, source: ActionSource) -> Commands:
    """Raises ConfigError where nobody says how the policy's actions are published."""
    about = source.about
    if not settings.actions:
        return BaseCommands(about.action, settings.command_topic, settings.stamped)
    arm = ArmCommands(about.action, settings.actions, settings.state, fps=about.fps, period=1 / settings.rate)
    if settings.teleop_topic is not None and not arm.steerable:
        raise ConfigError(
            f"--teleop-topic {settings.teleop_topic}: a human's twist can be passed on only where the actions of the mapping "
            "file are commanded by one twist, and a gripper beside it; without it, stop the node before a human drives"
        )
    return arm


def check_settings(settings: DriveSettings, source: ActionSource) -> None:
    """Raises ConfigError where the settings do not fit the policy."""
    about = source.about
    known = (*about.cameras, *about.optional_cameras)
    for camera in settings.cameras:
        if camera not in known:
            raise ConfigError(f"the policy has no camera {camera!r}{did_you_mean(camera, known)}")
    for camera in about.cameras:
        if camera not in settings.cameras:
            raise ConfigError(f"the policy needs the camera {camera!r}: --camera {camera}=/its/topic")
    if not settings.cameras:
        raise ConfigError(f"the policy needs at least one camera: {', '.join(known)}")
    if not settings.instruction.strip() and settings.instruction_topic is None:
        raise ConfigError("nobody tells the robot what to do: give --instruction or --instruction-topic")
    for name in about.state:
        if name not in [item.name for item in settings.state]:
            raise ConfigError(f"the policy needs {name!r} of the robot's state: name its topic in a mapping file (--mapping)")
    for item in settings.state:
        check_field(item)
    if settings.workspace is not None and settings.pose_topic is None:
        raise ConfigError("a workspace needs --pose-topic: where the robot is")
    if settings.rate < 10:
        raise ConfigError(f"{settings.rate:g} control steps a second are too few to stop in time; 10 is the least")
    if settings.watch.action_age < 1 / about.fps:
        raise ConfigError(
            f"actions are too old after {settings.watch.action_age:g} s, but the policy gives one every {1 / about.fps:g} s"
        )
