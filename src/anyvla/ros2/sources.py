"""Where a drive's actions come from: a policy in this process or behind a server, asked without ever waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Condition, Thread
from types import TracebackType
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Observation:
    """What the policy is asked about.

    Attributes:
        images: camera -> (H, W, 3) uint8 RGB. state: (S,) or None. stamp: when the newest image was taken.
        first: whether an episode begins with it.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray | None
    instruction: str
    stamp: float
    first: bool


@dataclass(frozen=True)
class Chunk:
    """(L, A) actions in robot units, the first of which was for the moment ``stamp``; ``seconds``: what predicting took."""

    actions: np.ndarray
    stamp: float
    seconds: float


@dataclass(frozen=True)
class Failure:
    """Why there is no answer: ``cause`` is one of ``anyvla_client.supervisor.CAUSES``."""

    cause: str
    detail: str


@dataclass(frozen=True)
class DrivenBy:
    """What the drive loop must know of a policy.

    Attributes:
        action: as ActionSpec.to_dict. cameras: that it needs. optional_cameras: that may be absent. state: its names.
        fps: control steps per second. training_range: (2, A) smallest and largest action of its training data, if known.
        decay: of the temporal ensemble that it is executed with; None takes the newest chunk alone.
    """

    action: Mapping[str, Any]
    cameras: tuple[str, ...]
    optional_cameras: tuple[str, ...]
    state: tuple[str, ...]
    fps: float
    training_range: np.ndarray | None = None
    decay: float | None = None


class ActionSource(Protocol):
    """What the drive loop asks. No call of it waits for the policy."""

    @property
    def about(self) -> DrivenBy: ...

    def submit(self, observation: Observation) -> bool:
        """Ask about ``observation``; False, and nothing happens, while the last question is still open."""
        ...

    def latest(self) -> Chunk | None:
        """The newest answer of this episode."""
        ...

    def failure(self) -> Failure | None:
        """Why the last question has no answer."""
        ...

    def waiting(self) -> float:
        """Seconds that the open question has been open for; 0 without one."""
        ...

    def restart(self) -> None:
        """Forget answers and failures, and the answer to come: an episode begins."""
        ...

    def close(self) -> None: ...


class Outcome:
    """Keeps whatever a call raises: a policy may fail in any way, and each of them must stop the robot, not the drive loop."""

    error: BaseException | None = None

    def __enter__(self) -> Outcome:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.error = error
        return True


@dataclass
class Answers:
    """Asks ``infer``, which may take its time, in a thread of its own; with ``background=False`` at once, for lockstep.

    ``cause``: what a failure is called. ``lost``: whether the next question could not even be put. A question that is never
    answered leaves the thread behind; it ends with the process.
    """

    about: DrivenBy
    infer: Callable[[Observation], np.ndarray]
    cause: Callable[[BaseException], str] = lambda error: "policy_error"
    lost: Callable[[], bool] = lambda: False
    background: bool = True
    steady: Callable[[], float] = time.monotonic
    _ready: Condition = field(default_factory=Condition, init=False)
    _question: tuple[Observation, int] | None = field(default=None, init=False)  # and the episode that it belongs to
    _asked: float = field(default=0.0, init=False)
    _episode: int = field(default=0, init=False)
    _chunk: Chunk | None = field(default=None, init=False)
    _failure: Failure | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._thread: Thread | None = None
        if self.background:
            self._thread = Thread(target=self._work, name="policy", daemon=True)
            self._thread.start()

    def submit(self, observation: Observation) -> bool:
        with self._ready:
            if self._question is not None or self._closed:
                return False
            self._question, self._asked = (observation, self._episode), self.steady()
            self._ready.notify()
        if self._thread is None:
            self._answer(*self._question)
        return True

    def latest(self) -> Chunk | None:
        with self._ready:
            return self._chunk

    def failure(self) -> Failure | None:
        with self._ready:
            if self._failure is None and self._chunk is not None and self.lost():
                self._failure = Failure("server_lost", "the connection was lost")
            return self._failure

    def waiting(self) -> float:
        with self._ready:
            return 0.0 if self._question is None else self.steady() - self._asked

    def restart(self) -> None:
        with self._ready:
            self._episode += 1
            self._chunk = self._failure = None

    def close(self) -> None:
        """Ends the thread, unless it is stuck in a call that never returns."""
        with self._ready:
            self._closed = True
            self._ready.notify()
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _work(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._closed or self._question is not None)
                if self._closed:
                    return
                question = self._question
            assert question is not None
            self._answer(*question)

    def _answer(self, question: Observation, episode: int) -> None:
        actions: np.ndarray = np.empty((0, 0))
        with Outcome() as outcome:
            actions = np.asarray(self.infer(question))
        size = len(self.about.action["dims"])
        with self._ready:
            if episode == self._episode:
                error = outcome.error
                if error is not None:
                    self._failure = Failure(self.cause(error), f"{type(error).__name__}: {error}"[:500])
                elif actions.ndim != 2 or not len(actions) or actions.shape[1] != size or actions.dtype.kind not in "fiu":
                    self._failure = Failure("malformed_action", f"a chunk of shape {actions.shape} of {actions.dtype}")
                else:
                    self._chunk = Chunk(actions, question.stamp, self.steady() - self._asked)
            self._question = None
