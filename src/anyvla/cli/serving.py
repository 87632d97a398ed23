"""Verbs of a policy at work: serve it, watch it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from anyvla.cli.options import Checkpoint, Seed, SourceSettings, Spec, execution_of
from anyvla.errors import ConfigError


def serve(
    run: Annotated[Path, typer.Argument(help="a run or checkpoint folder")],
    protocol: Annotated[
        Literal["openpi", "vla-eval"], typer.Option(help="openpi for robots and their clients, vla-eval for benchmarks")
    ] = "openpi",
    host: Annotated[str, typer.Option(help="0.0.0.0 to be reached from other machines")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    checkpoint: Checkpoint = "last",
    source: Annotated[str | None, typer.Option(help="of a mixture that it was trained on, whose scale the robot has")] = None,
    execution: Annotated[
        str | None, typer.Option(help="first, receding:STEPS or ensemble:DECAY, instead of the run's own")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="observations at most in one forward pass")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")] = "auto",
    api_key_file: Annotated[Path | None, typer.Option(help="openpi: clients must know the key in it")] = None,
    max_clients: Annotated[int, typer.Option(min=1, help="openpi: connections at once")] = 64,
    watch_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="openpi: show what robots see and are told in a browser")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="openpi: torch.compile; minutes at the start")] = False,
    dtype: Annotated[Literal["fp32", "bf16"], typer.Option(help="openpi: what the model computes in")] = "fp32",
    int8: Annotated[bool, typer.Option("--int8", help="openpi: linear layers in 8 bit, on a CPU")] = False,
    benchmark: Annotated[
        Literal["simpler-widowx", "simpler-google", "libero", "calvin"] | None,
        typer.Option(help="vla-eval: whose conventions are translated; simpler-widowx if not given"),
    ] = None,
    camera: Annotated[list[str] | None, typer.Option(help="vla-eval: THEIRS=OURS, where names of cameras differ")] = None,
    state: Annotated[list[str] | None, typer.Option(help="vla-eval: THEIRS=OURS, for the numbers of the state")] = None,
    turn_images: Annotated[
        bool, typer.Option("--turn-images", help="vla-eval: the policy was trained with LIBERO's unturned images")
    ] = False,
    any_rate: Annotated[bool, typer.Option("--any-rate", help="vla-eval: serve in spite of another control rate")] = False,
) -> None:
    """Serve a policy to robots, or to benchmarks that run elsewhere."""
    theirs: dict[str, dict[str, Any]] = {
        "openpi": {
            "api-key-file": api_key_file,
            "compile": compiled,
            "int8": int8,
            "dtype": dtype != "fp32",
            "max-clients": max_clients != 64,
            "watch-port": watch_port is not None,
        },
        "vla-eval": {
            "benchmark": benchmark,
            "camera": camera,
            "state": state,
            "turn-images": turn_images,
            "any-rate": any_rate,
        },
    }
    for other, options in theirs.items():
        for name, given in options.items():
            if given and other != protocol:
                raise ConfigError(f"--{name} goes with --protocol {other}")
    from anyvla.policies.policy import Policy

    chosen = execution_of(execution)
    if protocol == "vla-eval":
        policy = Policy.load(run, checkpoint=checkpoint, execution=chosen, source=source, device=device)
        renamed = {"camera": camera, "state": state}
        _serve_vla_eval(policy, benchmark or "simpler-widowx", host, port, renamed, turn_images, any_rate, batch)
        return
    from anyvla.serving.addresses import is_loopback
    from anyvla.serving.server import PolicyServer, ServerSettings, read_key, serve_forever
    from anyvla.serving.speed import speed_up

    key = None if api_key_file is None else read_key(api_key_file)
    policy = Policy.load(run, checkpoint=checkpoint, execution=chosen, source=source, device=device)
    speed_up(policy, compiled=compiled, bf16=dtype == "bf16", int8=int8)
    settings = ServerSettings(host=host, port=port, api_key=key, batch=batch, max_clients=max_clients)
    monitor = None
    if watch_port is not None:
        from anyvla.serving.monitor import Monitor
        from anyvla.watch.server import start

        monitor = Monitor(policy.transforms.spec, policy.transforms.fps)
        print(f"looking on: {start(monitor, title=str(run), port=watch_port).address}", flush=True)
    server = PolicyServer(policy, settings, monitor)
    if key is None and not is_loopback(host):
        Console(stderr=True).print("[yellow]warning:[/] whoever reaches this machine can use the policy: see --api-key-file")
    print("warming up", flush=True)
    serve_forever(server, lambda port: print(f"serving {run} at ws://{host}:{port}", flush=True))
    print("stopped", flush=True)


def _serve_vla_eval(
    policy: Any,
    benchmark: str,
    host: str,
    port: int,
    named: dict[str, list[str] | None],
    turn_images: bool,
    any_rate: bool,
    batch: int,
) -> None:
    from anyvla.serving import vla_eval
    from anyvla.serving.conventions import convention

    cameras, numbers = (_renamed(kind, pairs) for kind, pairs in named.items())
    bridge = vla_eval.Bridge(
        policy, convention(benchmark), cameras=cameras, state=numbers, turn_images=turn_images, any_rate=any_rate
    )
    server = vla_eval.make_server(bridge, batch=batch)
    print(*bridge.describe(), f"serving vla-eval at ws://{host}:{port}", sep="\n", flush=True)
    vla_eval.serve(server, host, port)


def watch(
    what: Annotated[str, typer.Argument(help="a run (to drive), a folder of episodes, a result file, or http://HOST:PORT")],
    settings: SourceSettings = None,
    run: Annotated[Path | None, typer.Option(help="what this policy says to the episodes: a run or an exported folder")] = None,
    env: Annotated[Literal["nav"] | None, typer.Option(help="world that the run drives, in real time")] = None,
    scenario: Annotated[str, typer.Option(help="of --env nav")] = "1box",
    seed: Seed = 0,
    episodes: Annotated[int | None, typer.Option(min=1, help="worlds to drive; until Ctrl-C if not given")] = None,
    instruction: Annotated[str | None, typer.Option(help="said instead of the world's own, of --env nav")] = None,
    checkpoint: Checkpoint = "last",
    spec: Spec = None,
    host: Annotated[str, typer.Option(help="0.0.0.0 to be seen from other machines, by anybody there")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 8765,
    browser: Annotated[bool, typer.Option("--open", help="open the browser")] = False,
    save: Annotated[Path | None, typer.Option(help="write the episodes to this .rrd file for rerun instead")] = None,
    camera_height: Annotated[float, typer.Option(min=0.01, help="metres; to draw ways into the picture")] = 0.55,
    camera_pitch: Annotated[float, typer.Option(min=-90, max=90, help="degrees below the horizon")] = 14.0,
    camera_fov: Annotated[float, typer.Option(min=1, max=179, help="degrees, horizontal")] = 95.0,
    camera_back: Annotated[float, typer.Option(help="metres behind the point that the robot turns about")] = 0.15,
) -> None:
    """A page in the browser: what a policy sees, is told, predicts and does; live, or from a file."""
    from anyvla.watch.choose import Options, watch_it
    from anyvla.watch.drawing import GroundCamera

    camera = GroundCamera(camera_height, camera_pitch, camera_fov, camera_back)
    options = Options(host, port, browser, camera, checkpoint, spec, tuple(settings or ()))
    watch_it(
        what, options, run=run, env=env, scenario=scenario, seed=seed, episodes=episodes, instruction=instruction, save=save
    )


def _renamed(option: str, pairs: list[str] | None) -> dict[str, str]:
    """``["primary=front"]`` -> {"primary": "front"}."""
    renamed = {}
    for pair in pairs or ():
        theirs, _, ours = pair.partition("=")
        if not (theirs and ours):
            raise ConfigError(f"--{option} is THEIRS=OURS, not {pair!r}")
        renamed[theirs] = ours
    return renamed
