"""Verbs that judge: evaluate and compare."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from anyvla.cli.options import CalvinPython, CalvinRoot, Checkpoint, Seed, Workers, execution_of, size_of
from anyvla.errors import ConfigError

# options of `eval` that not every benchmark has
_OF = {
    "scenario": ("nav",),
    "tasks": ("metaworld",),
    "episodes": ("nav", "metaworld"),
    "image_size": ("nav", "metaworld"),
    "source": ("nav", "metaworld"),
    "report": ("nav", "metaworld"),
    "calvin_root": ("calvin",),
    "calvin_python": ("calvin",),
    "chains": ("calvin",),
    "videos": ("calvin",),
}


def evaluate(
    context: typer.Context,
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
    for name, benchmarks in _OF.items():
        given_by = context.get_parameter_source(name)
        if env not in benchmarks and given_by is not None and given_by.name != "DEFAULT":
            raise ConfigError(f"--{name.replace('_', '-')} goes with --env {' or '.join(benchmarks)}, not {env}")
    from anyvla.checkpoint import write_atomically

    driver = None if str(run) == "expert" else run
    log = json_out.with_name(f"{json_out.name}.episodes") if json_out else None  # an interrupted evaluation goes on from it
    settings: dict[str, Any] = {
        "seed": seed,
        "probe": probe,
        "checkpoint": checkpoint,
        "execution": execution_of(execution),
        "workers": workers,
        "log_file": log,
    }
    film: Any = None
    if env == "calvin":
        from anyvla.evaluation.calvin.evaluate import describe_result, evaluate_calvin

        if calvin_root is None or driver is None:
            raise ConfigError("--env calvin takes a run, and wants --calvin-root")
        result = evaluate_calvin(driver, calvin_root, chains=chains, python=calvin_python, videos=videos, **settings)
    else:
        given = {"episodes": episodes, "image_size": size_of(image_size) if image_size else None, "source": source}
        settings |= {name: value for name, value in given.items() if value is not None}
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
    print(*(describe_result(result) if env == "calvin" else _described(result)), sep="\n")


def _described(result: dict[str, Any]) -> list[str]:
    low, high = result["wilson95"]
    causes = ", ".join(f"{count} {cause}" for cause, count in result["failures"].items()) or "none"
    lines = [f"success {result['successes']}/{result['episodes']} (95 % Wilson {low:.3f} to {high:.3f}); failures: {causes}"]
    if result["env"] != "nav":
        lines += [f"  {task}: {counts['successes']}/{counts['episodes']}" for task, counts in result["per_task"].items()]
    return lines


def compare(
    results: Annotated[list[Path], typer.Argument(help="two or more result files of `anyvla eval --json`; first the baseline")],
    form: Annotated[Literal["text", "markdown", "latex"], typer.Option("--format", help="of the table")] = "text",
    per_task: Annotated[bool, typer.Option("--per-task", help="also the success of every task")] = False,
) -> None:
    """Compare evaluations: pair by pair where they are of the same worlds, always with intervals."""
    from anyvla.evaluation.comparison import compare as compare_files
    from anyvla.evaluation.results import read_results

    print(compare_files(read_results(results), form, per_task=per_task))
