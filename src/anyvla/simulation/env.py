"""BoxNav: drive around one or two boxes on the side that the sentence names and stop in front of the target."""

from __future__ import annotations

from dataclasses import replace
from math import hypot
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from anyvla.actions.spec import ActionSpec, action_spec
from anyvla.data.scenarios import SCENARIOS, Scenario, select_scenarios
from anyvla.errors import ConfigError, did_you_mean
from anyvla.simulation.camera import Cameras
from anyvla.simulation.scene import LAG, MASS, TIME_STEP, Scene
from anyvla.simulation.seeds import UNSEEDED
from anyvla.simulation.sentences import Language, sentence
from anyvla.simulation.world import GOAL_DISTANCE, ROBOT_RADIUS, World, rng_for, sample_start, sample_world

FPS = 2.5  # control steps per second
SUBSTEPS = round(1 / (FPS * TIME_STEP))
STOP_SPEED = 0.05  # m/s: slower than this is standing
STOP_STEPS = 2  # control steps that the robot stands before it counts as stopped
GOAL_RADIUS = 0.3  # m around the goal
MOVED = 0.1  # m from the start before standing counts as stopping
MAX_STEPS = {1: 30, 2: 45}  # by number of boxes
PUSH_SPEED = (0.25, 0.5)  # m/s that a push adds while it lasts, which is one control step
PUSH_PAUSE = 4  # control steps after a push without another one
OVERVIEW_SIZE = (480, 640)

# everything that the built-in sentences can hold: printable ASCII and the Hangul syllables
CHARSET = "".join(map(chr, range(32, 127))) + "".join(map(chr, range(0xAC00, 0xD7A4)))

SentenceSplit = Literal["train", "held_out", "both"]


