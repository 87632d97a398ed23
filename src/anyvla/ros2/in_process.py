"""A policy of this process as a source of actions."""

from __future__ import annotations

import numpy as np

from anyvla.config.tree import EnsembleConfig
from anyvla.policies.policy import Policy, Session
from anyvla.ros2.sources import Answers, DrivenBy, Observation


def in_process(policy: Policy, *, background: bool = True) -> Answers:
    """A policy of this process. Its own execution and safety filter stay out of the way: the drive loop has both."""
    session: list[Session] = []

    def infer(observation: Observation) -> np.ndarray:
        if observation.first or not session:
            session[:] = [policy.start(observation.instruction)]
        return policy.chunk_batch(session, [observation.images], states=[observation.state])[0]

    spec, execution = policy.spec(), policy.config.execution
    seen = policy.training_range()
    about = DrivenBy(
        action=spec.action,
        cameras=tuple(camera for camera in spec.cameras if camera not in spec.optional_cameras),
        optional_cameras=spec.optional_cameras,
        state=spec.state,
        fps=spec.fps,
        training_range=None if seen is None else np.array(seen),
        decay=execution.decay if isinstance(execution, EnsembleConfig) else None,
    )
    blank = {camera: np.zeros((*spec.image_size, 3), np.uint8) for camera in spec.cameras}
    infer(Observation(blank, np.zeros(len(spec.state)) if spec.state else None, "warm up", 0.0, first=True))
    return Answers(about, infer, background=background)
