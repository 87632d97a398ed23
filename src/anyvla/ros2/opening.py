"""A transport by the name of its back end."""

from __future__ import annotations

from typing import Literal

from anyvla.errors import ConfigError
from anyvla.ros2.transport import Transport

Backend = Literal["dds", "rclpy"]


def open_transport(backend: Backend, domain: int | None = None, loopback: bool = False) -> Transport:
    """Join ROS 2.

    Args:
        domain: that of ROS_DOMAIN_ID if None, or 0. loopback: talk to programs on this machine only; plain DDS can do that.

    Raises AnyVLAError where the back end is not installed, ConfigError where it cannot join.
    """
    if backend == "dds":
        from anyvla.ros2.dds import DdsTransport

        return DdsTransport(domain, loopback=loopback)
    if loopback:
        raise ConfigError("with rclpy, ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST keeps ROS on this machine, not --loopback")
    from anyvla.ros2.rclpy_transport import RclpyTransport

    return RclpyTransport(domain)
