"""A configuration of RoboVLMs becomes a recipe, and every one of its keys is accounted for."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from anyvla.errors import did_you_mean
from anyvla.importing.robovlms_keys import FAMILIES, Family
from anyvla.importing.robovlms_source import Fate, Source, SourceKey, read_config

Layout = Literal["native", "robovlms"]

_FLAMINGO_4B = "openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct"
_STATIC, _HAND = "rgb_static", "rgb_gripper"
_PRECISIONS = {"16": "fp16", "fp16": "fp16", "bf16": "bf16", "32": "fp32", "fp32": "fp32"}
# control steps per second of what the original trains on, by the name in train_dataset.data_mix
_OXE_FPS = {"bridge": 5.0, "bridge_orig": 5.0, "rt_1": 3.0, "fractal20220817_data": 3.0}
_OXE_SPEC = {
    "name": "end_effector7",
    "dims": [
        *({"name": name, "unit": "m", "mirrored": name == "dy"} for name in ("dx", "dy", "dz")),
        *(
            {"name": name, "unit": "rad", "low": -math.tau, "high": math.tau, "mirrored": name != "dpitch"}
            for name in ("droll", "dpitch", "dyaw")
        ),
        {"name": "gripper", "kind": "binary", "unit": "1 = open", "low": 0.0, "high": 1.0},
    ],
}


@dataclass(frozen=True)
class ImportedConfig:
    """A recipe, and what is needed to import a checkpoint that belongs to it.

    Attributes:
        recipe: a tree of settings for ``parse_config``. keys: every key of the source, once. family: which model it is.
        bounds: the fixed range of continuous actions. mu: of mu-law companding, if any. open_x: actions are normalised by
        quantiles of the data before ``bounds``. fps: control rate of the data, if known. obstacle: why the weights cannot
        be taken over, if so.
    """

    recipe: dict[str, Any]
    keys: tuple[SourceKey, ...]
    family: Family
    bounds: tuple[float, float]
    mu: float | None
    open_x: bool
    fps: float | None
    obstacle: str | None

    def of(self, fate: Fate) -> list[SourceKey]:
        return [key for key in self.keys if key.fate == fate]


def import_config(
    path: Path, *, layout: Layout = "native", vlm: str | None = None, steps_per_epoch: int | None = None
) -> ImportedConfig:
    """Turn the configuration in ``path`` into a recipe.

    Args:
        layout: ``native`` trains anew with the vision-language model's own sequence, ``robovlms`` goes on with old weights.
        vlm: folder or hub name of the vision-language model, instead of the configuration's.
        steps_per_epoch: optimiser steps, to count epochs in steps.

    Raises:
        ConfigError: the file cannot be read, or describes something that no recipe can say.
    """
    source = Source(read_config(path), path)
    recipe, facts = _translate(source, layout, vlm, steps_per_epoch)
    return ImportedConfig(recipe=recipe, keys=source.account(), **facts)


def _translate(
    source: Source, layout: Layout, vlm: str | None, steps_per_epoch: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    name = source.need("robovlm_name", "model.backbone")
    if name not in FAMILIES:
        raise source.refuse("robovlm_name", f"no model of RoboVLMs{did_you_mean(str(name), FAMILIES)}")
    family = FAMILIES[name]
    if name == "RoboFlamingo":
        family = _flamingo(family, str(source.look("vlm.name")))
    if source.look("parent"):
        source.map("parent", "(its settings are taken over)")
    else:
        source.drop("parent", "there is none")
    source.map("model", "observation.prompt" if layout == "robovlms" else "model.backbone")
    open_x = str(source.look("train_dataset.type", "")).startswith("OpenVLA")
    actions, normalization = _actions(source, open_x)
    recipe = {
        "seed": source.map("seed", "seed", 0),
        "data": _data(source, open_x),
        "observation": _observation(source, family, layout, open_x),
        "actions": actions,
        "model": _model(source, family, layout, vlm),
        "tuning": _tuning(source, name),
        "training": _training(source, steps_per_epoch),
    }
    mix = source.look("train_dataset.data_mix")
    fps = _OXE_FPS.get(mix) if open_x else 30.0 if "Calvin" in str(source.look("train_dataset.type")) else None
    facts = {"family": family, "open_x": open_x, "fps": fps}
    facts |= normalization
    facts["obstacle"] = facts["obstacle"] or _obstacle(source, family, recipe)
    return recipe, facts


def _flamingo(family: Family, language: str) -> Family:
    if language.startswith("mpt_1b"):
        return replace(
            family, successor=_FLAMINGO_4B, why_not="its MPT-1B normalises queries and keys, as no MPT of transformers"
        )
    if language.startswith("llama"):  # another end of the text
        return replace(family, prompt=family.prompt.replace("<|endoftext|>", "</s>"))
    return family


def _obstacle(source: Source, family: Family, recipe: dict[str, Any]) -> str | None:
    """Why the weights cannot be taken over, if so."""
    model = recipe["model"]
    if family.successor:
        return family.why_not
    if family.name == "UForm-Gen":
        return "its prompt has the word <image> beside the image, and here that word is the image's place"
    if family.name == "OpenFlamingo" and source.look("use_hand_rgb"):
        return "the original joins the images of two cameras in one, which OpenFlamingo here does not"
    if model["head"]["type"] == "discrete":
        return "discrete: its actions are words of the vocabulary, and here tokens of their own"
    if model.get("pooling", {"tokens": "all"})["tokens"] != "all":
        return f"act_head.token_source {source.look('act_head.token_source')!r} pools over other tokens than model.pooling does"
    if family.name == "PaliGemma" and "resampler" in model:
        return "its resampler saw features of another scale than PaliGemma's are here"
    return None


def _data(source: Source, open_x: bool) -> dict[str, Any]:
    data: dict[str, Any] = {"workers": _first(source.map("num_workers", "data.workers", 0))}
    source.drop("train_dataset.type", "set data.source.type and data.source.path to your copy of the data")
    source.drop("train_dataset.data_dir", "set data.source.path to your copy of the data")
    augment: dict[str, float] = {}
    size = source.look("image_size", 224)
    pad = source.map("train_dataset.rgb_pad", "data.augment.shift", -1)
    if pad > 0:
        augment["shift"] = round(pad / size, 4)
    source.drop("train_dataset.gripper_pad", "one shift is drawn for all cameras: data.augment.shift")
    if source.look("train_dataset.image_aug") and open_x:
        source.map("train_dataset.image_aug", "data.augment.color (its crop and change of hue are left out)")
        augment["color"] = 0.2
    else:
        source.drop("train_dataset.image_aug", "off")
    return data | ({"augment": augment} if augment else {})


def _observation(source: Source, family: Family, layout: Layout, open_x: bool) -> dict[str, Any]:
    cameras: list[str] | None = [_STATIC]
    if open_x:
        cameras = None
        source.drop("use_hand_rgb", "without effect: the Open X loader gives no hand camera")
    elif source.map("use_hand_rgb", "observation.cameras", False):
        # in the order of the sequence, which is the other way round in the original
        cameras = [_HAND, _STATIC] if layout == "robovlms" else [_STATIC, _HAND]
    observation: dict[str, Any] = {}
    if family.own_images:
        name = family.successor or family.name
        source.drop("image_size", f"{name} brings its own size of images, which a recipe takes if it says nothing")
    else:
        size = source.map("image_size", "observation.image_size", 224)
        observation["image_size"] = [size, size]
    if cameras:
        observation["cameras"] = cameras
    if layout == "robovlms":
        observation["prompt"] = family.prompt
    return observation


def _actions(source: Source, open_x: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The section ``actions`` of the recipe, and how the imported weights' outputs are scaled."""
    if source.map("act_head.action_dim", "actions.spec", 7) != 7:
        raise source.refuse("act_head.action_dim", "the original splits actions into 6 + 1 and cannot compute others")
    obstacle = None
    for key in ("regular_action", "x_mean", "x_std"):
        source.drop(key, "the original never undoes this scaling when it acts")
    if source.look("regular_action"):
        obstacle = "regular_action scales actions in training, and the original never undoes that when it acts"
    if source.look("tcp_rel"):
        obstacle = "tcp_rel: its actions are relative to the gripper's frame, for which there is no action spec yet"
    source.drop("tcp_rel", "actions stay in the frame in which the data give them")

    bounds = (-1.0, 1.0)
    if source.look("norm_action", False):
        bounds = (float(source.look("norm_min", -1)), float(source.look("norm_max", 1)))
    mu = float(source.look("mu_val", 255)) if source.look("use_mu_law", False) else None
    actions: dict[str, Any] = {
        "spec": _OXE_SPEC if open_x else "arm7",
        "window": source.need("window_size", "actions.window"),
        "chunk": source.need("fwd_pred_next_n", "actions.chunk"),
        "normalization": "quantile" if open_x else "bounds",
    }
    if open_x:
        for key in ("norm_action", "norm_min", "norm_max"):
            source.drop(key, "a second scaling of actions that the loader has scaled by their quantiles already")
    else:
        for key in ("norm_action", "norm_min", "norm_max"):
            source.map(key, "actions.bounds")
        actions["bounds"] = list(bounds)
    if mu is not None and mu == 255 and not open_x:
        actions["normalization"] = "mu_law"
        source.map("use_mu_law", "actions.normalization")
    else:
        source.drop("use_mu_law", "off" if mu is None else "companding with this scaling is not a setting of recipes")
    source.drop("mu_val", "255 is built in" if mu is None or mu == 255 else "recipes compand with 255")
    return actions, {"bounds": bounds, "mu": mu, "obstacle": obstacle}


