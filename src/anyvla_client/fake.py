"""The command ``anyvla-client``: asks a policy server without camera or robot, and says how quickly it answers.

    anyvla-client --fake --uri ws://localhost:8000 --rate 10 --seconds 5

Random images and states, made by what the server's metadata say, are sent at a control rate through the asynchronous broker.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np

from anyvla_client.brokers import AsynchronousBroker
from anyvla_client.safety import Limits, SafetyFilter


def fake_observation(metadata: Mapping[str, Any], rng: np.random.Generator, prompt: str) -> dict[str, Any]:
    """Random images of the size that the model takes, a random state, an instruction."""
    height, width = metadata["image_size"]
    images = {camera: rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for camera in metadata["cameras"]}
    state = {"state": rng.uniform(-1, 1, len(metadata["state"])).astype(np.float32)} if metadata["state"] else {}
    return {"images": images, "prompt": prompt, **state}


def drive_fake(client: Any, *, rate: float | None, seconds: float, seed: int, prompt: str, every: int = 1) -> dict[str, Any]:
    """Control steps against ``client`` for some seconds; what came of it, times in milliseconds.

    Args:
        rate: control steps a second, that of the policy's training data if None. every: steps between two requests.

    Raises ValueError for a server that does not say what it wants.
    """
    metadata, rng = client.metadata, np.random.default_rng(seed)
    missing = [key for key in ("cameras", "image_size", "state", "action", "fps") if key not in metadata]
    if missing:
        raise ValueError(f"the server's metadata do not say what it wants ({', '.join(missing)}): it is not AnyVLA's")
    period = 1 / (rate or float(metadata["fps"]))
    limits = Limits.from_spec(metadata["action"])
    latencies: list[float] = []

    def infer(observation: Mapping[str, Any]) -> Any:
        began = time.perf_counter()
        answer = client.infer(observation)
        latencies.append(time.perf_counter() - began)
        return answer

    guard, late, stops, ages = SafetyFilter(limits, period), [], [], []
    began = time.perf_counter()
    with AsynchronousBroker(infer, period, every=every, binary=limits.binary) as broker:
        steps = 0
        while steps * period < seconds:
            due = began + steps * period
            time.sleep(max(0.0, due - time.perf_counter()))
            now = time.perf_counter()
            late.append(now - due)
            step = broker.step(fake_observation(metadata, rng, prompt), now - began)
            if step.action is None:
                stops.append(steps)
            else:
                safe = guard.filter(step.action, observation_age=0.0, action_age=step.age)
                ages.append(step.age)
                if safe.stop is not None:
                    stops.append(steps)
            steps += 1
    taken = time.perf_counter() - began
    return {
        "control_steps": steps,
        "control_rate": round(steps / taken, 2),
        "target_rate": round(1 / period, 2),
        "answers": len(latencies),
        "answers_a_second": round(len(latencies) / taken, 2),
        "steps_without_action": len(stops),
        "latency_ms": _quantiles(latencies),
        "loop_late_ms": _quantiles(late),
        "action_age_ms": _quantiles(ages),
    }


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {f"p{q}": round(1e3 * float(np.quantile(seconds, q / 100)), 3) for q in (50, 95, 99)}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="anyvla-client", description="Try a policy server.")
    parser.add_argument("--uri", default="ws://localhost:8000", help="of the server (%(default)s)")
    parser.add_argument("--fake", action="store_true", help="send random images and print rates; without it, only the metadata")
    parser.add_argument("--rate", type=float, help="control steps a second; the policy's own if not given")
    parser.add_argument("--seconds", type=float, default=5.0, help="(%(default)s)")
    parser.add_argument("--every", type=int, default=1, help="control steps between two requests (%(default)s)")
    parser.add_argument("--prompt", default="stop in front of the bottle", help="the instruction (%(default)s)")
    parser.add_argument("--api-key-file", type=Path, help="file with the server's key")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for an answer (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if (given.rate is not None and given.rate <= 0) or given.seconds <= 0 or given.every < 1:
        parser.error("--rate and --seconds must be positive, --every at least 1")
    try:
        from anyvla_client.client import ClientError, PolicyClient
    except ImportError as error:
        print(f"error: {error}: pip install anyvla-client, or 'anyvla[serve]'", file=sys.stderr)
        return 1
    try:
        key = given.api_key_file.read_text().strip() if given.api_key_file else None
        with PolicyClient(given.uri, key, timeout=given.timeout) as client:
            print(json.dumps(client.metadata, indent=1, ensure_ascii=False, default=str))
            if given.fake:
                done = drive_fake(
                    client, rate=given.rate, seconds=given.seconds, seed=given.seed, prompt=given.prompt, every=given.every
                )
                print(json.dumps({**done, "connections": client.connections}, indent=1))
    except (ClientError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
