"""Runs that train a part of the model: checkpoints, going on, export, several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from anyvla.checkpoint import check_example, export_checkpoint, load_checkpoint, resolve_checkpoint
from anyvla.cli import app
from anyvla.config import load_config
from anyvla.errors import CheckpointError
from anyvla.training.loop import train
from tests.training.test_loop import _assert_same, _losses, _weights

TUNING = [
    "tuning.vision={type: lora, rank: 4, alpha: 8, learning_rate: 1e-2}",
    "tuning.connector.type=frozen",
    "tuning.language={type: lora, rank: 2, targets: all-linear, dropout: 0.1}",
    "tuning.gradient_checkpointing=true",
    "training.learning_rate=0.01",
]


@pytest.fixture
def overrides(make_episodes, tiny_overrides) -> list[str]:
    return [*tiny_overrides, f"data.source.path={make_episodes(*[9] * 8)}", *TUNING]


def _run(overrides: list[str], out: Path, *more: str, resume: bool = False) -> Path:
    return train(load_config("nav-tiny", [*overrides, f"out={out}", *more]), resume=resume)


def test_lora_trains_saves_goes_on_and_is_merged_on_export(overrides, tmp_path: Path, monkeypatch) -> None:
    from anyvla.training import loop

    whole = _run(overrides, tmp_path / "whole")
    original = loop._Loop._optimizer_step

    def stop(self, batches):
        if self.step == 5:
            raise KeyboardInterrupt
        return original(self, batches)

    monkeypatch.setattr(loop._Loop, "_optimizer_step", stop)
    with pytest.raises(KeyboardInterrupt):
        _run(overrides, tmp_path / "halves")
    monkeypatch.undo()
    _assert_same(whole, _run(overrides, tmp_path / "halves", resume=True))

    loaded = load_checkpoint(whole)
    assert any("lora_B" in name and p.abs().max() > 0 for name, p in loaded.model.named_parameters())
    assert check_example(loaded) == 0

    exported = export_checkpoint(whole, tmp_path / "exported")
    assert not any("lora" in name or "base_layer" in name for name in load_file(str(exported / "model.safetensors")))
    monkeypatch.setitem(sys.modules, "peft", None)  # it cannot be imported
    merged = load_checkpoint(exported)
    assert {getattr(merged.config.tuning, tower).type for tower in ("vision", "language")} == {"full"}
    images = torch.randint(0, 256, (2, 4, 3, 32, 48), dtype=torch.uint8)
    both = [checkpoint.model.predict({"front": images}, ["Stop.", "Go left."]) for checkpoint in (loaded, merged)]
    torch.testing.assert_close(*both, atol=1e-5, rtol=0)
    with pytest.raises(CheckpointError, match="exists already"):
        export_checkpoint(whole, exported)


def test_a_frozen_tower_is_the_same_after_training(overrides, tmp_path: Path, monkeypatch) -> None:
    weights = _weights(_run(overrides, tmp_path / "run"))
    torch.manual_seed(0)
    fresh = load_checkpoint(tmp_path / "run")  # only for its shapes and settings
    from anyvla.checkpoint import build_model

    torch.manual_seed(fresh.config.seed)
    start = build_model(fresh.config, fresh.transforms).state_dict()
    moved = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert all("lora_" in name or name.startswith("head.") or name == "backbone.queries" for name in moved)
    assert any("vision_tower" in name for name in moved)


def test_export_on_the_command_line(overrides, tmp_path: Path) -> None:
    run = _run(overrides, tmp_path / "run", "training.steps=2")
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "out"), "--checkpoint", "best"])
    assert done.exit_code == 0, done.output
    assert check_example(load_checkpoint(tmp_path / "out")) == 0


def test_two_processes_train_a_model_with_parts_that_nothing_uses(
    make_episodes, tiny_overrides, llava_folder: Path, tmp_path: Path
) -> None:
    overrides = [*tiny_overrides, f"data.source.path={make_episodes(*[9] * 8)}", "actions.chunk=1", "training.steps=3"]
    overrides = [item for item in overrides if "model.backbone" not in item]
    overrides += [f"model.backbone={{type: pretrained, path: {llava_folder}}}", "observation.image_size=[28,28]"]
    one = _run(overrides, tmp_path / "one", "training.batch_size=4")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "anyvla"]
    command += ["train", "nav-tiny", *overrides, f"out={tmp_path / 'two'}", "training.batch_size=2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [loss for _, loss in _losses(tmp_path / "two")] == pytest.approx([loss for _, loss in _losses(one)], rel=1e-4)
    assert (resolve_checkpoint(tmp_path / "two") / "model.safetensors").exists()


def test_training_begins_with_the_weights_of_another_run(overrides, tmp_path: Path) -> None:
    """The first step of a rate near 0 leaves them as they were; the low-rank updates lie on top."""
    first = _run(overrides, tmp_path / "first", "tuning={}")
    lora = "tuning.language={type: lora, rank: 2}"
    second = _run(
        overrides, tmp_path / "second", "tuning={}", lora, f"training.init_from={first}", "training.learning_rate=1e-12"
    )
    before = load_file(str(resolve_checkpoint(first) / "model.safetensors"))
    after = load_file(str(resolve_checkpoint(second) / "model.safetensors"))
    plain = {name.replace(".base_layer", ""): value for name, value in after.items() if "lora_" not in name}
    assert plain.keys() == before.keys()
    for name, value in before.items():
        torch.testing.assert_close(plain[name], value, atol=1e-9, rtol=0)
    with pytest.raises(CheckpointError, match=r"the weights do not fit the model .*anyvla export writes one"):
        _run(overrides, tmp_path / "third", "tuning={}", f"training.init_from={second}")
