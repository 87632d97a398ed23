"""``anyvla <verb>``: parses, calls one function of a room, prints. Heavy rooms are imported by the verb that needs them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

import anyvla
from anyvla.cli_ros2 import ros2_app
from anyvla.errors import AnyVLAError, ConfigError


class _Group(TyperGroup):
    """The outermost group: a user's mistake becomes one line, Ctrl-C a quiet end."""

    def invoke(self, ctx: Any) -> Any:
        for library in ("transformers", "huggingface_hub"):
            logging.getLogger(library).setLevel(logging.ERROR)
        try:
            return super().invoke(ctx)
        except AnyVLAError as error:
            Console(stderr=True).print(f"[bold red]error:[/] {_plain(error)}", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            said = str(error) or "stopped"
            Console(stderr=True).print(f"\n{_plain(said)}", highlight=False, soft_wrap=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Group,
    help="Turn any vision-language model into a robot policy, train it, prove it in closed loop, run it on a robot.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
collect_app = typer.Typer(help="Collect demonstrations of a scripted expert.", no_args_is_help=True)
inspect_app = typer.Typer(help="Look at data, a recipe, a run, or the settings.", no_args_is_help=True)
app.add_typer(collect_app, name="collect")
app.add_typer(inspect_app, name="inspect")
app.add_typer(ros2_app, name="ros2")

Overrides = Annotated[list[str] | None, typer.Argument(help="settings as key.path=value", show_default=False)]
SourceSettings = Annotated[
    list[str] | None,
    typer.Argument(help="settings of the source as key=value; type=FORMAT if it is not found", show_default=False),
]
Spec = Annotated[str | None, typer.Option(help="action spec; that of the data if not given")]
Seed = Annotated[int, typer.Option(min=0)]
Workers = Annotated[int, typer.Option(min=1, help="simulation processes")]
CalvinRoot = Annotated[Path | None, typer.Option(help="your checkout of github.com/mees/calvin")]
CalvinPython = Annotated[str | None, typer.Option(help="the Python that has CALVIN's packages; this one if not given")]
_PROBLEMS_SHOWN = 20
Checkpoint = Annotated[Literal["best", "last"], typer.Option(help="which checkpoint of the run")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False,
) -> None:
    if version:
        print(anyvla.__version__)
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="folder of everything the demo makes; runs/demo or runs/demo-arm if not given")
    ] = None,
    arm: Annotated[
        bool, typer.Option("--arm", help="three tasks of Meta-World with a robot arm instead of navigation")
    ] = False,
    seed: Seed = 0,
    demonstrations: Annotated[
        int | None,
        typer.Option(min=2, help="expert episodes to train on: 520 if not given, 300 with --arm", show_default=False),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="training steps; the recipe's if not given")] = None,
    episodes: Annotated[
        int | None,
        typer.Option(min=1, help="unseen worlds per evaluation: 100; of each task with --arm, 50", show_default=False),
    ] = None,
    workers: Workers = 2,
) -> None:
    """Collect, train, evaluate and report, from nothing, on this machine. Run again, it goes on."""
    settings: dict[str, Any] = {"seed": seed, "steps": steps, "workers": workers}
    settings |= {name: n for name, n in (("demonstrations", demonstrations), ("episodes", episodes)) if n}
    with _going_on():
        if arm:
            from anyvla.demo_arm import run_arm_demo

            result = run_arm_demo(out or Path("runs/demo-arm"), **settings)
        else:
            from anyvla.demo import run_demo

            result = run_demo(out or Path("runs/demo"), **settings)
    print(result.line)
    print(f"report: {result.report}")


@collect_app.command("nav")
def collect_nav_command(
    out: Annotated[Path, typer.Option(help="folder of the episodes")],
    scenario: Annotated[str, typer.Option(help="1box_hori_left and so on, or a part such as 1box, or all")] = "all",
    episodes: Annotated[int, typer.Option(min=1)] = 237,
    seed: Seed = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the images")] = "1280x720",
    disturbances: Annotated[float, typer.Option(min=0, max=1, help="probability per step of a push")] = 0.15,
    language: Annotated[Literal["en", "ko", "any"], typer.Option(help="of the sentences")] = "any",
    workers: Workers = 2,
) -> None:
    """Expert episodes in the built-in navigation world, as mobile_h5 files."""
    from anyvla.simulation.gl import choose_backend

    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    from anyvla.simulation.collect import collect_nav

    with _going_on():
        report = collect_nav(
            out, scenario, episodes, seed, _size(size), workers=workers, disturbances=disturbances, language=language
        )
    print(_collected(report))


