"""Writing mobile navigation HDF5, one file an episode."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from anyvla.errors import DataError

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
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
