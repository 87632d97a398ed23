"""``anyvla <verb>``: parses, calls one function of a room, prints. Heavy rooms are imported by the verb that needs them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

import anyvla
from anyvla.cli import data, evaluation, models, serving
from anyvla.cli.options import CalvinPython, CalvinRoot, Overrides, Seed, Workers, going_on, plain
from anyvla.cli.ros2 import ros2_app
from anyvla.errors import AnyVLAError


class _Group(TyperGroup):
    """The outermost group: a user's mistake becomes one line, Ctrl-C a quiet end."""

    def invoke(self, ctx: Any) -> Any:
        for library in ("transformers", "huggingface_hub"):
            logging.getLogger(library).setLevel(logging.ERROR)
        try:
            return super().invoke(ctx)
        except AnyVLAError as error:
            Console(stderr=True).print(f"[bold red]error:[/] {plain(error)}", highlight=False, soft_wrap=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            said = str(error) or "stopped"
            Console(stderr=True).print(f"\n{plain(said)}", highlight=False, soft_wrap=True)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Group,
    help="Turn any vision-language model into a robot policy, train it, prove it in closed loop, run it on a robot.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


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
    with going_on():
        if arm:
            from anyvla.demo_arm import run_arm_demo

            result = run_arm_demo(out or Path("runs/demo-arm"), **settings)
        else:
            from anyvla.demo import run_demo

            result = run_demo(out or Path("runs/demo"), **settings)
    print(result.line)
    print(f"report: {result.report}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a YAML file, or the name of a recipe in the package")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in `out`")] = False,
) -> None:
    """Train a policy from a recipe."""
    from anyvla.config import load_config

    config = load_config(recipe, overrides or ())  # a mistake in it is told before anything heavy is loaded
    from anyvla.training.loop import train as train_run

    run = train_run(config, resume=resume)
    print(f"run: {run}")


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
        table.add_row(marks[finding.state], finding.name, plain(finding.detail))
    Console().print(table)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


inspect_app = typer.Typer(help="Look at data, a recipe, a run, or the settings.", no_args_is_help=True)
inspect_app.command("data")(data.inspect_data_command)
inspect_app.command("recipe")(models.inspect_recipe)
inspect_app.command("run")(models.inspect_run)
inspect_app.command("schema")(models.inspect_schema)

app.command("eval")(evaluation.evaluate)
app.command("compare")(evaluation.compare)
app.command("serve")(serving.serve)
app.command("watch")(serving.watch)
app.command("export")(models.export)
app.command("convert")(data.convert_command)
app.command("stats")(data.stats)
app.command("import-robovlms")(models.import_robovlms_command)
app.command("import-backbone")(models.import_backbone_command)
app.add_typer(data.collect_app, name="collect")
app.add_typer(inspect_app, name="inspect")
app.add_typer(ros2_app, name="ros2")