class BoxNav(gymnasium.Env):
    """The built-in navigation task, ``AnyVLA/BoxNav-v0``.

    Observation: ``image`` (h, w, 3) uint8 RGB of the forward camera, all zeros with ``observe_images=False``; ``state``
    (3,) float32 measured velocities in the robot's frame (x m/s, y m/s, turn rad/s); ``instruction`` str.
    Action: (A,) float32 commanded velocities in the robot's frame, as the action spec says, held for 0.4 s.
    Reward: 1 at the step that ends in success, else 0.

    An episode is terminated by a collision, or when the robot has moved and then stands within 0.3 m of the goal (0.6 m
    before the target); it is truncated after ``max_steps``. Success: stopped there, no collision, every box passed on the
    named side. ``info`` tells all of it at every step (``position`` [x, y, yaw] and ``goal`` [x, y] in the world,
    ``passed`` "left", "right" or None per box, ...); at the end ``info["failure"]`` is None or ``collision``,
    ``wrong_side``, ``stopped_short`` or ``timeout``.

    The same seed and scenario give the same world, to the pixel, whatever was shown before.

    Args:
        scenario: a name such as ``1box_hori_left``, or a pattern: ``all``, ``1box``, ``hori_right``. Where several match,
            the seed picks one.
        action_spec: ``nav2`` or ``nav3``.
        image_size: (height, width) of the observed image.
        observe_images: False skips rendering, for what doesn't look (the expert); no OpenGL is needed then.
        split: which sentences are said: ``train``, ``held_out`` or ``both``.
        language: ``en``, ``ko`` or ``any``.
        render_mode: None, or ``rgb_array`` for ``render()`` to return an overview of the scene, (480, 640, 3) uint8.
        disturbances: probability, per step, that something pushes the robot during that step (never during the 4 steps
            after a push).
        max_steps: control steps until truncation; None means 30 with one box and 45 with two.

    Raises:
        ConfigError: an argument is unknown or out of range.
        SimulationError: no OpenGL back end works here.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(
        self,
        scenario: str = "all",
        action_spec: str = "nav2",
        image_size: tuple[int, int] = (128, 224),
        observe_images: bool = True,
        split: SentenceSplit = "train",
        language: Language = "en",
        render_mode: str | None = None,
        disturbances: float = 0.0,
        max_steps: int | None = None,
    ) -> None:
        self.scenarios = select_scenarios(scenario)
        self.spec_of_action = _nav_spec(action_spec)
        self.split = _checked("split", split, ("train", "held_out", "both"))
        self.language = _checked("language", language, ("en", "ko", "any"))
        self.render_mode = None if render_mode is None else _checked("render_mode", render_mode, ("rgb_array",))
        if not 0.0 <= disturbances <= 1.0:
            raise ConfigError(f"disturbances is a probability per step, from 0 to 1, not {disturbances}")
        if max_steps is not None and max_steps < 1:
            raise ConfigError(f"max_steps must be at least 1, not {max_steps}")
        height, width = image_size
        if min(height, width) < 8 or max(height, width) > 4096:
            raise ConfigError(f"image_size is (height, width) with 8 to 4096 pixels each, not {tuple(image_size)}")
        self.image_size = (int(height), int(width))
        self.observe_images = observe_images
        self.disturbances = disturbances
        self.max_steps = max_steps

        low, high = (limit.astype(np.float32) for limit in (self.spec_of_action.low, self.spec_of_action.high))
        self.action_space = spaces.Box(low, high, dtype=np.float32)
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (*self.image_size, 3), np.uint8),
                "state": spaces.Box(-10.0, 10.0, (3,), np.float32),
                "instruction": spaces.Text(max_length=512, charset=CHARSET),
            }
        )
        self._scene = Scene(self.image_size)
        self._cameras: Cameras | None = None
        self._sky_of: World | None = None  # the world whose sky the graphics library holds
        if observe_images or render_mode:
            self._cameras = Cameras(self._scene)
        self._world: World | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Show a world.

        Args:
            seed: the world's seed. Without one, a fresh world is drawn from the last seed given.
            options: ``scenario`` (exact name), ``instruction`` (said instead of a drawn sentence), ``split``,
                ``sentence_of`` (a scenario: what is said in its world of the same seed is said here), ``new_start`` (True: the
                robot starts elsewhere in the same world, drawn as all starts are).

        Raises:
            ConfigError: an unknown option or value.
        """
        super().reset(seed=seed)
        options = options or {}
        for key in options:
            _checked("reset option", key, ("scenario", "instruction", "split", "sentence_of", "new_start"))
        picked = self.scenarios[self.np_random.integers(len(self.scenarios))]
        if options.get("scenario") is not None:
            picked = SCENARIOS[_checked("scenario", options["scenario"], SCENARIOS)]
        world_seed = UNSEEDED + int(self.np_random.integers(2**31)) if seed is None else seed
        split = _checked("split", options.get("split") or self.split, ("train", "held_out", "both"))

        given = options.get("instruction")
        if given is not None and not (isinstance(given, str) and given.strip()):
            raise ConfigError(f"the instruction must be a sentence, not {given!r}")
        self.scenario: Scenario = picked
        self._world = sample_world(picked, world_seed)
        if options.get("new_start"):
            self._world = replace(self._world, start=sample_start(rng_for(picked, world_seed, 3)))
        spoken = picked
        if options.get("sentence_of") is not None:
            spoken = SCENARIOS[_checked("scenario", options["sentence_of"], SCENARIOS)]
        words = rng_for(spoken, world_seed, 1)
        said = split if split != "both" else ("train", "held_out")[words.integers(2)]
        target = sample_world(spoken, world_seed).target
        drawn = sentence(spoken, target, words, said, self.language)  # type: ignore[arg-type]
        self.instruction: str = given or drawn
        self._said_split = "given" if given else said
        self._pushes = rng_for(picked, world_seed, 2)
        self._scene.show(self._world)

        self._steps = 0
        self._pushed_at = -PUSH_PAUSE - 1
        self._standing = 0
        self._moved = False
        self._collision = False
        self._passed: list[str | None] = [None] * picked.boxes
        self._over = False
        return self._observation(), self._info(ended=False)

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Hold ``action`` (A,) for one control step of 0.4 s; what is out of limits is clipped.

        Raises:
            ValueError: the action has the wrong shape or a value that is not finite.
            gymnasium.error.ResetNeeded: the episode is over, or none was begun.
        """
        if self._world is None or self._over:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset() before step()")
        command = self._command(action)
        force = self._push()
        for _ in range(SUBSTEPS):
            before = self._scene.pose
            self._collision |= self._scene.step(command, force)
            self._note_crossings(before, self._scene.pose)
        self._steps += 1
        velocity = self._scene.velocity
        x, y, _ = self._scene.pose
        self._moved |= hypot(x - self._world.start[0], y - self._world.start[1]) > MOVED
        self._standing = self._standing + 1 if hypot(velocity[0], velocity[1]) < STOP_SPEED else 0

        terminated = self._collision or (self._stopped and self._distance_to_goal() <= GOAL_RADIUS)
        truncated = not terminated and self._steps >= (self.max_steps or MAX_STEPS[self.scenario.boxes])
        self._over = terminated or truncated
        info = self._info(ended=self._over)
        return self._observation(), float(info["success"]), terminated, truncated, info

    def render(self) -> np.ndarray | None:
        """(480, 640, 3) uint8 overview, or None without ``render_mode="rgb_array"``."""
        if self.render_mode is None:
            return None
        return self._picture("overview", OVERVIEW_SIZE)

    def close(self) -> None:
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None

    def layout(self) -> dict[str, Any]:
        """What only an expert or a plot may know: the geometry of this world as plain numbers (metres, radians).

        ``boxes``: list of ``center`` [x, y], ``half`` [along, across, up], ``yaw``; ``target``: ``kind``, ``center``;
        ``goal`` [x, y], ``goal_radius``, ``start`` [x, y, yaw], ``robot_radius``, ``side``.
        """
        world = self._shown()
        return {
            "boxes": [{"center": [box.x, box.y], "half": list(box.half), "yaw": box.yaw} for box in world.boxes],
            "target": {"kind": world.target, "center": [world.target_x, world.target_y], "distance": GOAL_DISTANCE},
            "goal": list(world.goal),
            "goal_radius": GOAL_RADIUS,
            "start": list(world.start),
            "robot_radius": ROBOT_RADIUS,
            "side": self.scenario.side,
        }

    @property
    def pose(self) -> tuple[float, float, float]:
        """x, y, yaw of the robot in the world: privileged, for the expert and for plots."""
        return self._scene.pose

    @property
    def world(self) -> World:
        """The world shown: privileged, for the expert and for plots."""
        return self._shown()

    def _shown(self) -> World:
        if self._world is None:
            raise gymnasium.error.ResetNeeded("call reset() first")
        return self._world

    def _command(self, action: np.ndarray) -> np.ndarray:
        """(3,) velocities; dimensions that the spec leaves out are zero."""
        values = np.asarray(action, dtype=np.float64)
        spec = self.spec_of_action
        if values.shape != (len(spec),):
            raise ValueError(f"an action has shape ({len(spec)},): {spec.describe()}; this one has {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"the action holds a value that is not finite: {values.tolist()}")
        command = np.zeros(3)
        command[: len(spec)] = np.clip(values, spec.low, spec.high)
        return command

    def _push(self) -> np.ndarray:
        """(2,) N for this step. Always draws three numbers: what pushes when does not depend on the robot."""
        chance, angle, speed = self._pushes.uniform(size=3)
        if chance >= self.disturbances or self._steps - self._pushed_at <= PUSH_PAUSE:
            return np.zeros(2)
        self._pushed_at = self._steps
        low, high = PUSH_SPEED
        force = (low + (high - low) * speed) * MASS / LAG  # the servo holds against it at just that speed
        return force * np.array([np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)])

    def _note_crossings(self, before: tuple[float, float, float], after: tuple[float, float, float]) -> None:
        """Note on which side the robot's centre crossed the line x = box centre; going back undoes it."""
        for i, box in enumerate(self._shown().boxes):
            if before[0] < box.x <= after[0]:
                self._passed[i] = "left" if after[1] > box.y else "right"
            elif after[0] < box.x <= before[0]:
                self._passed[i] = None

    @property
    def _stopped(self) -> bool:
        return self._moved and self._standing >= STOP_STEPS

    def _distance_to_goal(self) -> float:
        x, y, _ = self._scene.pose
        goal = self._shown().goal
        return hypot(x - goal[0], y - goal[1])

    def _info(self, ended: bool) -> dict[str, Any]:
        world = self._shown()
        distance = self._distance_to_goal()
        at_goal = self._stopped and distance <= GOAL_RADIUS and not self._collision
        success = at_goal and all(side == self.scenario.side for side in self._passed)
        info: dict[str, Any] = {
            "scenario": self.scenario.name,
            "seed": world.seed,
            "target": world.target,
            "split": self._said_split,
            "instruction": self.instruction,
            "position": list(self._scene.pose),
            "goal": list(world.goal),
            "distance_to_goal": distance,
            "passed": list(self._passed),
            "collision": self._collision,
            "stopped": self._stopped,
            "success": success,
            "failure": None,
        }
        if ended and not success:
            info["failure"] = self._failure()
        return info

    def _failure(self) -> str:
        """Why an episode that is over was no success."""
        if self._collision:
            return "collision"
        if any(side is not None and side != self.scenario.side for side in self._passed):
            return "wrong_side"
        return "stopped_short" if self._stopped else "timeout"

    def _observation(self) -> dict[str, Any]:
        image = self._picture("forward", self.image_size) if self.observe_images else np.zeros((*self.image_size, 3), np.uint8)
        return {"image": image, "state": self._scene.velocity, "instruction": self.instruction}

    def _picture(self, camera: str, size: tuple[int, int]) -> np.ndarray:
        if self._cameras is None:
            raise gymnasium.error.ClosedEnvironmentError("the environment is closed")
        if self._sky_of is not self._shown():
            self._cameras.update()
            self._sky_of = self._world
        return self._cameras.render(camera, size)


def _nav_spec(name: str) -> ActionSpec:
    return action_spec(_checked("action_spec", name, ("nav2", "nav3")))


def _checked(what: str, value: str, known: Any) -> str:
    """``value`` if it is in ``known``; raises ConfigError otherwise."""
    if value not in known:
        raise ConfigError(f"unknown {what} {value!r}{did_you_mean(str(value), known)}")
    return value
