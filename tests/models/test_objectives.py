"""Auxiliary objectives on the tiny model: each really trains what it says, nothing else, and nothing when it is off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anyvla.batch import Batch, TextBatch
from anyvla.checkpoint import build_model, check_example, export_checkpoint, load_checkpoint, save_model
from anyvla.data.state import fit_state
from anyvla.errors import CheckpointError, ConfigError
from anyvla.models.inspect import describe_model
from anyvla.models.objectives.future import FuturePrediction
from anyvla.policies.policy import Policy
from tests.contracts.case import PROMPTS, Case

FUTURE = "objectives.future={next: 2, patch: 8, hidden: 64, layers: 1"
SETTINGS = {
    "caption": "objectives.caption={}",
    "conversations": "objectives.conversations={path: nowhere.json}",
    "future": FUTURE + "}",
    "masked": FUTURE + ", masked: {ratio: 0.9}}",
    "alignment": "objectives.alignment={}",
}
ALL = [SETTINGS[name] for name in ("caption", "conversations", "masked", "alignment")]
STRUCTURES = [("policy_head", "lstm"), ("interleaved", "fc"), ("one_step", "discrete")]


def _case(*overrides: str, structure: str = "policy_head", head: str = "lstm", **options) -> Case:
    return Case("tiny", structure, head, overrides=overrides, **options)


def _batch(case: Case, cameras: tuple[str, ...] = ("front",)) -> Batch:
    """The fixed batch of ``case``, with what every objective needs; in the second row no frame follows the window."""
    text = TextBatch(
        case.images[:, 8], torch.tensor([True, False]), ["What is this?", "And that?"], ["a box", "none"], ["c", "d"]
    )
    at = case.window
    front = _waves(case)
    frames = {camera: front if i == 0 else front.flip(1) for i, camera in enumerate(cameras)}
    return replace(
        case.batch(),
        images={camera: images[:, :at] for camera, images in frames.items()},
        captions=PROMPTS,
        text=text,
        future={camera: images[:, at : at + 2] for camera, images in frames.items()},
        future_mask=torch.tensor([[True, True], [False, False]]),
    )


def _waves(case: Case) -> torch.Tensor:
    """Frames (2, 9, 3, h, w) with something to predict in them: waves that move, in each row otherwise."""
    height, width = case.images.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    t = torch.arange(9)[:, None, None, None]
    phase = torch.tensor([0.0, 1.0, 2.0])[:, None, None]
    rows = [torch.sin(x / 5 - 0.7 * t + phase), torch.sin(y / 5 + 0.4 * t + phase)]
    return (127.5 * (1 + torch.stack(rows))).to(torch.uint8)


def _part(case: Case, name: str, batch: Batch | None = None) -> torch.Tensor:
    torch.manual_seed(2)  # the masked variant draws its mask
    return case.model(batch or _batch(case))["future" if name == "masked" else name]


@pytest.mark.parametrize(("structure", "head"), STRUCTURES)
@pytest.mark.parametrize("name", SETTINGS)
def test_its_loss_falls_on_fixed_data(name: str, structure: str, head: str) -> None:
    case = _case(SETTINGS[name], structure=structure, head=head)
    losses = _train(case, name, 45 if name in ("future", "masked") else 12)
    assert losses[-1] < 0.6 * losses[0], losses


def _train(case: Case, name: str, steps: int) -> list[float]:
    """Minimise one objective alone; its values."""
    optimizer = torch.optim.Adam(case.model.parameters(), lr=2e-3 if name in ("future", "masked") else 5e-3)
    losses = []
    for _ in range(steps):
        loss = _part(case, name)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", SETTINGS)
def test_its_gradient_is_where_it_should_be_and_nowhere_else(name: str) -> None:
    case = _case(*ALL) if name != "future" else _case(*ALL[:2], SETTINGS["future"], ALL[3])
    model = case.model
    _part(case, name).backward()
    reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}

    def touches(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in reached)

    assert all(touches(f"backbone.model.model.{part}") for part in ("vision_tower", "multi_modal_projector", "language_model"))
    assert not touches("head.")
    assert touches("backbone.queries") == (name not in ("caption", "conversations"))
    assert touches("objectives.future") == (name in ("future", "masked"))
    assert touches("objectives.alignment.project") == (name == "alignment")
    assert not touches("objectives.alignment.words")


def test_all_parts_of_every_objective_are_trained() -> None:
    case = _case(*ALL)
    case.model(_batch(case))["loss"].backward()
    frozen = [name for name, p in case.model.named_parameters() if not p.requires_grad]
    assert frozen == ["objectives.alignment.words"]
    untouched = [name for name, p in case.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not untouched


@pytest.mark.parametrize(("structure", "head"), STRUCTURES)
def test_the_loss_is_the_weighted_sum_of_the_parts_by_name(structure: str, head: str) -> None:
    weights = {"caption": 0.05, "conversations": 0.1, "future": 0.1, "alignment": 0.1}
    on, off = _case(*ALL, structure=structure, head=head), _case(structure=structure, head=head)
    parts, alone = on.model(_batch(on)), off.model(_batch(off))
    assert set(parts) == {*alone, "action", *weights}
    torch.testing.assert_close(parts["action"], alone["loss"], atol=0, rtol=0)
    total = parts["action"] + sum(weight * parts[name] for name, weight in weights.items())
    torch.testing.assert_close(parts["loss"], total)


@pytest.mark.parametrize(("structure", "head"), STRUCTURES)
def test_outside_training_they_do_not_exist(structure: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in what a model is that has none of them on, nor in what one does that has them all."""
    on, off = _case(*ALL, structure=structure, head=head), _case(structure=structure, head=head)
    assert off.model.objectives is None
    plain = off.model.state_dict()
    assert plain.keys() == {key for key in on.model.state_dict() if not key.startswith("objectives.")}
    assert all(torch.equal(on.model.state_dict()[key], value) for key, value in plain.items())
    monkeypatch.setattr(type(on.model.objectives), "forward", None)
    monkeypatch.setattr(type(on.model.backbone), "text_loss", None)
    for case in (on, off):
        case.model.eval()
    with torch.no_grad():
        ours, theirs = on.model.evaluate(on.batch()), off.model.evaluate(off.batch())
        images, states = {"front": on.images[:, 0]}, [on.model.init_state() for _ in PROMPTS]
        step = on.model.step(images, PROMPTS, states)[0]
        assert torch.equal(step, off.model.step(images, PROMPTS, states)[0])
    assert torch.equal(ours[1], theirs[1])
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][key], theirs[0][key]) for key in ours[0])


