"""What every benchmark shares: it says on what it ran, times single calls, and writes what it found."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from anyvla.evaluation.driving import machine
from anyvla.evaluation.statistics import percentiles

RESULTS = Path(__file__).parent / "results"


def milliseconds(call: Callable[[], object], repeats: int, warm_up: int = 3) -> dict[str, float]:
    """p50, p95 and p99 of single calls, after ``warm_up`` that don't count."""
    for _ in range(warm_up):
        call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - began))
    return {name: round(value, 4) for name, value in percentiles(times).items()}


def in_fresh_process(
    script: str, task: dict[str, Any], threads: int, variables: dict[str, str] | None = None
) -> dict[str, Any]:
    """What ``script --task`` prints as its last line, computed in a process of its own with these environment variables."""
    command = [sys.executable, script, "--task", json.dumps(task)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TRANSFORMERS_VERBOSITY": "error", **(variables or {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(task, result, flush=True)
    return result


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def report(name: str, results: dict[str, Any]) -> None:
    """Print the results with hardware, versions and command, and write them to ``results/<name>.json``."""
    content = {
        "benchmark": name,
        "date": date.today().isoformat(),
        "command": " ".join(["python", *sys.argv]),
        "machine": {**machine(), "processor": _processor()},
        "results": results,
    }
    text = json.dumps(content, indent=1)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()
