"""The one interface through which everything here speaks ROS 2: subscribe, publish, a clock.

Back ends: `rclpy_transport` (the robot's own ROS), `dds` (plain DDS, no ROS installed), `bag` (replay of a recording) and
`memory` (inside one process, its clock in the caller's hand). The drive loop and the recorder see only this file, so they
run over a bag or in a test exactly as on a robot.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Kind = Literal["image", "compressed_image", "twist", "twist_stamped", "string", "joint_state", "pose_stamped", "float64_array"]


@dataclass(frozen=True)
class Message:
    """One message, its content as plain Python and NumPy values.

    data by kind: "image", "compressed_image" -> (H, W, 3) uint8 RGB; "twist", "twist_stamped" -> (6,) float64, linear xyz in
    m/s and angular xyz in rad/s; "string" -> str; "joint_state" -> dict name -> (position, velocity, effort), NaN where not
    given; "pose_stamped" -> (7,) float64, position xyz in metres and quaternion xyzw; "float64_array" -> (N,) float64.
    """

    kind: Kind
    data: Any
    stamp: float | None  # the header's stamp in seconds; None where the type has no header or the stamp is zero
    received: float  # the transport's clock on arrival, seconds
    sent: float | None = None  # the transport's clock when it was sent, which for a latched one is long ago; None if not known


def sent_at(source_timestamp: int, received: float) -> float:
    """When a message was sent, on the clock of the transport that received it just now; that of the wall may jump.

    ``source_timestamp``: nanoseconds on the sender's wall clock, which is taken for that of this machine.
    """
    return received - max(0.0, time.time() - source_timestamp / 1e9)


class Transport(Protocol):
    """What carries messages. Topics are written as in ROS: "/camera/image_raw"."""

    def now(self) -> float:
        """Seconds. Monotonic for control; in the replay of a bag, the bag's time."""
        ...

    def subscribe(self, topic: str, kind: Kind, callback: Callable[[Message], None]) -> None:
        """Calls `callback` with every message of the topic, on a thread of the transport."""
        ...

    def publish(self, topic: str, kind: Kind, data: Any) -> None:
        """Sends `data` (as in Message.data); types with a header are stamped with the time of sending. Thread-safe."""
        ...

    def close(self) -> None:
        """Ends every subscription and joins the threads; no callback runs after it. Closing twice is fine."""
        ...
