"""Jobs in worker processes that simulate: stopped at once by Ctrl-C, ended with their parent, in order if wanted."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from anyvla.errors import AnyVLAError
from anyvla.processes import interrupts_held, leave_interrupts_to_the_main_process, render_in_one_thread

Job = TypeVar("Job")
AHEAD = 3  # jobs per worker that may wait for one before them, where results are wanted in order


class Stopped(Exception):  # noqa: N818  (no error: it is what was asked for)
    """The parent asked to stop in the middle of a job."""


class Simulator(Protocol):
    """What a worker process has, for one job after the other."""

    def run(self, job: Any, stopped: Callable[[], bool]) -> Any:
        """Do a job; raises Stopped soon after ``stopped()`` has become true."""

    def close(self) -> None: ...


def run_jobs(make: Callable[[], Simulator], jobs: Sequence[Job], workers: int, *, ordered: bool = False) -> Iterator[Any]:
    """Do ``jobs``; yields the result of each as it is finished.

    Args:
        make: makes a worker's simulator; it goes to every process. workers: processes; 0 works in this one.
        ordered: yield in the order of the jobs, else in any.

    Raises:
        AnyVLAError: a worker process died.
    """
    if workers == 0:
        simulator = make()
        try:
            for job in jobs:
                yield simulator.run(job, lambda: False)
        finally:
            simulator.close()
        return
    if not jobs:
        return
    spawn = multiprocessing.get_context("spawn")  # a forked child would share this process's OpenGL
    stop = spawn.Event()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), spawn, initializer=_start_worker, initargs=(make, stop))
    try:
        with interrupts_held():  # the workers inherit it: Ctrl-C goes to every process of the terminal, only we answer
            waiting = deque(jobs)
            running = deque(pool.submit(_work, waiting.popleft()) for _ in range(min(len(jobs), AHEAD * workers)))
        while running:
            done = [running.popleft()] if ordered else _finished(running)
            for future in done:
                yield future.result()
                if waiting:
                    running.append(pool.submit(_work, waiting.popleft()))
    except BrokenProcessPool:
        raise AnyVLAError("a collecting process died, perhaps for lack of memory: run again with fewer workers") from None
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _finished(running: deque[Future]) -> list[Future]:
    """Takes out of ``running`` those that are finished, at least one."""
    done = wait(running, return_when=FIRST_COMPLETED).done
    for future in done:
        running.remove(future)
    return list(done)


_worker: tuple[Simulator, Any] | None = None  # of a worker process: its simulator, the stop event


def _start_worker(make: Callable[[], Simulator], stop: Any) -> None:
    """Runs first in each worker process."""
    global _worker
    leave_interrupts_to_the_main_process()
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed parent sends no word, and the pool would wait for it for ever
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    render_in_one_thread()
    _worker = make(), stop


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(job: Any) -> Any:
    assert _worker is not None
    simulator, stop = _worker
    return simulator.run(job, stop.is_set)
