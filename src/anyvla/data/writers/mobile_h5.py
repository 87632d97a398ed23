"""Writing mobile navigation HDF5, one file an episode."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from anyvla.actions.spec import NAV3, ActionSpec
from anyvla.data.episode import Episode
from anyvla.data.scenarios import SCENARIOS
from anyvla.errors import ConfigError, DataError

MOBILE_H5_VERSION = "1"


def write_mobile_h5(
    path: Path,
    images: np.ndarray,
    actions: np.ndarray,
    instruction: str | None,
    *,
    fps: float,
    events: Sequence[str] | None = None,
    robot: str = "",
    scenario: str = "",
    task: str = "",
    states: np.ndarray | None = None,
    state_names: Sequence[str] = (),
    further_images: Mapping[str, np.ndarray] | None = None,
    compression: int = 1,
) -> None:
    """Write one navigation episode in the ``mobile_h5`` format.

    Args:
        path: the file to write, replaced if it exists.
        images: (T, H, W, 3) uint8 RGB.
        actions: (T, 3) ``linear_x`` m/s, ``linear_y`` m/s, ``angular_z`` rad/s: the command given while frame t was seen.
        instruction: a sentence, or None to leave the key out.
        fps: control steps per second.
        task: name of the task, where it is no scenario.
        states: (T, S) of the robot, as measured when frame t was seen, or None to leave it out. state_names: S names.
        further_images: camera -> (T, H, W, 3) uint8 RGB, of cameras beside ``front``, which ``images`` are from.
        events: T event names such as ``episode_start`` and ``start_action``, or None to leave the key out.
        compression: gzip level of the images, 0 for none. One chunk a frame, so that one frame can be read alone.

    Raises:
        DataError: an array has the wrong shape or dtype, or holds a non-finite action or state.
    """
    import h5py

    cameras = {"images": images, **{f"images_{camera}": frames for camera, frames in (further_images or {}).items()}}
    for key, frames in cameras.items():
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
            raise DataError(f"{path}: {key} must be (T, H, W, 3) uint8 with T > 0, not {frames.shape} {frames.dtype}")
        if len(frames) != len(images):
            raise DataError(f"{path}: {len(frames)} {key} for {len(images)} images")
    if "images_front" in cameras:
        raise DataError(f"{path}: the camera front is that of images")
    if actions.shape != (len(images), 3):
        raise DataError(f"{path}: actions must be ({len(images)}, 3), not {actions.shape}")
    if not np.isfinite(actions).all():
        raise DataError(f"{path}: actions hold non-finite values")
    if states is not None and states.shape != (len(images), len(state_names)):
        raise DataError(f"{path}: states must be ({len(images)}, {len(state_names)}) with those names, not {states.shape}")
    if len(set(state_names)) != len(state_names) or (states is None) != (not state_names):
        raise DataError(f"{path}: states need a name each, all different, not {list(state_names)}")
    if states is not None and not np.isfinite(states).all():
        raise DataError(f"{path}: states hold non-finite values")
    if events is not None and len(events) != len(images):
        raise DataError(f"{path}: {len(events)} events for {len(images)} frames")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with h5py.File(partial, "w") as file:
            options = {"compression": "gzip", "compression_opts": compression, "shuffle": False} if compression else {}
            for key, frames in cameras.items():
                file.create_dataset(key, data=frames, chunks=(1, *frames.shape[1:]), **options)
            file["actions"] = actions.astype(np.float32)
            if states is not None:
                file["states"] = states.astype(np.float32)
                file["state_names"] = np.array([name.encode() for name in state_names])
            if instruction is not None:
                file["language_instruction"] = np.array([instruction.encode()])
            if events is not None:
                file["action_event_types"] = np.array([event.encode() for event in events])
            file.attrs.update({"fps": fps, "robot": robot, "scenario": scenario, "schema_version": MOBILE_H5_VERSION})
            if task:
                file.attrs["task"] = task
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class MobileH5Writer:
    """A file an episode, named as the episode is; see ``anyvla.data.episode.EpisodeWriter``.

    Events, which only this format has, are not written. ``nav2`` is written with an angular_z of 0.
    """

    def __init__(self, path: Path, spec: ActionSpec) -> None:
        """Raises ConfigError for actions that the format does not hold, DataError if the folder cannot be written."""
        known = {dim.name: dim for dim in NAV3.dims}
        for dim in spec.dims:
            if dim.name not in known or dim.unit != known[dim.name].unit:
                raise ConfigError(
                    f"mobile_h5 holds no action dimension {dim.name!r} in {dim.unit!r} (action spec {spec.name!r}); it holds "
                    f"{NAV3.describe()}"
                )
        self.path = path
        self.spec = spec
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error})") from error
        self._files = {file.relative_to(path).as_posix() for file in path.rglob("*.h5")}

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and file_name(name) in self._files

    def add(self, episode: Episode) -> None:
        where = f"{self.path}: {episode.name}"
        if episode.name in self:
            raise DataError(f"{where}: holds {file_name(episode.name)} already")
        if "front" not in episode.cameras:
            raise DataError(
                f"{where}: mobile_h5 needs a camera 'front'; this episode has {', '.join(episode.cameras) or 'none'}"
            )
        if not episode.instruction.strip():
            raise DataError(f"{where}: mobile_h5 needs an instruction")
        images = episode.read(0, episode.length, episode.cameras)
        actions = np.zeros((episode.length, len(NAV3)), dtype=np.float32)
        actions[:, [NAV3.names.index(name) for name in self.spec.names]] = episode.actions
        path = self.path / file_name(episode.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mobile_h5(
                path,
                images["front"],
                actions,
                episode.instruction,
                fps=episode.fps,
                scenario=episode.task if episode.task in SCENARIOS else "",
                task="" if episode.task in SCENARIOS else episode.task,
                states=episode.state if episode.state_names else None,
                state_names=episode.state_names,
                further_images={camera: frames for camera, frames in images.items() if camera != "front"},
            )
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error})") from error
        self._files.add(file_name(episode.name))

    def close(self) -> None:
        """Nothing is open between episodes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def file_name(episode: str) -> str:
    """The path of an episode's file below the folder: its name, without what would lead elsewhere."""
    stem = re.sub(r"\.(h5|hdf5)$", "", episode)
    parts = [re.sub(r"[^\w.\-]", "_", part).lstrip(".") for part in stem.split("/")]
    return "/".join(part or "_" for part in parts) + ".h5"