@collect_app.command("metaworld")
def collect_metaworld_command(
    out: Annotated[Path, typer.Option(help="folder of the dataset")],
    tasks: Annotated[str, typer.Option(help="names or patterns with commas between: reach-v3,door-*; demo; all")] = "demo",
    episodes: Annotated[int, typer.Option(min=1, help="over all tasks, in turn")] = 300,
    seed: Seed = 0,
    size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the images")] = "96x96",
    cameras: Annotated[str, typer.Option(help="corner, gripper, or both with a comma")] = "corner",
    disturbances: Annotated[float, typer.Option(min=0, max=1, help="probability per step of a push")] = 0.02,
    new_starts: Annotated[float, typer.Option(min=0, max=1, help="share of episodes with the hand elsewhere")] = 0.5,
    workers: Workers = 2,
) -> None:
    """Scripted experts of Meta-World, as a LeRobotDataset v3."""
    from anyvla.simulation.gl import choose_backend

    choose_backend()  # before MuJoCo is imported, which fails where its OpenGL does
    from anyvla.simulation.metaworld_collect import collect_metaworld

    views = tuple(camera.strip() for camera in cameras.split(","))
    with _going_on():
        report = collect_metaworld(
            out,
            tasks,
            episodes,
            seed,
            _size(size),
            cameras=views,
            workers=workers,
            disturbances=disturbances,
            new_starts=new_starts,
        )
    print(_collected(report))


def _collected(report: Any) -> str:
    return (
        f"{report.out}: {report.written} episodes written ({report.frames} frames, {report.seconds:.0f} s), "
        f"{report.skipped} were there, {report.given_up} worlds given up"
    )


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a YAML file, or the name of a recipe in the package")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in `out`")] = False,
) -> None:
    """Train a policy from a recipe."""
    from anyvla.config import load_config
    from anyvla.training.loop import train as train_run

    run = train_run(load_config(recipe, overrides or ()), resume=resume)
    print(f"run: {run}")


