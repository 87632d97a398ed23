"""The choice of an OpenGL back end: one that works, or a message that helps. Each case needs a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
from anyvla.errors import SimulationError
from anyvla.simulation.gl import choose_backend
import os
try:
    print("chose", choose_backend(), os.environ["MUJOCO_GL"])
except SimulationError as error:
    print(error)
"""


def answer(code: str = CODE, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "ANYVLA_GL_CHECKED")}
    run = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in run.stderr
    return run.stdout


@pytest.mark.parametrize("value", ["bogus", "disable"])
def test_a_back_end_that_does_not_work_is_explained(value: str) -> None:
    text = answer(MUJOCO_GL=value)
    assert f"cannot render with MUJOCO_GL={value}" in text
    assert "libegl1" in text
    assert "libosmesa6" in text
    assert len([line for line in text.splitlines() if line.startswith(f"  {value}: ")]) == 1


def test_the_first_that_works_is_chosen_and_kept() -> None:
    chosen, kept = answer().split()[1:]
    assert chosen == kept


def test_what_was_tried_is_listed_when_nothing_works() -> None:
    # without the libraries' loader no back end can come up
    blocked = "import anyvla.simulation.gl as gl; gl._failure = lambda backend: 'broken'\n" + CODE
    text = answer(blocked)
    assert "no OpenGL back end works here" in text
    assert [line.strip() for line in text.splitlines() if line.startswith("  ")] == [
        "egl: broken",
        "osmesa: broken",
        "glfw: broken",
    ]


def test_it_renders_even_if_mujoco_was_imported_before() -> None:
    code = (
        "import mujoco\nfrom anyvla.simulation.env import BoxNav\n"
        "env = BoxNav(image_size=(16, 28)); print(env.reset(seed=0)[0]['image'].std() > 0)"
    )
    assert answer(code).strip() == "True"
