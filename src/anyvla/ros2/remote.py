"""A policy behind a server as a source of actions."""

from __future__ import annotations

from typing import Any

import numpy as np

from anyvla.errors import ConfigError
from anyvla.ros2.sources import Answers, DrivenBy, Observation
from anyvla_client.client import AnswerTimeoutError, PolicyClient, ServerLostError


def behind_server(client: PolicyClient, *, timeout: float) -> Answers:
    """``timeout``: seconds for one answer, reconnecting included. Raises ConfigError for a server that is not AnyVLA's.

    A lost connection is a failure at once, not when the next question is due; after a restart it is made anew.
    """

    made = 0  # connections, when the episode began: on a new one the server knows nothing of it

    def infer(observation: Observation) -> np.ndarray:
        request: dict[str, Any] = {"images": dict(observation.images), "prompt": observation.instruction}
        request |= {"stamp": observation.stamp, "reset": observation.first}
        if observation.state is not None:
            request["state"] = observation.state.astype(np.float32)
        nonlocal made
        actions: np.ndarray = client.infer(request, timeout=timeout)["actions"]
        if observation.first:
            made = client.connections
        return actions

    def cause(error: BaseException) -> str:
        if isinstance(error, AnswerTimeoutError):
            return "policy_timeout"
        return "server_lost" if isinstance(error, ServerLostError) else "policy_error"

    return Answers(_about(client.metadata), infer, cause, lambda: not client.connected or client.connections != made)


def _about(metadata: dict[str, Any]) -> DrivenBy:
    missing = sorted({"action", "cameras", "fps"} - metadata.keys())
    if missing:
        raise ConfigError(f"the server does not say what it serves ({', '.join(missing)}): a robot is driven by AnyVLA's own")
    optional = tuple(metadata.get("optional_cameras", ()))
    execution, seen = metadata.get("execution") or {}, metadata.get("training_range")
    return DrivenBy(
        action=metadata["action"],
        cameras=tuple(camera for camera in metadata["cameras"] if camera not in optional),
        optional_cameras=optional,
        state=tuple(metadata.get("state", ())),
        fps=float(metadata["fps"]),
        training_range=None if seen is None else np.array(seen, dtype=np.float64),
        decay=execution.get("decay") if execution.get("type") == "ensemble" else None,
    )
