"""A checkout of CALVIN in miniature: the same files, classes and calls, a hand that floats, tasks that are movements along x.

Its own ``hydra`` and ``omegaconf`` lie beside it, so that it runs without them. A task is done when the hand has moved by 0.1 m
in +x since the subtask began. Pictures say how often their camera has been rendered.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from anyvla.evaluation.calvin.chains import TASKS

FILES = {
    "omegaconf.py": """
import yaml

class Config(dict):
    __getattr__ = dict.__getitem__

def wrap(value):
    if isinstance(value, dict):
        return Config({key: wrap(item) for key, item in value.items()})
    return value

def resolve(value, root):
    if isinstance(value, dict):
        return Config({key: resolve(item, root) for key, item in value.items()})
    if isinstance(value, str) and value.startswith("${"):
        return resolve(root[value[2:-1]], root)
    return value

class OmegaConf:
    load = staticmethod(lambda path: wrap(yaml.safe_load(open(path).read())))
    merge = staticmethod(lambda a, b: wrap({**a, **b}))
    create = staticmethod(lambda value: resolve(wrap(value), wrap(value)))
""",
    "hydra/__init__.py": "from hydra import utils\n",
    "hydra/utils.py": """
import importlib

def instantiate(config, **more):
    module, _, name = config["_target_"].rpartition(".")
    kept = {key: value for key, value in config.items() if not key.startswith("_")}
    return getattr(importlib.import_module(module), name)(**{**kept, **more})
""",
    "calvin_env/__init__.py": "",
    "calvin_env/envs/__init__.py": "",
    "calvin_env/envs/tasks.py": """
class Tasks:
    def __init__(self, tasks):
        self.tasks = tasks

    def get_task_info_for_set(self, start_info, end_info, task_filter):
        moved = end_info["x"] - start_info["x"]
        return {task for task in task_filter if self.tasks[task] * 0.1 - 1e-9 <= moved}
""",
    "calvin_env/envs/play_table_env.py": """
import os
import sys
from types import SimpleNamespace
import numpy as np

ALIVE = []

def get_git_commit_hash(path):
    raise RuntimeError("this is no git checkout")

class Camera:
    def __init__(self, name, width, height, **other):
        self.name, self.shape, self.renders = name, (height, width, 3), 0

    def render(self):
        self.renders += 1
        return np.full(self.shape, self.renders % 256, dtype=np.uint8), None

class PlayTableSimEnv:
    def __init__(self, robot_cfg, scene_cfg, cameras, show_gui, use_vr, use_scene_info, use_egl, **other):
        assert not (show_gui or use_vr or use_egl) and use_scene_info and not ALIVE
        assert robot_cfg["filename"] == "longer" and robot_cfg["base"] == "panda" and scene_cfg["surfaces"]
        ALIVE.append(self)
        self.cameras = [Camera(**camera) for camera in cameras.values()]
        self.robot = SimpleNamespace(gripper_action=1)
        os.write(1, b"argv[0]=\\n")  # as the libraries of PyBullet do
        print("version", get_git_commit_hash(__file__))

    def reset(self, robot_obs, scene_obs):
        self.robot_obs, self.scene_obs = np.array(robot_obs), np.array(scene_obs)

    def get_camera_obs(self):
        raise RuntimeError("rendered at every step")

    def get_state_obs(self):
        self.robot_obs[14] = self.robot.gripper_action
        return {"robot_obs": self.robot_obs, "scene_obs": self.scene_obs}

    def get_info(self):
        return {"x": float(self.robot_obs[0])}

    def step(self, action):
        if isinstance(action, dict):
            assert action["type"] == "cartesian_abs"
            action = action["action"]
            self.robot_obs[:6] = action[:6]
        else:
            self.robot_obs[:3] += 0.02 * action[:3]
        assert action[6] in (-1, 1)
        self.robot.gripper_action = action[6]
        print("noise on stdout")
        os.write(1, b"noise from C")
        if self.robot_obs[2] > 100:
            sys.stderr.write("b3Warning: the table has gone\\n")
            sys.stderr.flush()
            os._exit(3)
        self.get_camera_obs()
        return None, 0, False, self.get_info()
""",
}
ENV = "calvin_env.envs.play_table_env.PlayTableSimEnv"
SETTINGS = {
    "calvin_env/conf/env/play_table_env.yaml": {
        **{"_target_": ENV, "_recursive_": False, "cameras": "${cameras}", "robot_cfg": "${robot}", "scene_cfg": "${scene}"},
        **{"show_gui": False, "use_vr": "${use_vr}", "use_egl": True, "seed": 0},
    },
    "calvin_env/conf/scene/calvin_scene_D.yaml": {
        "surfaces": {
            "table": [[0.0, -0.15, 0.46], [0.35, -0.03, 0.46]],
            "slider_left": [[-0.32, 0.05, 0.46], [-0.16, 0.12, 0.46]],
            "slider_right": [[-0.05, 0.05, 0.46], [0.13, 0.12, 0.46]],
        }
    },
    "calvin_env/conf/cameras/cameras/static.yaml": {"name": "static", "width": 20, "height": 16, "fov": 10},
    "calvin_env/conf/cameras/cameras/gripper.yaml": {"name": "gripper", "width": 8, "height": 6, "fov": 75},
    "calvin_env/conf/robot/panda.yaml": {"filename": "panda", "base": "panda"},
    "calvin_env/conf/robot/panda_longer_finger.yaml": {"defaults": ["panda"], "filename": "longer"},
    "calvin_models/conf/annotations/new_playtable_validation.yaml": {task: [f"now {task}", "or so"] for task in TASKS},
}


def write_fake_calvin(root: Path, hard: tuple[str, ...] = ()) -> Path:
    """``hard``: tasks that need three times the movement."""
    for name, code in FILES.items():
        path = root / "calvin_env" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    oracle = {"_target_": "calvin_env.envs.tasks.Tasks", "tasks": {task: 3 if task in hard else 1 for task in TASKS}}
    settings = {**SETTINGS, "calvin_models/conf/callbacks/rollout/tasks/new_playtable_tasks.yaml": oracle}
    for name, content in settings.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    for folder in ("calvin_table_D", "franka_panda"):
        (root / "calvin_env" / "data" / folder).mkdir(parents=True, exist_ok=True)
    return root