def _model(source: Source, family: Family, layout: Layout, vlm: str | None) -> dict[str, Any]:
    backbone = {"type": "pretrained", "path": vlm or _vlm_path(source, family)}
    if layout == "robovlms":
        backbone["layout"] = "robovlms"
    model: dict[str, Any] = {"backbone": backbone} | _features(source)
    if source.map("use_vision_resampler", "model.resampler", False):
        model["resampler"] = {"depth": 6, "latents": 64, "heads": 8}
    model["structure"], model["head"] = _structure_and_head(source)
    weight = source.map("arm_gripper_loss_ratio", "model.loss.binary_weight", 0.01)
    model["loss"] = {"continuous": "huber", "binary_weight": weight}
    if not source.map("train_setup.predict_action", "model.head", True):
        raise source.refuse("train_setup.predict_action", "without it there is no policy")
    return model


def _vlm_path(source: Source, family: Family) -> str:
    """A folder that exists, or a name on the hub, or what the configuration says."""
    key = "vlm.pretrained_model_name_or_path"
    if family.successor:
        source.drop(key, f"{family.why_not}; the recipe takes {family.successor}")
        return family.successor
    named = str(source.need(key, "model.backbone.path"))
    if (Path(named) / "config.json").is_file():
        return named
    url = str(source.look("model_url", "")).rstrip("/")
    if url.endswith(f"/{Path(named).name}") or family.owner is None:
        source.map("model_url", "model.backbone.path")
        return "/".join(url.split("/")[-2:])
    return f"{family.owner}/{Path(named).name}"


