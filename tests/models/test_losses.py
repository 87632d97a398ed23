import math

import pytest
import torch
from torch.nn import functional as F

from anyvla.actions import ARM7, NAV2
from anyvla.config.model import LossConfig
from anyvla.models.losses import action_loss, sample_actions


def _case(spec, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(2, 3, 4, len(spec), generator=generator, requires_grad=True)
    actions = torch.randn(2, 3, 4, len(spec), generator=generator)
    actions[..., torch.from_numpy(spec.binary)] = (actions[..., torch.from_numpy(spec.binary)] > 0).float()
    mask = torch.rand(2, 3, 4, generator=generator) > 0.4
    return raw, actions, mask


def test_it_is_the_published_formula() -> None:
    raw, actions, mask = _case(ARM7)
    loss, parts = action_loss(raw, actions, mask, ARM7, LossConfig(binary_weight=0.01))
    huber = F.huber_loss(raw[..., :6][mask], actions[..., :6][mask])
    bce = F.binary_cross_entropy_with_logits(raw[..., 6][mask], actions[..., 6][mask])
    torch.testing.assert_close(loss, huber + 0.01 * bce)
    torch.testing.assert_close(parts, {"huber": huber, "bce": bce})


@pytest.mark.parametrize(("kind", "reference"), [("huber", F.huber_loss), ("mse", F.mse_loss), ("l1", F.l1_loss)])
def test_every_kind_of_continuous_loss(kind, reference) -> None:
    raw, actions, mask = _case(NAV2)
    loss, _ = action_loss(raw, actions, mask, NAV2, LossConfig(continuous=kind))
    torch.testing.assert_close(loss, reference(raw[mask], actions[mask]))


def test_what_the_mask_hides_has_no_influence_even_if_it_is_nan() -> None:
    raw, actions, mask = _case(ARM7)
    before, _ = action_loss(raw, actions, mask, ARM7, LossConfig())
    spoiled_raw, spoiled_actions = raw.detach().clone(), actions.clone()
    spoiled_raw[~mask] = math.inf
    spoiled_actions[~mask] = math.nan
    spoiled_raw.requires_grad_()
    after, _ = action_loss(spoiled_raw, spoiled_actions, mask, ARM7, LossConfig())
    assert after.item() == before.item()
    after.backward()
    assert torch.isfinite(spoiled_raw.grad).all()
    assert (spoiled_raw.grad[~mask] == 0).all()


def test_all_masked_gives_zero_and_finite_gradients() -> None:
    raw, actions, mask = _case(ARM7)
    loss, _ = action_loss(raw, actions, torch.zeros_like(mask), ARM7, LossConfig())
    loss.backward()
    assert loss.item() == 0
    assert (raw.grad == 0).all()


def test_sampling_decides_binary_dimensions() -> None:
    raw = torch.tensor([[0.3] * 6 + [2.0], [0.3] * 6 + [-2.0]])
    sampled = sample_actions(raw, ARM7)
    assert sampled[:, 6].tolist() == [1.0, 0.0]
    torch.testing.assert_close(sampled[:, :6], raw[:, :6])
