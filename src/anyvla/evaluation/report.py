"""The report: one HTML file that holds everything, to be read without network, without scripts, on paper or on a phone.

    write_report(out / "report.html", ReportContent(title="AnyVLA demo", evaluations=[Evaluation("Policy", result, kept=kept)]))

What is not there is left out of the page: without training there are no curves, without failures no table of causes.
"""

from __future__ import annotations

import base64
import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from markupsafe import Markup

from anyvla.actions.spec import action_spec
from anyvla.evaluation.plots import CAUSES, curve, extent_of, film, ground_map, interval_bar, mark, outcome
from anyvla.evaluation.report_words import words_of
from anyvla.evaluation.statistics import wilson_interval

FILMS = 3  # successes, and as many failures, of the main evaluation; one each of the others
PAIRS = 4  # worlds that are shown with both sentences
LISTED = 100  # rows of a table of episodes at most; the rest is counted

SPLITS = {
    "train": ("training sentence", "worded as some training sentence is"),
    "held_out": ("held-out sentence", "worded as no training sentence is"),
}


class Filmed(Protocol):
    """An episode whose pictures were kept."""

    @property
    def index(self) -> int: ...

    @property
    def success(self) -> bool: ...

    @property
    def frames(self) -> list[Any]:
        """(H, W, 3) uint8 each."""

    def to_dict(self) -> dict[str, Any]:
        """The episode's entry of the result file."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the report.

    Attributes:
        name: of its row, for instance "Policy" or "Left and right exchanged".
        result: what ``evaluate_nav`` or ``evaluate_metaworld`` returned.
        meaning: one sentence on what its number says; chosen by probe and policy if empty.
        kept: episodes of it with their frames, which become films.
    """

    name: str
    result: dict[str, Any]
    meaning: str = ""
    kept: Sequence[Filmed] = ()


@dataclass(frozen=True)
class ReportContent:
    """All that a report can hold; only the evaluations must be there.

    Attributes:
        evaluations: the first is the main one: its number is the headline, its drives are drawn large.
        summary: one sentence on what was tested; written from the main evaluation if empty.
        metrics: the lines of metrics.jsonl. config_yaml: settings of the run. data_summary: ``PreparedData.summary()``.
        stages: seconds by name of what was done, in order.
    """

    title: str
    evaluations: Sequence[Evaluation]
    summary: str = ""
    metrics: Sequence[dict[str, Any]] = ()
    config_yaml: str = ""
    data_summary: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)


def write_report(out: Path, content: ReportContent) -> Path:
    """Write the page to the file ``out`` and return it; whoever reads it meanwhile sees the old or the new page, whole.

    Raises:
        ValueError: there is no evaluation to report.
    """
    if not content.evaluations:
        raise ValueError("a report needs at least one evaluation")
    page = _render(content)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, out)
    return out


