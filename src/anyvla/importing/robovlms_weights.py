"""A checkpoint of RoboVLMs becomes weights of ours: every tensor is used or named, and nothing of the model is left new."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import PreTrainedModel

from anyvla.errors import CheckpointError
from anyvla.models.backbones import moondream, openflamingo
from anyvla.models.backbones.published import load_strictly
from anyvla.models.backbones.robovlms import RoboVLMsFamily
from anyvla.models.vla import VLA

Tensors = dict[str, torch.Tensor]

_WRAPPERS = ("state_dict", "model_state_dict", "module")
# what is computed, not learned
_CONSTANTS = re.compile(r"(?:^|\.)(?:position_ids|inv_freq|masked_bias|attn\.bias|embed_positions\.weights)$")
# names in the original -> names here; the rest has its own way
_HEAD_NAMES = (
    (r"^act_head\.actions\.mlp\.", "head.trunk.continuous."),
    (r"^act_head\.gripper\.mlp\.", "head.trunk.binary."),
    (r"^act_head\.fc\.", "head.project."),
    (r"^act_head\.", "head."),
    (r"^vision_resampler\.", "backbone.resampler."),
)


def read_state(path: Path) -> Tensors:
    """The named tensors of a torch, Lightning or consolidated DeepSpeed checkpoint, named as in the original's model.

    Nothing in the file is executed: only tensors and plain containers are read.

    Raises:
        CheckpointError: the file cannot be read, holds anything else, or is one of many shards.
    """
    if path.is_dir():
        raise CheckpointError(
            f"{path}: a folder of DeepSpeed; make one file of it first, with the zero_to_fp32.py that lies in it or beside it"
        )
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, so it is not loaded: {str(error).splitlines()[0]} If you trust "
            "the file, save its state dict alone, where it comes from: "
            "torch.save({'state_dict': torch.load(path, weights_only=False)['state_dict']}, 'weights.pt')"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: no readable checkpoint ({error})") from error
    while isinstance(state, Mapping) and (
        wrapper := next((name for name in _WRAPPERS if isinstance(state.get(name), Mapping)), "")
    ):
        state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: no named tensors in it")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path}: {name!r} is no tensor but {type(tensor).__name__}")
    names = {str(name).removeprefix("module."): str(name) for name in state}
    if any(name.startswith(("model.act_head.", "model.backbone.")) for name in names):
        names = {name.removeprefix("model."): key for name, key in names.items()}
    return {name: state[key] for name, key in names.items()}


def load_weights(vla: VLA, state: Tensors, where: str) -> list[tuple[str, str]]:
    """Put the tensors of ``read_state`` into ``vla``, in full precision.

    Returns:
        The tensors that were not needed, with the reason.

    Raises:
        CheckpointError: a tensor is missing, superfluous or of another shape; it names them.
    """
    unused = [(name, "a constant, which is computed") for name in state if _CONSTANTS.search(name)]
    state = {name: tensor for name, tensor in state.items() if not _CONSTANTS.search(name)}
    if vla.backbone.model.config.model_type == "anyvla_openflamingo":
        unused += _load_openflamingo(vla, state, where)
    else:
        backbone = {name.removeprefix("backbone."): state.pop(name) for name in list(state) if name.startswith("backbone.")}
        unused += [(f"backbone.{name}", why) for name, why in _load_backbone(vla, backbone, where)]

    family = vla.backbone.family
    scale = family.query_scale(vla.backbone.model) if isinstance(family, RoboVLMsFamily) else 1.0
    rest: Tensors = {}
    for name, tensor in state.items():
        if name == "action_token":
            queries = vla.backbone.queries
            if queries is None:
                unused.append((name, "features are pooled over tokens"))
            else:  # one vector for all of them
                rest["backbone.queries"] = tensor.float().expand(len(queries), -1) * scale
            continue
        for pattern, replacement in _HEAD_NAMES:
            name = re.sub(pattern, replacement, name)
        rest[name] = tensor
    own = {name: tensor for name, tensor in vla.state_dict().items() if not name.startswith("backbone.model.")}
    _copy_strictly(own, rest, where)
    return unused


def _copy_strictly(own: Mapping[str, torch.Tensor], given: Tensors, where: str) -> None:
    problems = _differences(set(own) - set(given), set(given) - set(own))
    problems += [
        f"{name} has the shape {tuple(given[name].shape)}, the configuration says {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(given))
        if own[name].shape != given[name].shape
    ]
    if problems:
        raise CheckpointError(f"{where}: the weights do not fit the configuration: {'; '.join(problems[:6])}")
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)


def _differences(missing: set[str], superfluous: set[str]) -> list[str]:
    result = []
    for what, names in (("missing", sorted(missing)), ("superfluous", sorted(superfluous))):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            result.append(f"{what}: {', '.join(names[:4])}{more}")
    return result


def _load_backbone(vla: VLA, state: Tensors, where: str) -> list[tuple[str, str]]:
    """Load the vision-language model; transformers knows the names that its older versions gave to tensors."""
    model = vla.backbone.model
    if model.config.model_type == "anyvla_moondream":
        load_strictly(model, moondream.keys_from_published(state), where)
        return []
    loaded, info = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=dict(state),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    problems = _differences(set(info["missing_keys"]), set(info["unexpected_keys"]))
    problems += [
        f"{name} has the shape {tuple(given)}, the configuration says {tuple(own)}"
        for name, given, own in sorted(info["mismatched_keys"], key=str)
    ]
    if problems:
        raise CheckpointError(f"{where}: the weights do not fit the vision-language model: {'; '.join(problems[:6])}")
    vla.backbone.model = loaded
    _fold_scales(loaded)
    tied = [name for name in state if name.endswith("lm_head.weight") and _is_tied(loaded)]
    return [(name, "the same as the word embedding") for name in tied]


def _load_openflamingo(vla: VLA, state: Tensors, where: str) -> list[tuple[str, str]]:
    """Take the parts of OpenFlamingo out of ``state``, where they lie beside each other, and load them."""
    unused, parts = [], {}
    for name in [name for name in state if name.startswith(("backbone.", "model.", "perceiver.", "vision_encoder."))]:
        tensor = state.pop(name)
        if name.startswith("model."):
            unused.append((name, "the same as under backbone."))
        elif name.startswith("vision_encoder.") and not name.startswith("vision_encoder.visual."):
            unused.append((name, "CLIP's text tower, or what belongs to it"))
        else:
            name = name.replace("vision_encoder.visual.", "vision_encoder.")
            parts[name.replace("backbone.", "lang_encoder.", 1) if name.startswith("backbone.") else name] = tensor
    load_strictly(vla.backbone.model, openflamingo.keys_from_published(parts), where)
    return unused


def _is_tied(model: PreTrainedModel) -> bool:
    output, words = model.get_output_embeddings(), model.get_input_embeddings()
    return output is not None and output.weight is words.weight


@torch.no_grad()
def _fold_scales(model: PreTrainedModel) -> None:
    """PaliGemma's image features were divided by the root of one width and multiplied by that of another, mostly the same."""
    config = model.config
    if config.model_type != "paligemma":
        return
    factor = (config.text_config.hidden_size / getattr(config, "hidden_size", config.text_config.hidden_size)) ** 0.5
    if factor != 1.0:
        for parameter in model.get_submodule("model.multi_modal_projector").parameters():
            parameter.mul_(factor)
