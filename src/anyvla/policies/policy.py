"""Policy: what a robot or a simulator holds.

    policy = Policy.load("runs/nav")
    policy.reset("Pass the box on the left and stop in front of the bottle.")
    while driving:
        action = policy.act({"front": image})          # (A,) in robot units

Several robots share one model: each has a ``Session`` from ``policy.start``, and ``policy.act_batch`` runs them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from anyvla.checkpoint import Checkpoint, Which, load_checkpoint
from anyvla.config.tree import ExecutionConfig, PolicyConfig
from anyvla.data.transforms import Transforms
from anyvla.errors import ConfigError
from anyvla.models.vla import VLA
from anyvla.policies.session import PolicyBase, PolicySpec, Session

__all__ = ["Policy", "PolicySpec", "Session"]


class Policy(PolicyBase):
    """A loaded model with everything around it that turns images into robot actions."""

    def __init__(self, model: VLA, transforms: Transforms, config: PolicyConfig) -> None:
        super().__init__(transforms, config)
        self.autocast: torch.dtype | None = None  # what the model computes in, where that is not what its weights are
        self._model = model.eval()
        self._device = model.backbone.device

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        checkpoint: Which = "last",
        device: str = "auto",
        execution: ExecutionConfig | None = None,
        source: str | None = None,
    ) -> Policy:
        """Load a run or a checkpoint folder.

        Args:
            device: ``auto`` takes a GPU where there is one. execution: instead of the run's own.
            source: of a mixture that it was trained on, whose scale of actions and states this robot has.

        Raises:
            CheckpointError: nothing loadable there.
            ConfigError: ``execution`` does not fit the policy, or ``source`` is none of those that it was trained on.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded: Checkpoint = load_checkpoint(Path(path), checkpoint, device)
        loaded.model.objectives = None  # what only training needs
        config, transforms = loaded.config.policy, loaded.transforms
        if source is not None:
            transforms = transforms.of(source)
        elif transforms.mixture:
            names = ", ".join(transforms.mixture)
            raise ConfigError(f"{path} was trained on several sources; say which of them has this robot's scale: {names}")
        return cls(loaded.model, transforms, config.model_copy(update={"execution": execution}) if execution else config)

    @property
    def model(self) -> VLA:
        """In evaluation mode."""
        return self._model

    @property
    def history(self) -> int:
        return self._model.history

    def _init_state(self) -> Any:
        return self._model.init_state()

    @torch.inference_mode()
    def _predict(
        self,
        sessions: Sequence[Session],
        images: Sequence[Mapping[str, np.ndarray]],
        robot_states: Sequence[ArrayLike | None],
    ) -> None:
        """Run the model once; leaves each session its new chunk (robot units) and state."""
        transforms = self.transforms
        frames = [transforms.images(observation) for observation in images]
        absent = np.zeros((*transforms.image_size, 3), dtype=np.uint8)
        batch = {
            camera: torch.from_numpy(np.stack([frame.get(camera, absent) for frame in frames]))
            .permute(0, 3, 1, 2)
            .to(self._device)
            for camera in transforms.cameras
        }
        present = torch.tensor([[camera in frame for camera in transforms.cameras] for frame in frames])
        measured = [one for one in map(transforms.normalize_state, robot_states) if one is not None]
        state = torch.from_numpy(np.stack(measured)).to(self._device) if measured else None
        prompts, states = [session.prompt for session in sessions], [session.state for session in sessions]
        with torch.autocast(self._device.type, self.autocast, enabled=self.autocast is not None):
            actions, states = self._model.step(
                batch, prompts, states, state, None if present.all() else present.to(self._device)
            )
        chunks = transforms.normalizer.denormalize(actions.float().cpu().numpy())
        for session, chunk, state in zip(sessions, chunks, states, strict=True):
            session.chunk, session.state = chunk, state
