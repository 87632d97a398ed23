from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from anyvla.data.writers import write_mobile_h5

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run in as many processes as there are cores
# the same examples at every run, and as long as a busy machine needs
settings.register_profile("anyvla", derandomize=True, deadline=None)
settings.load_profile("anyvla")


def write_episode(path: Path, length: int = 18, size: tuple[int, int] = (36, 64), seed: int = 0, **changes) -> Path:
    """A small random episode; ``changes`` replace arguments of the writer."""
    rng = np.random.default_rng(seed)
    arguments = {
        "images": rng.integers(0, 256, (length, *size, 3), dtype=np.uint8),
        "actions": rng.uniform(-1, 1, (length, 3)),
        "instruction": "Pass the box on the left.",
        "fps": 2.5,
    } | changes
    write_mobile_h5(path, **arguments)
    return path


def write_conversations(folder: Path, count: int = 6, seed: int = 0) -> Path:
    """A JSON file of conversations in LLaVA's manner, two questions each, every third of them without an image."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    entries = []
    for i in range(count):
        number = int(rng.integers(100))
        values = ["What is the number?", f"It is {number}.", "Is it even?", "Yes." if number % 2 == 0 else "No."]
        entry: dict[str, object] = {"id": i}
        if i % 3 < 2:
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            entry["image"] = f"{i}.png"
            values[0] = f"<image>\n{values[0]}"
        entry["conversations"] = [{"from": ("human", "gpt")[j % 2], "value": value} for j, value in enumerate(values)]
        entries.append(entry)
    path = folder / "conversations.json"
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def make_episodes(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder of episodes of the given lengths, alternately to be passed on the left and on the right."""

    def make(*lengths: int, size: tuple[int, int] = (36, 64)) -> Path:
        folder = tmp_path / "episodes"
        folder.mkdir(exist_ok=True)
        for i, length in enumerate(lengths):
            side = ("left", "right")[i % 2]
            write_episode(
                folder / f"episode_{i:03d}_1box_hori_{side}.h5",
                length,
                size,
                seed=i,
                instruction=f"Pass the box on the {side} and stop at the ball.",
            )
        return folder

    return make


@pytest.fixture
def sample_data() -> Path:
    """The folder of real samples, one folder for each format, that ``ANYVLA_TEST_DATA`` names."""
    folder = os.environ.get("ANYVLA_TEST_DATA")
    if not folder:
        pytest.skip("ANYVLA_TEST_DATA names no folder of real samples")
    return Path(folder)


@pytest.fixture
def llava_folder(tmp_path: Path) -> Path:
    """A tiny random LLaVA for images of 28 x 28, saved as pretrained models are; its last vision layer is used by nothing."""
    from tests.tiny_models import make_tiny

    return make_tiny("llava", tmp_path / "llava")


@pytest.fixture
def tiny_overrides(tmp_path: Path) -> list[str]:
    """Settings that make the nav-tiny recipe as small and quick as it can be."""
    return [
        f"out={tmp_path / 'run'}",
        f"data.cache={tmp_path / 'cache'}",
        "observation.image_size=[32,48]",
        "actions.window=4",
        "actions.chunk=3",
        "model.backbone.width=32",
        "model.backbone.vision_layers=1",
        "model.backbone.language_layers=1",
        "model.head.hidden=16",
        "model.head.trunk=[16]",
        "training.steps=6",
        "training.batch_size=4",
        "training.warmup=2",
        "training.log_every=1",
        "training.validate_every=3",
        "training.save_every=2",
        "training.validation_windows=8",
    ]
