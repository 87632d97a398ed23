"""The report page: whole, self-contained, safe with any text, and honest about what is missing."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anyvla.evaluation.plots import curve, extent_of, film, ground_map, interval_bar
from anyvla.evaluation.report import Evaluation, ReportContent, duration, write_report
from anyvla.evaluation.statistics import wilson_interval
from anyvla.evaluation.tasks import EpisodeResult, nav_tasks

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects the text and the resources that are loaded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.resources: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.words = ""
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data

    def _note(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        names = ("src", "srcset", "href", "xlink:href", "data", "action", "poster", "background")
        self.resources += [value for name, value in attrs if name in names and value]


def episode(task: Any, failure: str | None = None, frames: int = 0, instruction: str | None = None) -> EpisodeResult:
    """A drive around the box, or what went wrong with it."""
    boxes, _, side = task.scenario.split("_")
    turn = 1.0 if (side == "left") != (failure == "wrong_side") else -1.0
    share = {"collision": 0.3, "stopped_short": 0.6}.get(failure or "", 1.0)
    x = np.linspace(0, 3 * share, 20)
    path = np.stack([x, turn * 0.8 * np.sin(np.pi * x / 3), 0 * x], axis=1)
    passed = {"collision": None, "stopped_short": None}.get(failure or "", "left" if turn > 0 else "right")
    picture = np.linspace(0, 255, 126 * 224 * 3).reshape(126, 224, 3).astype(np.uint8)
    return EpisodeResult(
        index=task.index,
        scenario=task.scenario,
        seed=task.seed,
        split=task.split,
        instruction="" if task.blind else instruction or f"Pass the box on the {side}.",
        success=failure is None,
        failure=failure,
        passed=[passed] * int(boxes[0]),
        steps=19,
        distance_to_goal=0.07 if failure is None else 1.5,
        path=path.tolist(),
        layout={
            "boxes": [{"center": [1.5 + i, 0.0], "half": [0.15, 0.4, 0.1], "yaw": 0.1} for i in range(int(boxes[0]))],
            "target": {"kind": "cup", "center": [3.6, 0.0], "distance": 0.6},
            "goal": [3.0, 0.0],
            "goal_radius": 0.3,
            "start": [0.0, 0.0, 0.0],
            "robot_radius": 0.2,
            "side": side,
        },
        frames=[np.roll(picture, 7 * i, axis=1) for i in range(frames)],
    )


def evaluation(
    name: str = "Policy",
    failures: tuple[str | None, ...] = (None,),
    n: int = 8,
    frames: int = 0,
    probe: Any = "none",
    **about: Any,
) -> Evaluation:
    """``n`` episodes that end as ``failures`` says, over and over."""
    from anyvla.evaluation.navigation import summarize

    instruction = about.pop("instruction", None)
    scenario = about.get("scenario", "1box")
    episodes = [
        episode(task, failures[task.index % len(failures)], frames if task.index < 4 else 0, instruction)
        for task in nav_tasks(scenario, n, 0, probe)
    ]
    result = {"policy": "runs/a", "checkpoint": "0123abcd", "env": "nav", "scenario": scenario, "episodes": n, "seed": 0}
    result |= {"probe": probe, **summarize(episodes), "wall_time_s": 12.5, **about}
    return Evaluation(name, result, kept=[one for one in episodes if one.frames])


def page_of(tmp_path: Path, *evaluations: Evaluation, **content: Any) -> tuple[str, Page]:
    out = write_report(tmp_path / "report.html", ReportContent("A title", evaluations, **content))
    text = out.read_text(encoding="utf-8")
    return text, Page(text)


METRICS = [
    {"step": 20, "loss": 0.2, "learning_rate": 2e-4, "grad_norm": 0.5, "frames_per_second": 321.0},
    {"step": 40, "loss": 0.01, "learning_rate": 4e-4, "grad_norm": float("inf"), "frames_per_second": 345.0},
    {"step": 40, "validation/loss": 0.1, "validation/error/linear_x": 0.2, "validation/first/error/linear_x": 0.1},
]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    """Everything that a demo gives."""
    mixed = (None, None, None, "collision", "wrong_side", "stopped_short", None, "timeout")
    return page_of(
        tmp_path_factory.mktemp("full"),
        evaluation("Policy", mixed, 100, frames=8, step_latency_ms={"p50": 41.2, "p95": 77.7, "p99": 120.4}),
        evaluation("Exchanged", (None, "wrong_side"), 100, frames=8, probe="swapped"),
        evaluation("Blind", (None, "wrong_side"), 100, probe="blind"),
        evaluation("Expert", n=100, policy="expert", checkpoint=None),
        evaluation("Two boxes", (None, "timeout"), 100, frames=8, scenario="2box"),
        metrics=METRICS,
        config_yaml="out: runs/<b>a</b>\nactions: {spec: nav2}\n",
        data_summary={
            "training_episodes": 380,
            "conversation_answers": 0,
            "sources": {"ours": {"episodes": 371, "windows": 5011, "weight": 0.75}},
            "skipped": [{"episode": "e7.h5", "reason": "17 frames, 18 actions"}],
        },
        stages={"collect": 75.0, "train": 3725.0},
    )


def test_the_page_needs_nothing_else(full: tuple[str, Page]) -> None:
    text, page = full
    assert page.resources, "the films are in it"
    assert all(value.startswith(("data:", "#")) for value in page.resources)
    assert "script" not in page.tags
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids)), "ids are unique"


def test_it_stays_small(full: tuple[str, Page]) -> None:
    assert len(full[0].encode()) < 4_000_000


def test_it_holds_the_numbers(full: tuple[str, Page]) -> None:
    words = " ".join(full[1].words.split())
    low, high = wilson_interval(51, 100)
    assert "51 / 100" in words
    assert f"95 % interval {100 * low:.0f}–{100 * high:.0f} %" in words
    for number in ("50/100", "100/100", "collision 13", "41.2 ms", "120.4 ms", "1 h 2 min", "345 frames", "2.5 a second"):
        assert number in words
    assert "e7.h5" in words
    assert "17 frames, 18 actions" in words
    assert "380 training episodes." in words
    assert all(cell in words for cell in ("ours", "0.75", "371", "5011"))
    assert "conversation answers" not in words
    assert "linear x (m/s)" in words, "the curves name units"
    assert "out: runs/<b>a</b>" in words, "settings are shown as they are"


def test_the_swapped_pairs_are_counted(full: tuple[str, Page]) -> None:
    # 50 swapped drives pass on the named side; those pairs change sides whose original drive passed on its own named side, and
    # pairs in which both drives took the wrong side change sides too
    words = " ".join(full[1].words.split())
    mixed = (None, None, None, "collision", "wrong_side", "stopped_short", None, "timeout")
    ends = [(mixed[i % 8], (None, "wrong_side")[i % 2]) for i in range(100)]
    crossed = [(a, b) for a, b in ends if a not in ("collision", "stopped_short")]
    changed = sum((a == "wrong_side") == (b == "wrong_side") for a, b in crossed)
    assert f"In {changed} of 100 worlds the robot passed on the other side" in words


def test_text_of_users_is_escaped(tmp_path: Path) -> None:
    nasty = "</title></text><script>alert('x')</script> & \"quoted\" 왼쪽으로"
    text, page = page_of(
        tmp_path,
        evaluation(nasty, ("collision", None), frames=3, instruction=nasty, policy=nasty),
        config_yaml=f"# {nasty}\n{{}}",
    )
    assert "<script" not in text
    assert "script" not in page.tags
    assert nasty in page.words
    assert 'lang="ko"' in text


def test_what_is_missing_is_left_out(tmp_path: Path, full: tuple[str, Page]) -> None:
    headings = (
        "All evaluations", "The same world, the other sentence", "Failures by cause", "What the robot saw", "Training",
        "Training data", "Time", "Policy calls",
    )  # fmt: skip
    text, page = page_of(tmp_path, evaluation())
    for heading in headings:
        assert f"<h2>{heading}</h2>" in full[0]
        assert f"<h2>{heading}</h2>" not in text
    assert "Settings of the run" not in page.words
    assert "All paths, seen from above" in page.words


@pytest.mark.parametrize(
    ("failures", "n", "expected"),
    [
        ((None,), 1, "1 / 1"),
        (("collision",), 1, "0 / 1"),
        ((None,), 5, "5 / 5"),
        (("wrong_side", "tipped_over"), 5, "0 / 5"),  # a cause that this page does not know
    ],
)
def test_extremes(tmp_path: Path, failures: tuple[str | None, ...], n: int, expected: str) -> None:
    _, page = page_of(tmp_path, evaluation(failures=failures, n=n, frames=2))
    assert expected in " ".join(page.words.split())
    assert all(str(cause).replace("_", " ") in page.words for cause in failures if cause)


def test_a_sentence_of_its_own(tmp_path: Path) -> None:
    _, page = page_of(tmp_path, evaluation(probe="blind", frames=2), summary="Tested in the yard.")
    assert "Tested in the yard." in page.words
    assert "(no sentence)" in page.words


def test_an_old_page_survives_a_failure(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    with pytest.raises(ValueError, match="at least one evaluation"):
        write_report(out, ReportContent("A title", []))
    assert out.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_interval_bar_spans_the_interval() -> None:
    bar = str(interval_bar(90, 100, wilson_interval(90, 100)))
    assert "90.0 %, 95 % interval 82.6 to 94.5 %" in bar
    assert re.search(r'<circle class="rate" cx="208.0"', bar), "10 + 2.2 * 90"
    assert "no episodes" in interval_bar(0, 0, (0.0, 1.0))


def test_a_map_is_true_to_scale() -> None:
    """A metre is as long forward as to the left, forward is up, and left is left."""
    result = episode(nav_tasks("1box_hori_left", 1, 0)[0]).to_dict()
    result["path"] = [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    drawn = re.search(r'class="path" d="M([^"]*)"', str(ground_map([result], extent_of([result]))))
    assert drawn
    (x0, y0), (x1, y1), (x2, y2) = [map(float, point.split()) for point in drawn.group(1).split("L")]
    assert x1 == x0
    assert y2 == y1
    assert y0 - y1 == pytest.approx(x1 - x2, abs=0.2)
    assert y0 - y1 > 10


def test_a_robot_that_drove_away_does_not_shrink_the_map() -> None:
    result = episode(nav_tasks("1box", 1, 0)[0]).to_dict()
    result["path"].append([500.0, -300.0, 0.0])
    extent = extent_of([result])
    assert extent.x_high <= 8
    assert extent.y_low >= -3


def test_film_moves_and_has_a_still() -> None:
    picture = np.linspace(0, 255, 126 * 400 * 3).reshape(126, 400, 3).astype(np.uint8)
    frames = [np.roll(picture, 5 * i, axis=0) for i in range(80)]
    moving, still = (Image.open(io.BytesIO(content)) for content in film(frames))
    assert getattr(moving, "n_frames", 1) == 60, "long films are thinned"
    assert moving.width == 256
    assert getattr(still, "n_frames", 1) == 1


def test_curves_of_many_dimensions_and_points() -> None:
    series = {f"d{i}": [(float(x), float(i)) for x in range(1000)] for i in range(9)}
    svg = str(curve(series, "error"))
    assert all(f">d{i}<" in svg for i in range(9)), "text stays text"
    assert len(svg) < 150_000
    assert "#0708" not in svg, "all stand-in colours are replaced"


def test_duration() -> None:
    assert [duration(s) for s in (7.42, 59.96, 75, 3725)] == ["7.4 s", "1 min 0 s", "1 min 15 s", "1 h 2 min"]
