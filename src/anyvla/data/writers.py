"""Writers of episode files. A file appears under its name only when it is complete."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
    compression: int = 1,
) -> None:
    """Write one navigation episode in the ``mobile_h5`` format.

    Args:
        path: the file to write, replaced if it exists.
        images: (T, H, W, 3) uint8 RGB.
        actions: (T, 3) ``linear_x`` m/s, ``linear_y`` m/s, ``angular_z`` rad/s: the command given while frame t was seen.
        instruction: a sentence, or None to leave the key out.
        fps: control steps per second.
        events: T event names such as ``episode_start`` and ``start_action``, or None to leave the key out.
        compression: gzip level of the images, 0 for none. One chunk a frame, so that one frame can be read alone.

    Raises:
        DataError: an array has the wrong shape or dtype, or holds a non-finite action.
    """
    import h5py

    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(images) == 0:
        raise DataError(f"{path}: images must be (T, H, W, 3) uint8 with T > 0, not {images.shape} {images.dtype}")
    if actions.shape != (len(images), 3):
        raise DataError(f"{path}: actions must be ({len(images)}, 3), not {actions.shape}")
    if not np.isfinite(actions).all():
        raise DataError(f"{path}: actions hold non-finite values")
    if events is not None and len(events) != len(images):
        raise DataError(f"{path}: {len(events)} events for {len(images)} frames")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with h5py.File(partial, "w") as file:
            options = {"compression": "gzip", "compression_opts": compression, "shuffle": False} if compression else {}
            file.create_dataset("images", data=images, chunks=(1, *images.shape[1:]), **options)
            file["actions"] = actions.astype(np.float32)
            if instruction is not None:
                file["language_instruction"] = np.array([instruction.encode()])
            if events is not None:
                file["action_event_types"] = np.array([event.encode() for event in events])
            file.attrs.update({"fps": fps, "robot": robot, "scenario": scenario, "schema_version": MOBILE_H5_VERSION})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
