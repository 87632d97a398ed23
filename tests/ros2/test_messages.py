from __future__ import annotations

import io
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("rosbags")

from anyvla.errors import DataError
from anyvla.ros2.cdr import deserialize, peek_stamp, serialize, typestore
from anyvla.ros2.images import ENCODINGS, camera_name, decode_compressed, decode_raw, encode_jpeg
from anyvla.ros2.memory import MemoryTransport
from anyvla.ros2.messages import ROS_TYPES, STAMPED
from anyvla.ros2.transport import Kind

RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
nan = float("nan")
DATA: dict[Kind, object] = {
    "image": FRAME,
    "compressed_image": np.full((6, 8, 3), 90, np.uint8),
    "twist": np.arange(6.0),
    "twist_stamped": -np.arange(6.0),
    "string": "왼쪽으로 가세요",
    "joint_state": {"a": (1.0, nan, 0.5), "b": (2.0, nan, 0.25)},
    "pose_stamped": np.array([1, 2, 3, 0, 0, 0.6, 0.8]),
    "float64_array": np.array([0.5, -0.5]),
}


@pytest.mark.parametrize("kind", ROS_TYPES)
def test_what_is_sent_arrives(kind: Kind) -> None:
    data, stamp = deserialize(kind, serialize(kind, DATA[kind], 1234.000000567))
    if kind == "joint_state":
        assert data.keys() == DATA[kind].keys()
        assert all(np.array_equal(data[name], DATA[kind][name], equal_nan=True) for name in data)
    elif kind == "string":
        assert data == DATA[kind]
    else:
        assert np.array_equal(data, DATA[kind])
    assert stamp == (pytest.approx(1234.000000567, abs=1e-9) if kind in STAMPED else None)


@pytest.mark.parametrize("kind", STAMPED)
def test_the_stamp_is_read_alone_and_a_zero_is_none(kind: Kind) -> None:
    assert peek_stamp(kind, serialize(kind, DATA[kind], 17.25)) == 17.25
    assert peek_stamp(kind, serialize(kind, DATA[kind], 0.0)) is None
    assert deserialize(kind, serialize(kind, DATA[kind], 0.0))[1] is None


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("padding", [0, 5])
def test_every_encoding_gives_the_same_grey(encoding: str, padding: int) -> None:
    grey = 120
    pixel = {"mono16": bytes([7, grey]), "mono8": bytes([grey]), "8UC1": bytes([grey])}
    luma = round(16 + grey / 1.164)
    pixel |= {name: bytes([luma, 128]) for name in ("yuv422_yuy2", "yuyv")}
    pixel |= {name: bytes([128, luma]) for name in ("yuv422", "uyvy")}
    row = pixel.get(encoding, bytes([grey] * (4 if "a8" in encoding else 3))) * 6 + bytes(padding)
    frame = decode_raw(row * 4, 4, 6, len(row), encoding, big_endian=False)
    assert frame.shape == (4, 6, 3)
    assert np.abs(frame.astype(int) - grey).max() <= 1


def test_colours_are_in_order() -> None:
    blue_first = FRAME[:, :, ::-1].tobytes()
    assert np.array_equal(decode_raw(blue_first, 6, 8, 24, "bgr8", False), FRAME)
    red = decode_raw(bytes([81, 90, 81, 240]), 1, 2, 4, "yuv422_yuy2", False)  # red, as BT.601 has it
    assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "rgb9"}, "did you mean 'rgb8'"),
        ({"encoding": "16UC1"}, "is not read"),
        ({"height": 7}, "7"),
        ({"step": 23}, "rows of 23 bytes"),
        ({"height": 2**31, "width": 2**31}, "2147483648"),
        ({"width": 0}, "0 x 6"),
    ],
)
def test_images_that_contradict_themselves_are_refused(change: dict, message: str) -> None:
    says = {"height": 6, "width": 8, "step": 24, "encoding": "rgb8", "big_endian": False} | change
    with pytest.raises(DataError, match=message):
        decode_raw(FRAME.tobytes(), **says)


