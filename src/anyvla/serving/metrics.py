"""What the server counts, as text for Prometheus. Used by the event loop's thread alone."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import numpy as np

QUANTILES = (0.5, 0.95, 0.99)
RECENT = 2000  # requests that quantiles are taken over


class Summary:
    """Sum and count of all values, quantiles of the recent ones."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.total, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self._recent.append(value)
        self.total += value
        self.count += 1

    def lines(self, name: str) -> Iterable[str]:
        if self._recent:
            values = np.quantile(np.array(self._recent), QUANTILES)
            yield from (f'{name}{{quantile="{q:g}"}} {value:.6g}' for q, value in zip(QUANTILES, values, strict=True))
        yield f"{name}_sum {self.total:.6g}"
        yield f"{name}_count {self.count}"


class Metrics:
    """Of one server, since its start."""

    def __init__(self) -> None:
        self.requests = 0
        self.connections = 0
        self.stale_drops = 0
        self.missed_frames = 0
        self.errors: Counter[str] = Counter()
        self.answer_seconds = Summary()
        self.model_seconds = Summary()
        self.batch_size = Summary()

    def text(self, *, clients: int, queue: int) -> str:
        """The page at ``/metrics``."""
        lines: list[str] = []

        def page(name: str, kind: str, text: str, values: Iterable[str]) -> None:
            lines.extend([f"# HELP anyvla_{name} {text}", f"# TYPE anyvla_{name} {kind}", *values])

        def single(name: str, kind: str, text: str, value: float) -> None:
            page(name, kind, text, [f"anyvla_{name} {value}"])

        single("requests_total", "counter", "Requests answered with actions.", self.requests)
        errors = [f'anyvla_errors_total{{code="{code}"}} {count}' for code, count in sorted(self.errors.items())]
        page("errors_total", "counter", "Requests and clients that were refused, by the code that they got.", errors)
        single("stale_drops_total", "counter", "Requests not computed: no newer, or their client gone.", self.stale_drops)
        single("missed_frames_total", "counter", "Control steps that clients with stamps left out.", self.missed_frames)
        single("connections_total", "counter", "Clients that have connected.", self.connections)
        single("clients", "gauge", "Clients connected now.", clients)
        single("queue", "gauge", "Requests that wait for the model.", queue)
        for name, text, summary in (
            ("answer_seconds", "From a request's arrival to its answer being sent.", self.answer_seconds),
            ("model_seconds", "One forward pass, images resized.", self.model_seconds),
            ("batch_size", "Requests answered in one forward pass.", self.batch_size),
        ):
            page(name, "summary", text, summary.lines(f"anyvla_{name}"))
        return "\n".join(lines) + "\n"
