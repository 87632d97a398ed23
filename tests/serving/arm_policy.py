"""A small untrained policy of an arm, whose actions depend on image, state, sentence and what came before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyvla.actions import ActionSpec, fit_normalizer
from anyvla.actions.spec import action_spec
from anyvla.checkpoint import build_model, save_model
from anyvla.config import parse_config
from anyvla.config.tree import ExecutionConfig, FirstActionConfig, PolicyConfig
from anyvla.data.state import fit_state
from anyvla.data.transforms import Transforms
from anyvla.policies.policy import Policy

SIZE = (32, 32)


def arm_policy(
    *,
    spec: str | ActionSpec = "arm7",
    fps: float = 30.0,
    cameras: tuple[str, ...] = ("rgb_static",),
    state: tuple[str, ...] = (),
    execution: ExecutionConfig | None = None,
    save_to: Path | None = None,
    overrides: Sequence[str] = (),
) -> Policy:
    """An LSTM over a window of 4, chunks of 3, or what ``overrides`` say. ``save_to``: write the checkpoint there."""
    action = spec if isinstance(spec, ActionSpec) else action_spec(spec)
    ones = np.ones(len(action))
    settings = [
        "actions={spec: arm7, window: 4, chunk: 3}",
        "model.backbone={type: tiny, width: 32, vision_layers: 1, language_layers: 1}",
        "model.head={type: lstm, hidden: 16, trunk: [16]}",
        f"observation.image_size={list(SIZE)}",
        f"observation.cameras=[{', '.join(cameras)}]",
    ]
    numbers: dict[str, Any] = {}
    if state:
        limits = np.ones(len(state))
        settings.append(f"observation.state=[{', '.join(state)}]")
        numbers = {name: sign * limits for name, sign in (("q01", -1), ("q99", 1), ("min", -1), ("max", 1))}
    transforms = Transforms(
        spec=action,
        normalizer=fit_normalizer("quantile", {"q01": -ones, "q99": ones}, action),
        statistics={"q01": -ones, "q99": ones},
        cameras=cameras,
        image_size=SIZE,
        fit="stretch",
        prompt_template="{instruction}",
        window=4,
        chunk=3,
        fps=fps,
        state=fit_state(state, numbers) if state else None,
    )
    torch.manual_seed(0)
    config = parse_config("{}", [*settings, *overrides])
    model = build_model(config, transforms)
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(3)  # an untrained head hardly moves
    if save_to is not None:
        save_model(save_to, config, transforms, model)
    return Policy(model, transforms, PolicyConfig(execution=execution or FirstActionConfig()))
