"""Every backbone x structure x head x action spec that the project has, on tiny random models: the promises of DESIGN hold."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from anyvla.actions import ARM7, NAV2, ActionSpec, fit_normalizer
from anyvla.checkpoint import build_model, check_example, load_checkpoint, save_model
from anyvla.config import Config, parse_config
from anyvla.data.transforms import Transforms
from anyvla.models.losses import action_loss
from anyvla.models.vla import VLA

BACKBONES = ["tiny"]
STRUCTURES = ["one_step", "policy_head"]
HEADS = ["fc", "lstm"]
SPECS = {"nav2": NAV2, "arm7": ARM7}
PROMPTS = ["Stop.", "Pass the box on the left and stop in front of the bottle."]
CHUNK = 3

pytestmark = pytest.mark.parametrize(
    ("backbone", "structure", "head", "spec"), list(itertools.product(BACKBONES, STRUCTURES, HEADS, SPECS))
)


class Case:
    def __init__(self, backbone: str, structure: str, head: str, spec: str) -> None:
        self.window = 1 if structure == "one_step" else 4
        self.spec: ActionSpec = SPECS[spec]
        self.config: Config = parse_config(
            "{}",
            [
                f"actions={{spec: {spec}, window: {self.window}, chunk: {CHUNK}}}",
                f"model.backbone={{type: {backbone}, width: 32, vision_layers: 1, language_layers: 1}}",
                f"model.structure.type={structure}",
                f"model.head={{type: {head}, hidden: 16, trunk: [16]}}",
                "model.queries=2",
                "observation.image_size=[32, 48]",
            ],
        )
        ones = np.ones(len(self.spec))
        self.transforms = Transforms(
            spec=self.spec,
            normalizer=fit_normalizer("quantile", {"q01": -ones, "q99": ones}, self.spec),
            statistics={"q01": -ones, "q99": ones},
            cameras=("front",),
            image_size=(32, 48),
            fit="stretch",
            prompt_template="{instruction}",
            window=self.window,
            chunk=CHUNK,
            fps=2.5,
        )
        torch.manual_seed(0)
        self.model: VLA = build_model(self.config, self.transforms)
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randint(0, 256, (2, 9, 3, 32, 48), dtype=torch.uint8, generator=generator)
        self.actions = torch.rand(2, self.window, CHUNK, len(self.spec), generator=generator) - 0.5
        self.actions[..., torch.from_numpy(self.spec.binary)] = 1.0
        self.mask = torch.ones(2, self.window, CHUNK, dtype=torch.bool)

    def predict(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self.model({"front": images}, prompts)

    def loss(self) -> torch.Tensor:
        raw = self.predict(self.images[:, : self.window], PROMPTS)
        return action_loss(raw, self.actions, self.mask, self.spec, self.config.model.loss)[0]


@pytest.fixture
def case(backbone: str, structure: str, head: str, spec: str) -> Case:
    return Case(backbone, structure, head, spec)


def test_a_window_gives_a_chunk_at_every_step(case: Case) -> None:
    raw = case.predict(case.images[:, : case.window], PROMPTS)
    assert raw.shape == (2, case.window, CHUNK, len(case.spec))


def test_the_loss_falls_on_a_fixed_batch(case: Case) -> None:
    optimizer = torch.optim.Adam(case.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = case.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_gradients_reach_queries_head_and_every_tower(case: Case) -> None:
    case.loss().backward()
    groups = {
        **case.model.backbone.towers(),
        "head": list(case.model.head.parameters()),
        "queries": [case.model.backbone.queries],
    }
    for name, parameters in groups.items():
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters), name


@torch.no_grad()
def test_padded_equals_alone(case: Case) -> None:
    case.model.double().eval()  # what is compared differs by rounding only, on any processor
    windows = case.images[:, : case.window]
    together = case.predict(windows, PROMPTS)
    alone = torch.cat([case.predict(windows[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@torch.no_grad()
def test_streaming_equals_windowed(case: Case) -> None:
    case.model.double().eval()
    state = case.model.init_state(2)
    for t in range(9):
        streamed, state = case.model.step({"front": case.images[:, t]}, PROMPTS, state)
        first = max(0, t - case.window + 1)
        windowed = case.predict(case.images[:, first : t + 1], PROMPTS)[:, -1]
        torch.testing.assert_close(streamed, windowed, atol=1e-6, rtol=0)


def test_only_the_mask_says_what_is_padding(case: Case) -> None:
    case.mask[1, -1:] = False
    case.mask[0, 0, 1:] = False
    before = case.loss()
    case.actions[~case.mask] = 77.0
    assert case.loss().item() == before.item()
    if case.window > 1:  # what lies behind the end of a short episode
        case.images[1, case.window - 1] = 255
        torch.testing.assert_close(case.loss(), before, atol=1e-6, rtol=0)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(case: Case, tmp_path: Path) -> None:
    save_model(tmp_path / "checkpoint", case.config, case.transforms, case.model)
    loaded = load_checkpoint(tmp_path / "checkpoint")
    case.model.eval()
    windows = case.images[:, : case.window]
    torch.testing.assert_close(loaded.model({"front": windows}, PROMPTS), case.predict(windows, PROMPTS), atol=0, rtol=0)
    assert check_example(loaded) == 0
    assert loaded.config == case.config
    assert not [path for path in (tmp_path / "checkpoint").rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".pth")]


def test_the_same_seed_gives_the_same_bits(case: Case) -> None:
    torch.manual_seed(0)
    again = build_model(case.config, case.transforms)
    for (name, a), (_, b) in zip(case.model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
