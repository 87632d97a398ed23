"""Every structure x head x action spec that the project has, on the tiny model: the promises of the design hold.

Every family of backbones is in ``test_families.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anyvla.checkpoint import build_model, check_example, load_checkpoint, save_model
from tests.contracts.case import PROMPTS, Case

COMBINATIONS = [
    *[("one_step", head) for head in ("fc", "lstm", "gpt", "flow", "discrete")],
    *[("interleaved", head) for head in ("fc", "lstm", "gpt", "flow", "discrete")],
    *[("policy_head", head) for head in ("fc", "lstm", "gpt", "flow")],
]
SPECS = ["nav2", "arm7"]


@pytest.fixture(params=[(*pair, spec) for pair in COMBINATIONS for spec in SPECS], ids="-".join)
def case(request: pytest.FixtureRequest) -> Case:
    structure, head, spec = request.param
    return Case("tiny", structure, head, spec)


def test_a_window_gives_a_chunk_at_every_step_it_acts_at(case: Case) -> None:
    acted = 1 if case.head == "discrete" else case.window
    assert case.predict(case.images[:, : case.window]).shape == (2, acted, case.chunk, len(case.spec))


def test_the_loss_falls_on_a_fixed_batch(case: Case) -> None:
    case.check_the_loss_falls()


def test_gradients_reach_queries_head_and_every_tower(case: Case) -> None:
    case.check_gradients()


@torch.no_grad()
def test_padded_equals_alone(case: Case) -> None:
    case.check_padded_equals_alone()


@torch.no_grad()
def test_streaming_equals_windowed(case: Case) -> None:
    for keep in (None, 0, 3) if case.structure == "interleaved" else (None,):  # with how many frames a window begins again
        case.check_streaming_equals_windowed(keep)


def test_only_the_mask_says_what_is_padding(case: Case) -> None:
    case.mask[1, -1, 1:] = False
    case.mask[0, 0, 2:] = False
    before = case.loss()
    case.actions[~case.mask] = 77.0
    assert case.loss().item() == before.item()


def test_what_lies_behind_the_end_of_an_episode_has_no_influence(case: Case) -> None:
    case.mask[:, -1] = False  # with a window of one nothing is left, and the loss is 0
    before = case.loss()
    case.images[1, case.window - 1] = 255 - case.images[1, case.window - 1]
    torch.testing.assert_close(case.loss(), before, atol=1e-6, rtol=0)
    assert case.window > 1 or before == 0


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(case: Case, tmp_path: Path) -> None:
    save_model(tmp_path / "checkpoint", case.config, case.transforms, case.model)
    loaded = load_checkpoint(tmp_path / "checkpoint")
    case.model.eval()
    expected = case.predict(case.images[:, : case.window])
    images = {"front": case.images[:, : case.window]}
    torch.testing.assert_close(loaded.model.predict(images, PROMPTS), expected, atol=0, rtol=0)
    assert check_example(loaded) == 0
    assert loaded.config == case.config
    assert not [path for path in (tmp_path / "checkpoint").rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_the_same_seed_gives_the_same_bits(case: Case) -> None:
    torch.manual_seed(0)
    again = build_model(case.config, case.transforms)
    for (name, a), (_, b) in zip(case.model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
