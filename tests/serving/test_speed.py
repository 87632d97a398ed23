"""Ways to answer faster give nearly the same actions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anyvla.errors import ConfigError
from anyvla.policies.policy import Policy
from anyvla.serving.speed import speed_up
from tests.serving.arm_policy import SIZE, arm_policy

HEADS = {
    "lstm": {},
    "gpt": {"overrides": ["model.head={type: gpt, hidden: 16}"]},
    "fc": {"overrides": ["model.structure.type=interleaved", "model.head={type: fc, hidden: 16, trunk: [16]}"]},
    "flow": {"overrides": ["model.head={type: flow, hidden: 16}"]},
    "discrete": {"overrides": ["model.structure.type=interleaved", "model.head={type: discrete, bins: 8}"]},
}


def drive(policy: Policy) -> np.ndarray:
    """(T, L, A) of an episode of two robots, the second one step behind."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, *SIZE, 3), dtype=np.uint8)
    sessions = [policy.start("Go left."), policy.start("Go straight on.")]
    torch.manual_seed(0)
    chunks = []
    for t in range(1, 6):
        frames = [{"rgb_static": images[t]}, {"rgb_static": images[t - 1]}]
        chunks.extend(policy.chunk_batch(sessions, frames, states=[[0.1, -0.2]] * 2))
    return np.stack(chunks)


@pytest.mark.parametrize("way", ["bf16", "int8"])
@pytest.mark.parametrize("head", HEADS)
def test_lower_precision_is_near(head: str, way: str) -> None:
    exact = drive(arm_policy(state=("x", "y"), **HEADS[head]))
    policy = arm_policy(state=("x", "y"), **HEADS[head])
    speed_up(policy, bf16=way == "bf16", int8=way == "int8")
    difference = np.abs(drive(policy) - exact)[..., :-1]
    assert np.median(difference) < 0.1  # of actions from -1 to 1; a token or a noisy step may tip over to another one
    if way == "int8":
        kinds = {type(module).__module__ for module in policy.model.backbone.modules()}
        assert any("quantized.dynamic" in kind for kind in kinds)
    else:
        assert {p.dtype for p in policy.model.backbone.model.parameters()} == {torch.bfloat16}


@pytest.mark.slow  # inductor compiles C++ for minutes
@pytest.mark.parametrize("bf16", [False, True])
def test_compiled_is_the_same(bf16: bool) -> None:
    policy = arm_policy(state=("x", "y"))
    speed_up(policy, bf16=bf16)
    expected = drive(policy)
    speed_up(policy, compiled=True)
    np.testing.assert_allclose(drive(policy), expected, atol=0.1 if bf16 else 1e-4)


def test_ways_that_do_not_go_together_are_refused() -> None:
    policy = arm_policy()
    for ways in ({"int8": True, "bf16": True}, {"int8": True, "compiled": True}):
        with pytest.raises(ConfigError, match="--int8 goes alone"):
            speed_up(policy, **ways)