def _render(content: ReportContent) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("anyvla.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"duration": duration, "words": _words}
    templates.globals |= {"mark": mark, "causes": CAUSES}
    main = content.evaluations[0]
    return templates.get_template("report.html").render(
        title=content.title,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        about=main.result,
        headline=_rate(main.result, large=True),
        summary=content.summary or _summary(main.result),
        said=words_of(main.result["env"]),
        goal_radius=next((r["layout"]["goal_radius"] for r in main.result["results"] if r.get("layout")), None),
        rows=[_row(evaluation) for evaluation in content.evaluations],
        breakdowns=_breakdowns(main.result),
        failures=_failures(main.result),
        pairs=_pairs(content.evaluations),
        films=[section for i, one in enumerate(content.evaluations) if (section := _films(one, FILMS if i == 0 else 1))],
        maps=[section for one in content.evaluations if (section := _maps(one))],
        curves=_curves(content.metrics, content.config_yaml),
        speed=_training_speed(content.metrics),
        stages=_stages(content.stages),
        latencies=[
            (one.name, one.result["step_latency_ms"]) for one in content.evaluations if one.result.get("step_latency_ms")
        ],
        data=content.data_summary,
        listed=LISTED,
        config_yaml=content.config_yaml,
    )


# ------------------------------------------------------------------------------------------------------------------ numbers


def _rate(counts: dict[str, Any], large: bool = False) -> dict[str, Any]:
    """``successes``, ``episodes``, ``percent``, ``interval`` and the ``bar`` of a rate."""
    k, n = counts["successes"], counts["episodes"]
    interval = counts.get("wilson95") or wilson_interval(k, n)
    return {
        "k": k,
        "n": n,
        "percent": f"{100 * k / n:.0f} %" if n else "–",
        "interval": f"{100 * interval[0]:.0f}–{100 * interval[1]:.0f} %",
        "bar": interval_bar(k, n, interval, large),
    }


def _summary(result: dict[str, Any]) -> str:
    driver = "The scripted expert" if result["policy"] == "expert" else f"The policy {result['policy']}"
    text = f"{driver} was put into {words_of(result['env']).worlds(result)}, from seeds kept for evaluation."
    held_out = result["per_split"].get("held_out", {}).get("episodes", 0)
    if held_out and result["probe"] not in ("blind", "shuffled-language") and result["policy"] != "expert":
        text += f" In {held_out} of them the sentence was worded as no training sentence is."
    return text


def _row(evaluation: Evaluation) -> dict[str, Any]:
    result = evaluation.result
    kind = "expert" if result["policy"] == "expert" and result["probe"] == "none" else result["probe"]
    told = None  # of navigation only
    if "passed_as_told" in result:
        counts = {"successes": result["passed_as_told"], "episodes": result["episodes"]}
        told = {**_rate(counts), "matters": result["probe"] != "none"}
    return {
        "name": evaluation.name,
        "meaning": evaluation.meaning or words_of(result["env"]).meanings[kind],
        "scenario": result.get("scenario"),
        "rate": _rate(result),
        "told": told,
        "tasks": [(task, counts["successes"], counts["episodes"]) for task, counts in result["per_task"].items()],
        "failures": _causes(result),
        "stops": result.get("safety_stops", 0),
    }


def _causes(result: dict[str, Any]) -> list[tuple[str, str, int]]:
    """(mark, words, count) of every cause of failure, the most frequent first."""
    return [(cause if cause in CAUSES else "other", _words(cause), n) for cause, n in result["failures"].items()]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _breakdowns(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The main evaluation by scenario and by wording; a table of a single row says nothing new and is left out."""
    tables = []
    for title, key, names in ((words_of(result["env"]).task, "per_task", {}), ("Sentence", "per_split", SPLITS)):
        rates = result[key]
        if len(rates) > 1:
            order = sorted(rates, key=[*names, *rates].index)
            tables.append({"title": title, "rows": [(*names.get(name, (name, "")), _rate(rates[name])) for name in order]})
    return tables


def _failures(result: dict[str, Any]) -> dict[str, Any] | None:
    failed = [one for one in result["results"] if not one["success"]]
    if not failed:
        return None
    return {
        "causes": [
            (name, words, CAUSES.get(name, ""), count, f"{100 * count / result['episodes']:.0f} %")
            for name, words, count in _causes(result)
        ],
        "episodes": [_episode(one) for one in failed[:LISTED]],
        "more": max(0, len(failed) - LISTED),
    }


def _episode(result: dict[str, Any]) -> dict[str, Any]:
    said = result["instruction"]
    return {
        **{key: result[key] for key in ("index", "task", "seed", "steps")},
        "distance_to_goal": result.get("distance_to_goal"),
        "outcome": outcome(result),
        "how": "success" if result["success"] else _words(result["failure"] or "failure"),
        "said": said or "(no sentence)",
        "language": "ko" if any("가" <= letter <= "힣" for letter in said) else "en",
        "wording": "" if not said or result["split"] != "held_out" else "held-out sentence",
    }


# ----------------------------------------------------------------------------------------------------- films, pairs and maps


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _film(frames: Sequence[Any]) -> dict[str, Any]:
    moving, still = film(frames)
    height, width = frames[0].shape[:2]
    return {"moving": _uri("image/webp", moving), "still": _uri("image/webp", still), "width": width, "height": height}


def _films(evaluation: Evaluation, most: int) -> dict[str, Any] | None:
    """Films of the first successes and failures that were kept, each beside the map of the same episode."""
    if evaluation.result["probe"] == "swapped":
        return None  # shown beside the original sentence
    kept = sorted((episode for episode in evaluation.kept if episode.frames), key=lambda episode: episode.index)
    chosen = [e for e in kept if e.success][:most] + [e for e in kept if not e.success][:most]
    if not chosen:
        return None
    mapped = [entry for episode in chosen if (entry := episode.to_dict()).get("layout")]
    extent = extent_of(mapped) if mapped else None
    return {
        "name": evaluation.name,
        "cards": [
            {
                **_episode(episode.to_dict()),
                "film": _film(episode.frames),
                "map": extent
                and ground_map([episode.to_dict()], extent, width=150, label="path of this episode, seen from above"),
            }
            for episode in chosen
        ],
    }


def _pairs(evaluations: Sequence[Evaluation]) -> dict[str, Any] | None:
    """The same worlds driven with a sentence and with its sides exchanged: how often the robot changed sides with it."""
    main = evaluations[0]
    swapped = next((one for one in evaluations if one.result["probe"] == "swapped"), None)
    if swapped is None or main.result["probe"] != "none":
        return None
    second = {(one["index"], one["seed"]): one for one in swapped.result["results"]}
    both = [(one, second[one["index"], one["seed"]]) for one in main.result["results"] if (one["index"], one["seed"]) in second]
    if not both:
        return None
    changed = sum(_sides(a) is not None and _sides(b) is not None and _sides(a) != _sides(b) for a, b in both)
    followed = sum(a["success"] and b["success"] for a, b in both)
    films = [{episode.index: episode.frames for episode in one.kept if episode.frames} for one in (main, swapped)]
    drawn = [pair for pair in both if pair[0].get("layout")]
    filmed = [pair for pair in drawn if all(pair[0]["index"] in of for of in films)]
    shown = (filmed or drawn)[:PAIRS]
    extent = extent_of([one for pair in shown for one in pair])
    return {
        "changed": _rate({"successes": changed, "episodes": len(both)}),
        "both": _rate({"successes": followed, "episodes": len(both)}),
        "cards": [
            {
                "map": ground_map(pair, extent, width=200, dashed=[1], label="both paths, seen from above"),
                "drives": [
                    {**_episode(one), "film": _film(of[one["index"]]) if filmed else None}
                    for one, of in zip(pair, films, strict=True)
                ],
            }
            for pair in shown
        ],
    }


def _sides(result: dict[str, Any]) -> str | None:
    """The side on which all boxes were passed, if they were, and on one side."""
    sides = set(result["passed"])
    return next(iter(sides)) if len(sides) == 1 else None


def _maps(evaluation: Evaluation) -> dict[str, Any] | None:
    """All paths of an evaluation, a map for each scenario."""
    results = [one for one in evaluation.result["results"] if one.get("layout") and one["path"]]
    if not results:
        return None
    extent = extent_of(results)
    panels = []
    for scenario in sorted({one["scenario"] for one in results}):
        of = [one for one in results if one["scenario"] == scenario]
        rate = _rate({"successes": sum(one["success"] for one in of), "episodes": len(of)})
        panels.append((scenario, rate, ground_map(of, extent, label=f"all paths of {scenario}, seen from above")))
    present = Counter(outcome(one) for one in results)
    legend = [(name, _words(name), present[name]) for name in ("success", *CAUSES, "other") if present[name]]
    return {"name": evaluation.name, "panels": panels, "legend": legend}


# ----------------------------------------------------------------------------------------------------------------- training


def _points(metrics: Iterable[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(line["step"], line[name]) for line in metrics if name in line and math.isfinite(line[name])]


def _curves(metrics: Sequence[dict[str, Any]], config_yaml: str) -> list[tuple[str, Markup]]:
    """(title, picture) of everything that was measured while training."""
    units = _units(config_yaml)
    errors = _of_dimensions(metrics, "validation/error/", units)
    accuracies = _of_dimensions(metrics, "validation/accuracy/", {})
    wanted = [
        ("Loss", "loss", {"training": _points(metrics, "loss"), "validation": _points(metrics, "validation/loss")}, True),
        ("Validation error", "mean absolute error", errors, False),
        ("Validation accuracy", "accuracy", accuracies, False),
        ("Learning rate", "learning rate", {"learning rate": _points(metrics, "learning_rate")}, False),
        ("Gradient norm", "norm before clipping", {"norm before clipping": _points(metrics, "grad_norm")}, True),
    ]
    curves = []
    for title, label, series, log in wanted:
        measured = {name: points for name, points in series.items() if points}
        if measured:
            curves.append((title, curve(measured, label, log=log)))
    return curves


def _of_dimensions(metrics: Sequence[dict[str, Any]], prefix: str, units: dict[str, str]) -> dict[str, Any]:
    """The series of every action dimension, named with its unit where that is known."""
    dims = dict.fromkeys(name[len(prefix) :] for line in metrics for name in line if name.startswith(prefix))
    return {_words(dim) + (f" ({units[dim]})" if units.get(dim) else ""): _points(metrics, f"{prefix}{dim}") for dim in dims}


def _units(config_yaml: str) -> dict[str, str]:
    """Unit by name of the run's action dimensions."""
    if not config_yaml:
        return {}
    import yaml

    spec = (yaml.safe_load(config_yaml).get("actions") or {}).get("spec", "nav2")
    return {dim.name: dim.unit for dim in action_spec(spec).dims}


def _training_speed(metrics: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    speeds = _points(metrics, "frames_per_second")
    return {"steps": speeds[-1][0], "frames_per_second": speeds[-1][1]} if speeds else None


def _stages(stages: dict[str, float]) -> dict[str, Any] | None:
    if not stages:
        return None
    total = sum(stages.values())
    rows = [(name, seconds, 100 * seconds / total if total else 0.0) for name, seconds in stages.items()]
    return {"rows": rows, "total": total}


def duration(seconds: float) -> str:
    """
    >>> duration(7.42), duration(75), duration(3725)
    ('7.4 s', '1 min 15 s', '1 h 2 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
