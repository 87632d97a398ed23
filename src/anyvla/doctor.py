"""What this machine has, and what to do about what it lacks."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from anyvla.data.store import default_cache
from anyvla.errors import SimulationError

OPTIONAL = {"tensorboard": "curves in TensorBoard: pip install 'anyvla[tensorboard]'"}


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
