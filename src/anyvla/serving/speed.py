"""Ways to make a loaded policy answer faster, which change what it computes a little or not at all."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from anyvla.errors import ConfigError
from anyvla.policies.policy import Policy


def speed_up(policy: Policy, *, compiled: bool = False, bf16: bool = False, int8: bool = False, mode: str = "default") -> None:
    """Change the model of ``policy`` in place.

    Args:
        compiled: the vision-language model through torch.compile; the first passes then take minutes.
        bf16: the vision-language model in bfloat16, half its memory; what lies around it computes as in training with bf16.
        int8: weights of its linear layers in 8 bit, inputs quantised as they come (dynamic quantisation), on a CPU.
        mode: of torch.compile; ``reduce-overhead`` replays CUDA graphs.

    Raises:
        ConfigError: the ways do not go together, or not with the device.
    """
    model = policy.model
    if int8 and (bf16 or compiled):
        raise ConfigError("--int8 goes alone: its kernels take fp32, and torch.compile does not see into them")
    if int8 and model.backbone.device.type != "cpu":
        raise ConfigError("--int8 is for a CPU: use --dtype bf16 on a GPU, or tuning.quantization")
    if bf16:
        model.backbone.model.to(torch.bfloat16)
        policy.autocast = torch.bfloat16
    if int8:
        _quantize(model.backbone.model)
    if compiled:
        # any number of rows and any length of text, without compiling anew for each
        model.backbone.model.compile(dynamic=True, mode=mode)


def _quantize(model: nn.Module) -> None:
    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError as error:
        raise ConfigError(f"--int8: PyTorch {torch.__version__} has no dynamic quantisation any more") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to another package one day; until then it works
        quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)
