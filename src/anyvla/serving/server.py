"""The policy server: openpi's protocol over a WebSocket, many clients, one model.

The event loop reads, checks and writes; one thread runs the model, on everything that waits when it is free. Whatever a client
does costs it its own connection and nobody else anything: frames are bounded and checked, few are kept of a client, answers
have a time limit, a batch that fails is tried again request by request.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

import anyvla
from anyvla.errors import ConfigError, DataError, MissingExtraError
from anyvla.policies.policy import Policy
from anyvla.serving.metrics import Metrics
from anyvla.serving.monitor import Moment, Monitor
from anyvla.serving.requests import Answer, Episode, Request, UnsafeActionError, answer_batch, read_observation

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection
    from websockets.http11 import Request as HttpRequest
    from websockets.http11 import Response

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSettings:
    """How a policy is served.

    Attributes:
        api_key: clients must send ``Authorization: Api-Key <key>``. batch: requests at most in one forward pass.
        max_clients: connections at once. max_bytes: of a frame. send_timeout: seconds for a client to take its answer.
        grace: seconds for what is in flight when the server is stopped.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    batch: int = 16
    max_clients: int = 64
    max_bytes: int = 16 * 2**20
    send_timeout: float = 5.0
    grace: float = 5.0


class Refusal(Exception):  # noqa: N818 - what the client is told, not what went wrong here
    """Ends a connection with a code and a sentence."""

    def __init__(self, code: str, sentence: object) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code


def read_key(path: Path) -> str:
    """The API key in a file. Raises ConfigError."""
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path}: {error}") from error
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(f"--api-key-file {path}: expected one line of ASCII characters")
    return key


