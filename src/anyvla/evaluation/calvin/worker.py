"""One CALVIN environment in a process of its own, run by the user's own Python as a script; frames over stdin and stdout.

It stands alone: the standard library, NumPy and what CALVIN itself needs. That Python may be as old as 3.8, so nothing newer is
used here. A frame is a header in JSON, which lists the arrays, and then their bytes (see ``write_frame``). Requests:

    {"type": "open", "root", "cameras"}                    -> {"versions"}       cameras: rgb_static, rgb_gripper, or neither
    {"type": "reset"} + robot_obs (15,), scene_obs (24,)   -> {}                 a new chain
    {"type": "begin", "task", "render"}                    -> observation        the next subtask, from the state as it is
    {"type": "step", "render", "absolute"} + action (7,)   -> observation        "success" says whether the task is done

An observation has robot_obs (15,), scene_obs (24,) and, if it was asked to render, the cameras (H, W, 3) uint8.
An error ends the process: its traceback is in stderr.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import struct
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Dict, Optional, Tuple  # noqa: UP035  Python 3.8

import numpy as np

LARGEST_HEADER = 1 << 20  # bytes
LARGEST_ARRAY = 1 << 26
DTYPES = ("|u1", "<f8")
Arrays = Dict[str, np.ndarray]  # noqa: UP006


def write_frame(stream: IO[bytes], header: Dict[str, Any], arrays: Optional[Arrays] = None) -> None:  # noqa: UP006, UP045
    """Length of the header (uint32, little endian), the header in JSON, then the bytes of the arrays, in their order."""
    arrays = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
    described = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": described}).encode()
    stream.write(b"".join([struct.pack("<I", len(text)), text] + [array.tobytes() for array in arrays.values()]))
    stream.flush()


def read_frame(stream: IO[bytes]) -> Tuple[Dict[str, Any], Arrays]:  # noqa: UP006
    """The inverse of ``write_frame``. Raises EOFError where the stream ends, ValueError for what is no frame."""
    (length,) = struct.unpack("<I", _read(stream, 4))
    if length > LARGEST_HEADER:
        raise ValueError(f"a header of {length} bytes is no frame of ours")
    header = json.loads(_read(stream, length).decode())
    arrays = {}
    for name, kind, shape in header.pop("arrays"):
        if kind not in DTYPES or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"array {name!r} of dtype {kind!r} and shape {shape!r}")
        dtype = np.dtype(kind)
        size = dtype.itemsize
        for count in shape:
            size *= count
        if size > LARGEST_ARRAY:
            raise ValueError(f"array {name!r} of {size} bytes")
        arrays[name] = np.frombuffer(_read(stream, size), dtype=dtype).reshape(shape)
    return header, arrays


def _read(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("the stream ends in the middle of a frame" if data else "the stream has ended")
    return data


class World:
    """The environment of scene D and its task oracle, without window, tactile sensor and EGL."""

    def __init__(self, root: Path, cameras: Tuple[str, ...]) -> None:  # noqa: UP006
        sys.path.insert(0, str(root / "calvin_env"))
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # CALVIN imports GitPython, which wants the command git
        import hydra
        from calvin_env.envs import play_table_env
        from omegaconf import OmegaConf

        folders = [root / "calvin_env", *(root / "calvin_env").resolve().parents]
        if shutil.which("git") is None or not any((folder / ".git").exists() for folder in folders):
            play_table_env.get_git_commit_hash = lambda path: "unknown"  # it only logs which version this is
        conf = root / "calvin_env" / "conf"
        arm = OmegaConf.load(conf / "robot" / "panda_longer_finger.yaml")
        settings = OmegaConf.create(
            {
                "data_path": "data",
                "use_vr": False,
                "env": OmegaConf.load(conf / "env" / "play_table_env.yaml"),
                "scene": OmegaConf.load(conf / "scene" / "calvin_scene_D.yaml"),
                "robot": OmegaConf.merge(
                    OmegaConf.load(conf / "robot" / "panda.yaml"), {key: arm[key] for key in arm if key != "defaults"}
                ),
                "cameras": {
                    name: OmegaConf.load(conf / "cameras" / "cameras" / (name + ".yaml")) for name in ("static", "gripper")
                },
            }
        )
        self._env = hydra.utils.instantiate(settings.env, show_gui=False, use_vr=False, use_scene_info=True, use_egl=False)
        tasks = root / "calvin_models" / "conf" / "callbacks" / "rollout" / "tasks" / "new_playtable_tasks.yaml"
        self._oracle = hydra.utils.instantiate(OmegaConf.load(tasks))
        self._cameras = [camera for camera in self._env.cameras if "rgb_" + camera.name in cameras]
        self.versions = {"python": platform.python_version(), "numpy": np.__version__}
        for package in ("pybullet", "gym"):
            try:
                self.versions[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                self.versions[package] = "unknown"
        self._env.get_camera_obs = lambda: ({}, {})  # the environment would render at every step

    def reset(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> None:
        # the environment forgets this number, which would then be the last one of the chain before
        self._env.robot.gripper_action = int(robot_obs[14])
        self._env.reset(robot_obs=robot_obs, scene_obs=scene_obs)

    def begin(self, task: str) -> None:
        self._task = task
        self._start_info = self._env.get_info()

    def step(self, action: np.ndarray, absolute: bool) -> bool:
        """(7,) relative as CALVIN's actions are, or a pose; the gripper exactly -1 or 1 -> whether the task is done."""
        info = self._env.step({"type": "cartesian_abs", "action": action} if absolute else action)[3]
        return bool(self._oracle.get_task_info_for_set(self._start_info, info, {self._task}))

    def observe(self, render: bool) -> Arrays:
        state = self._env.get_state_obs()
        arrays = {name: np.asarray(state[name], dtype="<f8") for name in ("robot_obs", "scene_obs")}
        if render:
            for camera in self._cameras:
                arrays["rgb_" + camera.name] = np.asarray(camera.render()[0], dtype=np.uint8)
        return arrays


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Answer requests until their stream ends."""
    world = None
    while True:
        try:
            request, arrays = read_frame(requests)
        except EOFError:
            return
        kind = request["type"]
        if kind == "open":
            world = World(Path(request["root"]), tuple(request["cameras"]))
            write_frame(replies, {"versions": world.versions})
        elif world is None:
            raise ValueError(f"the first request must be open, not {kind!r}")
        elif kind == "reset":
            world.reset(arrays["robot_obs"], arrays["scene_obs"])
            write_frame(replies, {})
        elif kind == "begin":
            world.begin(request["task"])
            write_frame(replies, {"success": False}, world.observe(request["render"]))
        elif kind == "step":
            success = world.step(arrays["action"], request["absolute"])
            write_frame(replies, {"success": success}, world.observe(request["render"]))
        else:
            raise ValueError(f"unknown request {kind!r}")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the process at the other end, which closes the pipe
    sys.path.pop(0)  # the folder of this file, whose names must hide nothing
    # PyBullet and CALVIN print to stdout, also from C: what they print goes to stderr, and the frames to the old stdout
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    with suppress(BrokenPipeError):  # the other end has gone
        serve(requests, replies)


if __name__ == "__main__":
    main()
