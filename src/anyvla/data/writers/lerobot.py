"""Writer of LeRobotDataset v3.0. ``lerobot_layout`` says what is written, ``lerobot_files`` how it survives an interruption."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from anyvla.actions.spec import ActionSpec
from anyvla.data.episode import Episode
from anyvla.data.sources.lerobot_meta import ACTION, JOURNAL, STATE, load_pyarrow
from anyvla.data.video import Codec, VideoWriter
from anyvla.data.writers.lerobot_files import (
    Stored,
    dataset_statistics,
    episode_row,
    frames_writer,
    pack,
    recover,
    write_json,
)
from anyvla.data.writers.lerobot_layout import IMAGES, CameraLayout, ImageKind, Layout, stored_layout
from anyvla.data.writers.lerobot_stats import pixel_histogram
from anyvla.errors import ConfigError, DataError

_BLOCK = 16  # frames in memory at a time: 44 MB at 720p
_PNG_LEVEL = 3  # a third of the time of the usual 6, some per cent larger


class LeRobotWriter:
    """Writes episodes into a LeRobotDataset v3.0; see ``anyvla.data.episode.EpisodeWriter``.

    Every episode is finished on its own before the next begins. They become files of the format when enough of them are there,
    and at the end. After a process has died, opening the folder again and closing it makes a dataset of all finished episodes.

    Attributes:
        path, spec: as given. names: of the episodes that the folder holds.
    """

    def __init__(
        self,
        path: Path,
        spec: ActionSpec,
        fps: float,
        *,
        cameras: ImageKind | Mapping[str, ImageKind] = "image",
        state_names: Sequence[str] | None = None,
        robot_type: str | None = None,
        codec: Codec = "av1",
        data_file_mb: int = 100,
        video_file_mb: int = 200,
    ) -> None:
        """Open ``path`` for writing, making it if needed, and find what is whole in it.

        Args:
            fps: control steps per second, of all episodes.
            cameras: ``image`` keeps every pixel (PNG), ``video`` is small and lossy; of every camera of the first episode, or
                of each camera that is to be written. In a folder that holds episodes, that of the folder stands.
            state_names: numbers of the robot's state to write; all of the first episode if None.
            robot_type: for people.
            codec: of the videos. data_file_mb, video_file_mb: a new file is begun at this size.

        Raises:
            ConfigError: the folder holds episodes of another robot or rate.
            DataError: the folder cannot be used, is being written to by another process, or was written by other software.
        """
        load_pyarrow()
        self.path, self.spec = path, spec
        self._fps, self._cameras, self._state_names, self._robot = fps, cameras, state_names, robot_type
        self._codec, self._data_mb, self._video_mb = codec, data_file_mb, video_file_mb
        if not (np.isfinite(fps) and fps > 0):
            raise ConfigError(f"fps is {fps}, not a positive number")
        try:
            (path / JOURNAL).mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be written to ({error})") from error
        try:
            self._layout = stored_layout(path)
            self._stored: Stored = recover(path)
            if len(self._stored) == 0:
                self._layout = None  # of an episode that was never finished
            if self._layout is not None:
                self._check_stored(self._layout)
        except BaseException:
            os.close(self._lock)
            raise
        self._open = True

    def __len__(self) -> int:
        return len(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored.names

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._stored.names)

    def add(self, episode: Episode) -> None:
        """Append one episode; when this returns it is safe.

        Raises DataError: the episode does not go with the others, cannot be read, has a name that is taken; the disk is full.
        """
        if not self._open:
            raise DataError(f"{self.path}: the writer is closed")
        layout = self._layout or self._layout_of(episode)
        self._check(episode, layout)
        folder = self.path / JOURNAL / f"{len(self):06d}"
        partial = folder.with_suffix(".partial")
        task = self._stored.tasks.get(episode.instruction, len(self._stored.tasks))
        try:
            partial.mkdir(parents=True)
            row = self._write(episode, layout, task, partial)
            if self._layout is None:
                write_json(self.path / "meta" / "info.json", self._info(layout))
            os.replace(partial, folder)
        except OSError as error:
            raise DataError(f"{self.path}: episode {episode.name} cannot be written ({error})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        self._layout = layout
        self._stored.waiting.append(folder)
        self._stored.frames += row["length"]
        self._stored.names.add(episode.name)
        self._stored.tasks[episode.instruction] = task
        if self._file_is_full():
            self._pack(layout)

    def close(self) -> None:
        """Make the files of the format of all finished episodes. Closing twice does nothing."""
        if not self._open:
            return
        self._open = False
        try:
            if self._layout is not None:
                self._pack(self._layout)
                write_json(self.path / "meta" / "stats.json", dataset_statistics(self.path, self._layout))
            (self.path / JOURNAL).rmdir()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error})") from error
        finally:
            os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _layout_of(self, episode: Episode) -> Layout:
        wanted = dict.fromkeys(episode.cameras, self._cameras) if isinstance(self._cameras, str) else dict(self._cameras)
        cameras = {}
        for camera, kind in wanted.items():
            if "/" in camera or camera not in episode.cameras:
                why = "the format allows no / in it" if "/" in camera else f"it has {', '.join(episode.cameras) or 'none'}"
                raise DataError(f"{self.path}: episode {episode.name}, camera {camera!r}: {why}")
            _, height, width, _ = episode.read(0, 1, [camera])[camera].shape
            cameras[camera] = CameraLayout(kind, (height, width))
        names = episode.state_names if self._state_names is None else self._state_names
        return Layout(self.spec, self._fps, cameras, tuple(names), self._robot)

    def _check_stored(self, layout: Layout) -> None:
        if (layout.spec, layout.fps) != (self.spec, self._fps):
            raise ConfigError(
                f"{self.path}: holds episodes of {layout.spec.name} ({', '.join(layout.spec.names)}) at {layout.fps:g} fps; "
                f"{self.spec.name} ({', '.join(self.spec.names)}) at {self._fps:g} fps cannot be added"
            )

    def _check(self, episode: Episode, layout: Layout) -> None:
        where = f"{self.path}: episode {episode.name}"
        if episode.name in self._stored.names:
            raise DataError(f"{where}: an episode of this name is there already")
        if episode.length == 0 or episode.actions.shape != (episode.length, len(self.spec)):
            raise DataError(
                f"{where}: actions must be (T, {len(self.spec)}), {', '.join(self.spec.names)}, with T > 0, "
                f"not {episode.actions.shape} for {episode.length} frames"
            )
        if abs(episode.fps - self._fps) > 1e-6 * self._fps:
            raise DataError(f"{where}: has {episode.fps:g} fps, the dataset {self._fps:g}")
        lacking = [camera for camera in layout.cameras if camera not in episode.cameras]
        if lacking:
            raise DataError(
                f"{where}: no images of the camera {', '.join(lacking)}, which every episode of this dataset must have"
            )
        missing = [name for name in layout.state_names if name not in episode.state_names]
        if missing:
            raise DataError(f"{where}: the state has no {', '.join(missing)}, which all episodes here must have")
        values = {"actions": episode.actions, "state": episode.state if layout.state_names else None}
        for key, numbers in values.items():
            if numbers is not None and not np.isfinite(numbers).all():
                raise DataError(
                    f"{where}: {key} hold non-finite values, first at frame {np.argwhere(~np.isfinite(numbers))[0][0]}"
                )

    def _write(self, episode: Episode, layout: Layout, task: int, folder: Path) -> dict[str, Any]:
        """All files of one finished episode; returns its row."""
        pa, _ = load_pyarrow()
        images, histograms = self._write_frames(episode, layout, folder)
        counter = np.arange(episode.length, dtype=np.int64)
        columns: dict[str, np.ndarray] = {
            ACTION: np.asarray(episode.actions, dtype=np.float32),
            "timestamp": (counter / layout.fps).astype(np.float32),
            "frame_index": counter,
            "episode_index": np.full_like(counter, len(self)),
            "index": counter + self._stored.frames,
            "task_index": np.full_like(counter, task),
        }
        if layout.state_names and episode.state is not None:
            chosen = [episode.state_names.index(name) for name in layout.state_names]
            columns[STATE] = np.asarray(episode.state, dtype=np.float32)[:, chosen]
        arrays = []
        for field in (schema := layout.schema()):
            if field.name in images:
                cells = [{"bytes": png, "path": f"frame-{t:06d}.png"} for t, png in enumerate(images[field.name])]
                arrays.append(pa.array(cells, type=field.type))
            elif pa.types.is_fixed_size_list(field.type):
                arrays.append(pa.FixedSizeListArray.from_arrays(columns[field.name].ravel(), type=field.type))
            else:
                arrays.append(pa.array(columns[field.name].ravel(), type=field.type))
        with frames_writer(folder / "frames.parquet", layout) as writer:
            writer.write_table(pa.table(arrays, schema=schema))
        row = episode_row(len(self), episode.name, episode.task, episode.instruction, columns, histograms)
        write_json(folder / "episode.json", row)
        return row

    def _write_frames(
        self, episode: Episode, layout: Layout, folder: Path
    ) -> tuple[dict[str, list[bytes]], dict[str, np.ndarray]]:
        """Encode videos to their files; returns the PNGs, and the counts of pixel values, of every feature."""
        images: dict[str, list[bytes]] = {IMAGES + camera: [] for camera, how in layout.cameras.items() if how.kind == "image"}
        histograms = {IMAGES + camera: np.zeros((3, 256), np.int64) for camera in layout.cameras}
        with ExitStack() as stack:
            videos = {
                camera: stack.enter_context(
                    VideoWriter(folder / f"{key}.mp4", layout.cameras[camera].size, layout.fps, self._codec)
                )
                for camera, key in layout.videos.items()
            }
            pool = stack.enter_context(ThreadPoolExecutor(min(4, os.cpu_count() or 1)))
            for start in range(0, episode.length, _BLOCK):
                stop = min(start + _BLOCK, episode.length)
                for camera, frames in episode.read(start, stop, tuple(layout.cameras)).items():
                    expected = (stop - start, *layout.cameras[camera].size, 3)
                    if frames.shape != expected or frames.dtype != np.uint8:
                        raise DataError(
                            f"{self.path}: episode {episode.name}, camera {camera}: frames {start}-{stop} are {frames.shape} "
                            f"{frames.dtype}, not {expected} uint8 as in this dataset"
                        )
                    histograms[IMAGES + camera] += pixel_histogram(frames)
                    if camera in videos:
                        videos[camera].add(frames)
                    else:
                        images[IMAGES + camera] += pool.map(_png, frames)
        return images, histograms

    def _file_is_full(self) -> bool:
        def megabytes(name: str) -> float:
            return sum((folder / name).stat().st_size for folder in self._stored.waiting) / 2**20

        videos = self._layout.videos.values() if self._layout else ()
        return megabytes("frames.parquet") >= self._data_mb or any(megabytes(f"{key}.mp4") >= self._video_mb for key in videos)

    def _pack(self, layout: Layout) -> None:
        try:
            pack(self.path, layout, self._stored)
            write_json(self.path / "meta" / "info.json", self._info(layout))
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({error})") from error

    def _info(self, layout: Layout) -> dict[str, Any]:
        return layout.info(
            episodes=self._stored.packed,
            frames=self._stored.frames if not self._stored.waiting else 0,
            tasks=len(self._stored.tasks),
            data_mb=self._data_mb,
            video_mb=self._video_mb,
        )


def _png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _locked(path: Path) -> int:
    """A descriptor that holds the folder until it is closed, or the process ends."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DataError(f"{path}: another process is writing to this folder") from None
    return descriptor


def finish(path: Path) -> int:
    """Make a dataset of all that a writer which died has finished in ``path``; returns the number of its episodes.

    Raises DataError where there is none.
    """
    layout = stored_layout(path)
    if layout is None:
        raise DataError(f"{path}: no dataset that LeRobotWriter has begun")
    with LeRobotWriter(path, layout.spec, layout.fps) as writer:
        return len(writer)
