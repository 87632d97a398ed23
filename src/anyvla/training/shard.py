"""Weights, gradients and optimiser state spread over all processes (FSDP2, ``fully_shard``), and gathered to be saved."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from anyvla.models.vla import VLA

_ALSO_RUN = ("evaluate", "step")  # what is called on the model beside forward


def shard(model: VLA, accelerator: Accelerator) -> None:
    """Spread the parameters of ``model`` in place, one transformer layer after the other, the rest together.

    Every call of the model is then a meeting of all processes. Make the optimiser afterwards: the parameters are new objects.
    """
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in reversed(list(model.modules())):  # inner ones first
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for method in _ALSO_RUN:
        register_fsdp_forward_method(model, method)


def whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor that may be spread, in one piece on the CPU; a meeting of all processes."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Name -> tensor, each once although several names may stand for it; a meeting of all processes."""
    seen: set[int] = set()
    weights = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            weights[name] = whole(value)
    return weights


def spread_like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A tensor of the shape of ``parameter`` spread as that is; any other one as it is."""
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value


def whole_optimizer_state(optimizer: Any) -> dict[str, Any]:
    """``optimizer.state_dict()`` in whole tensors; a meeting of all processes."""
    state = optimizer.state_dict()
    pieces = {i: {name: whole(value) for name, value in entry.items()} for i, entry in state["state"].items()}
    return {"state": pieces, "param_groups": state["param_groups"]}
