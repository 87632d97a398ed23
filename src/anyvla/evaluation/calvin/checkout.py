"""The user's checkout of CALVIN: what must be there, and what is read from it as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from anyvla.errors import ConfigError, SimulationError
from anyvla.evaluation.calvin.chains import TASKS

HOW = "git clone --recurse-submodules https://github.com/mees/calvin"
NEEDED = {
    "calvin_env/calvin_env/envs/play_table_env.py": "the environment, a submodule: git submodule update --init calvin_env",
    "calvin_env/conf/env/play_table_env.yaml": "settings of the environment",
    "calvin_env/conf/scene/calvin_scene_D.yaml": "the scene of the benchmark",
    "calvin_env/conf/cameras/cameras/static.yaml": "the static camera",
    "calvin_env/conf/cameras/cameras/gripper.yaml": "the gripper's camera",
    "calvin_env/conf/robot/panda_longer_finger.yaml": "the robot",
    "calvin_env/data/calvin_table_D": "the meshes of the scene",
    "calvin_env/data/franka_panda": "the meshes of the robot",
    "calvin_models/conf/callbacks/rollout/tasks/new_playtable_tasks.yaml": "what counts as success",
    "calvin_models/conf/annotations/new_playtable_validation.yaml": "the sentences",
}


def missing_parts(root: Path) -> list[str]:
    """``PATH (what it is)`` for everything that the benchmark needs and ``root`` lacks."""
    return [f"{path} ({what})" for path, what in NEEDED.items() if not (root / path).exists()]


def check_checkout(root: Path) -> None:
    """Raises ConfigError if ``root`` is no checkout of CALVIN."""
    missing = missing_parts(root)
    if len(missing) == len(NEEDED):
        raise ConfigError(f"{root}: no checkout of CALVIN lies there: {HOW}")
    if missing:
        raise ConfigError(f"{root}: the checkout of CALVIN lacks {missing[0]}; see anyvla doctor calvin --calvin-root {root}")


def read_sentences(root: Path) -> dict[str, str]:
    """task -> the one sentence with which it is evaluated."""
    path = root / "calvin_models/conf/annotations/new_playtable_validation.yaml"
    content = _read_yaml(path)
    sentences = {}
    for task in TASKS:
        said = content.get(task)
        if not (isinstance(said, list) and said and isinstance(said[0], str)):
            raise SimulationError(f"{path}: no sentence for the task {task!r}")
        sentences[task] = said[0]
    return sentences


def read_surfaces(root: Path) -> dict[str, np.ndarray]:
    """table, slider_left, slider_right -> (2, 3) lowest and highest position, metres, where the scene puts blocks down."""
    path = root / "calvin_env/conf/scene/calvin_scene_D.yaml"
    surfaces: Any = _read_yaml(path).get("surfaces")
    names = ("table", "slider_left", "slider_right")
    try:
        return {name: np.array(surfaces[name], dtype=np.float64).reshape(2, 3) for name in names}
    except (TypeError, KeyError, ValueError) as error:
        raise SimulationError(f"{path}: key `surfaces` does not give two corners for each of {', '.join(names)}") from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SimulationError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SimulationError(f"{path}: must hold a mapping")
    return content
