"""Chunk brokers: between chunks of actions, which arrive late, and a robot, which wants an action at every control step.

Action i of a chunk is meant for the moment ``stamp + i * period``, where ``stamp`` is when the observation was taken that the
chunk was predicted from. A chunk that arrives late is therefore entered in its middle: what belongs to the time that has passed
is skipped. All times are given, in seconds on the caller's clock, so that nothing here sleeps or reads a clock.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Callable, Mapping

import numpy as np

from anyvla_client.execution import ensemble

Infer = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # PolicyClient.infer, or anything like it


@dataclass(frozen=True)
class Step:
    """What to do now.

    Attributes:
        action: (A,), None where nothing is predicted for this moment: the robot must stop. age: seconds since the newest
            observation that it was predicted from was taken. new: a chunk has arrived since the last step.
    """

    action: np.ndarray | None
    age: float = 0.0
    new: bool = False


class Timeline:
    """Chunks on the time axis, joined by the stamps of their observations.

    Args:
        period: seconds between two actions of a chunk. decay: None takes the newest chunk; a number takes the mean of all that
            say something for the moment, weighted exp(-decay * age in periods) as TemporalEnsemble has it.
        binary: (A,) bool, dimensions that are 0 or 1 and take the value of more weight. longest: chunks kept at most.
    """

    def __init__(
        self, period: float, *, decay: float | None = None, binary: np.ndarray | None = None, longest: int = 64
    ) -> None:
        self._period, self._decay = period, decay
        self._binary = np.array(False) if binary is None else binary
        self._chunks: deque[tuple[float, np.ndarray]] = deque(maxlen=longest if decay is not None else 1)  # newest last

    def add(self, chunk: np.ndarray, stamp: float) -> bool:
        """A chunk (L, A) from the observation of ``stamp``; False, and not taken, if a newer one is there already."""
        if self._chunks and stamp <= self._chunks[-1][0]:
            return False
        self._chunks.append((stamp, np.asarray(chunk)))
        return True

    def action(self, now: float) -> np.ndarray | None:
        """(A,) for the moment ``now``; None where no chunk reaches so far."""
        found = [(stamp, chunk[i]) for stamp, chunk in self._chunks for i in [self._index(stamp, now)] if 0 <= i < len(chunk)]
        if not found:
            return None
        if self._decay is None:
            return found[-1][1]
        ages = np.array([found[-1][0] - stamp for stamp, _ in found]) / self._period
        return ensemble(np.stack([action for _, action in found]), ages, self._decay, self._binary)

    def left(self, now: float) -> int:
        """Actions of the newest chunk from ``now`` on."""
        if not self._chunks:
            return 0
        stamp, chunk = self._chunks[-1]
        return max(0, len(chunk) - max(0, self._index(stamp, now)))

    def age(self, now: float) -> float:
        """Seconds since the newest observation of which there is a chunk; infinite before the first."""
        return now - self._chunks[-1][0] if self._chunks else float("inf")

    def clear(self) -> None:
        self._chunks.clear()

    def _index(self, stamp: float, now: float) -> int:
        return int(np.floor((now - stamp) / self._period + 0.5))  # nearest, so that a loop's jitter skips and repeats nothing


class BlockingBroker:
    """Asks, and waits; executes ``steps`` actions of the chunk, one at a call; asks again.

    The robot stands still, or goes on with its last command, while it waits: for servers that are quick, and for simulators.
    """

    def __init__(self, infer: Infer, *, steps: int | None = None) -> None:
        """``steps``: all of a chunk if None."""
        self._infer, self._steps = infer, steps
        self.reset()

    def reset(self) -> None:
        """Forget the rest of the chunk: a new episode."""
        self._chunk: np.ndarray = np.empty((0, 0))
        self._next = 0

    def needs_observation(self) -> bool:
        """Whether the next ``step`` asks; where not, its observation is not looked at."""
        return self._next >= min(len(self._chunk), self._steps or len(self._chunk))

    def step(self, observation: Mapping[str, Any]) -> np.ndarray:
        """(A,). Raises what ``infer`` raises."""
        if self.needs_observation():
            self._chunk, self._next = _actions(self._infer(observation)), 0
        self._next += 1
        action: np.ndarray = self._chunk[self._next - 1]
        return action


class AsynchronousBroker:
    """Asks on a thread while the last chunk runs; each chunk is entered where the time stands when it has come.

    Call ``step`` at every control step with the newest observation. A request goes out when none is under way and ``every``
    control steps have passed since the last one: 1 for a policy that needs every frame (``metadata["needs_every_frame"]``),
    more to spare the server. With ``decay`` all chunks that reach the moment are averaged, as in Timeline.

    Args:
        infer: called on the thread, one call at a time. period: seconds between two actions, ``1 / metadata["fps"]``.
        executor: where ``infer`` runs; a thread of this broker's own if None.
    """

    def __init__(
        self,
        infer: Infer,
        period: float,
        *,
        every: int = 1,
        decay: float | None = None,
        binary: np.ndarray | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._infer, self._period, self._every = infer, period, every
        self._timeline = Timeline(period, decay=decay, binary=binary)
        self._own = executor is None
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="anyvla-broker")
        self._asked = -float("inf")
        self._under_way: tuple[Future[np.ndarray], float] | None = None
        self._fresh = True

    def __enter__(self) -> AsynchronousBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, observation: Mapping[str, Any], now: float, stamp: float | None = None) -> Step:
        """The action for the moment ``now``.

        Args:
            stamp: when ``observation`` was taken, ``now`` if None. It is sent along, so that the server knows which control
                step the observation belongs to.

        Raises what ``infer`` raised since the last step; the broker asks again at the next one.
        """
        stamp = now if stamp is None else stamp
        new = self._collect()
        if self._under_way is None and stamp - self._asked >= (self._every - 0.5) * self._period:
            request = {**observation, "stamp": stamp, **({"reset": True} if self._fresh else {})}
            self._under_way = self._executor.submit(lambda: _actions(self._infer(request))), stamp
            self._asked, self._fresh = stamp, False
        return Step(self._timeline.action(now), self._timeline.age(now), new)

    def reset(self) -> None:
        """A new episode: what is predicted is forgotten, what is under way will be, and the server is told."""
        self._timeline.clear()
        if self._under_way is not None:
            self._under_way[0].cancel()
        self._under_way, self._fresh, self._asked = None, True, -float("inf")

    def close(self) -> None:
        """End the thread; what it asks for is not waited for."""
        if self._own:
            self._executor.shutdown(wait=False)

    def _collect(self) -> bool:
        if self._under_way is None or not self._under_way[0].done():
            return False
        (answer, stamp), self._under_way = self._under_way, None
        error = answer.exception()
        if error is not None:
            self._fresh = True  # the server may have begun anew
            raise error
        return self._timeline.add(answer.result(), stamp)


def _actions(answer: Mapping[str, Any]) -> np.ndarray:
    """The chunk (L, A) of an answer; raises ValueError if it has none."""
    chunk = np.asarray(answer["actions"])
    if chunk.ndim != 2 or not len(chunk) or chunk.dtype.kind not in "fiu":
        raise ValueError(f"the server answered actions of shape {chunk.shape} and type {chunk.dtype}, not (L, A) numbers")
    return chunk
