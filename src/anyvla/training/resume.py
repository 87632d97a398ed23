"""When a run folder may be gone on with: the same settings, data and processes as it was begun with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anyvla.checkpoint import resolve_checkpoint
from anyvla.config import Config, parse_config
from anyvla.errors import ConfigError

# settings that may differ when a run goes on: they change neither the model nor the path it takes
_MAY_CHANGE = {
    "out", "data.store", "data.cache", "data.workers", "policy", "training.log_every", "training.validate_every",
    "training.save_every", "training.trackers", "training.validation_windows", "tuning.gradient_checkpointing",
    "objectives.conversations.path", "objectives.conversations.images",
}  # fmt: skip
_SOURCE_PATH = re.compile(r"data\.source\.(sources\.[^.]+\.)?path")


def checkpoint_to_resume(config: Config, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None to start; a run is never overwritten."""
    run = config.out
    if not (run / "checkpoints.json").exists():
        return None
    if not resume:
        raise ConfigError(f"{run} already holds a run: --resume goes on with it, out=FOLDER starts another")
    if not (run / "config.yaml").exists():
        raise ConfigError(f"{run} holds checkpoints but no config.yaml, so it cannot go on; out=FOLDER starts another run")
    saved = parse_config((run / "config.yaml").read_text(), where=str(run / "config.yaml"))
    differences = [
        f"{key} ({before!r} then, {now!r} now)"
        for key, before, now in _differences(saved.model_dump(mode="json"), config.model_dump(mode="json"))
        if not any(key == free or key.startswith(f"{free}.") for free in _MAY_CHANGE) and not _SOURCE_PATH.fullmatch(key)
    ]
    if differences:
        raise ConfigError(f"{run} was begun with other settings: {'; '.join(differences)}")
    return resolve_checkpoint(run, "last")


def check_identity(run: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """A run goes on as the same only with the same data and the same number of processes."""
    if before["data"] != now["data"]:
        raise ConfigError(f"{run}: the data have changed since this run was begun; out=FOLDER starts another")
    if before["processes"] != now["processes"]:
        raise ConfigError(f"{run} was begun with {before['processes']} processes, not {now['processes']}")


def _differences(before: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before.keys() | now.keys():
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
    elif before != now:
        yield path, before, now