class PolicyServer:
    """Serves one policy; ``run`` is the whole life of it.

    Raises MissingExtraError without the extra ``serve``.
    """

    def __init__(self, policy: Policy, settings: ServerSettings | None = None, monitor: Monitor | None = None) -> None:
        """``monitor`` is shown every answer, for people who look on."""
        try:
            from websockets.asyncio.server import serve

            from anyvla_client import wire
        except ImportError as error:
            raise MissingExtraError("websockets", "serve") from error
        self._serve, self._wire = serve, wire
        self.policy, self.settings = policy, settings or ServerSettings()
        self.metrics = Metrics()
        self._monitor = monitor
        self.spec = policy.spec()
        self._queue: SimpleQueue[tuple[Request, asyncio.Future[Answer]] | None] = SimpleQueue()  # None: no more will come
        self._busy: dict[ServerConnection, bool] = {}  # every connected client: whether it has a request in flight
        self._stopping = False
        self._greeting = wire.pack(self.metadata())

    def metadata(self) -> dict[str, Any]:
        """The first frame that a client gets: exactly what to send, and what comes back."""
        spec = self.spec.to_dict()
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in spec.items()},
            "server": "anyvla",
            "version": anyvla.__version__,
            "fingerprint": hashlib.sha256(self.policy.transforms.to_json().encode()).hexdigest(),
            "execution": self.policy.config.execution.model_dump(),
            "needs_every_frame": self.policy.has_history,
            "training_range": self.policy.training_range(),
            "max_bytes": self.settings.max_bytes,
        }

    # ------------------------------------------------------------------------------------------------------ life of a server

    async def run(self, stop: asyncio.Event, listening: Callable[[int], object] = lambda port: None) -> None:
        """Warm up, listen, serve until ``stop``, finish what is in flight.

        Args:
            listening: called with the port once clients can connect.

        Raises:
            ConfigError: host and port cannot be had.
        """
        quiet = logging.getLogger(f"{__name__}.protocol")
        quiet.setLevel(logging.CRITICAL)  # whatever a client does is counted, not told as our error
        settings = self.settings
        with ThreadPoolExecutor(1, thread_name_prefix="anyvla-inference") as inference:
            await asyncio.wrap_future(inference.submit(self._warm_up))
            try:
                server = await self._serve(
                    self._talk,
                    settings.host,
                    settings.port,
                    process_request=self._http,
                    origins=[None],  # no page in a browser may speak to a robot's policy behind its user's back
                    compression=None,
                    max_size=settings.max_bytes,
                    max_queue=1,
                    close_timeout=settings.send_timeout,
                    logger=quiet,
                )
            except OSError as error:
                raise ConfigError(f"cannot serve at {settings.host}:{settings.port}: {error}") from error
            batches = asyncio.wrap_future(inference.submit(self._infer, asyncio.get_running_loop()))
            try:
                listening(next(iter(server.sockets)).getsockname()[1])
                told = asyncio.create_task(stop.wait())
                either: list[asyncio.Future[Any]] = [told, batches]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                told.cancel()
                await self._finish(server)
            finally:
                self._queue.put(None)
                server.close()
                await server.wait_closed()
            await batches  # raises the bug, if it ended by one

    async def _finish(self, server: Any) -> None:
        """No new clients; idle ones are let go at once, busy ones when they have their answer."""
        self._stopping = True
        server.close(close_connections=False)
        idle = [connection for connection, busy in self._busy.items() if not busy]
        await asyncio.gather(*(connection.close(1001, "the server stops") for connection in idle))
        deadline = time.monotonic() + self.settings.grace
        while self._busy and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        for connection in self._busy:
            connection.transport.abort()

    def _warm_up(self) -> None:
        """The first passes are the slowest, and compile what is to be compiled: none of that while a robot waits."""
        height, width = self.spec.image_size
        images = {camera: np.zeros((height, width, 3), np.uint8) for camera in self.spec.cameras}
        state = np.zeros(len(self.spec.state)) if self.spec.state else None
        for rows in (1, 1, min(2, self.settings.batch)):
            sessions = [self.policy.start("stop") for _ in range(rows)]
            self.policy.chunk_batch(sessions, [images] * rows, states=[state] * rows)

    def _infer(self, loop: asyncio.AbstractEventLoop) -> None:
        """On its own thread, until there is nothing more to come: whatever waits, together."""
        while (first := self._queue.get()) is not None:
            waiting = [first]
            while len(waiting) < self.settings.batch and not self._queue.empty():
                further = self._queue.get()
                if further is None:
                    self._queue.put(None)
                    break
                waiting.append(further)
            alive = [(request, answer) for request, answer in waiting if not request.given_up]
            if len(alive) < len(waiting):
                loop.call_soon_threadsafe(self._count_stale, len(waiting) - len(alive))
            groups = [alive] if alive else []
            while groups:
                group = groups.pop(0)
                outcomes: Sequence[Answer | Exception]
                try:
                    outcomes = answer_batch(self.policy, [request for request, _ in group])
                except Exception as error:  # noqa: BLE001 - whatever fails, the clients are told, and the server goes on
                    if len(group) > 1:
                        groups = [[one] for one in group]  # one of them is to blame, and is found by asking each alone
                        continue
                    outcomes = [error]
                loop.call_soon_threadsafe(self._deliver, [answer for _, answer in group], outcomes)

    def _count_stale(self, drops: int) -> None:
        self.metrics.stale_drops += drops

    def _deliver(self, answers: list[asyncio.Future[Answer]], outcomes: Sequence[Answer | Exception]) -> None:
        for answer, outcome in zip(answers, outcomes, strict=True):
            if answer.done():
                continue
            if isinstance(outcome, Answer):
                answer.set_result(outcome)
            else:
                answer.set_exception(outcome)

    # ---------------------------------------------------------------------------------------------------------- one connection

    def _http(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Pages, and who may connect; None goes on with the WebSocket."""
        if request.path == "/healthz":
            return connection.respond(200, "OK\n")
        if request.path == "/metrics":
            text = self.metrics.text(clients=len(self._busy), queue=self._queue.qsize())
            return connection.respond(200, text)
        if request.path != "/":
            return connection.respond(404, "there is / for WebSockets, /healthz and /metrics\n")
        if self.settings.api_key is not None:
            given = request.headers.get_all("Authorization")
            expected = f"Api-Key {self.settings.api_key}".encode()
            # compare_digest takes the same time wherever the difference is
            if len(given) != 1 or not hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), expected):
                self.metrics.errors["wrong_key"] += 1
                return connection.respond(401, "wrong_key: this server wants the header Authorization: Api-Key <key>\n")
        if len(self._busy) >= self.settings.max_clients:
            self.metrics.errors["too_many_clients"] += 1
            return connection.respond(503, f"too_many_clients: {self.settings.max_clients} are connected\n")
        return None

    async def _talk(self, connection: ServerConnection) -> None:
        """One client, from its metadata to its end."""
        from websockets.exceptions import ConnectionClosed

        self._busy[connection] = False
        self.metrics.connections += 1
        gone = asyncio.create_task(connection.wait_closed())
        try:
            try:
                await self._send(connection, self._greeting)
                await self._answer_all(connection, gone)
            except Refusal as refusal:
                self.metrics.errors[refusal.code] += 1
                logger.warning("a client was refused: %s", refusal)
                await self._send(connection, str(refusal))
                await connection.close(1011, refusal.code)
        except ConnectionClosed:
            pass  # every client ends so; what it did before has been counted
        except TimeoutError:
            self.metrics.errors["slow_reader"] += 1
            connection.transport.abort()
        finally:
            gone.cancel()
            del self._busy[connection]

    async def _answer_all(self, connection: ServerConnection, gone: asyncio.Task[None]) -> None:
        episode = Episode()
        robot = "{}:{}".format(*connection.remote_address[:2])
        previous: float | None = None
        while not self._stopping:
            frame = await connection.recv()
            arrived = time.perf_counter()
            self._busy[connection] = True
            message = await self._answer(robot, episode, frame, gone, previous)
            if message is None:
                return
            await self._send(connection, message)
            self._busy[connection] = False
            previous = time.perf_counter() - arrived
            self.metrics.requests += 1
            self.metrics.answer_seconds.add(previous)
        await connection.close(1001, "the server stops")

    async def _answer(
        self, robot: str, episode: Episode, frame: str | bytes, gone: asyncio.Task[None], previous: float | None
    ) -> bytes | None:
        """The frame that answers ``frame``; None if its client went away meanwhile. Raises Refusal."""
        try:
            message = self._wire.unpack(frame, self.settings.max_bytes)
            request = Request(episode, read_observation(message, self.spec))
        except self._wire.WireError as error:
            raise Refusal("malformed_frame", error) from error
        except DataError as error:
            raise Refusal("bad_observation", error) from error
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        missed = episode.missed
        self._queue.put((request, answer))
        either: tuple[asyncio.Future[Any], ...] = (answer, gone)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            request.given_up = True
            answer.cancel()
            return None
        failure = answer.exception()
        if isinstance(failure, DataError):
            raise Refusal("bad_observation", failure)
        if isinstance(failure, UnsafeActionError):
            raise Refusal("unsafe_action", failure)
        if failure is not None:
            logger.error("the model failed", exc_info=failure)
            raise Refusal("internal_error", "the policy failed on this observation; the server's log says how")
        result = answer.result()
        if result.stale:
            self.metrics.stale_drops += 1
        else:
            self.metrics.model_seconds.add(result.seconds)
            self.metrics.batch_size.add(result.batch)
        self.metrics.missed_frames += max(0, episode.missed - missed)
        elapsed = 1e3 * (time.perf_counter() - request.arrived)
        timing = {"infer_ms": elapsed}
        if self._monitor is not None:
            images = request.observation.images
            self._monitor.show(Moment(robot, episode.prompt, images, result.chunk, result.chunk[0], step_ms=elapsed))
        if previous is not None:
            timing["prev_total_ms"] = 1e3 * previous
        reply: dict[str, Any] = {key: message[key] for key in ("request_id", "stamp") if key in message}
        reply["actions"] = result.chunk
        reply["policy_timing"] = {"infer_ms": 1e3 * result.seconds, "batch": result.batch, "missed_frames": episode.missed}
        reply["server_timing"] = timing
        if result.stale:
            reply["stale"] = True
        return self._wire.pack(reply)

    async def _send(self, connection: ServerConnection, message: str | bytes) -> None:
        async with asyncio.timeout(self.settings.send_timeout):
            await connection.send(message)


def serve_forever(server: PolicyServer, listening: Callable[[int], object]) -> None:
    """Serve until SIGTERM or Ctrl-C, then stop as ``run`` does; a second signal ends the process at once."""

    async def life() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stopped(number: signal.Signals) -> None:
            stop.set()
            for another in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(another, os._exit, 128 + another)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped, number)
        await server.run(stop, listening)

    asyncio.run(life())


@contextmanager
def running(server: PolicyServer) -> Iterator[str]:
    """Serve on a thread of this process; gives ``ws://host:port``. For tests, and for a robot that has all in one process."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()

    async def life() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        await server.run(stop, lambda port: started.set_result((loop, stop, port)))

    with ThreadPoolExecutor(1, thread_name_prefix="anyvla-server") as thread:
        done = thread.submit(asyncio.run, life())
        either: tuple[Future[Any], ...] = (started, done)
        wait(either, return_when=FIRST_COMPLETED)
        if not started.done():
            done.result()  # raises what kept it from listening
        loop, stop, port = started.result()
        try:
            yield f"ws://{server.settings.host}:{port}"
        finally:
            if not done.done():
                loop.call_soon_threadsafe(stop.set)
            done.result()
