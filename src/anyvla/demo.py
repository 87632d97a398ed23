"""``anyvla demo``: from nothing to a policy that drives. Collect, train, evaluate, report; interrupted anywhere, it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyvla.checkpoint import write_atomically
from anyvla.config import load_config
from anyvla.errors import ConfigError
from anyvla.evaluation.navigation import evaluate_nav, film_nav
from anyvla.evaluation.report import Evaluation, ReportContent, write_report
from anyvla.evaluation.tasks import Probe
from anyvla.training.tracking import read_metrics

IMAGE_SIZE = (126, 224)  # rendered and stored, 16:9


@dataclass(frozen=True)
class DemoResult:
    """Where the report is, and the one line that sums it up."""

    report: Path
    summary: Path
    line: str


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    demonstrations: int = 520,
    steps: int | None = None,
    episodes: int = 100,
    workers: int = 2,
) -> DemoResult:
    """Run the whole path in ``out``; what an earlier run has finished is taken as it is.

    Args:
        demonstrations: expert episodes to train on. steps: optimiser steps, the recipe's if None.
        episodes: unseen worlds per evaluation.
    """
    from anyvla.simulation.gl import choose_backend

    choose_backend()  # at once: without OpenGL nothing else is worth beginning, and MuJoCo does not even import
    from anyvla.simulation.collect import collect_nav
    from anyvla.training.loop import train

    out.mkdir(parents=True, exist_ok=True)
    _keep_settings(out, {"seed": seed, "demonstrations": demonstrations, "steps": steps, "episodes": episodes})
    stages = _Stages(out / "stages.json")
    with stages.time("collect"):
        collect_nav(out / "data", "1box", demonstrations, seed, IMAGE_SIZE, workers=workers)
    overrides = [f"seed={seed}", f"out={out / 'run'}", f"data.source.path={out / 'data'}", f"data.cache={out / 'cache'}"]
    overrides += [f"training.steps={steps}"] if steps else []
    config = load_config("nav-tiny", overrides)
    with stages.time("train"):
        train(config, resume=True)
    evaluations: dict[str, dict[str, Any]] = {}
    with stages.time("evaluate"):
        for row in _ROWS:
            evaluations[row.key] = evaluate_nav(
                out / "run" if row.key != "expert" else None,
                scenario=row.scenario,
                probe=row.probe,
                episodes=episodes,
                seed=seed,
                workers=workers,
                image_size=IMAGE_SIZE,
                log_file=out / "evaluation" / f"{row.key}.jsonl",
                description=f"evaluate: {row.name.lower()}",
            )
    with stages.time("report"):
        films = {key: film_nav(out / "run", evaluations[key]) for key in ("policy", "two_boxes")}
        films["swapped"] = film_nav(out / "run", evaluations["swapped"], indices=[film.index for film in films["policy"]])
        content = ReportContent(
            title="AnyVLA demo",
            evaluations=[Evaluation(r.name, evaluations[r.key], r.meaning, films.get(r.key, ())) for r in _ROWS],
            metrics=read_metrics(out / "run" / "metrics.jsonl"),
            config_yaml=config.to_yaml(),
            data_summary=json.loads((out / "run" / "data.json").read_text()),
            stages=stages.seconds,
        )
        report = write_report(out / "report.html", content)
    summary = _summary(evaluations, stages.seconds)
    write_atomically(out / "summary.json", json.dumps(summary, indent=1))
    return DemoResult(report, out / "summary.json", _line(summary))


def _keep_settings(out: Path, settings: dict[str, Any]) -> None:
    """A folder holds one demo: going on with other numbers would mix two."""
    path = out / "demo.json"
    if not path.exists():
        write_atomically(path, json.dumps(settings))
        return
    before = json.loads(path.read_text())
    if before != settings:
        changed = ", ".join(f"{key} {before.get(key)} then, {now} now" for key, now in settings.items() if now != before[key])
        raise ConfigError(f"{out} holds a demo with other settings ({changed}): use another --out")


@dataclass(frozen=True)
class _Row:
    """One evaluation of the demo."""

    key: str
    name: str
    scenario: str = "1box"
    probe: Probe = "none"
    meaning: str = ""  # the report's own words if empty


_ROWS = (
    _Row("policy", "Policy"),
    _Row("swapped", "Left and right exchanged", probe="swapped"),
    _Row("blind", "No sentence", probe="blind"),
    _Row("two_boxes", "Two boxes", "2box", meaning="The policy in worlds with two boxes; it was trained with one box only."),
    _Row("expert", "Expert"),
)


def _summary(evaluations: dict[str, dict[str, Any]], seconds: dict[str, float]) -> dict[str, Any]:
    """The numbers of ``summary.json``: each evaluation without its single episodes."""
    left_out = ("results", "seeds", "machine")
    rows = {key: {k: v for k, v in result.items() if k not in left_out} for key, result in evaluations.items()}
    return {"evaluations": rows, "seconds": seconds, "machine": evaluations["policy"]["machine"]}


def _line(summary: dict[str, Any]) -> str:
    rows = summary["evaluations"]
    policy, swapped = rows["policy"], rows["swapped"]
    low, high = policy["wilson95"]
    minutes = sum(summary["seconds"].get(stage, 0.0) for stage in ("collect", "train", "evaluate")) / 60
    return (
        f"success {policy['successes']}/{policy['episodes']} (95 % Wilson {low:.2f} to {high:.2f}); "
        f"left and right exchanged: passed on the other side {swapped['passed_as_told']}/{swapped['episodes']}; "
        f"no sentence {rows['blind']['successes']}/{rows['blind']['episodes']}, "
        f"two boxes (never trained) {rows['two_boxes']['successes']}/{rows['two_boxes']['episodes']}, "
        f"expert {rows['expert']['successes']}/{rows['expert']['episodes']}; "
        f"collect + train + evaluate {minutes:.1f} min"
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
