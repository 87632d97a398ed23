"""Every family of vision-language models: the promises of the adapter hold with each of them.

The whole matrix family x structure x head is slow; a covering part of it runs always.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from anyvla.errors import ConfigError
from anyvla.models.tuning import merge_lora
from tests.contracts.case import PROMPTS, Case
from tests.contracts.families import FAMILIES, image_size, make_tiny

NOT_CAUSAL = ("florence2",)
CONTINUOUS = ("fc", "lstm", "gpt", "flow")
EVERY = [
    (family, structure, head)
    for family, structure, head in itertools.product(
        FAMILIES, ("one_step", "interleaved", "policy_head"), (*CONTINUOUS, "discrete")
    )
    if not (head == "discrete" and structure == "policy_head")
    and not (family in NOT_CAUSAL and (structure == "interleaved" or head == "discrete"))
]
# every family with every structure, and every head with some family
COVERING = [
    combination
    for combination in EVERY
    if combination[1:] in (("interleaved", "fc"), ("one_step", "discrete"))
    or combination[1:] == ("policy_head", CONTINUOUS[FAMILIES.index(combination[0]) % 4])
]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = make_tiny(family, tmp_path_factory.mktemp(family))
        return made[family]

    return folder


def _parameters() -> list:
    return [
        pytest.param(combination, marks=[] if combination in COVERING else pytest.mark.slow, id="-".join(combination))
        for combination in EVERY
    ]


@pytest.fixture(params=_parameters())
def case(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Case:
    family, structure, head = request.param
    return Case(folder_of(family), structure, head, size=image_size(family), window=3)


@pytest.fixture(params=FAMILIES)
def one_step(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Case:
    return Case(folder_of(request.param), "one_step", "fc", size=image_size(request.param))


def test_the_loss_falls_and_gradients_reach_everything(case: Case) -> None:
    case.check_gradients()
    case.check_the_loss_falls(steps=40 if case.head == "lstm" else 15, learning_rate=3e-3, below=0.8)  # gates open late


@torch.no_grad()
def test_padded_equals_alone_and_streaming_equals_windowed(case: Case) -> None:
    case.check_padded_equals_alone()
    case.check_streaming_equals_windowed()


@torch.no_grad()
def test_two_cameras_and_an_absent_one(one_step: Case) -> None:
    tolerance = one_step.exact()
    model = one_step.model
    two = {"front": one_step.images[:, :1], "wrist": one_step.images[:, 1:2]}
    both = model.features(two, PROMPTS)
    exchanged = model.features({"front": two["wrist"], "wrist": two["front"]}, PROMPTS)
    assert (both - exchanged).abs().max() > 1e-4
    present = torch.tensor([[True, False], [True, True]])
    mixed = model.features(two, PROMPTS, present=present)
    alone = model.features({"front": two["front"][:1]}, PROMPTS[:1])
    torch.testing.assert_close(mixed[:1], alone, atol=tolerance, rtol=0)
    torch.testing.assert_close(mixed[1:], both[1:], atol=tolerance, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NOT_CAUSAL])
def test_a_camera_may_come_and_go_within_an_episode(family: str, folder_of) -> None:
    """Robots in one batch, of which at each step another one lacks a camera, get what each gets alone."""
    case = Case(folder_of(family), "interleaved", "fc", size=image_size(family), window=3)
    tolerance = case.exact()
    together, alone = [case.model.init_state(), case.model.init_state()], [case.model.init_state(), case.model.init_state()]
    for t in range(4):
        now = {"front": case.images[:, t], "wrist": case.images[:, t + 4]}
        present = torch.tensor([[True, t % 2 == 0], [True, t < 2]])
        both, together = case.model.step(now, PROMPTS, together, present=present)
        for row in range(2):
            seen = {name: now[name][row : row + 1] for i, name in enumerate(now) if present[row, i]}
            one, (alone[row],) = case.model.step(seen, PROMPTS[row : row + 1], [alone[row]])
            torch.testing.assert_close(both[row : row + 1], one, atol=tolerance, rtol=0)


@torch.no_grad()
def test_image_words_and_queries_all_matter(one_step: Case) -> None:
    model = one_step.model.eval()
    images = {"front": one_step.images[:1, :1]}
    base = model.features(images, ["go left"])
    assert (base - model.features({"front": 255 - images["front"]}, ["go left"])).abs().max() > 1e-4
    assert (base - model.features(images, ["go right"])).abs().max() > 1e-4
    assert (base[:, :, 0] - base[:, :, 1]).abs().max() > 1e-4


def test_bf16_is_close_to_fp32(one_step: Case) -> None:
    model = one_step.model.eval()
    images = {"front": one_step.images[:, :1]}
    with torch.no_grad():
        exact = model.features(images, PROMPTS)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model.features(images, PROMPTS).float()
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_the_model_is_left_without_hooks(one_step: Case) -> None:
    one_step.loss()  # transformers keeps some of its own from the first call on
    before = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in one_step.model.modules()]
    one_step.loss()
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in one_step.model.modules()] == before


def test_every_parameter_is_in_one_tower(one_step: Case) -> None:
    backbone = one_step.model.backbone
    towers = backbone.towers()
    ids = [id(p) for parameters in towers.values() for p in parameters]
    assert sorted(ids) == sorted(id(p) for p in backbone.parameters())
    own = {id(p) for p in backbone.model.parameters()}  # beside the query tokens
    assert all(any(id(p) in own for p in parameters) for parameters in towers.values())


@pytest.mark.parametrize("family", NOT_CAUSAL)
def test_what_sees_its_whole_sequence_is_refused_where_it_would_be_wrong(family: str, folder_of) -> None:
    for structure, head in (("interleaved", "fc"), ("one_step", "discrete")):
        with pytest.raises(ConfigError, match="looks at its whole sequence"):
            Case(folder_of(family), structure, head, size=image_size(family))


@torch.no_grad()
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NOT_CAUSAL])
def test_a_control_step_encodes_one_frame_and_runs_the_language_model_once(family: str, folder_of) -> None:
    case = Case(folder_of(family), "interleaved", "fc", size=image_size(family), window=4)
    backbone = case.model.eval().backbone
    seen: list[int] = []
    words: list[int] = []
    one_frame: list[int] = []
    layer = next(m for m in backbone.family.vision(backbone.model).modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.numel()))
    backbone.model.get_input_embeddings().register_forward_hook(lambda _m, _i, output: words.append(output.shape[1]))
    states = [case.model.init_state()]
    for t in range(6):
        seen.clear()
        words.clear()
        _, states = case.model.step({"front": case.images[:1, t]}, PROMPTS[:1], states)
        one_frame = one_frame or list(seen)
        assert len(seen) == 1
        assert seen == one_frame
        if t in (1, 2, 3) and backbone.family.appendable:
            assert words[-1] < states[0].past / (t + 1) + 1  # the new frame's tokens only


LORA = ["tuning.vision={type: lora, rank: 4}", "tuning.language={type: lora, rank: 4, targets: all-linear}"]


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_begins_as_nothing_trains_and_merges(family: str, folder_of) -> None:
    arguments = {"size": image_size(family), "window": 2}
    plain = Case(folder_of(family), "policy_head", "fc", **arguments)
    case = Case(folder_of(family), "policy_head", "fc", **arguments, overrides=LORA)
    images = case.images[:, : case.window]
    case.model.load_state_dict({**case.model.state_dict(), **_same_weights(plain, case)})
    torch.testing.assert_close(case.model.eval().predict({"front": images}, PROMPTS), plain.model.eval().predict(
        {"front": images}, PROMPTS), atol=1e-5, rtol=0)  # fmt: skip
    case.check_gradients(inside=False)
    low_rank = {name: p for name, p in case.model.named_parameters() if "lora_" in name}
    assert low_rank
    assert all(p.requires_grad for p in low_rank.values())
    towers = case.model.backbone.towers()
    base = [p for name in ("vision", "language") for p in towers[name] if not any(p is q for q in low_rank.values())]
    assert not any(p.requires_grad for p in base)
    with torch.no_grad():
        for p in low_rank.values():
            p.normal_(std=0.1)
    changed = case.model.predict({"front": images}, PROMPTS)
    merged = merge_lora(case.model).predict({"front": images}, PROMPTS)
    torch.testing.assert_close(merged, changed, atol=1e-4, rtol=0)


def _same_weights(plain: Case, tuned: Case) -> dict[str, torch.Tensor]:
    """The weights of ``plain`` under the names that they have where PEFT has put its layers around them."""
    names = {name.replace(".base_layer", ""): name for name in tuned.model.state_dict() if "lora_" not in name}
    return {names[name]: value for name, value in plain.model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing(family: str, folder_of) -> None:
    gradients = []
    for checkpointing in ("false", "true"):
        overrides = [f"tuning.gradient_checkpointing={checkpointing}"]
        case = Case(folder_of(family), "policy_head", "fc", size=image_size(family), window=2, overrides=overrides)
        case.exact()
        case.model.train()
        for module in case.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        case.loss().backward()
        gradients.append({n: p.grad for n, p in case.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)
