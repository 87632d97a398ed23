"""Videos on disk: encode frames, join files without encoding again, and read any frame quickly (PyAV)."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from anyvla.errors import DataError, MissingExtraError

Codec = Literal["av1", "h264"]
TOLERANCE = 1e-4  # seconds between the time of a frame as recorded and as stored in the video
_NEAR = 0.5  # seconds: decoding goes on where it was for a frame that is not further ahead
_MOST_PIXELS = 2**26  # of one frame: 8192 x 8192
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


class VideoFile:
    """One open video. Frames are found by their time; decoding goes on where it was if that is nearer than a key frame."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if ``path`` is missing, or no video that can be decoded."""
        self._path, self._av = path, load_av()
        try:
            self._container = self._av.open(str(path))
            self._stream = self._container.streams.video[0]
            context = self._stream.codec_context
            if context is None:
                raise DataError(f"{path}: a video in a format that cannot be decoded")
            context.thread_count = 1  # windows are short: more threads would only delay the first frame
            size = (context.height, context.width)
            self._seconds = float(self._stream.time_base)
        except self._errors as error:
            raise DataError(f"{path}: cannot be opened as a video ({_said(error)})") from error
        if not (size[0] > 0 and size[1] > 0 and size[0] * size[1] <= _MOST_PIXELS and self._seconds > 0):
            raise DataError(f"{path}: frames of {size[0]} x {size[1]} with a time base of {self._seconds} s cannot be")
        self._reformatter = self._av.video.reformatter.VideoReformatter()
        self._frames: Iterator[Any] = iter(())
        self._at = np.inf  # time of the last decoded frame

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        return (self._av.FFmpegError, OSError, ValueError, LookupError, TypeError, ArithmeticError, MemoryError)

    def read(self, times: Sequence[float]) -> np.ndarray:
        """(n, H, W, 3) uint8 RGB: the frames at these seconds, which ascend.

        Raises DataError where the video has no frame within 1e-4 s of a time, or cannot be decoded.
        """
        found: list[np.ndarray] = []
        try:
            if not self._at < times[0] <= self._at + _NEAR:
                self._frames = iter(())
                self._container.seek(int(times[0] / self._seconds + 1e-3), stream=self._stream)
                self._frames = self._container.decode(self._stream)
            frame, at = None, -np.inf
            for time in times:
                while at < time - TOLERANCE:
                    frame = next(self._frames, None)
                    if frame is None or frame.pts is None:
                        raise DataError(f"{self._path}: has no frame at {time:.4f} s, it ends at {max(at, 0):.4f} s")
                    at = frame.pts * self._seconds
                if at > time + TOLERANCE:
                    raise DataError(f"{self._path}: has no frame at {time:.4f} s, the next is at {at:.4f} s")
                found.append(self._reformatter.reformat(frame, format="rgb24").to_ndarray())
            self._at = at
            return np.stack(found)
        except self._errors as error:
            self._at = np.inf
            raise DataError(f"{self._path}: cannot be decoded at {times[len(found)]:.4f} s ({_said(error)})") from error
        except DataError:
            self._at = np.inf
            raise

    def close(self) -> None:
        self._frames = iter(())
        self._container.close()


class OpenVideos:
    """The videos that a process reads, the last few of them kept open. Copied to another process, it is empty there."""

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self._videos: OrderedDict[Path, VideoFile] = OrderedDict()
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[OpenVideos], tuple[int]]:
        return OpenVideos, (self._most,)

    def read(self, path: Path, times: Sequence[float]) -> np.ndarray:
        """See ``VideoFile.read``."""
        if self._process != os.getpid():  # a forked process shares the position in its parent's files
            self._begin()
        with self._lock:
            video = self._videos.pop(path, None) or VideoFile(path)
            self._videos[path] = video
            if len(self._videos) > self._most:
                self._videos.popitem(last=False)[1].close()
            return video.read(times)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def as_fraction(fps: float) -> Fraction:
    """30.0 -> 30, 2.5 -> 5/2, 29.97 -> 2997/100: a rate that time stamps can be exact in."""
    return Fraction(fps).limit_denominator(1001)
