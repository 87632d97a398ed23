"""``train``: from settings to a run folder with checkpoints, on CPU, one GPU or many."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from anyvla.batch import Batch
from anyvla.checkpoint import (
    build_model,
    load_checkpoint,
    make_example,
    publish_checkpoint,
    resolve_checkpoint,
    write_atomically,
    write_model,
)
from anyvla.config import Config
from anyvla.config.objectives import ObjectivesConfig
from anyvla.data.dataset import collate
from anyvla.data.prepare import PreparedData, prepare_data
from anyvla.data.sampler import Item, Sampler, WindowSampler
from anyvla.errors import AnyVLAError, ConfigError, MissingExtraError
from anyvla.models.backbones.load import resolve_image_size
from anyvla.models.tuning import count_parameters, freeze_unused
from anyvla.models.vla import VLA
from anyvla.progress import Bar, progress_bar
from anyvla.training.optimizer import learning_rate, make_optimizer, set_learning_rates
from anyvla.training.resume import check_identity, checkpoint_to_resume
from anyvla.training.shard import shard, whole, whole_optimizer_state, whole_weights
from anyvla.training.state import load_optimizer, load_rng, save_optimizer, save_rng, saved_progress
from anyvla.training.tracking import MetricsFile
from anyvla.training.validation import loader_of, validate, validation_loader

_SHORT = {"learning_rate": "lr", "grad_norm": "grad", "frames_per_second": "frames/s"}  # names in the lines for people


class TrainingError(AnyVLAError):
    """Training cannot go on; the last checkpoint stays."""


class Interrupted(KeyboardInterrupt):
    """The user stopped the run; everything up to the last step is saved."""


def train(config: Config, resume: bool = False) -> Path:
    """Train ``config.out``; returns it.

    Args:
        resume: go on from the last checkpoint of ``config.out`` as if the run had never stopped; start if there is none.

    Raises:
        ConfigError: the folder holds another run. DataError: the data cannot be used.
        TrainingError: a loss or gradient is not finite. Interrupted: after Ctrl-C or SIGTERM, with the last step saved.
    """
    config = resolve_image_size(config)
    run = config.out
    resume_from = checkpoint_to_resume(config, resume)
    accelerator = _make_accelerator(config)
    if resume_from is not None and saved_progress(resume_from)["step"] >= config.training.steps:
        return run
    data = prepare_data(config)
    torch.manual_seed(config.seed)
    begin = config.training.init_from
    model = build_model(config, data.transforms, init_from=None if begin is None else resolve_checkpoint(begin))
    _freeze_unused(model, data, config.training.shard, accelerator)
    if resume_from is not None:
        model.load_state_dict(load_checkpoint(resume_from).model.state_dict())
    if config.training.shard:
        shard(model, accelerator)
    optimizer = make_optimizer(model, config.training, config.tuning)
    sampler = data.sampler(
        config.training.batch_size, config.seed, accelerator.process_index, accelerator.num_processes, config.data
    )
    torch.manual_seed(config.seed + accelerator.process_index)  # dropout differs from process to process
    identity = {"data": data.fingerprint(), "processes": accelerator.num_processes}
    progress: dict[str, Any] = {"step": 0, "best": math.inf, "recent": [], **identity}
    if resume_from is not None:
        check_identity(run, saved_progress(resume_from), identity)
    wrapped: torch.nn.Module = model if config.training.shard else accelerator.prepare(model)
    optimizer = accelerator.prepare(optimizer)
    if resume_from is not None:
        progress = load_optimizer(resume_from, optimizer)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(progress["scaler"])
        load_rng(resume_from / "training_state", accelerator.process_index)
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(run / "config.yaml", config.to_yaml())
        write_atomically(run / "data.json", json.dumps(data.summary(), indent=1))
        _say_start(model, data, accelerator)
    loop = _Loop(config, accelerator, wrapped, optimizer, data, sampler, progress)
    loop.run()
    accelerator.end_training()
    return run


def _make_accelerator(config: Config) -> Accelerator:
    precision = "no" if config.training.precision == "fp32" else config.training.precision
    if "tensorboard" in config.training.trackers and importlib.util.find_spec("tensorboard") is None:
        raise MissingExtraError("tensorboard", "tensorboard")
    AcceleratorState._reset_state()  # of an earlier run in this process, which may have had another precision
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=config.training.accumulation,
            log_with=list(config.training.trackers) or None,
            project_dir=str(config.out),
        )
    except ValueError as error:  # a device that lacks it
        raise ConfigError(f"training.precision={config.training.precision} does not run here: {error}") from error
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:  # each would train alone, into the same folder
        raise ConfigError(
            f"{started} processes were started, but they do not know of each other (this launcher's settings do not fit the "
            "device); without GPUs, launch with ACCELERATE_USE_CPU=true"
        )
    if config.training.shard and accelerator.num_processes == 1:
        raise ConfigError("training.shard spreads a model over several processes; there is one: see docs/scaling.md")
    if config.training.trackers:
        accelerator.init_trackers("tensorboard")
    return accelerator


def _freeze_unused(model: VLA, data: PreparedData, shard: bool, accelerator: Accelerator) -> None:
    """Freeze what the training computes nothing with, found by one forward pass of one window that leaves no trace."""
    if not shard:  # a model that will be spread need not fit on one device
        model.to(accelerator.device)
    batch = collate([data.train[Item(0, 0)]])
    if data.conversations is not None:
        batch = replace(batch, text=data.conversations.collate([data.conversations[Item(0, 0)]]))
    batch = batch.to(next(model.parameters()).device)
    with torch.random.fork_rng():
        freeze_unused(model, [model(batch)["loss"]])


def _say_start(model: VLA, data: PreparedData, accelerator: Accelerator) -> None:
    counts = count_parameters(model)
    sizes = ", ".join(f"{name} {trained / 1e6:.2f} of {total / 1e6:.2f}" for name, (total, trained) in counts.items())
    total, trained = (sum(numbers) for numbers in zip(*counts.values(), strict=True))
    accelerator.print(
        f"model: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained ({sizes}) on {accelerator.device}\n"
        f"data:  {len(data.train.episodes)} episodes, {len(data.train)} windows; "
        f"{sum(len(part.episodes) for part in data.validation.values())} episodes held out; {len(data.problems)} skipped"
        + (f"; {len(data.conversations)} answers of conversations" if data.conversations else "")
    )


class _Loop:
    """The state of one run; ``run`` reads from top to bottom."""

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        model: torch.nn.Module,
        optimizer: Any,
        data: PreparedData,
        sampler: Sampler,
        progress: dict[str, Any],
    ) -> None:
        self.config, self.settings = config, config.training
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.data, self.sampler = data, sampler
        self.step: int = progress["step"]
        self.identity = {key: progress[key] for key in ("data", "processes")}
        self.best: float = progress["best"]
        self.recent: list[dict[str, float]] = progress["recent"]  # losses, and their parts, since the last line of the log
        self.metrics = MetricsFile(config.out / "metrics.jsonl", self.step) if accelerator.is_main_process else None

    def run(self) -> None:
        settings = self.settings
        self.sampler.batch_number = self.step * settings.accumulation
        batches = self._batches()
        first, began = self.step, time.perf_counter()
        self.model.train()
        shown = self.accelerator.is_main_process
        with _stop_on_signals() as signals, progress_bar("train", settings.steps, done=self.step, shown=shown) as bar:
            while self.step < settings.steps:
                rate = learning_rate(self.step, settings)
                set_learning_rates(self.optimizer, self.step, settings)
                losses, norm = self._optimizer_step(batches)
                self.step += 1
                frames = (self.step - first) * settings.batch_size * settings.accumulation * self.data.transforms.window
                per_second = frames * self.accelerator.num_processes / (time.perf_counter() - began)
                self.recent.append(losses)
                bar.advance(note=f"loss {losses['loss']:.4f}")
                if self._due(settings.log_every):
                    means = {
                        name: self._mean_over_processes(sum(recent[name] for recent in self.recent) / len(self.recent))
                        for name in losses
                    }
                    self._log(bar, {**means, "learning_rate": rate, "grad_norm": norm, "frames_per_second": per_second})
                    self.recent.clear()
                better = self._due(settings.validate_every) and self._validate(bar)
                # all processes must stop at the same step, whichever of them the signal reached first
                stop = self._mean_over_processes(float(bool(signals))) > 0
                if better or self._due(settings.save_every) or stop:
                    self._save(better)
                if stop:
                    raise Interrupted(f"stopped at step {self.step} of {settings.steps}; --resume goes on from there")

    def _batches(self) -> Iterator[Batch]:
        """Batches of windows from the sampler's number on, without end; with each, one of conversations if there are any."""
        workers = self.config.data.workers
        ahead = self.settings.accumulation  # all batches of a step are fetched before it begins
        windows = loader_of(self.data.train, self.sampler, workers, ahead=ahead)
        conversations, settings = self.data.conversations, self.config.objectives.conversations
        if conversations is None or settings is None:
            return iter(windows)
        ranks = self.sampler.rank, self.sampler.world_size
        sampler = WindowSampler(len(conversations), settings.batch_size, self.config.seed, *ranks)
        sampler.batch_number = self.sampler.batch_number
        texts = loader_of(conversations, sampler, workers, conversations.collate, ahead)
        return (replace(batch, text=text) for batch, text in zip(windows, texts, strict=True))

    def _mean_over_processes(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        return float(self.accelerator.reduce(torch.tensor(value, device=self.accelerator.device), "mean"))

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.settings.steps

    def _optimizer_step(self, batches: Iterator[Batch]) -> tuple[dict[str, float], float]:
        """One optimiser step over all its forward passes.

        Returns:
            The means of ``loss`` and of its parts ``loss/...``, and the gradient's norm before clipping.
        """
        means: dict[str, float] = {}
        norm = 0.0
        names: list[str] = []
        taken = [next(batches) for _ in range(self.settings.accumulation)]
        for batch, share in zip(taken, self._shares(taken), strict=True):
            batch = batch.to(self.accelerator.device)
            here = batch.names + ([] if batch.text is None else batch.text.names)
            names += here
            with self.accelerator.accumulate(self.model):
                with self.accelerator.autocast():
                    losses = self.model(batch)
                # all of them in one transfer
                numbers = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
                values = dict(zip(losses, numbers, strict=True))
                if not math.isfinite(values["loss"]):
                    raise self._not_finite("loss", values["loss"], here)
                # the objectives beside the actions have means of their own
                actions = losses.get("action", losses["loss"])
                self.accelerator.backward(losses["loss"] + (share - 1) * actions)
                if self.accelerator.sync_gradients:
                    norm = float(whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)))
                    if not math.isfinite(norm) and self.accelerator.scaler is None:
                        raise self._not_finite("norm of the gradient", norm, names)
                self.optimizer.step()
                self.optimizer.zero_grad()
            values["loss"] += (share - 1) * values["action" if "action" in values else "loss"]
            for name, value in values.items():
                key = name if name == "loss" else f"loss/{name}"
                part = value if name == "loss" or name in ObjectivesConfig.model_fields else share * value
                means[key] = means.get(key, 0.0) + part / self.settings.accumulation
        return means, norm

    def _shares(self, batches: list[Batch]) -> list[float]:
        """What each batch counts, 1 on average over the step: its part of the real actions, which are fewer where episodes end.

        So the mean over forward passes and processes is that over one batch of all their windows.
        """
        model = self.accelerator.unwrap_model(self.model)
        counts = [model.count_actions(batch) for batch in batches]
        mean = self._mean_over_processes(sum(counts) / len(counts))
        return [count / mean for count in counts] if mean else [1.0] * len(counts)

    def _not_finite(self, what: str, value: float, names: list[str]) -> TrainingError:
        return TrainingError(
            f"the {what} is {value} at step {self.step + 1}, in the batch of {', '.join(names)}; "
            "checkpoints that were saved stay as they are"
        )

    def _validate(self, bar: Bar) -> bool:
        """Measure on held-out episodes; whether the loss is the lowest so far."""
        held_out = self.data.validation
        if not held_out:
            return False
        # not the wrapped model: its forward is a meeting of all processes, and one of them may have nothing to validate
        model = self.accelerator.unwrap_model(self.model)
        loss = total = 0.0
        for source, windows in held_out.items():
            loader = validation_loader(
                windows, self.config, len(held_out), self.accelerator.process_index, self.accelerator.num_processes
            )
            transforms = self.data.transforms.of(source) if source else self.data.transforms
            values = validate(model, loader, transforms, self.accelerator)
            where = f"validation/{source}/" if source else "validation/"
            self._log(bar, {f"{where}{name}": value for name, value in values.items()})
            weight = (self.data.weights or {}).get(source, 1.0)
            loss, total = loss + weight * values["loss"], total + weight
        loss /= total
        if len(held_out) > 1:
            self._log(bar, {"validation/loss": loss})
        better = loss < self.best
        self.best = min(self.best, loss)
        return better

    def _log(self, bar: Bar, values: dict[str, float]) -> None:
        if self.metrics is not None:
            self.metrics.write(self.step, values)
            shown = "  ".join(f"{_SHORT.get(name, name)} {value:.4g}" for name, value in values.items())
            bar.print(f"step {self.step}/{self.settings.steps}  {shown}")
        self.accelerator.log(values, step=self.step)

    def _save(self, best: bool) -> None:
        name = f"step-{self.step:07d}"
        partial = self.config.out / "checkpoints" / f".{name}.partial"
        transforms, model = self.data.transforms, self.accelerator.unwrap_model(self.model)
        spread = self.settings.shard
        # of a model that is spread, every process has a part
        example = make_example(model, transforms) if spread or self.accelerator.is_main_process else {}
        weights = whole_weights(model) if spread else None
        state = whole_optimizer_state(self.optimizer) if spread else self.optimizer.state_dict()
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
            write_model(partial, self.config, transforms, model, example, weights)
            scaler = self.accelerator.scaler
            progress = {
                "step": self.step,
                "best": self.best,
                "recent": self.recent,
                **self.identity,
                "scaler": scaler.state_dict() if scaler is not None else None,
            }
            save_optimizer(partial / "training_state", state, progress)
        self.accelerator.wait_for_everyone()
        save_rng(partial / "training_state", self.accelerator.process_index)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            publish_checkpoint(self.config.out, partial, name, best)


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """A list that holds the signal once Ctrl-C or SIGTERM has come; a second one stops at once."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's business
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