@app.command("eval")
def evaluate(
    run: Annotated[Path, typer.Argument(help="a run or checkpoint folder; `expert` for the scripted expert")],
    env: Annotated[Literal["nav", "metaworld", "calvin"], typer.Option(help="benchmark")] = "nav",
    scenario: Annotated[str, typer.Option(help="of nav: 1box_hori_left and so on, or a part such as 1box, or all")] = "1box",
    tasks: Annotated[str, typer.Option(help="of metaworld: names or patterns with commas between; demo; all")] = "demo",
    episodes: Annotated[
        int | None,
        typer.Option(min=1, help="unseen worlds: 100 if not given; of metaworld, of each task, 50", show_default=False),
    ] = None,
    seed: Seed = 0,
    probe: Annotated[
        Literal["none", "blind", "shuffled-language", "randomised", "swapped"], typer.Option(help="is the score real?")
    ] = "none",
    checkpoint: Checkpoint = "last",
    image_size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT that the cameras render; 224x126 for nav, 96x96 for metaworld")
    ] = None,
    execution: Annotated[
        str | None, typer.Option(help="first, receding:STEPS or ensemble:DECAY, instead of the run's own")
    ] = None,
    source: Annotated[str | None, typer.Option(help="of a mixture that it was trained on, whose scale the robot has")] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="write the result file here")] = None,
    report: Annotated[Path | None, typer.Option(help="write the report page here")] = None,
    workers: Workers = 2,
    calvin_root: CalvinRoot = None,
    calvin_python: CalvinPython = None,
    chains: Annotated[int, typer.Option(min=1, max=1000, help="of --env calvin")] = 1000,
    videos: Annotated[Path | None, typer.Option(help="folder of films of the first failures, of --env calvin")] = None,
) -> None:
    """Put a policy into unseen worlds and count."""
    from anyvla.checkpoint import write_atomically

    driver = None if str(run) == "expert" else run
    log = json_out.with_name(f"{json_out.name}.episodes") if json_out else None  # an interrupted evaluation goes on from it
    settings: dict[str, Any] = {
        "seed": seed,
        "probe": probe,
        "checkpoint": checkpoint,
        "execution": _execution(execution),
        "workers": workers,
        "log_file": log,
    }
    if env == "calvin":
        from anyvla.evaluation.calvin.evaluate import describe_result, evaluate_calvin

        if calvin_root is None or driver is None or report is not None or source is not None:
            raise ConfigError(
                "--env calvin takes a run, wants --calvin-root, finds --source in the run, and writes --json and --videos but "
                "no --report"
            )
        result = evaluate_calvin(
            driver,
            calvin_root,
            chains=chains,
            python=calvin_python,
            videos=videos,
            **settings,
        )
        if json_out and log:
            write_atomically(json_out, json.dumps(result, indent=1))
            log.unlink()
        print(*describe_result(result), sep="\n")
        return
    if episodes:
        settings["episodes"] = episodes
    if image_size:
        settings["image_size"] = _size(image_size)
    settings["source"] = source
    film: Any
    if env == "nav":
        from anyvla.evaluation.navigation import evaluate_nav, film_nav

        result, film = evaluate_nav(driver, scenario=scenario, **settings), film_nav
    else:
        from anyvla.evaluation.metaworld import evaluate_metaworld, film_metaworld

        result, film = evaluate_metaworld(driver, tasks=tasks, **settings), film_metaworld
    if json_out and log:
        write_atomically(json_out, json.dumps(result, indent=1))
        log.unlink()
    if report:
        from anyvla.evaluation.report import Evaluation, ReportContent, write_report

        films = film(driver, result, checkpoint) if driver else []
        write_report(report, ReportContent("Evaluation", [Evaluation(str(run), result, kept=films)]))
    low, high = result["wilson95"]
    causes = ", ".join(f"{count} {cause}" for cause, count in result["failures"].items()) or "none"
    print(f"success {result['successes']}/{result['episodes']} (95 % Wilson {low:.3f} to {high:.3f}); failures: {causes}")
    if env != "nav":
        for task, counts in result["per_task"].items():
            print(f"  {task}: {counts['successes']}/{counts['episodes']}")


@app.command("import-robovlms")
def import_robovlms_command(
    config: Annotated[Path, typer.Argument(help="configuration of RoboVLMs, in JSON")],
    checkpoint: Annotated[Path | None, typer.Argument(help="its checkpoint, in one file; only the recipe if not given")] = None,
    out: Annotated[Path, typer.Option(help="folder of the recipe, and of the run")] = Path("runs/imported"),
    vlm: Annotated[str | None, typer.Option(help="folder or hub name of the vision-language model")] = None,
    layout: Annotated[
        Literal["native", "robovlms"] | None, typer.Option(help="of the tokens; robovlms with a checkpoint, native without")
    ] = None,
    steps_per_epoch: Annotated[int | None, typer.Option(min=1, help="optimiser steps in an epoch")] = None,
    statistics: Annotated[Path | None, typer.Option(help="action quantiles of the Open X data that it was trained on")] = None,
    fps: Annotated[float | None, typer.Option(help="control steps per second of its data, where they are not known")] = None,
) -> None:
    """Take over a configuration of RoboVLMs as a recipe, and its checkpoint as a run."""
    from anyvla.importing.robovlms import describe, import_robovlms

    done = import_robovlms(
        config, checkpoint, out, vlm=vlm, layout=layout, steps_per_epoch=steps_per_epoch, statistics=statistics, fps=fps
    )
    print(describe(done.config))
    for name, why in done.unused:
        print(f"tensor not needed: {name}: {why}")
    print(f"recipe: {done.recipe}")
    if done.checkpoint is not None:
        print(f"checkpoint: {done.checkpoint}")


