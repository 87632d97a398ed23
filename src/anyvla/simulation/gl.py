"""Choose the OpenGL back end that MuJoCo renders with, without an import that cannot be undone.

Importing MuJoCo with a back end that does not work poisons the process, so each candidate is tried in a short subprocess
(about 0.3 s). The answer is kept in the environment, where worker processes find it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from anyvla.errors import SimulationError

CANDIDATES = ("egl", "osmesa", "glfw")
_CHECKED = "ANYVLA_GL_CHECKED"  # the value of MUJOCO_GL that is known to work here; set by this process or a parent
_TIMEOUT_S = 20.0  # a dead X display can hang for long

_PROBE = """
import mujoco
gl = mujoco.GLContext(16, 16)
gl.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco/>")
context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
ok = context.currentBuffer == mujoco.mjtFramebuffer.mjFB_OFFSCREEN
context.free()
gl.free()
print("works" if ok else "it offers no offscreen buffer")
"""

_HELP = (
    "Install one of: libegl1 libgl1-mesa-dri (egl: no display needed, GPU or CPU), libosmesa6 (osmesa: CPU only), "
    "or run under a display with libglfw3 (glfw). Then leave MUJOCO_GL unset, or set it to egl, osmesa or glfw."
)


def choose_backend() -> str:
    """The name of a back end that works here: what ``MUJOCO_GL`` says, else the first of egl, osmesa and glfw that renders.

    Sets ``os.environ["MUJOCO_GL"]``, so that this process and its children use it; later calls cost nothing.

    Raises:
        SimulationError: none works, or the one in ``MUJOCO_GL`` does not; says what was tried, why it failed and
            what to install.
    """
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if wanted and os.environ.get(_CHECKED) == wanted:
        return wanted
    if sys.platform != "linux" and not wanted:
        return "native"  # macOS and Windows bring their own OpenGL; MuJoCo picks it
    tried: dict[str, str] = {}
    for backend in (wanted,) if wanted else CANDIDATES:
        failure = _failure(backend)
        if failure is None:
            os.environ["MUJOCO_GL"] = os.environ[_CHECKED] = backend
            return backend
        tried[backend] = failure
    reasons = "\n".join(f"  {backend}: {reason}" for backend, reason in tried.items())
    if wanted:
        raise SimulationError(f"cannot render with MUJOCO_GL={wanted}:\n{reasons}\n{_HELP}")
    raise SimulationError(f"no OpenGL back end works here. Tried:\n{reasons}\n{_HELP}")


def gl_context(width: int, height: int) -> Any:
    """A current OpenGL context of the chosen back end.

    The class is taken from the back end's own module: ``mujoco.GLContext`` was fixed when somebody first imported MuJoCo,
    perhaps before the back end was chosen.

    Raises:
        SimulationError: as ``choose_backend``.
    """
    backend = choose_backend()
    if backend == "egl":
        from mujoco.egl import GLContext
    elif backend == "osmesa":
        from mujoco.osmesa import GLContext
    elif backend == "glfw":
        from mujoco.glfw import GLContext
    else:
        from mujoco import GLContext
    context = GLContext(width, height)
    context.make_current()
    return context


def _failure(backend: str) -> str | None:
    """Why ``backend`` cannot render on this machine, in one line, or None if it can."""
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        run = subprocess.run(
            [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_TIMEOUT_S:.0f} s"
    if run.returncode == 0 and run.stdout.strip() == "works":
        return None
    lines = [line.strip() for line in (run.stdout + "\n" + run.stderr).splitlines() if line.strip()]
    if run.returncode < 0:
        return f"the process died of signal {-run.returncode}"
    return lines[-1] if lines else f"exit status {run.returncode} without a message"
