"""``anyvla watch``: from what the user names to the page that shows it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
import webbrowser
from dataclasses import dataclass
from pathlib import Path

from anyvla.checkpoint import Which
from anyvla.errors import ConfigError
from anyvla.policies.session import PolicyBase
from anyvla.serving.monitor import Monitor
from anyvla.watch.drawing import GroundCamera
from anyvla.watch.recordings import Episodes, Results
from anyvla.watch.server import Live, Showing, WatchServer


@dataclass(frozen=True)
class Options:
    """How it is shown. ``spec``: name of the actions of a folder of episodes. ``settings``: ``key=value`` of its source."""

    host: str
    port: int
    browser: bool
    camera: GroundCamera
    checkpoint: Which = "last"
    spec: str | None = None
    settings: tuple[str, ...] = ()


def watch_it(
    what: str,
    options: Options,
    *,
    run: Path | None = None,
    env: str | None = None,
    scenario: str = "1box",
    seed: int = 0,
    episodes: int | None = None,
    instruction: str | None = None,
    save: Path | None = None,
) -> None:
    """Show ``what`` until Ctrl-C: a run that drives ``env``, episodes, a result file, or the page of a process that runs.

    Raises:
        AnyVLAError: it cannot be shown; the message says what can.
    """
    if what.startswith(("http://", "https://")):
        _visit(what, options)
        return
    path = Path(what)
    if env is not None:
        _drive(path, options, scenario, seed, episodes, instruction)
        return
    if is_policy(path):
        raise ConfigError(f"{path} is a policy: say which world it drives (--env nav), or name episodes and give it as --run")
    if path.suffix == ".json" and path.is_file():
        if save is not None or run is not None:
            raise ConfigError("a result file holds no pictures: --save and --run are for episodes")
        _serve(Results(path), options)
        return
    recorded = open_episodes(path, options, run)
    if save is not None:
        from anyvla.watch.rerun_log import save_rerun

        print(f"rerun: {save_rerun(recorded, save)}")
        return
    _serve(recorded, options)


def open_episodes(path: Path, options: Options, run: Path | None) -> Episodes:
    from anyvla.actions.spec import action_spec
    from anyvla.data.sources.opening import open_source, source_at

    policy = None if run is None else load_policy(run, options.checkpoint)
    spec = policy.transforms.spec if policy else action_spec(options.spec) if options.spec else None
    state = policy.transforms.state.names if policy and policy.transforms.state else None
    source = open_source(source_at(path, options.settings), spec, "skip", state)
    return Episodes(source, path.name if policy is None else f"{path.name}, seen by {run}", policy, options.camera)


def is_policy(path: Path) -> bool:
    """Whether a run, a checkpoint or an export lies there."""
    return any((path / name).exists() for name in ("checkpoints.json", "model.safetensors", "deploy.json"))


def load_policy(path: Path, which: Which = "last") -> PolicyBase:
    """A run, a checkpoint, or what ``anyvla export --format onnx`` wrote."""
    if (path / "deploy.json").exists():
        from anyvla.deploy.runtime import DeployedPolicy

        return DeployedPolicy.load(path)
    from anyvla.policies.policy import Policy

    return Policy.load(path, checkpoint=which)


def _drive(path: Path, options: Options, scenario: str, seed: int, episodes: int | None, instruction: str | None) -> None:
    from anyvla.watch.live import drive_nav

    policy = load_policy(path, options.checkpoint)
    monitor = Monitor(policy.transforms.spec, policy.transforms.fps)
    server = _open(Live(monitor, f"{path} in the navigation world", options.camera), options)
    try:
        drive_nav(
            policy,
            monitor,
            scenario=scenario,
            seed=seed,
            episodes=episodes,
            instruction=instruction,
            on_outcome=lambda world, outcome: print(f"seed {world}: {outcome.replace('_', ' ')}", flush=True),
        )
    finally:
        server.close()


def _visit(address: str, options: Options) -> None:
    """Open the page that another process shows, once it is known to answer."""
    try:
        with urllib.request.urlopen(address.rstrip("/") + "/api/about", timeout=5) as answer:
            about = json.load(answer)
        title = str(about["title"])
    except (OSError, urllib.error.URLError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{address} shows nothing to watch ({error}); it is the address that a server or a node prints as `watch`"
        ) from error
    print(f"{title}: {address}")
    if not webbrowser.open(address):
        print("no browser was found here: open this address in one")


def _open(showing: Showing, options: Options) -> WatchServer:
    server = WatchServer(showing, options.host, options.port)
    print(f"watch: {server.address}", flush=True)
    if options.browser:
        webbrowser.open(server.address)
    return server


def _serve(showing: Showing, options: Options) -> None:
    server = _open(showing, options)
    try:
        threading.Event().wait()
    finally:
        server.close()