@app.command("import-backbone")
def import_backbone_command(
    family: Annotated[Literal["uform", "moondream", "openflamingo"], typer.Argument()],
    checkpoint: Annotated[str, typer.Argument(help="published file, folder, or hub name; NAME@REVISION for a revision")],
    out: Annotated[Path, typer.Option(help="folder to write, for model.backbone.path")],
    language: Annotated[str | None, typer.Option(help="OpenFlamingo's language model: folder or hub name")] = None,
    vision: Annotated[str | None, typer.Option(help="OpenFlamingo's CLIP ViT-L/14: file, folder or hub name")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="folder or hub name, where it is not beside the weights")] = None,
) -> None:
    """Convert a published UForm-Gen, Moondream or OpenFlamingo, once, to a folder that recipes can name."""
    from anyvla.importing.backbones import import_backbone

    done = import_backbone(family, checkpoint, out, language=language, vision=vision, tokenizer=tokenizer)
    print(f"backbone: {done}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run or checkpoint folder")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    checkpoint: Checkpoint = "last",
    form: Annotated[
        Literal["checkpoint", "torch", "onnx"],
        typer.Option("--format", help="checkpoint: as a run saves it; torch, onnx: graphs that run without the model's code"),
    ] = "checkpoint",
) -> None:
    """Write a policy to run with: LoRA merged into the weights, without what only training needs."""
    if form == "checkpoint":
        from anyvla.checkpoint import export_checkpoint

        print(f"checkpoint: {export_checkpoint(run, out, checkpoint)}")
        return
    from anyvla.deploy.export import export_policy

    folder, difference = export_policy(run, out, form, checkpoint)
    print(f"exported: {folder} (actions equal to {difference:.2g})")


@app.command()
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
        int | None, typer.Option(min=0, help="openpi: show what robots see and are told in a browser")
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

    chosen = _execution(execution)
    if protocol == "vla-eval":
        policy = Policy.load(run, checkpoint=checkpoint, execution=chosen, source=source, device=device)
        renamed = {"camera": camera, "state": state}
        _serve_vla_eval(policy, benchmark or "simpler-widowx", host, port, renamed, turn_images, any_rate, batch)
        return
    from anyvla.serving.server import PolicyServer, ServerSettings, is_loopback, read_key, serve_forever
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


@app.command()
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


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(help="two or more result files of `anyvla eval --json`; first the baseline")],
    form: Annotated[Literal["text", "markdown", "latex"], typer.Option("--format", help="of the table")] = "text",
    per_task: Annotated[bool, typer.Option("--per-task", help="also the success of every task")] = False,
) -> None:
    """Compare evaluations: pair by pair where they are of the same worlds, always with intervals."""
    from anyvla.evaluation.comparison import compare as compare_files
    from anyvla.evaluation.results import read_results

    print(compare_files(read_results(results), form, per_task=per_task))


@inspect_app.command("data")
def inspect_data_command(
    path: Annotated[Path, typer.Argument(help="folder of episodes")],
    settings: SourceSettings = None,
    spec: Spec = None,
    out: Annotated[Path, typer.Option(help="folder of the pictures and of report.json")] = Path("runs/inspect"),
    video: Annotated[bool, typer.Option("--video", help="also a film of a few episodes")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="read every frame and check what has checksums; takes long")] = False,
) -> None:
    """Counts, tasks, lengths, histograms, a contact sheet, and what is wrong."""
    from anyvla.actions.spec import action_spec
    from anyvla.data.inspect import inspect_data, verify_data
    from anyvla.data.sources.opening import open_source, source_at

    source = open_source(source_at(path, settings or ()), action_spec(spec) if spec else None, "skip")
    report = inspect_data(source, out, video=video)
    console = Console()
    summary = report.summary
    lengths = summary["lengths"]
    console.print(
        f"{summary['episodes']} episodes, {summary['frames']} frames "
        f"(length {lengths['min']} to {lengths['max']}, median {lengths['median']:g}); "
        f"cameras: {', '.join(f'{camera} ({count} episodes)' for camera, count in summary['cameras'].items())}; "
        f"fps: {', '.join(summary['fps'])}",
        highlight=False,
    )
    _statistics_table(console, "action", source.spec.names, summary["actions"])
    if summary["state"]:
        state = dict(summary["state"])
        names, count = state.pop("names"), state.pop("episodes")
        _statistics_table(console, f"state ({count} episodes)", names, state)
    console.print(f"{summary['instructions']['different']} different instructions, most often:", highlight=False)
    for instruction, count in summary["instructions"]["most_common"]:
        console.print(f"  {count:>4}  {instruction}", highlight=False, markup=False)
    if summary["tasks"]["different"]:
        console.print(f"{summary['tasks']['different']} different tasks, most often:", highlight=False)
        for task, count in summary["tasks"]["most_common"]:
            console.print(f"  {count:>4}  {task}", highlight=False, markup=False)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/] {_plain(warning)}", highlight=False)
    changed = verify_data(source) if verify else []
    problems = list(dict.fromkeys([*report.problems, *changed]))
    for problem in problems[:_PROBLEMS_SHOWN]:
        console.print(f"[red]damaged:[/] {_plain(problem.reason)}", highlight=False, soft_wrap=True)
    if len(problems) > _PROBLEMS_SHOWN:
        console.print(f"and {len(problems) - _PROBLEMS_SHOWN} more damaged episodes", highlight=False)
    if verify and not changed:
        console.print(f"all {summary['frames']} frames can be read", highlight=False)
    print("pictures:", *report.pictures)
    if changed:
        raise typer.Exit(1)