def _features(source: Source) -> dict[str, Any]:
    """Query tokens, or pooled tokens."""
    space = source.look("act_head.action_space", "continuous")
    latent = source.look("act_head.latent", 1)
    if space == "down_sample":
        if source.look("act_head.down_sample") != "pooling" or latent != 1:
            raise source.refuse("act_head.down_sample", "pooled tokens are one maximum over them: 'pooling' with latent 1")
        source.drop("act_head.latent", "pooling makes one feature")
        for key in ("act_head.action_space", "act_head.down_sample", "act_head.token_source"):
            source.map(key, "model.pooling")
        return {"pooling": {"tokens": source.look("act_head.token_source", "all"), "reduce": "max"}}
    if space not in ("continuous", "discrete"):
        raise source.refuse(
            "act_head.action_space", f"unknown{did_you_mean(str(space), ('continuous', 'discrete', 'down_sample'))}"
        )
    source.map("act_head.action_space", "model.head.type" if space == "discrete" else "model.queries")
    source.map("act_head.latent", "model.queries")
    source.drop("act_head.down_sample", "query tokens are not pooled")
    source.drop("act_head.token_source", "query tokens are not pooled")
    source.drop("act_head.fill_zero", "query tokens see each other and are seen")
    return {"queries": latent}


def _structure_and_head(source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    if "act_head" in source.values:  # not a section but null
        raise source.refuse("act_head", "there is no action head, so no policy")
    kind = source.need("act_head.type", "model.head.type")
    latent = source.look("act_head.latent", 1) if source.look("act_head.action_space") != "down_sample" else 1
    history = source.map("act_head.history_type", "model.structure.type", "post")
    if history not in ("post", "pre"):
        raise source.refuse("act_head.history_type", "only 'post' (history in the head) and 'pre' (in the model) are known")
    # the original decodes tokens behind one sequence of all frames, whatever history_type says
    structure = {"type": "interleaved" if history == "pre" or kind == "DiscreteDecoder" else "policy_head"}
    if kind in ("FCDecoder", "DiscreteDecoder") and source.look("window_size") == 1:
        structure = {"type": "one_step"}

    hidden = source.map("act_head.hidden_size", "model.head.hidden", 1024)
    bins = ("act_head.n_bin", "act_head.min_action", "act_head.max_action")
    if kind != "DiscreteDecoder":
        for key in bins:
            source.drop(key, "of the discrete head, which this is not")
    if kind != "LSTMDecoder":
        for key in ("act_head.num_layers", "act_head.policy_rnn_dropout_p"):
            source.drop(key, "of the LSTM head, which this is not")
    if kind == "LSTMDecoder":
        layers = source.map("act_head.num_layers", "model.head.layers", 4)
        dropout = source.map("act_head.policy_rnn_dropout_p", "model.head.dropout", 0.0)
        # the original widens the recurrence with the number of query tokens
        return structure, {"type": "lstm", "hidden": hidden * latent, "layers": layers, "dropout": float(dropout)}
    if kind == "FCDecoder":
        return structure, {"type": "fc", "hidden": hidden}
    if kind == "GPTDecoder":
        if latent != 1:
            raise source.refuse("act_head.latent", "the original's GPT head cannot take more than one query token")
        return structure, {"type": "gpt", "hidden": hidden}
    if kind == "DiscreteDecoder":
        source.drop("act_head.hidden_size", "the vocabulary head of the model predicts the tokens")
        count = source.map("act_head.n_bin", "model.head.bins", 256)
        for key in bins[1:]:
            source.drop(key, "bins span the range of normalised actions")
        return structure, {"type": "discrete", "bins": count}
    raise source.refuse("act_head.type", "unknown; known: LSTMDecoder, FCDecoder, GPTDecoder, DiscreteDecoder")


def _tuning(source: Source, name: str) -> dict[str, Any]:
    """Which towers are trained."""
    vision = source.map("train_setup.train_vision", "tuning.vision", False)
    embedding = source.map("train_setup.train_text_embedding", "tuning.text_embedding", False)
    last = source.look("train_setup.train_decoder_layers", -1)
    tuning: dict[str, Any] = {
        "vision": {"type": "full" if vision else "frozen"},
        "connector": {"type": "full"},
        "language": {"type": "full"},
        "text_embedding": bool(embedding),
    }
    if name == "RoboFlamingo":  # the gated cross-attention layers and the resampler are the connector
        if source.map("train_setup.train_resampler", "tuning.connector", True) is False:
            source.drop("train_setup.train_resampler", "it is part of the connector, which is trained: tuning.connector")
        full = source.map("train_setup.train_full_decoder", "tuning.language", False)
        tuning["language"] = {"type": "full" if full else "frozen"}
        source.drop("train_setup.freeze_backbone", "read for other models only")
        source.drop("train_setup.freeze_resampler", "read for other models only")
        source.drop(
            "train_setup.train_decoder_layers",
            "all gated layers are trained" if last == -1 else "gated layers are trained all or not at all: tuning.connector",
        )
    else:
        frozen = source.map("train_setup.freeze_backbone", "tuning.language", False)
        source.map("train_setup.train_decoder_layers", "tuning.language", -1)
        if frozen:
            tuning["connector"] = tuning["language"] = {"type": "frozen"}
        elif last != -1:
            tuning["connector"], tuning["language"] = {"type": "frozen"}, {"type": "last_layers", "layers": last}
        if source.look("use_vision_resampler", False):
            tuning["resampler"] = not source.map("train_setup.freeze_resampler", "tuning.resampler", False)
        else:
            source.drop("train_setup.freeze_resampler", "there is no vision resampler")
    if source.look("train_setup.lora_enable", False):
        source.map("train_setup.lora_enable", "tuning.language")
        tuning["language"] = {
            "type": "lora",
            "rank": source.map("train_setup.lora_r", "tuning.language.rank", 64),
            "alpha": float(source.map("train_setup.lora_alpha", "tuning.language.alpha", 16)),
            "dropout": float(source.map("train_setup.lora_dropout", "tuning.language.dropout", 0.05)),
            "targets": "all-linear",
        }
    else:
        for key in ("lora_enable", "lora_r", "lora_alpha", "lora_dropout"):
            source.drop(f"train_setup.{key}", "LoRA is off")
    return tuning


def _training(source: Source, steps_per_epoch: int | None) -> dict[str, Any]:
    rate = source.need("learning_rate", "training.learning_rate")
    accumulation = source.map("trainer.accumulate_grad_batches", "training.accumulation", 1)
    training: dict[str, Any] = {
        "batch_size": _first(source.need("batch_size", "training.batch_size")),
        "accumulation": accumulation,
        "learning_rate": float(rate),
        "betas": [0.9, 0.999],
        "weight_decay": float(source.map("weight_decay", "training.weight_decay", 0.0)),
    }
    schedule = source.map("scheduler", "training.min_learning_rate", "constant")
    ends = {"constant": 1.0, "cosine": 0.0, "half-cosine": source.look("min_lr_scale", 0.0)}
    if schedule not in ends:
        raise source.refuse("scheduler", f"unknown{did_you_mean(str(schedule), ends)}")
    training["min_learning_rate"] = float(ends[schedule])
    if schedule == "half-cosine":
        source.map("min_lr_scale", "training.min_learning_rate")
    else:
        source.drop("min_lr_scale", f"without effect under the schedule {schedule!r}, the default being 'constant'")
    training |= _steps(source, steps_per_epoch)
    if source.look("gradient_clip_val"):
        training["clip_norm"] = float(source.map("gradient_clip_val", "training.clip_norm"))
    else:
        source.drop("gradient_clip_val", "0: no clipping; the recipe clips as usual")
    precision = str(source.look("trainer.precision", "32")).split("-")[0]
    if precision not in _PRECISIONS:
        raise source.refuse("trainer.precision", f"unknown{did_you_mean(precision, _PRECISIONS)}")
    source.map("trainer.precision", "training.precision")
    training["precision"] = _PRECISIONS[precision]
    if source.look("trainer.log_every_n_steps"):
        training["log_every"] = source.map("trainer.log_every_n_steps", "training.log_every")
    loggers = source.map("trainer.logger", "training.trackers") or []
    training["trackers"] = [logger for logger in loggers if logger == "tensorboard"]
    interval = source.look("trainer.val_check_interval")
    if isinstance(interval, int) and interval:
        source.map("trainer.val_check_interval", "training.validate_every")
        training["validate_every"] = max(1, interval // accumulation)  # they count batches
    else:
        source.drop("trainer.val_check_interval", "not a number of batches; set training.validate_every")
    batches = source.look("trainer.limit_val_batches")
    if isinstance(batches, int) and batches:
        source.map("trainer.limit_val_batches", "training.validation_windows")
        training["validation_windows"] = batches * training["batch_size"]
    else:
        source.drop("trainer.limit_val_batches", "not a number of batches; set training.validation_windows")
    return training


def _steps(source: Source, steps_per_epoch: int | None) -> dict[str, Any]:
    """Length and warm-up: epochs count only where the number of steps in one is known."""
    result: dict[str, Any] = {}
    unknown = "steps in an epoch are not known: --steps-per-epoch, or set training.{} yourself"
    limits = []
    if source.look("trainer.max_steps", -1) > 0:
        limits.append(source.map("trainer.max_steps", "training.steps"))
    else:
        source.drop("trainer.max_steps", "no limit; max_epochs decides")
    if steps_per_epoch is not None and source.look("trainer.max_epochs"):
        limits.append(round(source.map("trainer.max_epochs", "training.steps") * steps_per_epoch))
    else:
        source.drop("trainer.max_epochs", unknown.format("steps"))
    if limits:
        result["steps"] = max(1, min(limits))
    warmup = source.map("warmup_steps", "training.warmup", 0)
    epochs = source.look("warmup_epochs", 0)
    if not epochs:
        source.drop("warmup_epochs", "0")
    elif steps_per_epoch is not None:
        warmup += round(source.map("warmup_epochs", "training.warmup") * steps_per_epoch)
    else:
        source.drop("warmup_epochs", unknown.format("warmup"))
        warmup = warmup or None  # the default of recipes
    if warmup is not None:
        result["warmup"] = warmup
    return result


def _first(value: Any) -> Any:
    """Of a list with one entry per source."""
    return value[0] if isinstance(value, list) else value
