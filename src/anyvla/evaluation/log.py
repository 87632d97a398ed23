"""The log of an evaluation: every finished episode at once, so that an interrupted evaluation goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from anyvla.errors import ConfigError
from anyvla.evaluation.workers import Task
from anyvla.progress import progress_bar


class Result(Protocol):
    """What happened in one episode of an environment."""

    @property
    def index(self) -> int: ...

    @property
    def success(self) -> bool: ...

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""


R = TypeVar("R", bound=Result)


class EpisodeLog(Generic[R]):
    """``results`` and ``seconds`` of this evaluation so far, kept in a file if there is one.

    The first line of the file says which evaluation it is; a file of another one is begun anew.
    """

    def __init__(self, path: Path | None, about: dict[str, Any], read: Callable[[dict[str, Any]], R]) -> None:
        """``read``: the inverse of the results' ``to_dict``; it raises TypeError or KeyError for what is none."""
        self.results: list[R] = []
        self.seconds = 0.0
        self.read = read
        self._path = path
        if path is None:
            return
        header = json.dumps(about, sort_keys=True)
        try:
            lines = path.read_text().splitlines() if path.exists() else []
            if lines and lines[0] == header:
                self._read_lines(lines[1:])
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(header)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error

    def add(self, result: R) -> None:
        self.results.append(result)
        self._append(result.to_dict())

    def add_seconds(self, seconds: float) -> None:
        """Time that was spent on the episodes."""
        self.seconds += seconds
        self._append({"seconds": seconds})

    def _append(self, value: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a") as file:
                file.write("\n" + json.dumps(value))  # first the newline: it ends a line that was cut short

    def _read_lines(self, lines: list[str]) -> None:
        found = {}
        for line in lines:
            try:
                value = json.loads(line)
                if value.keys() == {"seconds"}:
                    self.seconds += value["seconds"]
                    continue
                result = self.read(value)
            except (json.JSONDecodeError, TypeError, KeyError):
                continue  # the line that was being written when the process died
            found[result.index] = result
        self.results = list(found.values())


def drive_the_rest(
    tasks: Sequence[Task],
    log: EpisodeLog[R],
    drive: Callable[[list[Any], Callable[[dict[str, Any]], None]], None],
    description: str,
) -> None:
    """``drive(tasks, on_result)`` those of ``tasks`` that ``log`` lacks; it gets each result at once, and their time."""
    began = time.perf_counter()
    done = {result.index for result in log.results}
    rest = [task for task in tasks if task.index not in done]
    with progress_bar(description, len(tasks), done=len(done)) as bar:

        def on_result(content: dict[str, Any]) -> None:
            log.add(log.read(content))
            bar.advance(note=f"{sum(result.success for result in log.results)}/{len(log.results)}")

        if rest:
            try:
                drive(rest, on_result)
            finally:
                log.add_seconds(time.perf_counter() - began)