@inspect_app.command("recipe")
def inspect_recipe(
    recipe: Annotated[str, typer.Argument()],
    overrides: Overrides = None,
    settings: Annotated[bool, typer.Option("--settings", help="the settings alone")] = False,
) -> None:
    """The resolved settings of a recipe, and as comments what its model is and costs, counted without weights."""
    from anyvla.config import load_config

    config = load_config(recipe, overrides or ())
    print(config.to_yaml(), end="", flush=True)
    if settings:
        return
    from anyvla.models.inspect import describe_model

    try:
        lines = describe_model(config).lines()
    except AnyVLAError as error:
        lines = f"the model cannot be described here: {error}".splitlines()
    print("", *(f"# {line}" for line in lines), sep="\n")


@inspect_app.command("run")
def inspect_run(path: Annotated[Path, typer.Argument()], checkpoint: Checkpoint = "last") -> None:
    """What a run or checkpoint is: its inputs and outputs, its last measurements, and whether it computes what it should."""
    from anyvla.checkpoint import check_example, load_checkpoint
    from anyvla.policies.policy import Policy
    from anyvla.training.tracking import read_metrics

    loaded = load_checkpoint(path, checkpoint)
    spec = Policy(loaded.model, loaded.transforms, loaded.config.policy).spec()
    print(f"checkpoint: {loaded.folder}")
    print(f"model: {sum(p.numel() for p in loaded.model.parameters()) / 1e6:.2f} M parameters")
    print(json.dumps(spec.to_dict(), indent=1, ensure_ascii=False))
    metrics = path / "metrics.jsonl"
    if metrics.exists():
        latest: dict[str, Any] = {}
        for line in read_metrics(metrics):
            latest |= line
        print("last measured:", json.dumps(latest))
    print(f"saved example reproduced to {check_example(loaded):.2g}")


@inspect_app.command("schema")
def inspect_schema() -> None:
    """The JSON schema of recipes, for completion in editors."""
    from anyvla.config import json_schema

    print(json.dumps(json_schema(), indent=1))


@app.command()
def stats(
    path: Annotated[Path, typer.Argument(help="folder of episodes")],
    settings: SourceSettings = None,
    spec: Spec = None,
    on_bad_episode: Annotated[Literal["error", "skip"], typer.Option()] = "error",
) -> None:
    """Exact statistics of actions and state, as JSON."""
    from anyvla.actions.spec import action_spec
    from anyvla.data.sources.opening import open_source, source_at
    from anyvla.data.stats import action_statistics, state_statistics, statistics_to_dict
    from anyvla.data.store import default_cache

    config = source_at(path, settings or ())
    source = open_source(config, action_spec(spec) if spec else None, on_bad_episode)
    episodes = [source.episode(i) for i in range(len(source))]
    known = default_cache(), f"{source.name} {config.model_dump_json()} {source.spec}"
    values: dict[str, Any] = {
        "names": source.spec.names,
        "episodes": len(episodes),
        "frames": sum(episode.length for episode in episodes),
        **statistics_to_dict(action_statistics(episodes, *known)),
    }
    names = episodes[0].state_names
    if names and all(episode.state_names == names for episode in episodes):
        values["state"] = {"names": names, **statistics_to_dict(state_statistics(episodes, *known))}
    print(json.dumps(values, indent=1))


