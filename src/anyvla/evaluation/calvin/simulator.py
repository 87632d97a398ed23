"""The near end of a worker process: see ``worker.py`` for what is said over its pipe."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from anyvla.errors import SimulationError
from anyvla.evaluation.calvin import worker
from anyvla.evaluation.calvin.worker import read_frame, write_frame

TAIL = 15  # lines of a dead worker's stderr that its error shows


class Simulator:
    """One CALVIN environment in a process of its own. Requests and replies alternate: ``send``, then ``receive``."""

    def __init__(self, root: Path, cameras: tuple[str, ...], python: str | None = None) -> None:
        """``cameras``: those that are rendered. ``python``: the interpreter that has CALVIN's packages; this one if None."""
        self._python = python or sys.executable
        self._stderr = tempfile.TemporaryFile()  # a file never fills up as a pipe would  # noqa: SIM115
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}  # the processes are the parallelism
        try:
            self._process = subprocess.Popen(
                [self._python, worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
                start_new_session=True,  # Ctrl-C is for this process; the worker ends when its pipe does
            )
        except OSError as error:
            self._stderr.close()
            raise SimulationError(f"--calvin-python {self._python}: cannot be run ({error.strerror})") from error
        try:
            answer, _ = self.request({"type": "open", "root": str(root.absolute()), "cameras": list(cameras)})
            self.versions: dict[str, str] = answer["versions"]
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Of the stream of replies, for ``select``."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def send(self, header: dict[str, Any], **arrays: np.ndarray) -> None:
        assert self._process.stdin is not None
        try:
            write_frame(self._process.stdin, header, arrays)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died() from error

    def receive(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Raises SimulationError, with what the process said last, if it has died."""
        assert self._process.stdout is not None
        try:
            return read_frame(self._process.stdout)
        except (EOFError, ConnectionResetError) as error:
            raise self._died() from error
        except ValueError as error:
            raise SimulationError(f"the process of the CALVIN environment sends nonsense: {error}") from error

    def request(self, header: dict[str, Any], **arrays: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        self.send(header, **arrays)
        return self.receive()

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):  # something was not yet sent when the process died
                stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _died(self) -> SimulationError:
        try:
            code: int | str = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = "none: it closed its pipe and lives on"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").splitlines()
        said = "\n".join(f"    {line}" for line in lines[-TAIL:]) or "    (nothing)"
        return SimulationError(
            f"the CALVIN environment, run by {self._python}, has died (exit status {code}); it said last:\n{said}\n"
            "anyvla doctor calvin --calvin-root PATH says what is missing"
        )
