"""Verbs of data: collect, inspect, count, convert."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from anyvla.cli.options import PROBLEMS_SHOWN, Seed, SourceSettings, Spec, Workers, going_on, plain, size_of

collect_app = typer.Typer(help="Collect demonstrations of a scripted expert.", no_args_is_help=True)


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

    with going_on():
        report = collect_nav(
            out, scenario, episodes, seed, size_of(size), workers=workers, disturbances=disturbances, language=language
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
    with going_on():
        report = collect_metaworld(
            out,
            tasks,
            episodes,
            seed,
            size_of(size),
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
    from anyvla.data.sources.opening import all_actions, open_source, source_at

    config = source_at(path, settings or ())
    source = open_source(config, action_spec(spec) if spec else all_actions(config), "skip")
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
        console.print(f"[yellow]warning:[/] {plain(warning)}", highlight=False)
    changed = verify_data(source) if verify else []
    problems = list(dict.fromkeys([*report.problems, *changed]))
    for problem in problems[:PROBLEMS_SHOWN]:
        console.print(f"[red]damaged:[/] {plain(problem.reason)}", highlight=False, soft_wrap=True)
    if len(problems) > PROBLEMS_SHOWN:
        console.print(f"and {len(problems) - PROBLEMS_SHOWN} more damaged episodes", highlight=False)
    if verify and not changed:
        console.print(f"all {summary['frames']} frames can be read", highlight=False)
    print("pictures:", *report.pictures)
    if changed:
        raise typer.Exit(1)


def stats(
    path: Annotated[Path, typer.Argument(help="folder of episodes")],
    settings: SourceSettings = None,
    spec: Spec = None,
    on_bad_episode: Annotated[Literal["error", "skip"], typer.Option()] = "error",
) -> None:
    """Exact statistics of actions and state, as JSON."""
    from anyvla.actions.spec import action_spec
    from anyvla.data.sources.opening import all_actions, open_source, source_at
    from anyvla.data.stats import action_statistics, state_statistics, statistics_to_dict
    from anyvla.data.store import default_cache

    config = source_at(path, settings or ())
    source = open_source(config, action_spec(spec) if spec else all_actions(config), on_bad_episode)
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


def convert_command(
    path: Annotated[Path, typer.Argument(help="folder of episodes, in any format")],
    out: Annotated[Path, typer.Argument(help="folder to write; what it holds already is kept")],
    settings: SourceSettings = None,
    to: Annotated[Literal["packed", "lerobot", "mobile_h5"], typer.Option(help="format to write")] = "packed",
    spec: Spec = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT of all images; as they are if not given")] = None,
    fit: Annotated[Literal["stretch", "pad", "crop"], typer.Option(help="how images are brought to that size")] = "stretch",
    encoding: Annotated[
        str | None,
        typer.Option(help="of images: raw, jpeg or avif in packed, image or video in lerobot; without loss if not given"),
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="of jpeg (95 if not given) and avif (85)", show_default=False)
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="decoding processes; all cores if not given")] = None,
    on_bad_episode: Annotated[Literal["error", "skip"], typer.Option()] = "error",
) -> None:
    """Write episodes in another format. Run again, it goes on."""
    from anyvla.actions.spec import action_spec
    from anyvla.data.convert import convert
    from anyvla.data.sources.opening import all_actions, open_source, source_at

    config = source_at(path, settings or ())
    source = open_source(config, action_spec(spec) if spec else all_actions(config), on_bad_episode)
    with going_on():
        done = convert(
            source,
            out,
            to,
            size=size_of(size) if size else None,
            fit=fit,
            encoding=encoding,
            quality=quality,
            workers=workers,
            on_bad_episode=on_bad_episode,
        )
    for problem in done.skipped[:PROBLEMS_SHOWN]:
        Console().print(f"[red]skipped:[/] {plain(problem.reason)}", highlight=False, soft_wrap=True)
    print(f"{out}: {done}")


def _statistics_table(console: Console, title: str, names: Sequence[str], statistics: dict[str, list[float]]) -> None:
    table = Table(title, *statistics, box=None)
    for i, name in enumerate(names):
        table.add_row(name, *(f"{values[i]:.3f}" for values in statistics.values()))
    console.print(table)
