"""``anyvla demo``: from nothing to a policy that drives. Collect, train, evaluate, report; interrupted anywhere, it goes on.

``carry_out`` is that path for any ``Demo``; ``run_demo`` is navigation, the arm's is in ``anyvla.demo_arm``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.checkpoint import write_atomically
from anyvla.config import load_config
from anyvla.errors import ConfigError
from anyvla.evaluation.navigation import evaluate_nav, film_nav
from anyvla.evaluation.report import Evaluation, Filmed, ReportContent, write_report
from anyvla.evaluation.tasks import Probe
from anyvla.training.tracking import read_metrics

IMAGE_SIZE = (126, 224)  # rendered and stored, 16:9


@dataclass(frozen=True)
class DemoResult:
    """Where the report is, and the one line that sums it up."""

    report: Path
    summary: Path
    line: str


@dataclass(frozen=True)
class Row:
    """One evaluation of a demo."""

    key: str
    name: str
    scenario: str = "1box"
    probe: Probe = "none"
    meaning: str = ""  # the report's own words if empty


@dataclass(frozen=True)
class Demo:
    """What tells one demo from another.

    Attributes:
        settings: what a folder of it was begun with; it goes on with the same only.
        collect: writes the demonstrations into a folder. recipe: what is trained on them.
        rows: its evaluations; the first is the policy's own, one with the key ``expert`` is the scripted expert's.
        evaluate: (row, run or None, log file) -> result. film: (run, results by key) -> filmed episodes by key.
        line: the one line that sums up ``summary.json``.
    """

    title: str
    settings: dict[str, Any]
    collect: Callable[[Path], object]
    recipe: str
    rows: tuple[Row, ...]
    evaluate: Callable[[Row, Path | None, Path], dict[str, Any]]
    film: Callable[[Path, dict[str, dict[str, Any]]], dict[str, Sequence[Filmed]]]
    line: Callable[[dict[str, Any]], str]


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    demonstrations: int = 520,
    steps: int | None = None,
    episodes: int = 100,
    workers: int = 2,
) -> DemoResult:
    """The navigation demo in ``out``; what an earlier run has finished is taken as it is.

    Args:
        demonstrations: expert episodes to train on. steps: optimiser steps, the recipe's if None.
        episodes: unseen worlds per evaluation.
    """
    from anyvla.simulation.gl import choose_backend

    choose_backend()  # at once: without OpenGL nothing else is worth beginning, and MuJoCo does not even import
    from anyvla.simulation.collect import collect_nav

    def evaluate(row: Row, run: Path | None, log_file: Path) -> dict[str, Any]:
        return evaluate_nav(
            run,
            scenario=row.scenario,
            probe=row.probe,
            episodes=episodes,
            seed=seed,
            workers=workers,
            image_size=IMAGE_SIZE,
            log_file=log_file,
            description=f"evaluate: {row.name.lower()}",
        )

    def film(run: Path, results: dict[str, dict[str, Any]]) -> dict[str, Sequence[Filmed]]:
        films: dict[str, Sequence[Filmed]] = {key: film_nav(run, results[key]) for key in ("policy", "two_boxes")}
        films["swapped"] = film_nav(run, results["swapped"], indices=[film.index for film in films["policy"]])
        return films

    demo = Demo(
        title="AnyVLA demo",
        settings={"seed": seed, "demonstrations": demonstrations, "steps": steps, "episodes": episodes},
        collect=lambda folder: collect_nav(folder, "1box", demonstrations, seed, IMAGE_SIZE, workers=workers),
        recipe="nav-tiny",
        rows=_ROWS,
        evaluate=evaluate,
        film=film,
        line=_line,
    )
    return carry_out(demo, out)


def carry_out(demo: Demo, out: Path) -> DemoResult:
    """Run the whole path of ``demo`` in ``out``; what an earlier run has finished is taken as it is."""
    from anyvla.training.loop import train

    out.mkdir(parents=True, exist_ok=True)
    _keep_settings(out, demo.settings)
    stages = _Stages(out / "stages.json")
    with stages.time("collect"):
        demo.collect(out / "data")
    seed, steps = demo.settings["seed"], demo.settings["steps"]
    overrides = [f"seed={seed}", f"out={out / 'run'}", f"data.source.path={out / 'data'}", f"data.cache={out / 'cache'}"]
    overrides += [f"training.steps={steps}"] if steps else []
    config = load_config(demo.recipe, overrides)
    with stages.time("train"):
        train(config, resume=True)
    results: dict[str, dict[str, Any]] = {}
    with stages.time("evaluate"):
        for row in demo.rows:
            run = None if row.key == "expert" else out / "run"
            results[row.key] = demo.evaluate(row, run, out / "evaluation" / f"{row.key}.jsonl")
    with stages.time("report"):
        films = demo.film(out / "run", results)
        content = ReportContent(
            title=demo.title,
            evaluations=[Evaluation(r.name, results[r.key], r.meaning, films.get(r.key, ())) for r in demo.rows],
            metrics=read_metrics(out / "run" / "metrics.jsonl"),
            config_yaml=config.to_yaml(),
            data_summary=json.loads((out / "run" / "data.json").read_text()),
            stages=stages.seconds,
        )
        report = write_report(out / "report.html", content)
    summary = _summary(results, stages.seconds)
    write_atomically(out / "summary.json", json.dumps(summary, indent=1))
    return DemoResult(report, out / "summary.json", demo.line(summary))


def _keep_settings(out: Path, settings: dict[str, Any]) -> None:
    """A folder holds one demo: going on with other numbers would mix two."""
    path = out / "demo.json"
    if not path.exists():
        write_atomically(path, json.dumps(settings))
        return
    before = json.loads(path.read_text())
    if before != settings:
        keys = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        changed = ", ".join(f"{key} {before.get(key)} then, {settings.get(key)} now" for key in keys)
        raise ConfigError(f"{out} holds a demo with other settings ({changed}): use another --out")


_ROWS = (
    Row("policy", "Policy"),
    Row("swapped", "Left and right exchanged", probe="swapped"),
    Row("blind", "No sentence", probe="blind"),
    Row("two_boxes", "Two boxes", "2box", meaning="The policy in worlds with two boxes; it was trained with one box only."),
    Row("expert", "Expert"),
)


def _summary(evaluations: dict[str, dict[str, Any]], seconds: dict[str, float]) -> dict[str, Any]:
    """The numbers of ``summary.json``: each evaluation without its single episodes."""
    left_out = ("results", "seeds", "machine")
    rows = {key: {k: v for k, v in result.items() if k not in left_out} for key, result in evaluations.items()}
    return {"evaluations": rows, "seconds": seconds, "machine": evaluations["policy"]["machine"]}


def minutes(summary: dict[str, Any]) -> str:
    """What the demo took, without the report."""
    taken = sum(summary["seconds"].get(stage, 0.0) for stage in ("collect", "train", "evaluate"))
    return f"collect + train + evaluate {taken / 60:.1f} min"


def _line(summary: dict[str, Any]) -> str:
    rows = summary["evaluations"]
    policy, swapped = rows["policy"], rows["swapped"]
    low, high = policy["wilson95"]
    return (
        f"success {policy['successes']}/{policy['episodes']} (95 % Wilson {low:.2f} to {high:.2f}); "
        f"left and right exchanged: passed on the other side {swapped['passed_as_told']}/{swapped['episodes']}; "
        f"no sentence {rows['blind']['successes']}/{rows['blind']['episodes']}, "
        f"two boxes (never trained) {rows['two_boxes']['successes']}/{rows['two_boxes']['episodes']}, "
        f"expert {rows['expert']['successes']}/{rows['expert']['episodes']}; "
        f"{minutes(summary)}"
    )


class _Stages:
    """Seconds spent in each stage, over all runs of the demo."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
            write_atomically(self._path, json.dumps(self.seconds))
