"""A checkpoint is a folder that needs nothing else: loadable offline, without pickle, strict.

    config.yaml          all settings of the run
    model.safetensors    all weights
    transforms.json      frame size, prompt, normalisation with its statistics
    backbone/            configuration, tokenizer and image statistics of the vision-language model
    example.json         an input and the output that belongs to it, to check a loaded model with
    training_state/      optimiser, random generators, position in the data; only for going on

A run folder holds ``config.yaml``, ``metrics.jsonl`` and ``checkpoints/``; ``checkpoints.json`` names the best and the last.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from anyvla.config import Config, parse_config
from anyvla.config.objectives import ObjectivesConfig
from anyvla.data.transforms import Transforms
from anyvla.errors import CheckpointError, ConfigError
from anyvla.models.objectives.objectives import make_objectives
from anyvla.models.quantization import plan_quantization, save_in_floating_point
from anyvla.models.tuning import apply_tuning, merge_lora, without_lora
from anyvla.models.vla import VLA, build_vla

Which = Literal["best", "last"]
_OURS = re.compile(r"step-\d{7}|\.step-\d{7}\.partial")  # whatever else lies among the checkpoints is the user's


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, its transforms and settings."""

    folder: Path
    config: Config
    transforms: Transforms
    model: VLA


def build_model(config: Config, transforms: Transforms, definition: Path | None = None, init_from: Path | None = None) -> VLA:
    """The model of ``config`` with fresh weights, or those of the checkpoint ``init_from``.

    Args:
        definition: the ``backbone`` folder of a checkpoint, from which the model is built instead of ``config.model.backbone``.

    Raises:
        CheckpointError: the weights of ``init_from`` are not those of this model.
    """
    if init_from is not None:
        definition = init_from / "backbone"
    # a checkpoint holds floats, and is loaded as what it is
    quantization = plan_quantization(config, transforms.image_size) if definition is None else None
    model = build_vla(
        config.model,
        transforms.spec,
        window=transforms.window,
        chunk=transforms.chunk,
        image_size=transforms.image_size,
        bounded=transforms.normalizer.bounded,
        definition=definition,
        state_size=0 if transforms.state is None else len(transforms.state.names),
        quantization=quantization,
    )
    if quantization is not None:
        save_in_floating_point(model.backbone.model)
    if init_from is not None:
        _load_weights(model, init_from, "training.init_from takes a plain model of the same settings: anyvla export writes one")
    apply_tuning(model, config.tuning)
    model.objectives = make_objectives(config.objectives, model.backbone, transforms.cameras, transforms.image_size)
    return model


def save_model(folder: Path, config: Config, transforms: Transforms, model: VLA) -> None:
    """Write everything but ``training_state`` into ``folder``."""
    write_model(folder, config, transforms, model, make_example(model, transforms))


def make_example(model: VLA, transforms: Transforms) -> dict[str, Any]:
    """An input, and what ``model`` says to it."""
    example: dict[str, Any] = {"instruction": "Stop in front of the bottle.", "seed": 0}
    return {**example, "actions": _run_example(model, transforms, example).tolist()}


def write_model(
    folder: Path,
    config: Config,
    transforms: Transforms,
    model: VLA,
    example: dict[str, Any],
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """As ``save_model``, without running ``model``; ``weights`` are written instead of its own, which may be spread."""
    from safetensors.torch import save_file
    from safetensors.torch import save_model as save_weights

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config.to_yaml())
    (folder / "transforms.json").write_text(transforms.to_json())
    if weights is None:
        save_weights(model, str(folder / "model.safetensors"))
    else:
        save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    model.backbone.save_definition(folder / "backbone")
    (folder / "example.json").write_text(json.dumps(example))


def load_checkpoint(path: Path, which: Which = "last", device: str | torch.device = "cpu") -> Checkpoint:
    """Load a checkpoint folder, or the ``which`` checkpoint of a run folder, on ``device``.

    Raises:
        CheckpointError: the folder is no checkpoint, something in it is missing or damaged, or the weights do not fit.
    """
    folder = resolve_checkpoint(path, which)
    for name in ("config.yaml", "transforms.json", "model.safetensors", "backbone"):
        if not (folder / name).exists():
            raise CheckpointError(f"{folder}: no {name}; not a complete checkpoint")
    try:
        config = parse_config((folder / "config.yaml").read_text(), where=str(folder / "config.yaml"))
    except ConfigError as error:
        raise CheckpointError(f"the settings of this checkpoint do not fit this version of AnyVLA: {error}") from error
    transforms = Transforms.from_json((folder / "transforms.json").read_text())
    model = build_model(config, transforms, folder / "backbone")
    _load_weights(model, folder, "")
    return Checkpoint(folder, config, transforms, model.to(device).eval())


