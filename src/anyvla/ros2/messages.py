"""ROS 2 messages to and from ``Message.data``: one table for every back end, as all of their classes have the same fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from anyvla.errors import DataError
from anyvla.ros2.images import check_frame, decode_compressed, decode_raw, encode_jpeg
from anyvla.ros2.transport import Kind

ROS_TYPES: Mapping[Kind, str] = {
    "image": "sensor_msgs/msg/Image",
    "compressed_image": "sensor_msgs/msg/CompressedImage",
    "twist": "geometry_msgs/msg/Twist",
    "twist_stamped": "geometry_msgs/msg/TwistStamped",
    "string": "std_msgs/msg/String",
    "joint_state": "sensor_msgs/msg/JointState",
    "pose_stamped": "geometry_msgs/msg/PoseStamped",
    "float64_array": "std_msgs/msg/Float64MultiArray",
}
KINDS: Mapping[str, Kind] = {name: kind for kind, name in ROS_TYPES.items()}
IMAGE_KINDS: tuple[Kind, ...] = ("image", "compressed_image")
STAMPED: tuple[Kind, ...] = ("image", "compressed_image", "twist_stamped", "joint_state", "pose_stamped")
_FRAME = {"twist_stamped": "base_link", "pose_stamped": "base_link"}
assert set(ROS_TYPES) == set(get_args(Kind))


def content(kind: Kind, message: Any) -> Any:
    """``Message.data`` of a message of this kind, whatever software made it. Raises DataError if it contradicts itself."""
    if kind == "image":
        where = (message.height, message.width, message.step, message.encoding, bool(message.is_bigendian))
        return decode_raw(message.data, *where)
    if kind == "compressed_image":
        return decode_compressed(message.data, message.format)
    if kind in ("twist", "twist_stamped"):
        twist = message.twist if kind == "twist_stamped" else message
        return np.array([*_xyz(twist.linear), *_xyz(twist.angular)])
    if kind == "string":
        return str(message.data)
    if kind == "joint_state":
        return _joints(message)
    if kind == "pose_stamped":
        turn = message.pose.orientation
        return np.array([*_xyz(message.pose.position), turn.x, turn.y, turn.z, turn.w], dtype=np.float64)
    return np.array(message.data, dtype=np.float64)


def stamp_of(kind: Kind, message: Any) -> float | None:
    """The header's stamp in seconds; None where the type has no header, or nobody has set it."""
    if kind not in STAMPED:
        return None
    stamp = message.header.stamp
    return stamp_seconds(stamp.sec, stamp.nanosec)


def stamp_seconds(sec: int, nanosec: int) -> float | None:
    """A builtin_interfaces/Time as seconds; None if zero, which stands for unknown."""
    return sec + 1e-9 * nanosec if sec or nanosec else None


def _xyz(vector: Any) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z


def _joints(message: Any) -> dict[str, tuple[float, float, float]]:
    names = list(message.name)
    columns = []
    for key in ("position", "velocity", "effort"):
        values = list(getattr(message, key))
        if values and len(values) != len(names):
            raise DataError(f"a JointState has {len(names)} names and {len(values)} numbers of {key}")
        columns.append([float(value) for value in values] or [math.nan] * len(names))
    return {str(name): (p, v, e) for name, p, v, e in zip(names, *columns, strict=True)}


@dataclass(frozen=True)
class Maker:
    """How a back end makes messages: ``new("std_msgs/msg/String", data="go")``; arrays of numbers in the type it wants."""

    new: Callable[..., Any]
    numbers: Callable[[np.ndarray], Any]


def build(kind: Kind, data: Any, stamp: float, maker: Maker) -> Any:
    """The message of this kind that says ``data``, its header stamped ``stamp`` seconds. The inverse of ``content``.

    Images are sent as rgb8, or as JPEG, which loses a little. Raises DataError where ``data`` is not of the kind.
    """
    if kind in IMAGE_KINDS:
        frame = check_frame(np.asarray(data))
        if kind == "compressed_image":
            jpeg = maker.numbers(np.frombuffer(encode_jpeg(frame), np.uint8))
            return maker.new(ROS_TYPES[kind], header=_header(kind, stamp, maker), format="jpeg", data=jpeg)
        height, width, _ = frame.shape
        pixels = maker.numbers(np.ascontiguousarray(frame).reshape(-1))
        shape = {"height": height, "width": width, "step": 3 * width}
        fixed = {"encoding": "rgb8", "is_bigendian": 0}
        return maker.new(ROS_TYPES[kind], header=_header(kind, stamp, maker), data=pixels, **shape, **fixed)
    if kind == "string":
        if not isinstance(data, str):
            raise DataError(f"a string to publish is {data!r}")
        return maker.new(ROS_TYPES[kind], data=data)
    if kind == "joint_state":
        return _joint_state(data, stamp, maker)
    values = np.asarray(data, dtype=np.float64)
    size = {"twist": 6, "twist_stamped": 6, "pose_stamped": 7}.get(kind, values.size)
    if values.shape != (size,):
        raise DataError(f"{kind} to publish must be ({size},), not {values.shape}")
    if kind == "float64_array":
        layout = maker.new("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=0)
        return maker.new(ROS_TYPES[kind], layout=layout, data=maker.numbers(values))
    x, y, z, *rest = (float(value) for value in values)
    if kind == "pose_stamped":
        turn = dict(zip("xyzw", rest, strict=True))
        position = maker.new("geometry_msgs/msg/Point", x=x, y=y, z=z)
        orientation = maker.new("geometry_msgs/msg/Quaternion", **turn)
        pose = maker.new("geometry_msgs/msg/Pose", position=position, orientation=orientation)
        return maker.new(ROS_TYPES[kind], header=_header(kind, stamp, maker), pose=pose)
    linear = maker.new("geometry_msgs/msg/Vector3", x=x, y=y, z=z)
    angular = maker.new("geometry_msgs/msg/Vector3", **dict(zip("xyz", rest, strict=True)))
    twist = maker.new("geometry_msgs/msg/Twist", linear=linear, angular=angular)
    if kind == "twist":
        return twist
    return maker.new(ROS_TYPES[kind], header=_header(kind, stamp, maker), twist=twist)


def _joint_state(data: Any, stamp: float, maker: Maker) -> Any:
    if not isinstance(data, Mapping):
        raise DataError(f"a joint_state to publish is {data!r}, not name -> (position, velocity, effort)")
    columns = np.array([data[name] for name in data], dtype=np.float64).reshape(len(data), 3)
    # a column that nobody has given is empty in ROS
    given = [column if np.isfinite(column).any() else column[:0] for column in columns.T]
    position, velocity, effort = (maker.numbers(np.ascontiguousarray(column)) for column in given)
    header = _header("joint_state", stamp, maker)
    return maker.new(
        ROS_TYPES["joint_state"], header=header, name=list(data), position=position, velocity=velocity, effort=effort
    )


def _header(kind: Kind, stamp: float, maker: Maker) -> Any:
    nanoseconds = round(stamp * 1e9)
    time = maker.new("builtin_interfaces/msg/Time", sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)
    return maker.new("std_msgs/msg/Header", stamp=time, frame_id=_FRAME.get(kind, "camera" if kind in IMAGE_KINDS else ""))
