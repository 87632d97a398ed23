from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anyvla.checkpoint import check_example, load_checkpoint, resolve_checkpoint
from anyvla.config import load_config
from anyvla.errors import CheckpointError, ConfigError, DataError
from anyvla.training.loop import TrainingError, train
from anyvla.training.optimizer import learning_rate, parameter_groups
from anyvla.training.tracking import MetricsFile, read_metrics
from tests.conftest import write_episode


@pytest.fixture
def overrides(make_episodes, tiny_overrides) -> list[str]:
    # dropout, so that a resumed run must also restore the random generator
    return [
        *tiny_overrides,
        f"data.source.path={make_episodes(*[9] * 8)}",
        "model.backbone.dropout=0.2",
        "training.accumulation=2",
    ]


def _run(overrides: list[str], out: Path, *more: str, resume: bool = False) -> Path:
    return train(load_config("nav-tiny", [*overrides, f"out={out}", *more]), resume=resume)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(str(resolve_checkpoint(run) / "model.safetensors"))


def _losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in read_metrics(run / "metrics.jsonl") for key in line if key.endswith("loss")]


def _assert_same(a: Path, b: Path) -> None:
    assert _losses(a) == _losses(b)
    first, second = _weights(a), _weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    states = [load_file(str(resolve_checkpoint(run) / "training_state" / "optimizer.safetensors")) for run in (a, b)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(overrides, tmp_path: Path) -> None:
    a, b = _run(overrides, tmp_path / "a"), _run(overrides, tmp_path / "b")
    _assert_same(a, b)
    assert _losses(_run([*overrides, "seed=1"], tmp_path / "c")) != _losses(a)


def _dies_in_step(step: int, how: str, folder: Path) -> Path:
    """A script that trains nav-tiny with the overrides it is given, and does ``how`` before it ends optimiser step ``step``."""
    script = folder / "train.py"
    script.write_text(
        "import os, signal, sys\n"
        "from anyvla.config import load_config\n"
        "from anyvla.training import loop\n"
        "if __name__ == '__main__':\n"
        "    original = loop._Loop._optimizer_step\n"
        "    def step(self, batches):\n"
        f"        if self.step == {step}:\n"
        f"            {how}\n"
        "        return original(self, batches)\n"
        "    loop._Loop._optimizer_step = step\n"
        "    loop.train(load_config('nav-tiny', sys.argv[1:]))\n"
    )
    return script


def test_killed_and_resumed_equals_uninterrupted(overrides, tmp_path: Path) -> None:
    whole = _run(overrides, tmp_path / "whole")
    script = _dies_in_step(5, "os.kill(os.getpid(), signal.SIGKILL)", tmp_path)
    killed = subprocess.run(
        [sys.executable, script, *overrides, f"out={tmp_path / 'killed'}"], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert resolve_checkpoint(tmp_path / "killed").name == "step-0000004"
    assert [step for step, _ in _losses(tmp_path / "killed")][-1] == 5  # one step is lost, and made again
    resumed = _run(overrides, tmp_path / "killed", resume=True)
    _assert_same(whole, resumed)


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_saves_the_last_step_and_the_run_goes_on(overrides, tmp_path: Path, workers: int) -> None:
    whole = _run(overrides, tmp_path / "whole", "training.save_every=100", "training.steps=40")
    command = [sys.executable, "-m", "anyvla", "train", "nav-tiny", *overrides]
    command += [f"out={tmp_path / 'stopped'}", "training.save_every=100", "training.steps=40", f"data.workers={workers}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = tmp_path / "stopped" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume goes on from there" in error
    assert "Traceback" not in error
    _assert_same(whole, _run(overrides, tmp_path / "stopped", "training.save_every=100", "training.steps=40", resume=True))


def test_a_non_finite_loss_names_the_batch_and_keeps_the_last_checkpoint(overrides, tmp_path: Path, monkeypatch) -> None:
    from anyvla.models import vla

    original = vla.ContinuousVLA.forward
    calls = []

    def spoil(self, batch):
        calls.append(1)
        losses = original(self, batch)  # the first call finds out what is used, then there are two per step
        return {**losses, "loss": losses["loss"] * (math.nan if len(calls) > 7 else 1.0)}

    monkeypatch.setattr(vla.ContinuousVLA, "forward", spoil)
    with pytest.raises(TrainingError, match=r"loss is nan at step 4, in the batch of episode_.*\.h5@\d+"):
        _run(overrides, tmp_path / "run", "data.validation=0")
    assert resolve_checkpoint(tmp_path / "run").name == "step-0000002"
    assert all(torch.isfinite(value).all() for value in _weights(tmp_path / "run").values())


def test_a_run_is_never_overwritten_or_continued_with_other_settings(overrides, tmp_path: Path) -> None:
    _run(overrides, tmp_path / "run", "training.steps=2")
    with pytest.raises(ConfigError, match="already holds a run"):
        _run(overrides, tmp_path / "run", "training.steps=2")
    with pytest.raises(ConfigError, match=r"other settings: model\.head\.hidden \(16 then, 24 now\)"):
        _run(overrides, tmp_path / "run", "training.steps=2", "model.head.hidden=24", resume=True)


def test_data_that_changed_are_noticed_at_resume(overrides, tmp_path: Path) -> None:
    """Also where only the contents changed, and copies of the same data are the same."""
    settings = ["training.save_every=2", "training.steps=4"]
    run = _run(overrides, tmp_path / "run", *settings)
    (run / "checkpoints.json").write_text('{"last": "step-0000004"}')
    state = resolve_checkpoint(run) / "training_state" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"step": 2}))
    copy = shutil.copytree(tmp_path / "episodes", tmp_path / "copy")
    _run([*overrides, f"data.source.path={copy}"], run, *settings, resume=True)
    state = resolve_checkpoint(run) / "training_state" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"step": 2}))
    for path in copy.iterdir():
        write_episode(path, 9, seed=1234, instruction="Pass the box on the left and stop at the ball.")
    with pytest.raises(ConfigError, match="the data have changed"):
        _run([*overrides, f"data.source.path={copy}"], run, *settings, resume=True)


