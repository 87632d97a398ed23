"""Progress bars with the time left, for everything that can take longer than two seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bar:
    """One running bar; ``advance`` moves it and may replace the note at its end."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, n: int = 1, note: str | None = None) -> None:
        self._progress.advance(self._task, n)
        if note is not None:
            self._progress.update(self._task, note=note)

    def print(self, line: str) -> None:
        """Print ``line`` above the bar."""
        self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(description: str, total: int, done: int = 0, *, shown: bool = True) -> Iterator[Bar]:
    """Show ``description``, a bar, ``done``/``total``, time elapsed and time left on stderr while the block runs.

    Where stderr is no terminal (a log file, CI) only the finished bar is printed, once.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4, disable=not shown) as progress:
        task = progress.add_task(description, total=total, completed=done, note="")
        yield Bar(progress, task)
