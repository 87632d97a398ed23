from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def anyvla(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "anyvla", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **environment},
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, anyvla, anyvla.cli; print([m for m in ('torch', 'transformers', 'mujoco', 'h5py') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_mistake_is_one_line_without_a_traceback() -> None:
    result = anyvla("train", "nav-tiny", "trainin.steps=3")
    assert result.returncode == 1
    assert result.stderr.strip() == "error: recipe nav-tiny: trainin: unknown key; did you mean 'training'?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "Did you mean 'train'?"),
        (("eval", "/nowhere"), "/nowhere: no such folder"),
        (("eval", "/nowhere", "--chains", "3"), "--chains goes with --env calvin, not nav"),
        (("eval", "/nowhere", "--env", "metaworld", "--scenario", "1box"), "--scenario goes with --env nav, not metaworld"),
        (("eval", "/nowhere", "--env", "calvin", "--episodes", "3"), "--episodes goes with --env nav or metaworld, not calvin"),
        (("inspect", "data", "/nowhere"), "/nowhere: no such file or folder"),
        (("train", "nav-tiny"), "data.source.path is not set"),
        (("collect", "nav", "--out", "/tmp/x", "--size", "big"), "WIDTHxHEIGHT"),
        (("collect", "nav", "--out", "/tmp/x", "--scenario", "3box"), "no scenario matches '3box'"),
        (("compare", "/nowhere/a.json", "/nowhere/b.json"), "no result file"),
    ],
)
def test_mistakes(arguments: tuple[str, ...], message: str) -> None:
    result = anyvla(*arguments)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_without_opengl_the_demo_says_what_helps(tmp_path: Path) -> None:
    result = anyvla("demo", "--out", tmp_path / "demo", MUJOCO_GL="bogus")
    assert result.returncode == 1
    assert "MUJOCO_GL" in result.stderr
    assert "Traceback" not in result.stderr


def test_looking_at_data(make_episodes, tmp_path: Path) -> None:
    folder = make_episodes(9, 9, 4)
    (folder / "broken.h5").write_text("x")
    result = anyvla("inspect", "data", folder, "--out", tmp_path / "look")
    assert result.returncode == 0, result.stderr
    assert "3 episodes, 22 frames" in result.stdout
    assert "broken.h5: not an HDF5 file" in result.stdout
    assert (tmp_path / "look" / "contact_sheet.png").stat().st_size > 1000
    assert (tmp_path / "look" / "actions.png").stat().st_size > 1000
    refused = anyvla("stats", folder)
    assert refused.returncode == 1
    assert "broken.h5" in refused.stderr
    statistics = json.loads(anyvla("stats", folder, "--on-bad-episode", "skip").stdout)
    assert statistics["names"] == ["linear_x", "linear_y", "angular_z"]  # all that is there, whatever a recipe takes of it
    assert len(statistics["q01"]) == 3
    of_two = json.loads(anyvla("stats", folder, "--on-bad-episode", "skip", "--spec", "nav2").stdout)
    assert of_two["names"] == ["linear_x", "linear_y"]
    assert of_two["q01"] == statistics["q01"][:2]


def test_data_of_another_format_than_the_recipe_says_are_recognised(make_episodes, tmp_path: Path) -> None:
    assert anyvla("convert", make_episodes(9), tmp_path / "packed").returncode == 0
    result = anyvla("train", "nav-tiny", f"data.source.path={tmp_path / 'packed'}")
    assert result.returncode == 1
    assert "it looks like packed: data.source.type=packed" in result.stderr


def test_looking_at_recipes_and_the_schema() -> None:
    assert "steps: 5" in anyvla("inspect", "recipe", "nav-tiny", "training.steps=5").stdout
    assert json.loads(anyvla("inspect", "schema").stdout)["title"] == "Config"


def test_training_and_looking_at_the_run(make_episodes, tiny_overrides, tmp_path: Path) -> None:
    result = anyvla("train", "nav-tiny", *tiny_overrides, f"data.source.path={make_episodes(9, 9, 9)}")
    assert result.returncode == 0, result.stderr
    assert "step 6/6" in result.stderr
    shown = anyvla("inspect", "run", tmp_path / "run")
    assert shown.returncode == 0, shown.stderr
    assert '"linear_y"' in shown.stdout
    assert "saved example reproduced to 0" in shown.stdout


def test_the_doctor_answers() -> None:
    result = anyvla("doctor")
    assert "torch" in result.stdout
    assert "MUJOCO_GL=" in result.stdout
    assert "Traceback" not in result.stderr