def test_what_the_user_puts_among_the_checkpoints_stays(overrides, tmp_path: Path) -> None:
    mine = tmp_path / "run" / "checkpoints" / "favourite"
    mine.mkdir(parents=True)
    (mine.parent / "notes.txt").write_text("keep")
    _run(overrides, tmp_path / "run")
    assert mine.exists()
    assert (mine.parent / "notes.txt").exists()


def test_a_finished_run_resumes_to_itself(overrides, tmp_path: Path) -> None:
    run = _run(overrides, tmp_path / "run")
    before = _weights(run)
    _run(overrides, tmp_path / "run", resume=True)
    assert all(torch.equal(before[name], value) for name, value in _weights(run).items())


def test_best_and_last_are_kept_and_hold_no_pickle(overrides, tmp_path: Path) -> None:
    run = _run(overrides, tmp_path / "run")
    names = json.loads((run / "checkpoints.json").read_text())
    assert set(names) == {"best", "last"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == set(names.values())
    validation = {step: loss for step, loss in _losses(run) if step in (3, 6)}
    assert names["best"] == f"step-{min(validation, key=validation.get):07d}"
    files = {path.suffix for path in run.rglob("*") if path.is_file()}
    assert files <= {".json", ".jsonl", ".yaml", ".safetensors"}
    assert load_checkpoint(run).config.actions.window == 4


def test_metrics_hold_what_a_report_needs(overrides, tmp_path: Path) -> None:
    lines = read_metrics(_run(overrides, tmp_path / "run") / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "learning_rate", "grad_norm", "frames_per_second"} <= lines[0].keys()
    (validation, *_) = [line for line in lines if "validation/loss" in line]
    assert {"validation/error/linear_x", "validation/first/error/linear_y"} <= validation.keys()


def test_clipping_is_applied(overrides, tmp_path: Path, monkeypatch) -> None:
    from anyvla.training import loop

    norms = []
    original = loop._Loop._optimizer_step

    def step(self, batches):
        inner = self.optimizer.step

        def measure(*args, **kwargs):
            gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            if self.accelerator.sync_gradients:
                norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
            return inner(*args, **kwargs)

        monkeypatch.setattr(self.optimizer, "step", measure)
        result = original(self, batches)
        monkeypatch.setattr(self.optimizer, "step", inner)
        return result

    monkeypatch.setattr(loop._Loop, "_optimizer_step", step)
    run = _run(overrides, tmp_path / "run", "training.clip_norm=1e-3")
    logged = [line["grad_norm"] for line in read_metrics(run / "metrics.jsonl") if "grad_norm" in line]
    assert min(logged) > 1e-3
    np.testing.assert_allclose(norms, 1e-3, rtol=1e-2)


def test_a_process_without_a_window_to_validate_does_not_hold_up_the_others(
    make_episodes, tiny_overrides, tmp_path: Path
) -> None:
    data = f"data.source.path={make_episodes(*[9] * 4)}"
    done = _launch("-m", "anyvla", "train", "nav-tiny", *tiny_overrides, data, "training.validation_windows=1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(overrides, tmp_path: Path, precision: str) -> None:
    run = _run(overrides, tmp_path / "run", f"training.precision={precision}")
    assert all(math.isfinite(loss) for _, loss in _losses(run))


def test_two_processes_or_two_passes_compute_what_one_does(make_episodes, tiny_overrides, tmp_path: Path) -> None:
    # episodes that end within a chunk: each part has another number of real actions
    lengths = [4, 9, 5, 9, 6, 9, 4, 9]
    overrides = [*tiny_overrides, f"data.source.path={make_episodes(*lengths)}", "actions.chunk=6"]
    one = _run(overrides, tmp_path / "one", "training.batch_size=4", "training.accumulation=1")
    passes = _run(overrides, tmp_path / "passes", "training.batch_size=2", "training.accumulation=2")
    losses = [loss for _, loss in _losses(one)]
    np.testing.assert_allclose([loss for _, loss in _losses(passes)], losses, rtol=1e-4)
    first, second = _weights(one), _weights(passes)
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    overrides.append("training.accumulation=1")
    done = _launch("-m", "anyvla", "train", "nav-tiny", *overrides, f"out={tmp_path / 'two'}", "training.batch_size=2")
    assert done.returncode == 0, done.stderr
    two = tmp_path / "two"
    np.testing.assert_allclose([loss for _, loss in _losses(two)], [loss for _, loss in _losses(one)], rtol=1e-4)
    first, second = _weights(one), _weights(two)
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    states = resolve_checkpoint(two) / "training_state"
    assert sorted(path.name for path in states.glob("rng-*")) == ["rng-0.safetensors", "rng-1.safetensors"]


def test_tensorboard_is_written_when_asked_for(overrides, tmp_path: Path) -> None:
    run = _run(overrides, tmp_path / "run", "training.trackers=[tensorboard]", "training.steps=2")
    assert list(run.rglob("events.out.tfevents.*"))


def test_too_little_data_is_said_before_anything_is_trained(overrides, make_episodes, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (make_episodes(5) / "episode_000_1box_hori_left.h5").rename(folder / "a_1box_hori_left.h5")
    with pytest.raises(DataError, match="too few to hold out"):
        _run([*overrides, f"data.source.path={folder}"], tmp_path / "run")


def test_the_schedule_warms_up_and_ends_at_its_floor() -> None:
    config = load_config(
        "nav-tiny",
        ["training.steps=100", "training.warmup=10", "training.learning_rate=0.01", "training.min_learning_rate=0.1"],
    ).training
    rates = [learning_rate(step, config) for step in range(101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 1000)
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.001)


def test_norms_biases_embeddings_and_queries_do_not_decay(make_episodes, tiny_overrides) -> None:
    from anyvla.checkpoint import build_model
    from anyvla.data.prepare import prepare_data

    config = load_config("nav-tiny", [*tiny_overrides, f"data.source.path={make_episodes(9, 9)}"])
    model = build_model(config, prepare_data(config).transforms)
    decay, free = parameter_groups(model, config.training, config.tuning)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(names[id(p)].endswith("weight") or "weight_" in names[id(p)] for p in decay["params"])
    free_names = {names[id(p)] for p in free["params"]}
    assert "backbone.queries" in free_names
    assert any("embed_tokens" in name for name in free_names)
    assert any("row_embedding" in name for name in free_names)
    assert not any("norm" in names[id(p)] for p in decay["params"])
    assert len(decay["params"]) + len(free["params"]) == len(names)


class TestCheckpoint:
    def test_a_missing_or_damaged_one_is_named(self, overrides, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="no such folder"):
            load_checkpoint(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        with pytest.raises(CheckpointError, match="neither a run nor a checkpoint"):
            load_checkpoint(tmp_path / "empty")
        run = _run(overrides, tmp_path / "run", "training.steps=2")
        weights = resolve_checkpoint(run) / "model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)
        with pytest.raises(CheckpointError, match=r"model\.safetensors: the weights do not fit"):
            load_checkpoint(run)

    def test_weights_of_another_model_do_not_load(self, overrides, tmp_path: Path) -> None:
        run = _run(overrides, tmp_path / "run", "training.steps=2")
        folder = resolve_checkpoint(run)
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("hidden: 16", "hidden: 24"))
        with pytest.raises(CheckpointError, match="do not fit"):
            load_checkpoint(run)

    def test_it_loads_where_the_run_has_gone(self, overrides, tmp_path: Path) -> None:
        run = _run(overrides, tmp_path / "run", "training.steps=2")
        moved = tmp_path / "elsewhere"
        resolve_checkpoint(run).rename(moved)
        for path in (run, tmp_path / "episodes", tmp_path / "cache"):
            if path.exists():
                path.rename(tmp_path / f"gone-{path.name}")
        assert load_checkpoint(moved).transforms.chunk == 3


def test_a_metrics_file_forgets_what_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in range(1, 6):
        first.write(step, {"loss": step})
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    MetricsFile(path, resume_at=3).write(4, {"loss": 40})
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def _launch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run python with ``arguments`` in two processes that know of each other."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *map(str, arguments)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=240)


def test_a_model_spread_over_two_processes_learns_is_saved_and_goes_on_as_a_whole_one(
    make_episodes, tiny_overrides, tmp_path: Path, llava_folder: Path
) -> None:
    overrides = [
        *tiny_overrides,
        f"data.source.path={make_episodes(*[9] * 8)}",
        f"model.backbone={{type: pretrained, path: {llava_folder}}}",
        "observation.image_size=null",
        "actions.chunk=1",
        "tuning.vision.type=frozen",
        "tuning.language={type: lora, rank: 2}",
    ]
    one = _run(overrides, tmp_path / "one", "training.batch_size=4")
    spread = [*overrides, f"out={tmp_path / 'two'}", "training.batch_size=2", "training.shard=true"]
    died = _launch(_dies_in_step(5, "raise SystemExit(9)", tmp_path), *spread)
    assert died.returncode != 0
    assert resolve_checkpoint(tmp_path / "two").name == "step-0000004"
    resumed = _launch("-m", "anyvla", "train", "nav-tiny", *spread, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    np.testing.assert_allclose([loss for _, loss in _losses(tmp_path / "two")], [loss for _, loss in _losses(one)], rtol=1e-4)
    first, second = _weights(one), _weights(tmp_path / "two")
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
    assert check_example(load_checkpoint(tmp_path / "two")) < 1e-5


def test_processes_that_do_not_know_of_each_other_are_stopped(overrides, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started, but they do not know of each other"):
        _run(overrides, tmp_path / "run")
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(ConfigError, match="there is one"):
        _run(overrides, tmp_path / "run", "training.shard=true")
