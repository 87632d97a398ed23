"""What every policy has around its model, whatever runs the model: sessions, chunk execution, the safety filter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anyvla.config.tree import PolicyConfig, RecedingHorizonConfig
from anyvla.data.transforms import Transforms
from anyvla.errors import AnyVLAError, ConfigError
from anyvla.policies.execution import Execution, make_execution
from anyvla.policies.safety import SafeAction, SafetyFilter


@dataclass(frozen=True)
class PolicySpec:
    """Exactly what to feed a policy and what comes out.

    Attributes:
        cameras: names of the images, (H, W, 3) uint8 RGB of any size. optional_cameras: those that may be absent.
        state: names of the numbers of the robot's state, in the order and the units of the training data.
        image_size: (h, w) that the images are brought to.
        instruction: an example of the prompt that the model reads. action: see ActionSpec.to_dict. chunk: L. window: H.
        fps: control steps per second that it was trained with.
    """

    cameras: tuple[str, ...]
    optional_cameras: tuple[str, ...]
    state: tuple[str, ...]
    image_size: tuple[int, int]
    instruction: str
    action: dict[str, Any]
    window: int
    chunk: int
    fps: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Session:
    """One robot's episode: its instruction, the model's state, the chunk in execution, the safety filter."""

    prompt: str
    state: Any  # of the model: what it remembers of this episode
    execution: Execution
    safety: SafetyFilter
    chunk: np.ndarray | None = None  # (L, A) robot units, as last predicted
    last: SafeAction | None = None  # what came out last, with the reason where it is a stop


class PolicyBase(ABC):
    """From images to safe actions; a subclass says how a chunk is predicted.

    Raises:
        ConfigError: the execution does not fit the chunk or the safety settings.
    """

    def __init__(self, transforms: Transforms, config: PolicyConfig) -> None:
        if isinstance(config.execution, RecedingHorizonConfig):
            steps = config.execution.steps
            if steps > transforms.chunk:
                raise ConfigError(f"policy.execution.steps is {steps}, but the policy predicts {transforms.chunk} actions")
            if (steps - 1) / transforms.fps > config.safety.max_action_age:
                raise ConfigError(
                    f"policy.execution.steps is {steps}: the last of them is executed {(steps - 1) / transforms.fps:g} s after "
                    f"it was predicted, more than policy.safety.max_action_age {config.safety.max_action_age:g} s"
                )
        self.transforms = transforms
        self.config = config
        self._session: Session | None = None

    @property
    @abstractmethod
    def history(self) -> int:
        """Steps that the model looks back on: 1 if each step stands alone."""

    @abstractmethod
    def _init_state(self) -> Any:
        """What the model remembers of an episode before its first step."""

    @abstractmethod
    def _predict(
        self,
        sessions: Sequence[Session],
        images: Sequence[Mapping[str, np.ndarray]],
        robot_states: Sequence[ArrayLike | None],
    ) -> None:
        """Run the model once; leaves each session its new chunk (robot units) and state."""

    def spec(self) -> PolicySpec:
        transforms = self.transforms
        return PolicySpec(
            cameras=transforms.cameras,
            optional_cameras=transforms.optional_cameras,
            state=() if transforms.state is None else transforms.state.names,
            image_size=transforms.image_size,
            instruction=transforms.prompt("stop in front of the bottle"),
            action=transforms.spec.to_dict(),
            window=transforms.window,
            chunk=transforms.chunk,
            fps=transforms.fps,
        )

    def training_range(self) -> list[list[float]] | None:
        """[smallest, largest] action of the training data, each A numbers in robot units; None if that was not kept."""
        statistics = self.transforms.statistics
        return [statistics[end].tolist() for end in ("min", "max")] if {"min", "max"} <= statistics.keys() else None

    def start(self, instruction: str) -> Session:
        """Begin an episode of one robot."""
        safety = self.config.safety
        return Session(
            self.transforms.prompt(instruction),
            self._init_state(),
            make_execution(self.config.execution, self.transforms.spec),
            SafetyFilter(
                self.transforms.spec,
                1 / self.transforms.fps,
                rate_limit=safety.rate_limit,
                max_observation_age=safety.max_observation_age,
                max_action_age=safety.max_action_age,
            ),
        )

    def reset(self, instruction: str) -> None:
        """Begin an episode of the one robot that ``act`` drives."""
        self._session = self.start(instruction)

    def act(
        self, images: Mapping[str, np.ndarray], *, state: ArrayLike | None = None, observation_age: float = 0.0
    ) -> np.ndarray:
        """One control step: camera -> (H, W, 3) uint8 RGB -> (A,) float32 in robot units, made safe.

        Args:
            state: (S,) of the robot, where the policy takes one: in the order of ``spec().state``, in its units of training.
            observation_age: seconds since the images were taken.

        Raises:
            DataError: a camera is missing or its image has the wrong dtype or shape; the state is missing or wrong.
            AnyVLAError: ``reset`` was not called.
        """
        if self._session is None:
            raise AnyVLAError("call reset(instruction) before act")
        return self.act_batch([self._session], [images], states=[state], observation_ages=[observation_age])[0]

    def act_batch(
        self,
        sessions: Sequence[Session],
        images: Sequence[Mapping[str, np.ndarray] | None],
        *,
        states: Sequence[ArrayLike | None] | None = None,
        observation_ages: Sequence[float] | None = None,
    ) -> list[np.ndarray]:
        """``act`` for several episodes in one forward pass; the sessions' states move on by one step.

        Images that the policy does not look at may be None, see ``looks``.
        """
        ages = observation_ages or [0.0] * len(sessions)
        states = states or [None] * len(sessions)
        due = [i for i, session in enumerate(sessions) if self.looks(session)]
        if due:
            self._predict([sessions[i] for i in due], [images[i] or {} for i in due], [states[i] for i in due])
        actions = []
        for session, age in zip(sessions, ages, strict=True):
            action = session.execution.action(session.chunk)
            predicted = age + session.execution.age() / self.transforms.fps
            session.last = session.safety.filter(action, observation_age=age, action_age=predicted)
            actions.append(session.last.action)
        return actions

    def chunk(self, images: Mapping[str, np.ndarray], *, state: ArrayLike | None = None) -> np.ndarray:
        """What ``act`` chooses from: all the actions (L, A) predicted now, in robot units, neither chosen nor made safe.

        Whoever executes them needs an execution (``anyvla_client.brokers``) and a safety filter. Arguments, errors and the step
        that the model's memory moves on are those of ``act``.
        """
        if self._session is None:
            raise AnyVLAError("call reset(instruction) before chunk")
        return self.chunk_batch([self._session], [images], states=[state])[0]

    def chunk_batch(
        self,
        sessions: Sequence[Session],
        images: Sequence[Mapping[str, np.ndarray]],
        *,
        states: Sequence[ArrayLike | None] | None = None,
    ) -> list[np.ndarray]:
        """``chunk`` for several episodes in one forward pass; the sessions' states move on by one step."""
        self._predict(sessions, images, states or [None] * len(sessions))
        return [session.chunk for session in sessions if session.chunk is not None]

    @property
    def has_history(self) -> bool:
        """Whether the model looks back, so that it must be shown every frame."""
        return self.history > 1

    def looks(self, session: Session) -> bool:
        """Whether the next action of ``session`` depends on its images; where not, a simulator need not render them."""
        # where history is in the model it must see every frame, otherwise only those at which a new chunk is due
        return self.has_history or session.execution.needs_chunk()