def test_compressed_images() -> None:
    def packed(frame: np.ndarray, form: str) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, form)
        return buffer.getvalue()

    assert np.array_equal(decode_compressed(packed(FRAME, "PNG"), "rgb8; png compressed bgr8"), FRAME)
    assert decode_compressed(encode_jpeg(FRAME), "jpeg").shape == FRAME.shape
    assert np.unique(decode_compressed(packed(np.full((3, 4), 120 * 256, np.uint16), "PNG"), "mono16; png")).tolist() == [120]
    bad = ((b"", "jpeg"), (packed(FRAME, "GIF"), "jpeg"), (encode_jpeg(FRAME)[:200], "jpeg"), (b"x", "compressedDepth"))
    for raw, form in bad:
        with pytest.raises(DataError, match="compressed image"):
            decode_compressed(raw, form)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("twist", [1, 2, 3]),
        ("image", np.zeros((2, 2))),
        ("compressed_image", np.zeros((2, 2, 3))),
        ("string", 3),
        ("pose_stamped", np.zeros(6)),
        ("joint_state", [1.0]),
        ("float64_array", np.zeros((2, 2))),
    ],
)
def test_what_is_not_of_the_kind_is_not_sent(kind: Kind, data: object) -> None:
    with pytest.raises(DataError, match="to publish"):
        serialize(kind, data, 1.0)


def test_joints_with_numbers_missing_are_refused() -> None:
    store = typestore()
    header = store.types["std_msgs/msg/Header"](store.types["builtin_interfaces/msg/Time"](0, 0), "")
    message = store.types["sensor_msgs/msg/JointState"](header, ["a", "b"], np.zeros(1), np.zeros(0), np.zeros(0))
    with pytest.raises(DataError, match="2 names and 1 numbers of position"):
        deserialize("joint_state", bytes(store.serialize_cdr(message, "sensor_msgs/msg/JointState")))


@given(st.sampled_from(sorted(ROS_TYPES)), st.data())
def test_damaged_bytes_are_our_error_or_a_message(kind: Kind, data: st.DataObject) -> None:
    raw = bytearray(serialize(kind, DATA[kind], 5.0))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    for damaged in (bytes(raw), bytes(raw[:cut])):
        try:
            deserialize(kind, damaged)
            peek_stamp(kind, damaged)
        except DataError:
            pass


def test_a_big_endian_robot_is_understood() -> None:
    raw = b"\x00\x00\x00\x00" + struct.pack(">6d", *range(6))
    assert deserialize("twist", raw)[0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("/camera/image_raw/compressed", "front"),
        ("/camera/color/image_raw", "front"),
        ("/wrist/image_rect_color", "wrist"),
        ("/image", "front"),
    ],
)
def test_cameras_are_named_after_their_topics(topic: str, name: str) -> None:
    assert camera_name(topic) == name


def test_memory_transport() -> None:
    robot, heard = MemoryTransport(start=5.0), []
    robot.publish("/say", "string", "before")
    robot.subscribe("/say", "string", heard.append)
    robot.subscribe("/cmd_vel", "twist_stamped", heard.append)
    robot.advance(1.5)
    robot.publish("/cmd_vel", "twist_stamped", np.zeros(6))
    robot.inject("/cmd_vel", "twist_stamped", np.ones(6), stamp=None)
    robot.publish("/cmd_vel", "twist", np.zeros(6))  # another type: nobody hears it
    robot.close()
    robot.publish("/say", "string", "after")
    assert [(m.data if m.kind == "string" else m.data[0], m.stamp, m.received) for m in heard] == [
        ("before", None, 5.0),
        (0.0, 6.5, 6.5),
        (1.0, None, 6.5),
    ]


def test_objects_of_any_software_are_read() -> None:
    from anyvla.ros2.messages import content

    twist = SimpleNamespace(linear=SimpleNamespace(x=1.0, y=2.0, z=3.0), angular=SimpleNamespace(x=4.0, y=5.0, z=6.0))
    assert content("twist", twist).tolist() == [1, 2, 3, 4, 5, 6]