def test_a_checkpoint_holds_them_and_a_policy_does_without(tmp_path: Path) -> None:
    case = _case(*ALL)
    save_model(tmp_path / "checkpoint", case.config, case.transforms, case.model)
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert check_example(loaded) == 0
    state = loaded.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in case.model.state_dict().items())
    policy = Policy.load(tmp_path / "checkpoint")
    assert policy._model.objectives is None
    exported = load_checkpoint(export_checkpoint(tmp_path / "checkpoint", tmp_path / "exported"))
    assert exported.model.objectives is None
    assert exported.model.state_dict().keys() == {key for key in state if not key.startswith("objectives.")}
    assert check_example(exported) == 0
    (tmp_path / "checkpoint" / "config.yaml").write_text(_case().config.to_yaml())
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(tmp_path / "checkpoint")


def test_they_are_counted_before_training() -> None:
    on, off = describe_model(_case(*ALL).config), describe_model(_case().config)
    total, trained = on.towers["objectives"]
    assert total - trained == _case(*ALL).model.objectives.alignment.words.numel()
    assert "objectives" not in off.towers
    assert on.training_flops > 1.5 * off.training_flops
    assert on.control_flops == off.control_flops
    assert on.inference == off.inference
    describe_model(_case("objectives.future={patch: 16, cameras: [wrist]}", "observation.cameras=[front, wrist]").config)


def test_a_batch_without_what_is_needed_is_said() -> None:
    for name in SETTINGS:
        case = _case(SETTINGS[name])
        with pytest.raises(ValueError, match="the batch has none"):
            case.model(case.batch())


