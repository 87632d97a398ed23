"""The policy server on loopback: what it adds to the model, many robots at once, and the rhythm of a control loop.

python benchmarks/serving.py [--run runs/demo/run] [--requests 2000] [--clients 32] [--rate 10] [--seconds 60]

The server is a process of its own. *Overhead*: two 224 x 224 images there, a chunk of 10 actions back, from a model that
answers at once; *plain*: the same bytes and the same client against the least of a server, which decodes and answers, without
checks, threads or model. *Load*: robots with a camera of 224 x 126, each at its own rate, on the policy of ``--run``, or on
that of the recipe nav-tiny with random weights. *Control*: a loop at 30 Hz with the asynchronous broker, while the model takes
100 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from common import milliseconds, report
from torch import nn

from anyvla.actions import fit_normalizer
from anyvla.actions.spec import action_spec
from anyvla.checkpoint import build_model
from anyvla.config import load_config
from anyvla.config.tree import PolicyConfig
from anyvla.data.transforms import Transforms
from anyvla.evaluation.statistics import percentiles
from anyvla.models.vla import VLA
from anyvla.policies.policy import Policy
from anyvla.serving.server import PolicyServer, ServerSettings, serve_forever
from anyvla_client.client import PolicyClient
from anyvla_client.fake import drive_fake, fake_observation
from anyvla_client.wire import pack, unpack


class Pretended(nn.Module):
    """A model that takes ``seconds`` and answers zeros."""

    history = 1

    def __init__(self, chunk: int, actions: int, seconds: float) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.device = torch.device("cpu")  # type: ignore[assignment]
        self._shape, self._seconds = (chunk, actions), seconds

    def init_state(self) -> None:
        return None

    def step(self, images: Any, prompts: list[str], states: list[Any], *_: Any) -> tuple[torch.Tensor, list[Any]]:
        if self._seconds:
            time.sleep(self._seconds)
        return torch.zeros(len(prompts), *self._shape), states


def transforms(spec: str, cameras: tuple[str, ...], size: tuple[int, int], window: int, chunk: int, fps: float) -> Transforms:
    action = action_spec(spec)
    statistics = {"q01": action.low, "q99": action.high}
    return Transforms(
        spec=action,
        normalizer=fit_normalizer("quantile", statistics, action),
        statistics=statistics,
        cameras=cameras,
        image_size=size,
        fit="stretch",
        prompt_template="{instruction}",
        window=window,
        chunk=chunk,
        fps=fps,
    )


def make_policy(kind: str) -> Policy:
    """``pretended:SECONDS``, ``nav-tiny`` or a run."""
    if kind.startswith("pretended:"):
        model = Pretended(10, 7, float(kind.partition(":")[2]))
        return Policy(
            cast(VLA, model), transforms("arm7", ("front", "wrist"), (224, 224), 1, 10, fps=30), PolicyConfig.model_construct()
        )
    if kind == "nav-tiny":
        config = load_config("nav-tiny")
        size, actions = config.observation.image_size or (64, 112), config.actions
        ours = transforms("nav2", ("front",), (size[0], size[1]), actions.window, actions.chunk, fps=2.5)
        torch.manual_seed(0)
        return Policy(build_model(config, ours), ours, config.policy)
    return Policy.load(kind, device="cpu")


@contextmanager
def server(kind: str, threads: int) -> Iterator[str]:
    """In a process of its own, on a free port."""
    command = [sys.executable, __file__, "--serve", kind, "--threads", str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise SystemExit(f"the server ended with status {process.wait()}")
        yield f"ws://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def rounded(values: Iterable[float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in percentiles(list(values)).items()}


def overhead(uri: str, requests: int) -> dict[str, Any]:
    """Round trips of one client, back to back, in milliseconds; how much of them the server calls the model; and what else
    passes in the server, from the whole frame to the answer handed to the socket."""
    rng = np.random.default_rng(0)
    with PolicyClient(uri) as client:
        observation = fake_observation(client.metadata, rng, "stop in front of the bottle")
        model: list[float] = []
        served: list[float] = []

        def ask() -> None:
            answer = client.infer(observation)
            if "prev_total_ms" in answer.get("server_timing", {}):
                served.append(answer["server_timing"]["prev_total_ms"] - model[-1])
            model.append(answer["policy_timing"]["infer_ms"])

        trips = milliseconds(ask, requests, warm_up=50)
        found = {"round_trip_ms": trips, "of_these_model_ms": rounded(model)}
        return found | ({"further_in_the_server_ms": rounded(served)} if served else {})


async def load(uri: str, clients: int, rate: float, seconds: float, size: tuple[int, int]) -> dict[str, Any]:
    """``clients`` robots, each with a frame every ``1 / rate`` seconds for ``seconds``, spread over the period."""
    from websockets.asyncio.client import connect

    latencies: list[float] = []
    late = 0
    began = time.perf_counter() + 1.0

    async def robot(number: int) -> None:
        nonlocal late
        rng = np.random.default_rng(number)
        frames = [
            pack({"images": {"front": rng.integers(0, 256, (*size, 3), dtype=np.uint8)}, "prompt": f"Go to box {number}."})
            for _ in range(8)
        ]
        async with connect(uri, compression=None, max_size=None) as connection:
            await connection.recv()
            for step in range(round(rate * seconds)):
                due = began + (step + number / clients) / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                late += time.perf_counter() - due > 1 / rate  # it was still waiting for the answer before
                asked = time.perf_counter()
                await connection.send(frames[step % len(frames)])
                answer = unpack(await connection.recv())
                assert np.isfinite(answer["actions"]).all()
                latencies.append(time.perf_counter() - asked)

    await asyncio.gather(*map(robot, range(clients)))
    expected = clients * round(rate * seconds)
    return {
        "clients": clients,
        "rate": rate,
        "seconds": seconds,
        "requests": expected,
        "answers": len(latencies),
        "lost": expected - len(latencies),
        "more_than_a_period_late": late,
        "latency_ms": rounded(1e3 * one for one in latencies),
    }


async def plain() -> None:
    """What any server of this protocol does at least."""
    from websockets.asyncio.server import ServerConnection, serve

    actions = np.zeros((10, 7), np.float32)

    async def talk(connection: ServerConnection) -> None:
        size = {"cameras": ["front", "wrist"], "image_size": [224, 224], "state": []}
        await connection.send(pack(size))
        async for frame in connection:
            unpack(frame)
            await connection.send(pack({"actions": actions, "policy_timing": {"infer_ms": 0.0}}))

    async with serve(talk, "127.0.0.1", 0, compression=None, max_size=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()


def counters(uri: str) -> dict[str, float]:
    """Of the server's page."""
    with urllib.request.urlopen(uri.replace("ws:", "http:") + "/metrics") as page:
        lines = [line.split() for line in page.read().decode().splitlines() if not line.startswith("#")]
    names = ("requests_total", "stale_drops_total", "batch_size_sum", "batch_size_count")
    found = {name.removeprefix("anyvla_"): float(value) for name, value in lines if "{" not in name or "errors" in name}
    return {name: value for name, value in found.items() if name in names or "errors" in name}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default="nav-tiny", help="a run; the recipe nav-tiny with random weights if not given")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rate", type=float, default=10)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve == "plain":
        asyncio.run(plain())
    if arguments.serve:
        torch.set_num_threads(arguments.threads)
        served = PolicyServer(make_policy(arguments.serve), ServerSettings(port=0, batch=32))
        serve_forever(served, lambda port: print(port, flush=True))
        return
    machine_load = Path("/proc/loadavg").read_text().split()[:3] if Path("/proc/loadavg").exists() else []
    results: dict[str, Any] = {"load_average_before": machine_load, "threads_of_the_model": arguments.threads}
    with server("pretended:0", 1) as ours, server("plain", 1) as theirs:
        # in turns, so that both meet the same load of the machine
        rounds = [(overhead(ours, arguments.requests // 5), overhead(theirs, arguments.requests // 5)) for _ in range(5)]
        results["overhead"], results["plain"] = ([one[i] for one in rounds] for i in range(2))
    with server("pretended:0.1", 1) as uri, PolicyClient(uri) as client:
        results["control"] = drive_fake(client, rate=30, seconds=min(20.0, arguments.seconds), seed=0, prompt="go")
    with server(arguments.run, arguments.threads) as uri:
        done = asyncio.run(load(uri, arguments.clients, arguments.rate, arguments.seconds, (126, 224)))
        results["load"] = {"policy": arguments.run, **done, "server": counters(uri)}
    report("serving", results)


if __name__ == "__main__":
    main()
