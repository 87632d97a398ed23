"""Meta-World's fifty manipulation tasks (arXiv 1910.10897, version 3) with pictures, the state of the arm, and seeds.

    world = MetaWorld(ArmCameras(), image_size=(96, 96))
    world.reset("drawer-open-v3", seed=1)
    while not world.over:
        world.step(world.expert())
    print(world.success)

The tasks, their physics, their success and their scripted experts are those of the package ``metaworld``. Ours are the
pictures, the seeds, pushes, and starts elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from anyvla.actions.spec import METAWORLD4
from anyvla.errors import ConfigError, MissingExtraError, SimulationError, did_you_mean
from anyvla.simulation.camera import SMALL, draw, fixed_view
from anyvla.simulation.gl import gl_context

FPS = 80.0  # control steps per second: five steps of physics of 2.5 ms each
MAX_STEPS = 250  # control steps; the scripted experts need 30 to 180
CAMERAS = ("corner", "gripper")
STATE_NAMES = ("hand_x", "hand_y", "hand_z", "gripper")  # metres in the world; opening from 0 (closed) to 1
PUSH_STEPS = 8  # control steps that a push lasts, and at least as many before the next one
# metres around the usual place of the hand, where it begins instead with ``new_start``
START_LOW, START_HIGH = np.array([-0.12, -0.1, -0.05]), np.array([0.12, 0.05, 0.08])
_START_STEPS = 30  # control steps to get there

# The goals of these two are drawn at a place that differs between them: a policy could tell open from close without a sentence.
_UNSEEN_SITES = {"faucet-open-v3": ("goal_open", "goal_close"), "faucet-close-v3": ("goal_open", "goal_close")}


class ArmCameras:
    """Draws the worlds of one process; owns an OpenGL context until ``close``, and what was drawn of a task is kept there.

    Shadows, reflections and smoothed edges are left out: without a GPU they took 13 times as long as all the rest. Instead
    small pictures are drawn twice as large and averaged.

    Raises:
        SimulationError: no OpenGL back end works here.
    """

    def __init__(self) -> None:
        self._gl = gl_context(16, 16)
        self._option = mujoco.MjvOption()
        self._of: dict[str, tuple[mujoco.MjrContext, mujoco.MjvScene]] = {}

    def render(self, task: str, env: Any, camera: str, size: tuple[int, int]) -> np.ndarray:
        """(height, width, 3) uint8 of the world ``env`` of ``task``, by the camera ``corner`` or ``gripper``."""
        scale = 2 if max(size) <= SMALL else 1
        height, width = scale * size[0], scale * size[1]
        model, data = env.model, env.data
        self._gl.make_current()
        if task not in self._of:
            model.vis.quality.offsamples = model.vis.quality.shadowsize = 0
            context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
            scene = mujoco.MjvScene(model, maxgeom=500)
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                scene.flags[flag] = 0
            self._of[task] = context, scene
        context, scene = self._of[task]
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)  # the last picture may be another task's
        if height > context.offHeight or width > context.offWidth:
            mujoco.mjr_resizeOffscreen(max(width, context.offWidth), max(height, context.offHeight), context)
        view = fixed_view(model, "gripperPOV") if camera == "gripper" else _corner()
        mujoco.mjv_updateCamera(model, data, view, scene)  # see anyvla.simulation.camera
        mujoco.mjv_updateScene(model, data, self._option, None, view, mujoco.mjtCatBit.mjCAT_ALL, scene)
        return draw(scene, context, size, scale)

    def close(self) -> None:
        """Free the OpenGL context. Calling it again does nothing."""
        if self._gl is None:
            return
        self._gl.make_current()
        for context, _ in self._of.values():
            context.free()
        self._gl.free()
        self._of, self._gl = {}, None


def _corner() -> mujoco.MjvCamera:
    """From the front left corner of the table, close to where hand and things meet.

    Meta-World's own corner cameras are further away and stand upside down.
    """
    view = mujoco.MjvCamera()
    view.type = mujoco.mjtCamera.mjCAMERA_FREE
    view.lookat = [0.0, 0.7, 0.12]
    view.distance, view.azimuth, view.elevation = 0.95, 130.0, -30.0
    return view


class MetaWorld:
    """One world at a time of any task. The same task and seed give the same world, to the pixel, whatever was shown before.

    Action: (4,) of ``metaworld4``, held for one control step of 1/80 s. An episode is over when the task was done, at any step
    (``success``), or after ``MAX_STEPS``.

    Args:
        cameras: None for what doesn't look; no OpenGL is needed then. Worlds of one process can share them.
        views: which of ``CAMERAS`` are rendered. image_size: (height, width) of the pictures.
        disturbances: probability, per step, that something begins to push the hand aside, for 8 steps.

    Raises:
        ConfigError: an argument is unknown or out of range. MissingExtraError: there is no package ``metaworld``.
    """

    def __init__(
        self,
        cameras: ArmCameras | None = None,
        views: Sequence[str] = ("corner",),
        image_size: tuple[int, int] = (96, 96),
        disturbances: float = 0.0,
    ) -> None:
        check_views(views, image_size)
        if not 0.0 <= disturbances <= 1.0:
            raise ConfigError(f"disturbances is a probability per step, from 0 to 1, not {disturbances}")
        _metaworld()
        self._cameras, self._views = cameras, tuple(views)
        self._image_size = (int(image_size[0]), int(image_size[1]))
        self._disturbances = disturbances
        self._envs: dict[str, tuple[Any, Any]] = {}  # task -> environment and expert
        self.task = ""

    def reset(self, task: str, seed: int, *, new_start: bool = False) -> None:
        """Show a world.

        Args:
            task: such as ``drawer-open-v3``. seed: of where things, goals and the hand are.
            new_start: the hand begins elsewhere, up to 12 cm from its usual place; everything else is as without.

        Raises:
            ConfigError: an unknown task.
        """
        if task not in self._envs:
            self._envs[task] = _make(task)
        self.task, self.seed = task, seed
        self._env, self._expert = self._envs[task]
        things, start, self._pushes = (np.random.default_rng([seed, stream]) for stream in range(3))
        mujoco.mj_resetData(self._env.model, self._env.data)
        self._env.np_random = things
        self._seen, _ = self._env.reset()
        self.steps, self.success, self._push, self._push_ends, self._pause_ends = 0, False, np.zeros(3), 0, 0
        if new_start:
            goal = self._seen[:3] + start.uniform(START_LOW, START_HIGH)
            for _ in range(_START_STEPS):
                towards = np.clip(20 * (goal - self._seen[:3]), -1, 1)
                self._seen, *_ = self._env.step(np.array([*towards, -1.0], dtype=np.float32))
            self._env.curr_path_length = 0

    def images(self) -> dict[str, np.ndarray]:
        """Camera -> (h, w, 3) uint8 of this moment."""
        if self._cameras is None:
            raise SimulationError("this world was made without cameras")
        return {view: self._cameras.render(self.task, self._env, view, self._image_size) for view in self._views}

    def state(self) -> np.ndarray:
        """(4,) float32, see ``STATE_NAMES``."""
        return self._seen[:4].astype(np.float32)

    def expert(self) -> np.ndarray:
        """(4,) float32 what Meta-World's scripted expert does now; it reads positions from the simulator."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its actions are out of limits: they are clipped, as Meta-World does
            action = self._expert.get_action(self._seen)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def step(self, action: np.ndarray) -> None:
        """Hold (4,) for one control step; what is out of limits is clipped.

        Raises:
            ValueError: the action has the wrong shape or a value that is not finite.
        """
        command = np.array(action, dtype=np.float32)
        if command.shape != (len(METAWORLD4),) or not np.isfinite(command).all():
            raise ValueError(f"an action is {len(METAWORLD4)} finite numbers ({METAWORLD4.describe()}), not {action!r}")
        command = np.clip(command, -1.0, 1.0)
        self._draw_push()
        if self.steps < self._push_ends:
            command[:3] = self._push
        self._seen, _, _, _, info = self._env.step(command)
        self.steps += 1
        self.success = self.success or bool(info["success"])

    @property
    def expert_sees(self) -> np.ndarray:
        """(39,) Meta-World's own observation: hand, gripper, things, the same of the step before, goal. Privileged."""
        return self._seen

    @property
    def simulator(self) -> Any:
        """Meta-World's own environment of this task. Privileged."""
        return self._env

    @property
    def over(self) -> bool:
        return self.success or self.steps >= MAX_STEPS

    def _draw_push(self) -> None:
        """Always draws four numbers: what pushes when does not depend on the arm."""
        chance, direction = self._pushes.uniform(), self._pushes.normal(size=3)
        if chance < self._disturbances and self.steps >= self._pause_ends:
            self._push = direction / np.linalg.norm(direction)
            self._push_ends = self.steps + PUSH_STEPS
            self._pause_ends = self._push_ends + PUSH_STEPS


