"""metrics.jsonl: one line per measurement, always written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anyvla.checkpoint import write_atomically


class MetricsFile:
    """Appends ``{"step": ..., name: value, ...}`` lines; each is on disk when ``write`` returns."""

    def __init__(self, path: Path, resume_at: int = 0) -> None:
        """Drop the lines of steps behind ``resume_at``: the run will make these steps again."""
        if path.exists():
            kept = [line for line in read_metrics(path) if line["step"] <= resume_at]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._path = path

    def write(self, step: int, values: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the line that was being written when the process died
    return lines
