"""Two cameras, one of them absent now and then, and the robot's state: with every structure, on the tiny model."""

from __future__ import annotations

import pytest
import torch

from anyvla.actions import NAV2
from anyvla.batch import Batch
from anyvla.config import parse_config
from anyvla.errors import DataError
from anyvla.models.vla import VLA, build_vla
from tests.contracts.case import CHUNK, PROMPTS, SIZES

SIZE, WINDOW, STATE = (32, 48), 3, 2
COMBINATIONS = [
    ("one_step", "fc"),
    ("one_step", "discrete"),
    ("interleaved", "flow"),
    ("interleaved", "discrete"),
    ("policy_head", "lstm"),
    ("policy_head", "gpt"),
]


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def model(request: pytest.FixtureRequest) -> VLA:
    structure, head = request.param
    window = 1 if structure == "one_step" else WINDOW
    settings = [
        f"actions.window={window}",
        "model.backbone={type: tiny, width: 32, vision_layers: 1, language_layers: 2}",
        f"model.structure.type={structure}",
        f"model.head={{type: {head}, {SIZES[head]}}}",
    ]
    torch.manual_seed(0)
    config = parse_config("{}", settings).model
    return build_vla(config, NAV2, window=window, chunk=CHUNK, image_size=SIZE, bounded=True, state_size=STATE).eval().double()


def _observations(length: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = {
        name: torch.randint(0, 256, (2, length, 3, *SIZE), dtype=torch.uint8, generator=generator) for name in ("front", "rear")
    }
    return images, torch.rand(2, length, STATE, generator=generator, dtype=torch.float64)


PRESENT = torch.tensor([[True, False], [True, True]])


@torch.no_grad()
def test_a_row_without_a_camera_is_the_model_without_that_camera(model: VLA) -> None:
    images, state = _observations(model.window)
    together = model.predict(images, PROMPTS, state, PRESENT)
    without = model.predict({"front": images["front"][:1]}, PROMPTS[:1], state[:1])
    whole = model.predict({name: frames[1:] for name, frames in images.items()}, PROMPTS[1:], state[1:])
    torch.testing.assert_close(together, torch.cat([without, whole]), atol=1e-6, rtol=0)
    images["rear"][0] = 0  # what stands in the place of an absent image has no influence
    torch.testing.assert_close(model.predict(images, PROMPTS, state, PRESENT), together, atol=0, rtol=0)


@torch.no_grad()
def test_streaming_equals_windowed_with_a_state_and_an_absent_camera(model: VLA) -> None:
    images, state = _observations(6)
    states = [model.init_state(), model.init_state()]
    start = 0
    for t in range(6):
        now = {name: frames[:, t] for name, frames in images.items()}
        streamed, states = model.step(now, PROMPTS, states, state[:, t], PRESENT)
        if model.interleaved and t - start >= model.window:
            start = t - model.keep
        first = start if model.interleaved else max(0, t - model.window + 1)
        window = {name: frames[:, first : t + 1] for name, frames in images.items()}
        expected = model.predict(window, PROMPTS, state[:, first : t + 1], PRESENT)[:, -1]
        torch.testing.assert_close(streamed, expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_camera_may_come_and_go_within_an_episode(model: VLA) -> None:
    """Two robots in one batch, of which at each step another one lacks its camera, get what each gets alone."""
    images, state = _observations(5)
    together, alone = [model.init_state(), model.init_state()], [model.init_state(), model.init_state()]
    for t in range(5):
        present = torch.tensor([[True, t % 2 == 0], [True, t % 3 == 0]])
        now = {name: frames[:, t] for name, frames in images.items()}
        both, together = model.step(now, PROMPTS, together, state[:, t], present)
        for row in range(2):
            seen = {name: now[name][row : row + 1] for i, name in enumerate(now) if present[row, i]}
            one, (alone[row],) = model.step(seen, PROMPTS[row : row + 1], [alone[row]], state[row : row + 1, t])
            torch.testing.assert_close(both[row : row + 1], one, atol=1e-6, rtol=0)


def test_the_state_is_learned_from_and_matters(model: VLA) -> None:
    images, state = _observations(model.window)
    model.float()
    actions = torch.rand(2, model.window, CHUNK, len(NAV2))
    batch = Batch(
        images, PROMPTS, actions, torch.ones(2, model.window, CHUNK, dtype=torch.bool), ["a", "b"], state.float(), PRESENT
    )
    model(batch)["loss"].backward()
    assert model.backbone.state_encoder.weight.grad.abs().max() > 0
    with torch.no_grad():
        _, predicted = model.evaluate(batch)
        torch.testing.assert_close(model.predict(images, PROMPTS, state.float(), PRESENT), predicted)
        features = model.backbone.encode(images["front"][:, :1], PROMPTS, state[:, 0].float())
        other = model.backbone.encode(images["front"][:, :1], PROMPTS, state[:, 0].float() + 1)
        assert (features - other).abs().max() > 1e-4


def test_a_row_without_any_image_is_refused(model: VLA) -> None:
    images, state = _observations(model.window)
    nothing = torch.tensor([[True, True], [False, False]])
    with pytest.raises(DataError, match="each of its 2 cameras is absent"):
        model.predict(images, PROMPTS, state, nothing)
    now = {name: frames[:, 0] for name, frames in images.items()}
    with pytest.raises(DataError, match="each of its 2 cameras is absent"):
        model.step(now, PROMPTS, [model.init_state(), model.init_state()], state[:, 0], nothing)
