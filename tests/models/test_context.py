"""Run time of sequences: what a context keeps, and what a control step leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.contracts.case import PROMPTS, Case
from tests.tiny_models import image_size, make_tiny


@pytest.fixture(params=["llava", "qwen2_vl", "kosmos2"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    case = Case(make_tiny(request.param, tmp_path), "interleaved", "fc", size=image_size(request.param), window=4)
    case.model.eval()
    return case


def tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in tensors(part)]
    return [tensor for part in value for tensor in tensors(part)] if isinstance(value, (tuple, list)) else []


@torch.no_grad()
def test_vision_outputs_are_kept_of_the_frames_that_a_new_beginning_needs(case: Case) -> None:
    states = [case.model.init_state()]
    for t in range(6):
        _, states = case.model.step({"front": case.images[:1, t]}, PROMPTS[:1], states)
        kept = [frame.vision is not None for frame in states[0].frames]
        assert kept == [h >= 2 for h in range(len(kept))]  # of a window of 4, the last 2
        for frame in states[0].frames[2:]:
            assert len(tensors(frame.vision)) == (2 if case.model.backbone.model.config.model_type == "kosmos-2" else 1)


@torch.no_grad()
def test_a_context_stays_as_it_is_when_it_is_continued(case: Case) -> None:
    states = [case.model.init_state()]
    for t in range(2):
        _, states = case.model.step({"front": case.images[:1, t]}, PROMPTS[:1], states)
    first, after = case.model.step({"front": case.images[:1, 2]}, PROMPTS[:1], states)
    case.model.step({"front": case.images[:1, 3]}, PROMPTS[:1], states)
    again, after_again = case.model.step({"front": case.images[:1, 2]}, PROMPTS[:1], states)
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(tensors(after[0].cache), tensors(after_again[0].cache), strict=True))


def test_the_vocabulary_head_is_called_with_no_token(case: Case) -> None:
    seen: list[int] = []
    head = case.model.backbone.model.get_output_embeddings()
    head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.numel()))
    case.model(case.batch())["loss"].backward()
    case.model.step({"front": case.images[:1, 0]}, PROMPTS[:1], [case.model.init_state()])
    assert seen == [0, 0]
