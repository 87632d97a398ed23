"""``collect.json`` beside collected episodes: what made them, so that a collection goes on only with the same arguments."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import anyvla
from anyvla.errors import AnyVLAError


class CollectRecord:
    """``collect.json``: the arguments that make the episodes, counts, and the versions that made them."""

    def __init__(self, out: Path, arguments: dict[str, Any], episodes: int, stored: Callable[[], int]) -> None:
        """Refuses a folder with other arguments, or with episodes of unknown origin; then begins the record.

        ``stored`` counts the episodes that the folder holds.
        """
        self._path = out / "collect.json"
        self._arguments = arguments
        self._episodes = episodes
        self._stored = stored
        self._given_up = 0
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AnyVLAError(f"{out}: cannot make this folder: {error.strerror}") from None
        if self._path.exists():
            try:
                before = json.loads(self._path.read_text())
                old, self._given_up = before["arguments"], before["worlds_given_up"]
            except (ValueError, KeyError, TypeError) as error:
                raise AnyVLAError(f"{self._path} cannot be read ({error!r}): use another folder, or remove it") from None
            for key, value in arguments.items():
                if old.get(key) != value:
                    raise AnyVLAError(
                        f"{out} was collected with {key}={old.get(key)!r}, not {value!r}: use another folder or that value"
                    )
        elif stored():
            raise AnyVLAError(f"{out} holds episodes but no collect.json that says how they were made: use another folder")
        self.save(given_up=0)

    def save(self, given_up: int) -> None:
        """Write it, complete or not at all; ``given_up`` counts this run's, earlier runs' are added."""
        import mujoco

        content = {
            "arguments": self._arguments,
            "episodes": self._episodes,
            "episodes_on_disk": self._stored(),
            "worlds_given_up": self._given_up + given_up,
            "versions": {
                "anyvla": anyvla.__version__,
                "mujoco": mujoco.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        partial = self._path.with_suffix(".json.partial")
        try:
            partial.write_text(json.dumps(content, indent=2) + "\n")
            os.replace(partial, self._path)
        except OSError as error:
            raise AnyVLAError(f"{self._path}: cannot be written: {error.strerror}") from error
