"""The pixels of sensor_msgs/Image and sensor_msgs/CompressedImage, to and from (H, W, 3) uint8 RGB."""

from __future__ import annotations

import io
import re
import struct

import numpy as np
from PIL import Image, UnidentifiedImageError

from anyvla.errors import DataError, did_you_mean

JPEG_QUALITY = 90
_MOST_PIXELS = 2**26  # 8192 x 8192: what a forged message can make us allocate
# encoding -> bytes a pixel, and which of them are red, green and blue
_PACKED = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
}
# encoding -> which of the four bytes of two pixels are Y0, U, Y1, V; the newer and the older names of each
_YUV = {
    "yuv422": (1, 0, 3, 2),
    "uyvy": (1, 0, 3, 2),
    "yuv422_yuy2": (0, 1, 2, 3),
    "yuyv": (0, 1, 2, 3),
}
ENCODINGS = (*_PACKED, "mono16", *_YUV)
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, struct.error, UnidentifiedImageError, Image.DecompressionBombError)


def decode_raw(data: object, height: int, width: int, step: int, encoding: str, big_endian: bool) -> np.ndarray:
    """Rows of ``step`` bytes each, of which the last may be padding -> (height, width, 3) uint8 RGB.

    Raises DataError: an encoding without colours that can be known (depth, Bayer, 8UC3), or sizes that contradict each other.
    """
    if encoding not in ENCODINGS:
        raise DataError(f"an image is encoded as {encoding!r}, which is not read{did_you_mean(encoding, ENCODINGS)}")
    flat = np.frombuffer(data, np.uint8)  # type: ignore[call-overload]
    used = width * (_PACKED[encoding][0] if encoding in _PACKED else 2)
    if height < 1 or width < 1 or height * width > _MOST_PIXELS or step < used or len(flat) != step * height:
        raise DataError(
            f"an image says that it is {width} x {height} {encoding} in rows of {step} bytes, and holds {len(flat)} bytes"
        )
    rows = flat.reshape(height, step)[:, :used]
    if encoding == "mono16":
        return np.repeat(rows.reshape(height, width, 2)[:, :, 0 if big_endian else 1, None], 3, axis=2)
    if encoding in _PACKED:
        channels, order = _PACKED[encoding]
        return np.ascontiguousarray(rows.reshape(height, width, channels)[:, :, order])
    if width % 2:
        raise DataError(f"an image of {encoding} has an odd width, {width}")
    return _yuv_to_rgb(rows.reshape(height, width // 2, 4)[:, :, _YUV[encoding]])


def _yuv_to_rgb(pairs: np.ndarray) -> np.ndarray:
    """(H, W / 2, 4) uint8 of Y0 U Y1 V -> (H, W, 3) uint8: ITU-R BT.601, luma from 16 to 235."""
    height, half, _ = pairs.shape
    luma = 1.164 * (pairs[:, :, (0, 2)].reshape(height, 2 * half).astype(np.float32) - 16)
    u, v = (np.repeat(pairs[:, :, i].astype(np.float32) - 128, 2, axis=1) for i in (1, 3))
    rgb = np.stack([luma + 1.596 * v, luma - 0.813 * v - 0.391 * u, luma + 2.018 * u], axis=2)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def decode_compressed(data: object, format_name: str) -> np.ndarray:
    """A JPEG or PNG file -> (H, W, 3) uint8 RGB; raises DataError for anything else."""
    if "compressedDepth" in format_name:
        raise DataError(f"a compressed image of the format {format_name!r} is a depth map, not colours")
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:  # type: ignore[arg-type]
            if image.width * image.height > _MOST_PIXELS:
                raise DataError(f"a compressed image says that it is {image.width} x {image.height}")
            if image.mode.startswith("I"):  # of 16 bits; Pillow would cut off what is above 255
                return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except _BROKEN as error:
        raise DataError(f"a compressed image of the format {format_name!r} is neither JPEG nor PNG, or damaged") from error


def encode_jpeg(frame: np.ndarray, quality: int = JPEG_QUALITY) -> bytes:
    """(H, W, 3) uint8 RGB -> a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def check_frame(frame: np.ndarray) -> np.ndarray:
    """``frame``, which must be (H, W, 3) uint8; raises DataError."""
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
        raise DataError(f"an image to publish must be (H, W, 3) uint8, not {frame.shape} {frame.dtype}")
    return frame


def camera_name(topic: str) -> str:
    """A name for the camera of a topic: what is left without the words that all of them have; ``front`` for plain ones."""
    words = [word for word in topic.split("/") if word and not re.fullmatch(r"(image|color|rgb)(_\w+)?|compressed", word)]
    name = "_".join(words) or "front"
    return "front" if name == "camera" else name
