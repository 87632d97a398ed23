"""Images per second of a training step of the nav-tiny recipe, on random data: forward, backward, clip, AdamW.

python benchmarks/training_step.py [--steps 30] [key.path=value ...]
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import milliseconds, peak_memory_mib, report

from anyvla.actions import NAV2, fit_normalizer
from anyvla.batch import Batch
from anyvla.checkpoint import build_model
from anyvla.config import load_config
from anyvla.data.transforms import Transforms
from anyvla.training.optimizer import make_optimizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    config = load_config("nav-tiny", arguments.overrides)
    ones = np.ones(len(NAV2))
    image_size = config.observation.image_size
    assert image_size is not None  # the recipe has one
    transforms = Transforms(
        spec=NAV2,
        normalizer=fit_normalizer("bounds", {"min": -ones, "max": ones}, NAV2),
        statistics={},
        cameras=("front",),
        image_size=image_size,
        fit="stretch",
        prompt_template="{instruction}",
        window=config.actions.window,
        chunk=config.actions.chunk,
        fps=2.5,
    )
    torch.manual_seed(0)
    model = build_model(config, transforms)
    optimizer = make_optimizer(model, config.training, config.tuning)
    batch, window, chunk = config.training.batch_size, transforms.window, transforms.chunk
    images = {"front": torch.randint(0, 256, (batch, window, 3, *transforms.image_size), dtype=torch.uint8)}
    prompts = ["Navigate around the obstacle on the left and stop in front of the bottle."] * batch
    actions = torch.rand(batch, window, chunk, len(NAV2))
    mask = torch.ones(batch, window, chunk, dtype=torch.bool)
    windows = Batch(images, prompts, actions, mask, [""] * batch)

    def step() -> None:
        loss = model(windows)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    times = milliseconds(step, arguments.steps)
    report(
        "training_step",
        {
            "parameters": sum(p.numel() for p in model.parameters()),
            "batch": batch,
            "window": window,
            "threads": torch.get_num_threads(),
            "step_ms": times,
            "images_per_s": round(1e3 * batch * window / times["p50"], 1),
            "peak_memory_mib": peak_memory_mib(),
        },
    )


if __name__ == "__main__":
    main()