class TestFuture:
    def test_each_step_predicts_the_frames_behind_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The loss is 0 for the right patches, cut and normalised the plain way."""
        case = _case(SETTINGS["future"])
        module, batch = case.model.objectives.future, _batch(case)

        def right(_features: torch.Tensor, pixels: torch.Tensor, _hidden: torch.Tensor) -> torch.Tensor:
            said = torch.full_like(pixels, 7.0)
            for h in range(case.window):
                for n in range(2):
                    frame = _waves(case)[0, h + 1 + n].float()
                    for p in range(4 * 6):
                        top, left = 8 * (p // 6), 8 * (p % 6)
                        patch = frame[:, top : top + 8, left : left + 8].flatten()
                        said[0, h, 0, n, p] = (patch - patch.mean()) / patch.std(correction=0)
            return said

        monkeypatch.setattr(module, "predict", right)
        features = torch.zeros(2, case.window, 2, 32)
        first = replace(batch, action_mask=batch.action_mask & torch.tensor([True, False])[:, None, None])
        assert module(features, first) < 1e-4
        assert module(features, batch) > 1

    def test_what_it_learns_to_read_are_the_features(self) -> None:
        case = _case(SETTINGS["future"])
        _train(case, "future", 45)
        batch = _batch(case)
        with torch.no_grad():
            features = case.model.action_losses(batch)[0]
            right, wrong = (case.model.objectives.future(read, batch) for read in (features, features.flip(0)))
        assert wrong > 1.5 * right

    def test_frames_behind_the_end_of_an_episode_have_no_influence(self) -> None:
        case = _case(SETTINGS["masked"])
        batch = _batch(case)
        base = _part(case, "future", batch)

        def changed(row: int, at: int) -> torch.Tensor:
            future = batch.future["front"].clone()
            future[row, at] = 255 - future[row, at]
            return _part(case, "future", replace(batch, future={"front": future}))

        assert changed(0, 0) != base
        assert changed(1, 0) == changed(1, 1) == base
        nothing = replace(batch, action_mask=torch.zeros_like(batch.action_mask), future_mask=batch.future_mask & False)
        assert _part(case, "future", nothing) == 0

    def test_what_is_hidden_is_not_shown(self) -> None:
        case = _case(SETTINGS["masked"])
        module = case.model.objectives.future
        features = torch.randn(2, case.window, 2, 32)
        pixels = torch.randn(2, case.window, 1, 2, 24, 192)
        hidden = module.draw_mask(pixels)
        base = module.predict(features, pixels, hidden)
        assert torch.equal(module.predict(features, torch.where(hidden[..., None], 5.0, pixels), hidden), base)
        assert not torch.equal(module.predict(features, torch.where(hidden[..., None], pixels, 5.0), hidden), base)
        assert not torch.equal(module.predict(-features, pixels, hidden), base)

    @pytest.mark.parametrize("tube", [True, False])
    def test_a_tube_hides_the_same_patches_in_all_frames(self, tube: bool) -> None:
        case = _case(FUTURE + f", masked: {{ratio: 0.75, tube: {str(tube).lower()}}}}}")
        hidden = case.model.objectives.future.draw_mask(torch.zeros(2, 4, 1, 2, 24, 1))
        assert (hidden.sum(-1) == 18).all()
        assert torch.equal(hidden[..., 0, :], hidden[..., 1, :]) == tube
        assert not torch.equal(hidden[0], hidden[1])

    def test_only_the_cameras_that_are_asked_for(self) -> None:
        case = _case(FUTURE + ", cameras: [wrist]}")
        batch = _batch(case, ("front", "wrist"))
        base = _part(case, "future", batch)
        without_front = replace(batch, future={"wrist": batch.future["wrist"]})
        assert _part(case, "future", without_front) == base
        absent = replace(batch, present=torch.tensor([[True, False], [True, False]]))
        assert _part(case, "future", absent) == 0

    def test_what_cannot_be_is_said(self) -> None:
        with pytest.raises(ConfigError, match=r"patch 7 does not divide the image size \[32, 48\]"):
            _case("objectives.future={patch: 7}")
        with pytest.raises(ConfigError, match=r"ratio 0\.9 shows 0 of 2 patches"):
            _case("objectives.future={patch: 16, masked: {ratio: 0.9}}", size=(16, 32))
        with pytest.raises(ConfigError, match="does not divide into attention_heads"):
            _case("objectives.future={hidden: 30}")


class TestAlignment:
    def test_the_feature_of_a_text_is_frozen_and_its_own(self) -> None:
        case = _case(SETTINGS["alignment"])
        module, backbone = case.model.objectives.alignment, case.model.backbone
        before = [module.text_feature(backbone.tokenizer, text) for text in PROMPTS]
        ids = backbone.tokenizer(PROMPTS[1], add_special_tokens=False)["input_ids"]
        table = backbone.model.get_input_embeddings().weight.detach()
        torch.testing.assert_close(before[1], (table[ids] - table.mean(0)).mean(0))
        optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            case.model(_batch(case))["loss"].backward()
            optimizer.step()
        assert all(torch.equal(a, module.text_feature(backbone.tokenizer, t)) for a, t in zip(before, PROMPTS, strict=True))
        assert torch.cosine_similarity(*before, dim=0) < 0.9

    def test_a_wide_embedding_is_projected_and_keeps_its_angles(self) -> None:
        torch.manual_seed(0)
        case = _case(SETTINGS["alignment"], "model.backbone={type: tiny, width: 320, vision_layers: 1, language_layers: 1}")
        module, backbone = case.model.objectives.alignment, case.model.backbone
        table = backbone.model.get_input_embeddings().weight.detach()
        texts = ["pass on the left", "pass on the right", "stop at the bottle"]
        exact = [
            (table - table.mean(0))[backbone.tokenizer(text, add_special_tokens=False)["input_ids"]].mean(0) for text in texts
        ]
        kept = [module.text_feature(backbone.tokenizer, text) for text in texts]
        assert kept[0].shape == (128,)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            difference = torch.cosine_similarity(exact[i], exact[j], dim=0) - torch.cosine_similarity(kept[i], kept[j], dim=0)
            assert difference.abs() < 0.25

    def test_steps_behind_the_end_have_no_influence_and_it_learns_to_tell_sentences(self) -> None:
        case = _case(SETTINGS["alignment"])
        module, tokenizer = case.model.objectives.alignment, case.model.backbone.tokenizer
        features = torch.randn(2, 4, 2, 32)
        mask = torch.tensor([[True] * 4, [True, False, False, False]])
        base = module(tokenizer, features, PROMPTS, mask)
        other = features.clone()
        other[1, 1:] = 9.0
        assert module(tokenizer, other, PROMPTS, mask) == base
        assert module(tokenizer, features, PROMPTS[::-1], mask) != base


def test_an_absent_camera_has_no_influence_on_the_caption() -> None:
    case = _case(SETTINGS["caption"])
    batch = replace(_batch(case, ("front", "wrist")), present=torch.tensor([[True, False], [True, True]]))
    base = _part(case, "caption", batch)

    def changed(row: int) -> torch.Tensor:
        wrist = batch.images["wrist"].clone()
        wrist[row] = 255 - wrist[row]
        return _part(case, "caption", replace(batch, images={**batch.images, "wrist": wrist}))

    torch.testing.assert_close(changed(0), base, atol=1e-6, rtol=0)
    assert (changed(1) - base).abs() > 1e-5


@pytest.mark.parametrize("variant", ["model.pooling={tokens: all}", "model.resampler={depth: 1, latents: 2}"])
def test_they_go_with_what_stands_around_the_backbone(variant: str) -> None:
    case = _case(*ALL, variant, "model.queries=1")
    case.model(_batch(case))["loss"].backward()


def test_they_go_with_a_state_which_only_the_features_see() -> None:
    case = _case(*ALL)
    one = np.ones(1)
    state = fit_state(["yaw"], {"q01": -one, "q99": one, "min": -one, "max": one})
    model = build_model(case.config, replace(case.transforms, state=state))
    parts = []
    for value in (0.0, 0.9):
        torch.manual_seed(0)
        parts.append(model(replace(_batch(case), state=torch.full((2, case.window, 1), value))))
    changed = {name for name in parts[0] if not torch.equal(parts[0][name], parts[1][name])}
    assert changed == {"loss", "action", "huber", "future", "alignment"}
    parts[0]["loss"].backward()


def test_mixed_precision_computes_them_in_full_range() -> None:
    case = _case(*ALL)
    exact = case.model(_batch(case))
    with torch.autocast("cpu", torch.bfloat16):
        rough = case.model(_batch(case))
    for name in ("caption", "conversations", "future", "alignment"):
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name], exact[name], atol=0.1, rtol=0.05)


def test_the_module_is_made_for_the_models_cameras() -> None:
    assert isinstance(_case(*ALL).model.objectives.future, FuturePrediction)
    assert _case(*ALL).model.objectives.future.cameras == ("front",)
