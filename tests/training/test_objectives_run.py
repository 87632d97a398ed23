"""Training with every auxiliary objective on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from anyvla.checkpoint import load_checkpoint, resolve_checkpoint
from anyvla.config import load_config
from anyvla.errors import ConfigError, DataError
from anyvla.policies.policy import Policy
from anyvla.training.loop import train
from anyvla.training.tracking import read_metrics
from tests.conftest import write_conversations

PARTS = ("action", "huber", "caption", "conversations", "future", "alignment")


@pytest.fixture
def overrides(make_episodes, tiny_overrides, tmp_path: Path) -> list[str]:
    return [
        *tiny_overrides,
        f"data.source.path={make_episodes(*[9] * 8)}",
        "model.backbone.dropout=0.2",
        "training.accumulation=2",
        "objectives.caption={}",
        f"objectives.conversations={{path: {write_conversations(tmp_path / 'talk')}, batch_size: 2}}",
        "objectives.future={next: 2, patch: 8, hidden: 16, layers: 1, attention_heads: 2, masked: {ratio: 0.9}}",
        "objectives.alignment={}",
    ]


def _run(overrides: list[str], out: Path, *more: str, resume: bool = False) -> Path:
    return train(load_config("nav-tiny", [*overrides, f"out={out}", *more]), resume=resume)


def _lines(run: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in line.items() if key != "frames_per_second"}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def test_killed_and_resumed_equals_uninterrupted(overrides: list[str], tmp_path: Path, monkeypatch) -> None:
    from anyvla.training import loop

    whole = _run(overrides, tmp_path / "whole")
    step = loop._Loop._optimizer_step

    def killed(self, batches):
        if self.step == 5:
            raise SystemExit
        return step(self, batches)

    monkeypatch.setattr(loop._Loop, "_optimizer_step", killed)
    with pytest.raises(SystemExit):
        _run(overrides, tmp_path / "killed", "data.workers=2", "training.log_every=3")
    monkeypatch.undo()
    assert resolve_checkpoint(tmp_path / "killed").name == "step-0000004"  # between two lines of the log
    shutil.copytree(tmp_path / "talk", tmp_path / "moved")
    moved = f"objectives.conversations.path={tmp_path / 'moved' / 'conversations.json'}"
    resumed = _run([*overrides, moved], tmp_path / "killed", "data.workers=2", "training.log_every=3", resume=True)
    for name in ("model.safetensors", "training_state/optimizer.safetensors"):
        first, second = (load_file(str(resolve_checkpoint(run) / name)) for run in (whole, resumed))
        assert first.keys() == second.keys()
        assert all((first[key] == second[key]).all() for key in first), name
    each, thirds = _lines(whole), _lines(resumed)
    (third,) = [line for line in thirds if line["step"] == 6 and "loss" in line]
    for name in ("loss", *(f"loss/{part}" for part in PARTS)):
        mean = np.mean([line[name] for line in each if line["step"] in (4, 5, 6) and name in line])
        assert third[name] == pytest.approx(mean, rel=1e-6), name


def test_every_part_is_logged_and_validation_measures_the_actions(overrides: list[str], tmp_path: Path) -> None:
    run = _run(overrides, tmp_path / "run")
    lines = [line for line in _lines(run) if "loss" in line]
    assert len(lines) == 6
    for line in lines:
        assert {key.removeprefix("loss/") for key in line if key.startswith("loss/")} == set(PARTS)
        extra = 0.05 * line["loss/caption"] + 0.1 * sum(line[f"loss/{part}"] for part in PARTS[3:])
        assert line["loss"] == pytest.approx(line["loss/action"] + extra, rel=1e-5)
    validation = [line for line in _lines(run) if "validation/loss" in line]
    assert validation
    assert not any("caption" in key for line in validation for key in line)
    assert load_checkpoint(run).model.objectives is not None
    policy = Policy.load(run)
    policy.reset("go")
    assert policy.act({"front": np.zeros((8, 8, 3), np.uint8)}).shape == (2,)


def test_two_processes_train_them(overrides: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "anyvla"]
    command += ["train", "nav-tiny", *overrides, f"out={tmp_path / 'two'}", "training.steps=3", "data.validation=0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len([line for line in _lines(tmp_path / "two") if "loss/future" in line]) == 3


def test_conversations_are_part_of_the_data_of_a_run(overrides: list[str], tmp_path: Path) -> None:
    settings = ["training.steps=4", "training.save_every=2"]
    with pytest.raises(DataError, match="is no JSON file that can be read"):
        _run([*overrides, "objectives.conversations.path=none.json"], tmp_path / "run", *settings)
    run = _run(overrides, tmp_path / "run", *settings)
    assert '"conversation_answers": 12' in (run / "data.json").read_text()
    state = resolve_checkpoint(run) / "training_state" / "state.json"
    state.write_text(state.read_text().replace('"step": 4', '"step": 2'))
    other = write_conversations(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match="the data have changed"):
        _run([*overrides, f"objectives.conversations.path={other}"], run, *settings, resume=True)
    with pytest.raises(ConfigError, match="other settings: objectives"):
        _run([*overrides, "objectives.caption.weight=0.5"], run, *settings, resume=True)


def test_broken_conversations_are_left_out_and_counted_only_if_asked(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "talk" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"conversations\.json\[0\] \(id 0\): .*0\.png is no image"):
        _run(overrides, tmp_path / "run")
    run = _run(overrides, tmp_path / "run", "data.on_bad_episode=skip", "training.steps=2")
    assert "conversations.json[0] (id 0)" in (run / "data.json").read_text()


def test_a_pretrained_model_learns_words_through_lora_and_checkpointing(
    overrides: list[str], llava_folder: Path, tmp_path: Path
) -> None:
    run = _run(
        [setting for setting in overrides if not setting.startswith("model.backbone")],
        tmp_path / "run",
        f"model.backbone={{type: pretrained, path: {llava_folder}}}",
        "observation.image_size=[28,28]",
        "objectives.future.patch=7",
        "tuning={language: {type: lora, rank: 4}, vision: {type: frozen}, gradient_checkpointing: true}",
        "training.steps=12",
        "training.learning_rate=0.02",
    )
    lines = [line for line in _lines(run) if "loss" in line]
    assert lines[-1]["loss/caption"] < 0.8 * lines[0]["loss/caption"]
