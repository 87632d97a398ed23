"""What of a model is trained: freezing, the last decoder layers, LoRA, gradient checkpointing, as ``config.tuning`` asks.

Tower settings concern the vision-language model itself. What the adapter and the head add to it (query tokens, a new
resampler, the head) starts from random values and is always trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from anyvla.config.training import LastLayersTuningConfig, LoraTuningConfig, TuningConfig
from anyvla.errors import ConfigError
from anyvla.models.backbones.adapter import TOWERS, Backbone
from anyvla.models.vla import VLA


def apply_tuning(vla: VLA, config: TuningConfig) -> None:
    """Make exactly what ``config`` names trainable, with LoRA layers put into ``vla.backbone.model`` in place.

    Raises:
        ConfigError: a setting names something that this model does not have.
    """
    backbone = vla.backbone
    trained = _trained_weights(backbone, config)
    for tower in TOWERS:
        settings = getattr(config, tower)
        if isinstance(settings, LoraTuningConfig):
            names = lora_targets(backbone, tower, settings.targets)
            _inject_lora(backbone.model, names, settings)
    for parameter in backbone.parameters():  # PEFT freezes all but its own
        # what is not in the table is a new LoRA matrix; quantised weights are integers, which know no gradient
        wanted = trained.get(id(parameter), True) and parameter.is_floating_point()
        parameter.requires_grad_(wanted)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(backbone.model)


def _trained_weights(backbone: Backbone, config: TuningConfig) -> dict[int, bool]:
    """id of a parameter -> whether it is trained, before LoRA."""
    trained = {id(p): True for p in backbone.parameters()}
    inside = {id(p) for p in backbone.model.parameters()}
    for tower, parameters in backbone.towers().items():
        whole = getattr(config, tower).type == "full"
        trained |= {id(p): whole for p in parameters if id(p) in inside}
    if isinstance(config.language, LastLayersTuningConfig):
        layers = decoder_layers(backbone)
        if config.language.layers > len(layers):
            raise ConfigError(f"tuning.language.layers is {config.language.layers}, but this model has {len(layers)} layers")
        trained |= {id(p): True for layer in layers[-config.language.layers :] for p in layer.parameters()}
    if config.resampler is not None:
        resamplers = [module for name, module in backbone.named_modules() if _RESAMPLER.search(name.rsplit(".", 1)[-1])]
        if not resamplers:
            raise ConfigError("tuning.resampler is set, but this model has no resampler; leave it null")
        trained |= {id(p): config.resampler for module in resamplers for p in module.parameters()}
    if config.text_embedding is not None:
        trained |= {id(p): config.text_embedding for p in backbone.model.get_input_embeddings().parameters()}
    return trained


_RESAMPLER = re.compile("resampler|perceiver")


def decoder_layers(backbone: Backbone) -> list[nn.Module]:
    """The layers of the language model that the query tokens pass, first to last."""
    model = backbone.model
    text = model.config.get_text_config()
    stack = model.get_encoder() if getattr(text, "is_encoder_decoder", False) else model.get_decoder()
    language = {id(p) for p in backbone.towers()["language"]}
    found: list[nn.Module] = []
    size = 0
    for module in stack.modules():
        if isinstance(module, nn.ModuleList) and all(id(p) in language for p in module.parameters()):
            parameters = sum(p.numel() for p in module.parameters())
            if parameters > size:
                found, size = list(module), parameters
    return found


def lora_targets(backbone: Backbone, tower: str, targets: str | Sequence[str]) -> list[str]:
    """Full names, inside ``backbone.model``, of the linear layers of ``tower`` that ``targets`` stands for.

    ``attention``: those of attention blocks; ``all-linear``: all but the output embedding; else those in whose name at
    least one of the regular expressions is found.

    Raises:
        ConfigError: nothing matches, or one of the expressions matches nothing.
    """
    model = backbone.model
    of_tower = {id(p) for p in backbone.towers()[tower]}
    names = [name for name, module in linear_layers(model) if id(module.weight) in of_tower]
    examples = ", ".join(names[:: max(1, len(names) // 8)][:8]) or "none"
    if isinstance(targets, str):
        chosen = [name for name in names if targets == "all-linear" or _in_attention(model, name)]
    else:
        for pattern in targets:
            if not any(re.search(pattern, name) for name in names):
                raise ConfigError(f"tuning.{tower}.targets: {pattern!r} matches no linear layer; there are: {examples}")
        chosen = [name for name in names if any(re.search(pattern, name) for pattern in targets)]
    if not chosen:
        raise ConfigError(
            f"tuning.{tower}.targets {targets!r} match no linear layer of the {tower} tower; there are: {examples}"
        )
    return chosen


def linear_layers(model: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """Names and modules of all linear layers that have a weight of their own and are called: not the output embedding."""
    output = model.get_output_embeddings()
    left_out = {id(module) for module in output.modules()} if output is not None else set()
    # PyTorch's own attention takes the weight of its output layer and never calls it
    left_out |= {id(module.out_proj) for module in model.modules() if isinstance(module, nn.MultiheadAttention)}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and id(module) not in left_out:
            yield name, module


def _in_attention(model: PreTrainedModel, name: str) -> bool:
    """Whether the layer belongs to an attention block: by its parent's name, or the class of one of its next two ancestors."""
    path = name.split(".")[:-1]
    if path and re.search("attn|attention", path[-1]):
        return True
    ancestors = (model.get_submodule(".".join(path[:depth])) for depth in range(len(path), max(0, len(path) - 2), -1))
    return any(re.search(r"Attention\d*$", type(module).__name__) for module in ancestors)