def _load_weights(model: VLA, folder: Path, advice: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    path = folder / "model.safetensors"
    try:
        load_model(model, str(path), strict=True)
    except (RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())  # a large model that does not fit has thousands of names to say so
        said = said if len(said) < 600 else f"{said[:600]} ..."
        raise CheckpointError(f"{path}: the weights do not fit the model ({said}){advice and '; '}{advice}") from error


def export_checkpoint(path: Path, out: Path, which: Which = "last") -> Path:
    """Write the ``which`` checkpoint of ``path`` to the new folder ``out`` as a policy needs it; returns ``out``.

    LoRA is merged, so that it loads without PEFT; what only training needs (the optimiser, auxiliary objectives) is left out.

    Raises:
        CheckpointError: ``path`` is no checkpoint, or ``out`` exists.
    """
    if out.exists():
        raise CheckpointError(f"{out} exists already; export writes a new folder")
    loaded = load_checkpoint(path, which)
    loaded.model.objectives = None
    config = loaded.config.model_copy(update={"tuning": without_lora(loaded.config.tuning), "objectives": ObjectivesConfig()})
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_model(partial, config, loaded.transforms, merge_lora(loaded.model))
    os.replace(partial, out)
    return out


def check_example(checkpoint: Checkpoint) -> float:
    """Largest difference between the saved example's output and what the loaded model says to the same input."""
    example = _read_json(checkpoint.folder / "example.json")
    actions = _run_example(checkpoint.model, checkpoint.transforms, example)
    return float(np.abs(actions - np.array(example["actions"])).max())


@torch.inference_mode()
def _run_example(model: VLA, transforms: Transforms, example: dict[str, Any]) -> np.ndarray:
    """(L, A) normalised actions for the example's instruction, and images and a state drawn from its seed."""
    rng = np.random.default_rng(example["seed"])
    device = model.backbone.device
    images = {
        camera: torch.from_numpy(rng.integers(0, 256, (1, 3, *transforms.image_size), dtype=np.uint8)).to(device)
        for camera in transforms.cameras
    }
    state = None
    if transforms.state is not None:
        drawn = rng.uniform(-1, 1, (1, len(transforms.state.names)))
        state = torch.from_numpy(drawn.astype(np.float32)).to(device)
    training = model.training
    model.eval()
    actions, _ = model.step(images, [transforms.prompt(example["instruction"])], [model.init_state()], state)
    model.train(training)
    return actions[0].float().cpu().numpy()


def resolve_checkpoint(path: Path, which: Which = "last") -> Path:
    """The checkpoint folder that ``path`` (a run or a checkpoint) stands for."""
    if (path / "model.safetensors").exists():
        return path
    index = path / "checkpoints.json"
    if not index.exists():
        what = (
            "no checkpoint has been saved in this run yet"
            if (path / "config.yaml").exists()
            else "neither a run nor a checkpoint"
        )
        raise CheckpointError(f"{path}: {what if path.exists() else 'no such folder'}")
    names = _read_json(index)
    if which not in names:
        raise CheckpointError(f"{path}: this run has no {which!r} checkpoint; it has: {', '.join(sorted(names))}")
    return path / "checkpoints" / names[which]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: missing or damaged ({error})") from error


def publish_checkpoint(run: Path, partial: Path, name: str, best: bool) -> None:
    """Make the finished folder ``partial`` the run's last checkpoint ``name`` (and its best one), in one step; then tidy up."""
    final = run / "checkpoints" / name
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    index = run / "checkpoints.json"
    names = json.loads(index.read_text()) if index.exists() else {}
    names["last"] = name
    if best:
        names["best"] = name
    write_atomically(index, json.dumps(names))
    for folder in final.parent.iterdir():
        if _OURS.fullmatch(folder.name) and folder.name not in names.values():
            shutil.rmtree(folder)


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``; whoever reads it sees the old or the new content, whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)
