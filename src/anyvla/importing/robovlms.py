"""``anyvla import-robovlms``: a configuration and a checkpoint of RoboVLMs become a recipe and a run of ours."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from anyvla.actions import ActionSpec, Normalizer
from anyvla.actions.spec import action_spec
from anyvla.checkpoint import build_model, publish_checkpoint, save_model, write_atomically
from anyvla.config import Config, parse_config
from anyvla.data.transforms import Transforms
from anyvla.errors import CheckpointError, ConfigError, DataError
from anyvla.importing.robovlms_config import Fate, ImportedConfig, Layout, import_config
from anyvla.importing.robovlms_weights import load_weights, read_state
from anyvla.models.backbones.load import resolve_image_size

_NAME = "step-0000000"


@dataclass(frozen=True)
class Imported:
    """What ``import_robovlms`` made: the recipe's file, the account of the keys, and of the tensors that were not needed."""

    recipe: Path
    config: ImportedConfig
    checkpoint: Path | None
    unused: list[tuple[str, str]]


def import_robovlms(
    config: Path,
    checkpoint: Path | None,
    out: Path,
    *,
    vlm: str | None = None,
    layout: Layout | None = None,
    steps_per_epoch: int | None = None,
    statistics: Path | None = None,
    fps: float | None = None,
) -> Imported:
    """Write ``out/recipe.yaml`` and, with a ``checkpoint``, a run in ``out`` that computes what the original computed.

    Args:
        vlm: folder or hub name of the vision-language model, instead of the configuration's. Of it, only configuration,
            tokenizer and image statistics are read where there is a checkpoint.
        layout: of the token sequence; ``robovlms`` with a checkpoint and ``native`` without, if None.
        statistics: JSON file with the quantiles of the data that a model of Open X-Embodiment was trained on.
        fps: control steps per second; known for CALVIN, Bridge and RT-1.

    Raises:
        ConfigError: the configuration cannot be read or says what no recipe can, or something above is needed.
        CheckpointError: the checkpoint cannot be read, or does not fit the configuration.
    """
    if layout is None:
        layout = "native" if checkpoint is None else "robovlms"
    imported = import_config(config, layout=layout, vlm=vlm, steps_per_epoch=steps_per_epoch)
    text = yaml.safe_dump(imported.recipe, sort_keys=False, allow_unicode=True)
    settings = parse_config(text, [f"out={out}"], where=f"{config}, as a recipe")
    folder: Path | None = None
    unused: list[tuple[str, str]] = []
    if checkpoint is not None:
        folder, unused = _import_checkpoint(imported, settings, checkpoint, out, statistics, fps)
    out.mkdir(parents=True, exist_ok=True)
    recipe = out / "recipe.yaml"
    write_atomically(recipe, f"# imported from {config.name} of RoboVLMs\n{text}")
    return Imported(recipe, imported, folder, unused)


def _import_checkpoint(
    imported: ImportedConfig, settings: Config, checkpoint: Path, out: Path, statistics: Path | None, fps: float | None
) -> tuple[Path, list[tuple[str, str]]]:
    if imported.obstacle:
        raise CheckpointError(f"{checkpoint}: these weights cannot be taken over: {imported.obstacle}")
    if (fps := fps or imported.fps) is None:
        raise ConfigError("the control rate of the data is not known: --fps")
    settings = resolve_image_size(settings)
    assert settings.observation.image_size is not None
    spec = action_spec(settings.actions.spec)
    transforms = Transforms(
        spec=spec,
        normalizer=_normalizer(imported, spec, statistics),
        statistics={},
        cameras=tuple(settings.observation.cameras or ("image_primary",)),
        image_size=settings.observation.image_size,
        fit=settings.observation.fit,
        prompt_template=settings.observation.prompt,
        window=settings.actions.window,
        chunk=settings.actions.chunk,
        fps=fps,
    )
    state = read_state(checkpoint)
    # the weights come from the checkpoint, all of them
    backbone = settings.model.backbone.model_copy(update={"random_weights": True})
    model = build_model(
        settings.model_copy(update={"model": settings.model.model_copy(update={"backbone": backbone})}), transforms
    )
    unused = load_weights(model, state, str(checkpoint))
    partial = out / "checkpoints" / f".{_NAME}.partial"
    save_model(partial, settings, transforms, model)
    write_atomically(out / "config.yaml", settings.to_yaml())
    publish_checkpoint(out, partial, _NAME, best=True)
    return out / "checkpoints" / _NAME, unused


def _normalizer(imported: ImportedConfig, spec: ActionSpec, statistics: Path | None) -> Normalizer:
    """The scale of the imported outputs: ``bounds``, of quantiles of the data where the original took those first."""
    low, high = (np.full(len(spec), bound) for bound in imported.bounds)
    if imported.open_x:
        if statistics is None:
            raise ConfigError(
                "this model's actions are scaled by quantiles of its data: give them by --statistics FILE, "
                'a JSON file with {"action": {"q01": [...], "q99": [...]}}'
            )
        q01, q99 = _quantiles(statistics, len(spec))
        low, high = (q01 + (bound + 1) / 2 * (q99 - q01) for bound in (low, high))
    return Normalizer("bounds" if imported.mu is None else "mu_law", low, high, spec.binary, imported.mu or 255.0)


def _quantiles(path: Path, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """q01 and q99 (A,) of the actions; [-1, 1] for dimensions that the file's mask leaves as they are."""
    try:
        tree: Any = json.loads(path.read_text())
        if "action" not in tree and len(tree) == 1:  # under the name of the data
            tree = next(iter(tree.values()))
        action = tree["action"]
        q01, q99 = (np.array(action[name], dtype=np.float64) for name in ("q01", "q99"))
        mask = np.array(action.get("mask", [True] * dimensions), dtype=bool)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: no statistics of actions with q01 and q99 ({error!r})") from error
    for values in (q01, q99, mask):
        if values.shape != (dimensions,) or not np.isfinite(values).all():
            raise DataError(f"{path}: q01, q99 and mask must be {dimensions} finite numbers each, not {values.tolist()}")
    return np.where(mask, q01, -1.0), np.where(mask, q99, 1.0)


def describe(imported: ImportedConfig) -> str:
    """What became of each key, for people."""
    titles: dict[Fate, str] = {
        "mapped": "taken over",
        "dropped": "not taken over",
        "dead": "dead: the original reads these, if at all, without effect",
        "unknown": "unknown: look at these",
    }
    lines = []
    for fate, title in titles.items():
        keys = imported.of(fate)
        if not keys:
            continue
        lines.append(f"{title} ({len(keys)})")
        if fate == "mapped":
            lines += [f"  {key.key} = {json.dumps(key.value, ensure_ascii=False)} -> {key.note}" for key in keys]
            continue
        together: dict[str, list[str]] = defaultdict(list)
        for key in keys:
            shown = key.key if fate == "dead" else f"{key.key} = {json.dumps(key.value, ensure_ascii=False)}"
            together[key.note].append(shown)
        lines += [f"  {', '.join(names)}: {note}" for note, names in together.items()]
    return "\n".join(lines)