@app.command("convert")
def convert_command(
    path: Annotated[Path, typer.Argument(help="folder of episodes, in any format")],
    out: Annotated[Path, typer.Argument(help="folder to write; what it holds already is kept")],
    settings: SourceSettings = None,
    to: Annotated[Literal["packed", "lerobot", "mobile_h5"], typer.Option(help="format to write")] = "packed",
    spec: Spec = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of all images; as they are if not given")] = None,
    fit: Annotated[Literal["stretch", "pad", "crop"], typer.Option(help="how images are brought to that size")] = "stretch",
    encoding: Annotated[
        str | None, typer.Option(help="of images: raw or jpeg in packed, image or video in lerobot; without loss if not given")
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="of jpeg")] = 95,
    workers: Annotated[int | None, typer.Option(min=1, help="decoding processes; all cores if not given")] = None,
    on_bad_episode: Annotated[Literal["error", "skip"], typer.Option()] = "error",
) -> None:
    """Write episodes in another format. Run again, it goes on."""
    from anyvla.actions.spec import action_spec
    from anyvla.data.convert import convert
    from anyvla.data.sources.opening import all_actions, open_source, source_at

    config = source_at(path, settings or ())
    source = open_source(config, action_spec(spec) if spec else all_actions(config), on_bad_episode)
    with _going_on():
        done = convert(
            source,
            out,
            to,
            size=_size(size) if size else None,
            fit=fit,
            encoding=encoding,
            quality=quality,
            workers=workers,
            on_bad_episode=on_bad_episode,
        )
    for problem in done.skipped[:_PROBLEMS_SHOWN]:
        Console().print(f"[red]skipped:[/] {_plain(problem.reason)}", highlight=False, soft_wrap=True)
    print(f"{out}: {done}")


@app.command()
def doctor(
    what: Annotated[Literal["machine", "calvin"], typer.Argument(help="this machine, or a checkout of CALVIN")] = "machine",
    calvin_root: CalvinRoot = None,
    calvin_python: CalvinPython = None,
) -> None:
    """What this machine has: devices, OpenGL, optional parts. Exit status 1 if something needed is missing."""
    from anyvla.doctor import examine, examine_calvin

    findings = examine() if what == "machine" else examine_calvin(calvin_root, calvin_python)
    marks = {"ok": "[green]ok[/]", "optional": "[yellow]--[/]", "problem": "[red]!![/]"}
    table = Table(box=None, show_header=False)
    for finding in findings:
        table.add_row(marks[finding.state], finding.name, _plain(finding.detail))
    Console().print(table)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


@contextmanager
def _going_on() -> Iterator[None]:
    """Say after Ctrl-C what is true of verbs that continue by themselves."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; what was finished is kept, and the same command goes on from there") from None


def _size(text: str) -> tuple[int, int]:
    """``1280x720`` -> (720, 1280)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise ConfigError(f"a size is WIDTHxHEIGHT, such as 1280x720, not {text!r}")
    return int(height), int(width)


def _execution(text: str | None) -> Any:
    """``receding:4`` -> the settings of this execution; None stays None."""
    if text is None:
        return None
    from anyvla.config import parse_config

    kind, _, value = text.partition(":")
    keys = {"receding": "steps", "ensemble": "decay"}
    overrides = ["actions.chunk=1000000", f"policy.execution.type={kind}"]  # the policy itself checks against its chunk
    if value:
        overrides.append(f"policy.execution.{keys.get(kind, 'steps')}={value}")
    return parse_config("{}", overrides, where=f"--execution {text}").policy.execution


def _renamed(option: str, pairs: list[str] | None) -> dict[str, str]:
    """``["primary=front"]`` -> {"primary": "front"}."""
    renamed = {}
    for pair in pairs or ():
        theirs, _, ours = pair.partition("=")
        if not (theirs and ours):
            raise ConfigError(f"--{option} is THEIRS=OURS, not {pair!r}")
        renamed[theirs] = ours
    return renamed


def _statistics_table(console: Console, title: str, names: Sequence[str], statistics: dict[str, list[float]]) -> None:
    table = Table(title, *statistics, box=None)
    for i, name in enumerate(names):
        table.add_row(name, *(f"{values[i]:.3f}" for values in statistics.values()))
    console.print(table)


def _plain(text: object) -> str:
    """Text that rich prints as it is."""
    from rich.markup import escape

    return escape(str(text))
