"""The log of stops: one JSON line for each, written at once."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Iterable

from anyvla_client.supervisor import Event


class StopLog:
    """Appends to ``path``; with None it writes to the standard error stream.

    A disk that fails later must not end the loop that sends zeros: the line then goes to the standard error stream.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Raises OSError if the file cannot be opened."""
        self._path = path
        if path is not None:
            path.touch()

    def write(self, events: Iterable[Event]) -> None:
        for event in events:
            line = json.dumps(
                {
                    "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                    "clock": round(event.time, 6),
                    "event": event.kind,
                    "cause": event.cause,
                    "detail": event.detail,
                },
                ensure_ascii=False,
            )
            if self._path is not None:
                try:
                    with self._path.open("a", encoding="utf-8") as file:
                        file.write(line + "\n")
                    continue
                except OSError as error:
                    print(f"the log of stops cannot be written: {error}", file=sys.stderr)
            print(line, file=sys.stderr, flush=True)
