"""What this machine has, and what to do about what it lacks."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from anyvla.data.store import default_cache
from anyvla.errors import SimulationError

OPTIONAL = {
    "metaworld": "manipulation with a robot arm: pip install 'anyvla[metaworld]'",
    "onnxruntime": "exported policies: pip install 'anyvla[onnx]'",
    "tensorboard": "curves in TensorBoard: pip install 'anyvla[tensorboard]'",
}


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: ``state`` is ``ok``, ``optional`` (missing, not needed) or ``problem``."""

    name: str
    state: Literal["ok", "optional", "problem"]
    detail: str


def examine() -> list[Finding]:
    """Look at Python, packages, devices, OpenGL, disk and optional parts."""
    return [_python(), *_packages(), *_devices(), _gl(), _disk(), *_optional()]


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")


def _packages() -> list[Finding]:
    names = ("anyvla", "torch", "transformers", "accelerate", "mujoco", "gymnasium", "h5py", "numpy")
    found = []
    for name in names:
        try:
            found.append(Finding(name, "ok", version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, "problem", f"not installed: pip install {name}"))
    if importlib.util.find_spec("torchvision") is not None:
        try:
            import torchvision  # noqa: F401
        except Exception as error:  # noqa: BLE001  a mismatched build fails in many ways, all of which break transformers
            detail = f"installed but does not load beside this torch ({error}): pip uninstall torchvision; it is not needed"
            found.append(Finding("torchvision", "problem", detail))
    return found


def _devices() -> list[Finding]:
    import psutil
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    found = [
        Finding("cpu", "ok", f"{cores} cores, {torch.get_num_threads()} used by torch"),
        Finding("memory", "ok", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
    ]
    if not torch.cuda.is_available():
        return [*found, Finding("gpu", "optional", "none that torch can use; everything runs on the CPU")]
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found.append(Finding(f"gpu {i}", "ok", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    return found


def _gl() -> Finding:
    from anyvla.simulation.gl import choose_backend

    try:
        return Finding("OpenGL", "ok", f"MUJOCO_GL={choose_backend()} renders")
    except SimulationError as error:
        return Finding("OpenGL", "problem", str(error))


def _disk() -> Finding:
    folder: Path = default_cache()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    state: Literal["ok", "problem"] = "ok" if os.access(folder, os.W_OK) else "problem"
    detail = f"{default_cache()}, {free:.0f} GiB free"
    return Finding("frame cache", state, detail if state == "ok" else f"{detail}; not writable, set data.cache")


def _optional() -> list[Finding]:
    return [
        Finding(name, "ok", version(name))
        if importlib.util.find_spec(name)
        else Finding(name, "optional", f"not installed; {what}")
        for name, what in OPTIONAL.items()
    ]


# module -> what pip calls it; all that CALVIN imports when it is driven without window, tactile sensor and training code
CALVIN_PACKAGES = {
    "numpy": "numpy",
    "pybullet": "pybullet",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "scipy": "scipy",
    "cv2": "opencv-python-headless",
    "gym": "gym",
    "git": "gitpython",
    "quaternion": "numpy-quaternion",
}


def examine_calvin(root: Path | None, python: str | None) -> list[Finding]:
    """Whether CALVIN can be evaluated with the checkout ``root`` and the interpreter ``python`` (None: this one)."""
    from anyvla.evaluation.calvin.checkout import HOW, NEEDED, missing_parts

    if root is None:
        return [Finding("checkout", "problem", f"--calvin-root PATH says where it is; to get it: {HOW}")]
    missing = missing_parts(root)
    if len(missing) == len(NEEDED):
        found = [Finding("checkout", "problem", f"none at {root}; to get it: {HOW}")]
    elif missing:
        found = [Finding("checkout", "problem", f"{root} lacks {part}") for part in missing]
    else:
        found = [Finding("checkout", "ok", str(root))]
    found += _calvin_python(python or sys.executable)
    if any(finding.state == "problem" for finding in found):
        return found
    return [*found, _calvin_steps(root, python)]


def _calvin_python(python: str) -> list[Finding]:
    code = (
        "import importlib.util, json, platform; "
        f"missing = [n for n in {list(CALVIN_PACKAGES)} if importlib.util.find_spec(n) is None]; "
        "print(json.dumps([platform.python_version(), missing]))"
    )
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        number, missing = json.loads(done.stdout)
    except OSError as error:
        return [Finding("its python", "problem", f"--calvin-python {python}: cannot be run ({error.strerror})")]
    except ValueError:
        return [Finding("its python", "problem", f"--calvin-python {python}: does not answer as a Python does")]
    found = [Finding("its python", "ok", f"{number} at {python}")]
    if missing:
        packages = " ".join(CALVIN_PACKAGES[name] for name in missing)
        found.append(Finding("its packages", "problem", f"missing: {python} -m pip install {packages}"))
    return found


def _calvin_steps(root: Path, python: str | None) -> Finding:
    """Load the environment, look and step once."""
    import numpy as np

    from anyvla.evaluation.calvin.chains import evaluation_chains, initial_observations
    from anyvla.evaluation.calvin.simulator import Simulator

    began = time.perf_counter()
    try:
        with Simulator(root, ("rgb_static", "rgb_gripper"), python) as simulator:
            chain = evaluation_chains(1)[0]
            robot_obs, scene_obs = initial_observations(chain.state)
            simulator.request({"type": "reset"}, robot_obs=robot_obs, scene_obs=scene_obs)
            simulator.request({"type": "begin", "task": chain.tasks[0], "render": False})
            action = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
            _, seen = simulator.request({"type": "step", "render": True, "absolute": False}, action=action)
    except SimulationError as error:
        return Finding("environment", "problem", str(error))
    pictures = ", ".join(f"{name} {array.shape[1]} x {array.shape[0]}" for name, array in seen.items() if array.ndim == 3)
    return Finding("environment", "ok", f"loads, steps and renders {pictures} ({time.perf_counter() - began:.1f} s)")
