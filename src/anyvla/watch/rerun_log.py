"""Episodes as a file for the viewer of rerun.io."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anyvla.errors import ConfigError, MissingExtraError
from anyvla.watch.drawing import ground_way

if TYPE_CHECKING:
    from anyvla.watch.recordings import Episodes


def save_rerun(episodes: Episodes, out: Path, items: range | None = None) -> Path:
    """Write pictures, actions, chunks and ways of the episodes ``items`` (all if None) to ``out``; one recording each.

    Raises:
        ConfigError: ``out`` exists or has another ending than .rrd. MissingExtraError: rerun-sdk is not installed.
    """
    if out.suffix != ".rrd" or out.exists():
        raise ConfigError(f"{out} {'exists already' if out.exists() else 'must end with .rrd'}")
    try:
        import rerun as rr
    except ImportError as error:
        raise MissingExtraError("rerun-sdk", "rerun") from error
    about = episodes.about()
    stream = rr.RecordingStream("anyvla", recording_id=out.stem)
    stream.save(str(out))
    for item in range(len(about["items"])) if items is None else items:
        for step in range(about["items"][item]["length"]):
            stream.set_time("frame", sequence=step)
            stream.set_time("time", duration=step / about["fps"])
            _log(rr, stream, f"episode_{item}", episodes, item, step)
    stream.flush()
    return out


def _log(rr: Any, stream: Any, root: str, episodes: Episodes, item: int, step: int) -> None:
    moment = episodes.at(item, step)
    if step == 0:
        stream.log(f"{root}/instruction", rr.TextDocument(moment.instruction), static=True)
    for camera, image in moment.images.items():
        stream.log(f"{root}/camera/{camera}", rr.Image(np.ascontiguousarray(image)).compress(jpeg_quality=85))
    for kind, chunk in (("predicted", moment.chunk), ("recorded", moment.recorded)):
        if chunk is None:
            continue
        for name, value in zip(episodes.spec.names, chunk[0], strict=True):
            stream.log(f"{root}/action/{name}/{kind}", rr.Scalars(float(value)))
        way = ground_way(chunk, episodes.spec, episodes.fps)
        if way is not None:  # forward is up
            stream.log(f"{root}/ground/{kind}", rr.LineStrips2D([np.stack([-way[:, 1], -way[:, 0]], axis=1)]))
    if moment.stop is not None:
        stream.log(f"{root}/stops", rr.TextLog(moment.stop))
