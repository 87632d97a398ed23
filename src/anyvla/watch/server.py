"""The page and its data over HTTP, with the standard library's server: for one person, or a few, to look on.

Reached from this machine only unless another address is given. Whoever can reach it sees the robot's pictures; nobody can do
anything: there is no address that changes something.
"""

from __future__ import annotations

import json
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from anyvla.errors import AnyVLAError, ConfigError
from anyvla.serving.addresses import is_loopback
from anyvla.serving.monitor import Monitor, Shown
from anyvla.watch.drawing import GroundCamera, describe_shown, describe_spec

AT_ONCE = 32  # requests that are answered at the same time
# nothing but what the page itself holds: no address outside, no script that a text brings along
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'"
FILES = {"/": ("page.html", "text/html"), "/page.js": ("page.js", "text/javascript"), "/page.css": ("page.css", "text/css")}


class Showing(Protocol):
    """What a page shows. All answers are JSON values."""

    def about(self) -> dict[str, Any]:
        """``live``, ``title``, ``fps``, ``spec``, ``items``: what can be chosen."""

    def now(self, robot: str | None, after: int) -> dict[str, Any]:
        """Of something live: the newest moment, without its pictures if it is number ``after``; {} before the first."""

    def moment(self, item: int, step: int) -> dict[str, Any]:
        """Of something recorded. Raises IndexError, or DataError for what cannot be read."""


class Live:
    """What a ``Monitor`` holds; pictures are compressed once for all who watch."""

    def __init__(self, monitor: Monitor, title: str = "live", camera: GroundCamera | None = None) -> None:
        self._monitor, self._title, self._camera = monitor, title, camera or GroundCamera()
        self._lock = threading.Lock()
        self._described: dict[str, dict[str, Any]] = {}

    def about(self) -> dict[str, Any]:
        spec, fps = self._monitor.spec, self._monitor.fps
        return {"live": True, "title": self._title, "fps": fps, "spec": describe_spec(spec), "items": []}

    def now(self, robot: str | None, after: int) -> dict[str, Any]:
        shown = self._monitor.shown(robot)
        if shown is None:
            return {}
        key = shown.moment.robot
        with self._lock:
            described = self._described.get(key)
            if described is None or described["number"] != shown.number:
                described = describe_shown(shown, self._monitor.spec, self._monitor.fps, self._camera)
                if key not in self._described and len(self._described) >= len(shown.robots):
                    self._described.clear()  # of robots that have gone
                self._described[key] = described
        fresh = describe_rates(shown)
        if described["number"] == after:
            return {"number": after, "robot": described["robot"], **fresh}
        return {**described, **fresh}

    def moment(self, item: int, step: int) -> dict[str, Any]:
        raise IndexError("nothing is recorded")


def describe_rates(shown: Shown) -> dict[str, Any]:
    """What changes between two moments too."""
    return {
        "age": round(shown.age, 2),
        "stops": [[round(ago, 1), robot, cause, count] for ago, robot, cause, count in shown.stops[-50:]],
        "robots": list(shown.robots),
        "dropped": shown.dropped,
    }


class WatchServer:
    """A running server; ``address`` is what a browser opens."""

    def __init__(self, showing: Showing, host: str = "127.0.0.1", port: int = 0) -> None:
        """``port`` 0 takes a free one. Raises ConfigError where the address cannot be had."""
        local = is_loopback(host)
        files = {path: (_file(name), kind) for path, (name, kind) in FILES.items()}

        class Handler(_Handler):
            pass

        Handler.showing, Handler.local, Handler.files = showing, local, files
        Handler.free = threading.BoundedSemaphore(AT_ONCE)
        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise ConfigError(f"{host}:{port} cannot be listened at: {error}; choose another --port") from error
        shown_host = "127.0.0.1" if host in ("", "0.0.0.0") else f"[{host}]" if ":" in host else host
        self.port: int = self._server.server_address[1]
        self.address = f"http://{shown_host}:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def start(monitor: Monitor, *, title: str = "live", host: str = "127.0.0.1", port: int = 0) -> WatchServer:
    """Show ``monitor`` at ``host:port`` from now on; what a server or a node calls."""
    return WatchServer(Live(monitor, title), host, port)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a browser keeps its connections open

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Not a word of a client that went away; anything else is a bug, and is printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10  # seconds for a slow client; it costs itself only
    server_version = "anyvla"
    sys_version = ""
    showing: Showing
    local: bool
    files: dict[str, tuple[bytes, str]]
    free: threading.BoundedSemaphore

    def do_GET(self) -> None:
        if not self.free.acquire(blocking=False):
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"too many look on", "text/plain")
            return
        try:
            self._get()
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        finally:
            self.free.release()

    def _get(self) -> None:
        # a page from elsewhere may reach this machine under a name of its own
        if self.local and not is_loopback(urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""):
            self._answer(HTTPStatus.FORBIDDEN, b"open this page at 127.0.0.1 or localhost", "text/plain")
            return
        address = urlsplit(self.path)
        if address.path in self.files:
            self._answer(HTTPStatus.OK, *self.files[address.path])
            return
        query = {key: values[-1] for key, values in parse_qs(address.query).items()}
        try:
            if address.path == "/api/about":
                content = self.showing.about()
            elif address.path == "/api/now":
                content = self.showing.now(query.get("robot"), int(query.get("after", -1)))
            elif address.path == "/api/moment":
                content = self.showing.moment(int(query.get("item", 0)), int(query.get("step", 0)))
            else:
                self._answer(HTTPStatus.NOT_FOUND, b"no such page", "text/plain")
                return
        except (IndexError, ValueError):
            self._answer(HTTPStatus.NOT_FOUND, b"no such moment", "text/plain")
            return
        except AnyVLAError as error:
            content = {"error": str(error)}
        self._answer(HTTPStatus.OK, json.dumps(content, allow_nan=False).encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to whoever drives the robot."""


def _file(name: str) -> bytes:
    return (resources.files("anyvla.watch") / name).read_bytes()
