"""Worker processes that die quietly: Ctrl-C reaches every process of a terminal, and only the main one answers it."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import current_process, resource_tracker
from pathlib import Path


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while processes are started: they inherit that it is blocked; here it takes effect after the block."""
    resource_tracker.ensure_running()  # started with the first process, it would unblock Ctrl-C again
    arrived: list[int] = []
    # blocking it is not enough here: another thread, such as that of a progress bar, may take it and wake this one
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, lambda number, _: arrived.append(number)) if in_main_thread else None
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
    if arrived and callable(handler):
        handler(signal.SIGINT, None)


def leave_interrupts_to_the_main_process(*_: object) -> None:
    """Runs first in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def render_in_one_thread() -> None:
    """Mesa's software renderer without threads of its own: the worker processes are the parallelism."""
    os.environ.setdefault("LP_NUM_THREADS", "0")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock file ``path``, and hold it while the block runs."""
    with path.open("w") as file:
        if getattr(current_process(), "_inheriting", False):
            # a worker process that imports an unguarded script would run it, and wait here for its own parent
            raise RuntimeError("put what your script does under  if __name__ == '__main__':  (see multiprocessing, spawn)")
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