def _inject_lora(model: PreTrainedModel, names: Iterable[str], settings: LoraTuningConfig) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(re.escape(name) for name in names),  # one string is matched whole, a list by endings
    )
    inject_adapter_in_model(lora, model)
    del model.peft_config  # each tower has its own, and PEFT would take the first for all


def merge_lora(vla: VLA) -> VLA:
    """Add the LoRA updates to the weights that they update and remove them, in place: an ordinary model is left."""
    from peft.tuners.lora import LoraLayer

    model = vla.backbone.model
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, layer in layers:
        layer.merge(safe_merge=True)
        model.set_submodule(name, layer.get_base_layer())
    return vla


def without_lora(config: TuningConfig) -> TuningConfig:
    """The settings of a model whose LoRA has been merged and whose weights are no longer quantised."""
    plain = {tower: {"type": "full"} for tower in TOWERS if getattr(config, tower).type == "lora"}
    return TuningConfig.model_validate({**config.model_dump(), **plain, "quantization": None})


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Keep only the inputs of the layers in training, and compute the rest again in the backward pass.

    Raises:
        ConfigError: the model cannot.
    """
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"tuning.gradient_checkpointing: {type(model).__name__} does not support it; set it to false")
    # the second name is the one of older versions
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    # transformers also makes the outputs of frozen embeddings require gradients, which only the reentrant kind needs
    model.disable_input_require_grads()


def freeze_unused(vla: VLA, outputs: Sequence[torch.Tensor]) -> list[str]:
    """Freeze the trainable parameters that no output depends on; returns their names.

    Pretrained models have such parts, as the last layer of LLaVA's vision tower or the vocabulary head. Distributed training
    waits for the gradient of every trainable parameter, so none may stay without.

    Args:
        outputs: what a forward pass of the training gives, with its graph, which is walked as DistributedDataParallel does.
    """
    seen: set[Any] = set()
    used: set[int] = set()
    nodes = [output.grad_fn for output in outputs if output.grad_fn is not None]
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # where a gradient is accumulated
            used.add(id(node.variable))
        nodes += [before for before, _ in node.next_functions if before is not None]
    unused = [(name, p) for name, p in vla.named_parameters() if p.requires_grad and id(p) not in used]
    for _, parameter in unused:
        parameter.requires_grad_(False)
    return [name for name, _ in unused]


def count_parameters(vla: VLA) -> dict[str, tuple[int, int]]:
    """Tower -> number of parameters, and of those that are trained; also of ``head``, and of ``objectives`` if any are on."""
    towers = {**vla.backbone.towers(), "head": list(vla.head.parameters())}
    if vla.objectives is not None:
        towers["objectives"] = list(vla.objectives.parameters())
    return {
        name: (sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad))
        for name, parameters in towers.items()
    }
