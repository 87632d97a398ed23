from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from anyvla.processes import interrupts_held


@pytest.mark.parametrize("threads", [0, 1])
def test_ctrl_c_takes_effect_after_the_block_even_if_another_thread_takes_it(threads: int) -> None:
    stop = threading.Event()
    others = [threading.Thread(target=stop.wait) for _ in range(threads)]
    for thread in others:
        thread.start()
    finished = []

    def block() -> None:
        with interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            finished.append(True)

    try:
        with pytest.raises(KeyboardInterrupt):
            block()
    finally:
        stop.set()
        for thread in others:
            thread.join()
    assert finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_an_interrupt_nothing_changes() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with interrupts_held():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before
