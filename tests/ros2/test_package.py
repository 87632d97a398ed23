"""The ament package in integrations/ros2 is well formed. Neither colcon nor ROS is here, so it is not built."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer

PACKAGE = Path(__file__).parents[2] / "integrations" / "ros2" / "anyvla_ros2"
NAME = PACKAGE.name


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem.replace(".", "_"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_agree() -> None:
    tree = ElementTree.parse(PACKAGE / "package.xml").getroot()
    assert tree.get("format") == "3"
    assert tree.findtext("name") == NAME
    assert tree.findtext("export/build_type") == "ament_python"
    assert (PACKAGE / "resource" / NAME).exists()
    parser = configparser.ConfigParser()
    parser.read(PACKAGE / "setup.cfg")
    assert parser["install"]["install_scripts"] == f"$base/lib/{NAME}"


def test_what_setup_installs_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    said: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "setuptools", types.SimpleNamespace(setup=lambda **more: said.update(more)))
    monkeypatch.chdir(PACKAGE)
    loaded(PACKAGE / "setup.py")
    files = [file for _, group in said["data_files"] for file in group]
    assert len(files) == 4
    assert all((PACKAGE / file).exists() for file in files)
    assert said["version"] == ElementTree.parse(PACKAGE / "package.xml").findtext("version")
    for script in said["entry_points"]["console_scripts"]:
        target, function = script.split(" = ")[1].split(":")
        assert callable(getattr(loaded(PACKAGE / (target.replace(".", "/") + ".py")), function))


def test_arguments_of_ros_are_left_out() -> None:
    command = loaded(PACKAGE / NAME / "start.py").command
    given = ["--camera", "/image", "--ros-args", "-r", "__node:=drive", "--", "--fps", "5"]
    assert command("run", given, "anyvla") == ["anyvla", "ros2", "run", "--camera", "/image", "--fps", "5"]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_it_runs_in_the_python_of_older_ros(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))


def test_launch_files_use_options_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, parts in {
        "launch": ("LaunchDescription",),
        "launch.actions": ("DeclareLaunchArgument",),
        "launch.substitutions": ("LaunchConfiguration",),
        "launch_ros": (),
        "launch_ros.actions": ("Node",),
    }.items():
        module = types.ModuleType(name)
        for part in parts:
            setattr(module, part, lambda *given, **more: (given, more))
        monkeypatch.setitem(sys.modules, name, module)
    launching = loaded(PACKAGE / NAME / "launching.py")
    monkeypatch.setitem(sys.modules, f"{NAME}.launching", launching)
    monkeypatch.setitem(sys.modules, NAME, types.ModuleType(NAME))
    files = {path.name.split(".")[0]: loaded(path) for path in (PACKAGE / "launch").glob("*.launch.py")}
    assert set(files) == {"drive", "record"}
    for module in files.values():
        ((parts,), _) = module.generate_launch_description()
        assert len(parts) == len(module.ARGUMENTS) + 1

    from anyvla.cli.ros2 import ros2_app

    verbs = typer.main.get_command(ros2_app).commands
    assert set(verbs) == {"record", "run"}
    for verb, command in verbs.items():
        options = {option for parameter in command.params for option in parameter.opts}
        arguments = files["drive" if verb == "run" else verb].ARGUMENTS
        assert {"--" + name.replace("_", "-") for name, *_ in arguments} <= options
