"""What ROS 2 expects of DDS: types, quality of service, the network's settings. Made with CycloneDDS, imported where needed."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from anyvla.errors import ConfigError, MissingExtraError
from anyvla.ros2.cdr import typestore
from anyvla.ros2.messages import ROS_TYPES
from anyvla.ros2.transport import Kind

MAX_DOMAIN = 232
# messages that wait for a callback that is slow: raw frames are large, and old ones of little use; compressed ones are not lost
_DEPTH: dict[Kind, int] = {"image": 10, "compressed_image": 60, "joint_state": 60}
# raw frames come in thousands of packets: with the default sizes half of them are lost
_SETTINGS = (
    '<CycloneDDS><Domain id="any"><General>{interfaces}<MaxMessageSize>65500B</MaxMessageSize>'
    "<FragmentSize>65000B</FragmentSize></General>{peers}"
    '<Internal><SocketReceiveBufferSize min="default" max="16MB"/></Internal></Domain></CycloneDDS>'
)
_LOOPBACK = '<Interfaces><NetworkInterface name="lo" multicast="false"/></Interfaces>'
_LOOPBACK_PEERS = (
    "<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>120</MaxAutoParticipantIndex>"
    '<Peers><Peer address="127.0.0.1"/></Peers></Discovery>'
)


def load_cyclonedds() -> Any:
    """The package; raises MissingExtraError where it is not installed."""
    try:
        import cyclonedds
    except ImportError as error:
        raise MissingExtraError("cyclonedds", "dds") from error
    return cyclonedds


def wire_topic(name: str) -> str:
    """``/cmd_vel`` -> ``rt/cmd_vel``. Raises ConfigError for a name that ROS does not allow."""
    parts = name.removeprefix("/").split("/")
    if not all(part.isascii() and part.replace("_", "a").isalnum() and not part[0].isdigit() for part in parts):
        raise ConfigError(f"{name!r} is no name of a topic, such as /camera/image_raw")
    return "rt/" + "/".join(parts)


def wire_type(ros_type: str) -> str:
    """``geometry_msgs/msg/Twist`` -> ``geometry_msgs::msg::dds_::Twist_``."""
    package, _, name = ros_type.split("/")
    return f"{package}::msg::dds_::{name}_"


def domain_number(asked: int | None) -> int:
    """``asked``, or that of ROS_DOMAIN_ID, or 0."""
    stored = os.environ.get("ROS_DOMAIN_ID", "").strip() or "0"
    if asked is None and not stored.isdecimal():
        raise ConfigError(f"ROS_DOMAIN_ID is {stored!r}, not a number")
    number = int(stored) if asked is None else asked
    if not 0 <= number <= MAX_DOMAIN:
        raise ConfigError(f"there is no DDS domain {number}; 0 to {MAX_DOMAIN}")
    return number


def join(domain: int, loopback: bool) -> Any:
    """A participant. Settings in CYCLONEDDS_URI stand before those made here."""
    load_cyclonedds()
    from cyclonedds.core import DDSException
    from cyclonedds.domain import DomainParticipant

    settings = _SETTINGS.format(interfaces=_LOOPBACK if loopback else "", peers=_LOOPBACK_PEERS if loopback else "")
    own = "CYCLONEDDS_URI" not in os.environ
    if own:  # the library takes settings for a domain that several participants share from nowhere else
        os.environ["CYCLONEDDS_URI"] = settings
    try:
        return DomainParticipant(domain)
    except DDSException as error:
        raise ConfigError(f"DDS domain {domain} cannot be joined: no network, or wrong CYCLONEDDS_URI ({error})") from error
    finally:
        if own:
            del os.environ["CYCLONEDDS_URI"]


@cache
def wire_class(kind: Kind) -> Any:
    """The class by which CycloneDDS knows the type; its objects hold the encoded message in ``raw``.

    CycloneDDS's own encoding needs 130 ms for a frame of 720p, so it is only told what the fields are.
    """
    described = _described(ROS_TYPES[kind])

    def begin(self: Any, raw: bytes) -> None:
        self.raw = raw

    def serialize(self: Any, buffer: Any = None, endianness: Any = None, use_version_2: Any = None) -> bytes:
        return bytes(self.raw)

    described.__init__ = begin
    described.serialize = serialize
    described.deserialize = classmethod(lambda cls, data, *_args, **_more: cls(data))
    described.deserialize_key = classmethod(lambda cls, data, *_args, **_more: cls(data))
    return described


def _described(ros_type: str) -> Any:
    """A new class with the type's fields in CycloneDDS's terms, taken from rosbags' definitions."""
    from cyclonedds import idl
    from cyclonedds.idl import annotations

    _, fields = typestore().fielddefs[ros_type]
    members = {field: _field(*node) for field, node in fields}
    name = ros_type.rpartition("/")[2] + "_"
    return annotations.final(idl.make_idl_struct(name, wire_type(ros_type).replace("::", "."), members))


_nested = cache(_described)  # one class of each, as types in one topic must not be two of the same name


def _field(node: Any, value: Any) -> Any:
    from cyclonedds.idl import types
    from rosbags.interfaces import Nodetype

    kinds: Any = types
    if node == Nodetype.BASE:
        base = {"string": str, "bool": bool}
        return base.get(value[0]) or getattr(kinds, value[0])
    if node == Nodetype.NAME:
        return _nested(value)
    if node == Nodetype.SEQUENCE:
        return kinds.sequence[_field(*value[0])]
    return kinds.array[_field(*value[0]), value[1]]


def quality(kind: Kind, writing: bool, durable: bool) -> Any:
    """Quality of service of a topic's writer or reader.

    Writers are reliable, which both kinds of readers accept. Readers are best effort, which hears all writers, and strings,
    which come once, reliable; ``durable`` ones get what was said before they came, but hear only durable writers.
    """
    from cyclonedds.qos import Policy, Qos
    from cyclonedds.util import duration

    reliable = writing or kind == "string"
    hash_of = typestore().hash_rihs01(ROS_TYPES[kind])
    return Qos(
        Policy.Reliability.Reliable(duration(milliseconds=100)) if reliable else Policy.Reliability.BestEffort,
        Policy.Durability.TransientLocal if durable else Policy.Durability.Volatile,
        Policy.History.KeepLast(1 if durable else _DEPTH.get(kind, 10)),
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.Userdata(f"typehash={hash_of};".encode()),
    )
