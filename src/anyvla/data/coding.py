"""Images as JPEG or AVIF (AV1 stills) files, and back."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import AvifImagePlugin, Image, features

from anyvla.data.episode import Coding
from anyvla.errors import ConfigError, DataError

QUALITY: dict[Coding, int] = {"jpeg": 95, "avif": 85}  # where none is asked for
_FORMAT: dict[Coding, str] = {"jpeg": "JPEG", "avif": "AVIF"}
_DAMAGED = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)  # what Pillow says of broken files
_AVIF_SPEED = 8  # of 0 (smallest) to 10 (fastest)


def check_coding(coding: Coding) -> None:
    """Raises ConfigError where the installed Pillow lacks it."""
    if coding == "avif" and not features.check("avif"):
        raise ConfigError("this Pillow was built without AVIF: install one from pypi.org, 11.3 or newer")


def encode(frame: np.ndarray, coding: Coding, quality: int) -> bytes:
    """(H, W, 3) uint8 RGB -> a file. quality: 1 to 100; from 90 (AVIF: 80) on, colours have the full resolution."""
    buffer = BytesIO()
    image = Image.fromarray(frame)
    if coding == "jpeg":
        image.save(buffer, "JPEG", quality=quality, subsampling=0 if quality >= 90 else -1)
    else:
        subsampling = "4:4:4" if quality >= 80 else "4:2:0"
        image.save(buffer, "AVIF", quality=quality, subsampling=subsampling, speed=_AVIF_SPEED, max_threads=1)
    return buffer.getvalue()


def coded_size(data: bytes, coding: Coding, where: str) -> tuple[int, int]:
    """(h, w), without decoding; ``where`` names the image in messages. Raises DataError."""
    try:
        with Image.open(BytesIO(data), formats=(_FORMAT[coding],)) as image:
            return image.height, image.width
    except _DAMAGED as error:
        raise DataError(f"{where} is damaged ({error})") from error


def decode(data: bytes, coding: Coding, size: tuple[int, int] | None, where: str) -> np.ndarray:
    """A file of a frame of ``size`` (h, w) -> (h, w, 3) uint8 RGB; raises DataError, for another size before decoding it."""
    if coding == "avif":  # else it starts a thread for every core, for each of many small images
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    try:
        with Image.open(BytesIO(data), formats=(_FORMAT[coding],)) as image:
            if (image.height, image.width) != size:  # a forged size fills the memory
                raise DataError(f"{where} is {image.height} x {image.width}, not {size}")
            return np.asarray(image.convert("RGB"))
    except _DAMAGED as error:
        raise DataError(f"{where} is damaged ({error})") from error
