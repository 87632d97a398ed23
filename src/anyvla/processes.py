"""Worker processes that die quietly: Ctrl-C reaches every process of a terminal, and only the main one answers it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back in this thread while processes are started, which inherit that; it takes effect after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_interrupts_to_the_main_process(*_: object) -> None:
    """Runs first in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def render_in_one_thread() -> None:
    """Mesa's software renderer without threads of its own: the worker processes are the parallelism."""
    os.environ.setdefault("LP_NUM_THREADS", "0")