def check_views(views: Sequence[str], image_size: tuple[int, int]) -> None:
    """Raise ConfigError for an unknown camera or an impossible size."""
    for view in views:
        if view not in CAMERAS:
            raise ConfigError(f"unknown camera {view!r}{did_you_mean(view, CAMERAS)}")
    if not views or len(set(views)) < len(views):
        raise ConfigError("the cameras must be one or more, each once")
    if min(image_size) < 8 or max(image_size) > 2048:
        raise ConfigError(f"image_size is (height, width) with 8 to 2048 pixels each, not {tuple(image_size)}")


def _metaworld() -> Any:
    try:
        import metaworld.env_dict
        import metaworld.policies
    except ImportError as error:
        if (error.name or "").split(".")[0] != "metaworld":
            raise
        raise MissingExtraError("metaworld", "metaworld") from error
    return metaworld


def _make(task: str) -> tuple[Any, Any]:
    """Meta-World's environment of ``task``, with its goal in what the expert sees, and the expert."""
    package = _metaworld()
    known = package.env_dict.ALL_V3_ENVIRONMENTS
    if task not in known:
        raise ConfigError(f"unknown task {task!r}{did_you_mean(task, known)}")

    env: Any = type("Environment", (known[task],), {"reset_mocap_welds": _reset_welds})()
    # as metaworld makes its environments with an observable goal, but drawing every world from np_random
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)  # computed anew, with room for the goal
    env._freeze_rand_vec, env.seeded_rand_vec, env._set_task_called = False, True, True
    for site in _UNSEEN_SITES.get(task, ()):
        env.model.site(site).rgba[3] = 0.0
    return env, package.policies.ENV_POLICY_MAP[task]()


def _reset_welds(env: Any) -> None:
    """In place of a method of metaworld 3.0.0, which writes the 11 numbers of a constraint that MuJoCo 3 has.

    MuJoCo 4 has 12; the last is left as it is.
    """
    welds = env.model.eq_type == mujoco.mjtEq.mjEQ_WELD
    env.model.eq_data[welds, :11] = [0, 0, 0, 0, 0, 0, -1, 0, 0, 0, 5]
