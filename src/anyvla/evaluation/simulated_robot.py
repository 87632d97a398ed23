"""A simulated robot on topics: BoxNav's camera and base, to drive from end to end without a robot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyvla.errors import SimulationError
from anyvla.evaluation.tasks import NavTask
from anyvla.ros2.drive_settings import image_kind
from anyvla.ros2.transport import Message, Transport
from anyvla.simulation.env import FPS, BoxNav

REACTION = 0.5  # of a control step: so long after an image the robot begins to execute the newest command
_SETTLE = 0.2  # seconds between the messages that begin an episode


@dataclass(frozen=True)
class Topics:
    """Where the robot's messages go and come from."""

    camera: str = "/camera/image_raw"
    command: str = "/cmd_vel"
    instruction: str = "/instruction"
    reset: str = "/anyvla/reset"


class SimulatedRobot:
    """Publishes what the camera sees, and obeys the velocities that it hears. ``env``: a BoxNav, which the caller closes."""

    def __init__(self, transport: Transport, env: BoxNav, topics: Topics | None = None, *, stamped: bool = False) -> None:
        self._transport, self._env, self._topics = transport, env, topics or Topics()
        self._command = np.zeros(6)
        self.heard = 0
        transport.subscribe(self._topics.command, "twist_stamped" if stamped else "twist", self._obey)

    def drive(self, task: NavTask, rest: Callable[[float], None]) -> dict[str, Any]:
        """One episode; ``info`` of its end, with ``steps``.

        Args:
            rest: lets that many seconds pass, for everyone.

        Raises SimulationError if nobody commands.
        """
        env, publish = self._env, self._transport.publish
        options = {"scenario": task.scenario, "split": task.split, "sentence_of": task.sentence_of, "new_start": task.new_start}
        observation, info = env.reset(seed=task.seed, options=options)
        for topic, text in ((self._topics.instruction, ""), (self._topics.reset, "reset")):
            publish(topic, "string", text)
            rest(_SETTLE)
        heard = self.heard
        publish(self._topics.instruction, "string", "" if task.blind else info["instruction"])
        rest(_SETTLE)
        if self.heard == heard:
            raise SimulationError(f"nobody publishes on {self._topics.command}")
        steps, over = 0, False
        while not over:
            publish(self._topics.camera, image_kind(self._topics.camera), self._picture(observation))
            rest(REACTION / FPS)
            observation, _, terminated, truncated, info = env.step(self._command[self._used()].astype(np.float32))
            rest((1 - REACTION) / FPS)
            steps, over = steps + 1, terminated or truncated
        return {**info, "steps": steps}

    def _picture(self, observation: dict[str, Any]) -> np.ndarray:
        image: np.ndarray = observation["image"]
        return image

    def _used(self) -> list[int]:
        """Which numbers of a twist the base obeys."""
        return [("linear_x", "linear_y", "", "", "", "angular_z").index(name) for name in self._env.spec_of_action.names]

    def _obey(self, message: Message) -> None:
        self._command = message.data
        self.heard += 1
