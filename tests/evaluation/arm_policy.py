"""A tiny policy for an arm, with random weights, as a checkpoint folder: it sees one frame, and executes whole chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from anyvla.actions import ARM7, ActionSpec, fit_normalizer
from anyvla.checkpoint import build_model, save_model
from anyvla.config import load_config
from anyvla.data.state import fit_state
from anyvla.data.transforms import Transforms


def make_arm_policy(
    folder: Path,
    *overrides: str,
    cameras: tuple[str, ...] = ("rgb_static", "rgb_gripper"),
    state: tuple[str, ...] = (),
    spec: ActionSpec = ARM7,
    fps: float = 30.0,
    chunk: int = 5,
    seed: int = 0,
) -> Path:
    config = load_config(
        "nav-tiny",
        [
            f"actions={{spec: {spec.name}, window: 1, chunk: {chunk}, normalization: bounds, bounds: [-0.65, 0.65]}}",
            "data.augment={}",
            "model.backbone={type: tiny, width: 32, vision_layers: 1, language_layers: 1}",
            "model.structure={type: one_step}",
            "model.head={type: fc, hidden: 16, trunk: [16]}",
            f"policy.execution={{type: receding, steps: {chunk}}}",
            *overrides,
        ],
    )
    ones = np.ones(len(spec))
    statistics = {"min": -ones, "max": ones, "q01": -ones, "q99": ones, "mean": 0 * ones, "std": ones}
    numbers = {name: np.full(len(state), value[0]) for name, value in statistics.items()}
    transforms = Transforms(
        spec=spec,
        normalizer=fit_normalizer("quantile", statistics, spec),
        statistics=statistics,
        cameras=cameras,
        image_size=(16, 16),
        fit="stretch",
        prompt_template="{instruction}",
        window=1,
        chunk=chunk,
        fps=fps,
        state=fit_state(state, numbers) if state else None,
    )
    torch.manual_seed(seed)
    save_model(folder, config, transforms, build_model(config, transforms))
    return folder
