"""PolicyClient: asks a policy server (AnyVLA's, or any that speaks openpi's protocol) for actions.

with PolicyClient("ws://localhost:8000") as client:
    print(client.metadata)
    answer = client.infer({"images": {"front": image}, "prompt": "stop in front of the bottle"})
    answer["actions"]                                  # (L, A) in robot units
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, Mapping

from anyvla_client.wire import MAX_BYTES, WireError, pack, unpack

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class ClientError(Exception):
    """The server gives no actions; the message says why."""


class ServerLostError(ClientError):
    """No server could be reached, or none stayed, within the time."""


class AnswerTimeoutError(ClientError):
    """The server is there, and did not answer in time."""


class RefusedError(ClientError):
    """The server says no: ``code`` is its own (``wrong_key``, ``bad_observation``, ..), asking the same again will not help."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}" if code else sentence)
        self.code = code


class PolicyClient:
    """One connection to a policy server, made again when it is lost.

    ``infer`` gives an answer or raises a ClientError within ``timeout`` seconds: a lost connection is tried anew, at first at
    once, then with growing pauses. On a new connection the server knows nothing of the episode so far: ``connections`` tells.
    Safe to use from several threads, whose requests then take turns.

    Args:
        uri: ws://host:port or wss://. api_key: sent as ``Authorization: Api-Key <key>``.
        timeout: seconds for an answer, reconnecting included. connect_timeout: seconds for one attempt to connect.
        pause: seconds between the first two attempts, doubled each time up to ``longest_pause``.

    Raises:
        ClientError: there is no server within ``timeout``, or it refuses.
    """

    def __init__(
        self,
        uri: str,
        api_key: str | None = None,
        *,
        timeout: float = 10.0,
        connect_timeout: float = 5.0,
        pause: float = 0.05,
        longest_pause: float = 2.0,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self.uri = uri
        self.connections = 0
        self.metadata: dict[str, Any] = {}
        self._headers = {} if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._timeout, self._connect_timeout = timeout, connect_timeout
        self._pause, self._longest_pause = pause, longest_pause
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._connection: ClientConnection | None = None
        self._closed = False
        with self._lock:
            self._connect_until(time.monotonic() + timeout)

    def __enter__(self) -> PolicyClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """Whether there is a connection that neither side has ended: False as soon as a server that dies is noticed."""
        connection = self._connection
        return connection is not None and connection.protocol.state.name == "OPEN"

    def infer(self, observation: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """One observation -> the server's answer, ``actions`` (L, A) in it.

        Raises:
            RefusedError: the server says what is wrong with the observation. AnswerTimeoutError, ServerLostError: see there.
            WireError: the observation cannot be sent.
        """
        frame = pack(observation)
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        with self._lock:
            while True:
                try:
                    return self._ask(frame, deadline)
                except _Lost as lost:
                    self._drop()
                    if time.monotonic() >= deadline:
                        raise ServerLostError(f"{self.uri}: {lost}") from lost

    def close(self) -> None:
        """End the connection; the client cannot be used any more."""
        with self._lock:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _ask(self, frame: bytes, deadline: float) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        connection = self._connect_until(deadline)
        try:
            _limit_sending(connection.socket, deadline - time.monotonic())
            connection.send(frame)
            answer = connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            self._drop()  # whatever comes now would be taken for the answer to the next request
            raise AnswerTimeoutError(f"{self.uri} did not answer in time") from error
        except (ConnectionClosed, OSError) as error:
            raise _Lost(f"the connection was lost: {error}") from error
        return self._read(answer)

    def _read(self, answer: Any) -> dict[str, Any]:
        if isinstance(answer, str):  # an error, behind which the server closes
            self._drop()
            code, _, sentence = answer.partition(": ")
            raise RefusedError(code, sentence) if re.fullmatch(r"[a-z_]+", code) else RefusedError("", answer)
        try:
            return unpack(answer, self._max_bytes)
        except WireError as error:
            self._drop()
            raise ClientError(f"{self.uri} sends what is not openpi's protocol: {error}") from error

    def _connect_until(self, deadline: float) -> ClientConnection:
        """The connection, made if there is none, with growing pauses between attempts."""
        if self._closed:
            raise ClientError("this client was closed")
        pause = self._pause
        while self._connection is None:
            try:
                self._connect(deadline)
            except _Lost as lost:
                if time.monotonic() + pause >= deadline:
                    raise ServerLostError(f"no policy server at {self.uri}: {lost}") from lost
                time.sleep(pause)
                pause = min(2 * pause, self._longest_pause)
        return self._connection

    def _connect(self, deadline: float) -> None:
        from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
        from websockets.sync.client import connect

        left = max(0.01, min(self._connect_timeout, deadline - time.monotonic()))
        try:
            attempt = connect(
                self.uri,
                additional_headers=self._headers,
                compression=None,
                max_size=self._max_bytes,
                open_timeout=left,
                close_timeout=1,
            )
            connection = attempt.__enter__()  # the one way that all versions of websockets have; it ends by close()
        except InvalidURI as error:
            raise ClientError(str(error)) from error
        except InvalidStatus as error:
            status, said = error.response.status_code, (error.response.body or b"").decode(errors="replace").strip()
            if status in (401, 403, 404):
                code, _, sentence = said.partition(": ")
                raise RefusedError(code if sentence else "", sentence or f"{self.uri} answers {status}: {said}") from error
            raise _Lost(f"it answers {status} {said}".strip()) from error
        except (OSError, TimeoutError, WebSocketException) as error:
            raise _Lost(str(error) or type(error).__name__) from error
        try:
            first = connection.recv(timeout=left)
        except (TimeoutError, WebSocketException) as error:
            connection.close()
            raise _Lost("it does not say what it serves") from error
        self._connection = connection
        self.metadata = self._read(first)
        self.connections += 1

    def _drop(self) -> None:
        """Without a farewell: the other side may not listen."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close_timeout = 0
            connection.close()


class _Lost(Exception):  # noqa: N818 - inside only
    """Another attempt may help."""


def _limit_sending(sock: socket.socket, seconds: float) -> None:
    """A server that does not read would block the sender for ever; where the system can, it is told to give up."""
    if hasattr(socket, "SO_SNDTIMEO") and struct.calcsize("l") == 8:
        left = max(seconds, 0.001)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(left), int(left % 1 * 1e6)))
