"""Videos on disk: encode frames, join files without encoding again, and read any frame quickly (PyAV)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from anyvla.errors import DataError, MissingExtraError

Codec = Literal["av1", "h264"]
# a key frame every second frame: any frame is at most one decoded frame away from where decoding can begin
_ENCODERS: dict[Codec, tuple[str, dict[str, str]]] = {
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "8"}),
    "h264": ("libx264", {"g": "2", "crf": "20", "bf": "0"}),
}


def load_av() -> Any:
    """The module ``av``; raises MissingExtraError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("av", "lerobot") from error
    return av


class VideoWriter:
    """Encodes frames one after the other into an mp4 (yuv420p: colours lose half of their resolution, and it is lossy)."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float, codec: Codec = "av1") -> None:
        """``size`` is (H, W), both even. Raises DataError where the file cannot be made."""
        if size[0] % 2 or size[1] % 2:
            raise DataError(f"{path}: a video needs an even height and width, not {size[0]} x {size[1]}; store images instead")
        av = load_av()
        # the encoder's only switch: it writes twenty lines about itself for every video otherwise
        os.environ.setdefault("SVT_LOG", "1")
        name, options = _ENCODERS[codec]
        self._path, self._av = path, av
        try:
            self._container = av.open(str(path), "w", format="mp4")
            self._stream = self._container.add_stream(name, rate=as_fraction(fps), options=options)
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{path}: cannot be written ({error})") from error
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p"

    def add(self, frames: Iterable[np.ndarray]) -> None:
        """Append (H, W, 3) uint8 RGB frames."""
        try:
            for frame in frames:
                self._container.mux(self._stream.encode(self._av.VideoFrame.from_ndarray(frame, format="rgb24")))
        except (self._av.FFmpegError, OSError) as error:
            raise DataError(f"{self._path}: cannot be written ({error})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._container.mux(self._stream.encode())
            self._container.close()
        except (self._av.FFmpegError, OSError) as failure:
            raise DataError(f"{self._path}: cannot be written ({failure})") from failure


def join_videos(parts: Sequence[Path], frames: Sequence[int], fps: float, path: Path) -> None:
    """One mp4 of ``parts``, which have ``frames`` frames each and were encoded alike; the packets are copied as they are.

    Part k begins at ``sum(frames[:k]) / fps`` seconds.
    """
    av = load_av()
    rate = as_fraction(fps)
    done = 0
    try:
        with av.open(str(path), "w", format="mp4") as out:
            stream = None
            for part, count in zip(parts, frames, strict=True):
                with av.open(str(part)) as source:
                    original = source.streams.video[0]
                    if stream is None:
                        stream = out.add_stream_from_template(original, opaque=True)
                        stream.time_base = original.time_base
                    shift = round(done / rate / original.time_base)
                    for packet in source.demux(original):
                        if packet.dts is None:
                            continue  # the empty packet at the end
                        packet.pts += shift
                        packet.dts += shift
                        packet.stream = stream
                        out.mux(packet)
                done += count
    except (av.FFmpegError, OSError) as error:
        raise DataError(f"{path}: {len(parts)} videos cannot be joined ({error})") from error


def as_fraction(fps: float) -> Fraction:
    """30.0 -> 30, 2.5 -> 5/2, 29.97 -> 2997/100: a rate that time stamps can be exact in."""
    return Fraction(fps).limit_denominator(1001)
