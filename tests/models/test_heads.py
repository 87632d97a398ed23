import pytest
import torch

from anyvla.actions import ARM7, NAV2, ActionDim, ActionSpec
from anyvla.config import FCHeadConfig, LossConfig, LSTMHeadConfig
from anyvla.models.heads.base import Head
from anyvla.models.heads.make import make_head
from anyvla.models.heads.trunk import ActionTrunk

WINDOW, CHUNK, QUERIES, WIDTH = 5, 3, 2, 8
MIXED = ActionSpec(
    "mixed", (ActionDim("grip", kind="binary"), ActionDim("x"), ActionDim("lamp", kind="binary"), ActionDim("y"))
)
HEADS = {
    "fc": FCHeadConfig(hidden=16, trunk=[16]),
    "lstm": LSTMHeadConfig(hidden=16, layers=2, trunk=[16]),
}
every_head = pytest.mark.parametrize("kind", HEADS)


def make(kind: str, spec: ActionSpec = ARM7, window: int = WINDOW) -> Head:
    torch.manual_seed(0)
    return make_head(HEADS[kind], WIDTH, QUERIES, spec, window, CHUNK, True, LossConfig()).double().eval()


def episodes(batch: int, steps: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, steps, QUERIES, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_lstm_head_has_the_size_of_the_published_one() -> None:
    with torch.device("meta"):
        head = make_head(LSTMHeadConfig(), 2048, 1, ARM7, 8, 10, True, LossConfig())
    assert sum(p.numel() for p in head.parameters()) == 41_210_950


@every_head
@torch.no_grad()
def test_streaming_equals_windowed(kind: str) -> None:
    head = make(kind)
    features = episodes(3, 12)
    states = [head.init_state() for _ in range(3)]
    for t in range(12):
        streamed, states = head.step(features[:, t], states)
        windowed = head.sample(features[:, max(0, t - WINDOW + 1) : t + 1])[:, -1]
        torch.testing.assert_close(streamed, windowed, atol=1e-6, rtol=0)
        assert all(len(state.features) == min(t + 1, head.history) for state in states)


@every_head
@torch.no_grad()
def test_the_batch_may_change_between_any_two_steps(kind: str) -> None:
    """Episodes that begin late, pause, end and change places get what they would have got alone."""
    head = make(kind)
    features = episodes(4, 8)
    alone = []
    for episode in features:
        state = head.init_state()
        for step in episode:
            out, (state,) = head.step(step[None], [state])
            alone.append(out[0])
    states = {i: head.init_state() for i in range(4)}
    seen = dict.fromkeys(range(4), 0)
    order = torch.Generator().manual_seed(1)
    while any(count < 8 for count in seen.values()):
        left = [i for i in seen if seen[i] < 8]
        rows = [left[i] for i in torch.randperm(len(left), generator=order)[: max(1, len(left) - 1)]]
        out, after = head.step(torch.stack([features[i, seen[i]] for i in rows]), [states[i] for i in rows])
        for row, i in enumerate(rows):
            torch.testing.assert_close(out[row], alone[8 * i + seen[i]], atol=1e-6, rtol=0)
            states[i] = after[row]
            seen[i] += 1


@every_head
@torch.no_grad()
def test_a_step_does_not_see_the_future_and_history_matters_where_promised(kind: str) -> None:
    head = make(kind)
    features = episodes(1, WINDOW)
    changed = features.clone()
    changed[:, 3:] += 1
    torch.testing.assert_close(head.sample(features)[:, :3], head.sample(changed)[:, :3], atol=1e-12, rtol=0)
    changed = features.clone()
    changed[:, 0] += 1
    remembered = not torch.equal(head.sample(features)[:, -1], head.sample(changed)[:, -1])
    assert remembered == (head.history > 1)


@every_head
@torch.no_grad()
def test_a_step_leaves_the_states_it_was_given_alone(kind: str) -> None:
    head = make(kind)
    first = head.init_state()
    _, (second,) = head.step(episodes(1, 1)[:, 0], [first])
    before = second.features.clone()
    head.step(episodes(1, 1, seed=1)[:, 0], [second])
    assert first.features is None
    assert torch.equal(second.features, before)


@every_head
@pytest.mark.parametrize(
    "spec", [NAV2, ARM7, MIXED, ActionSpec("switch", (ActionDim("on", kind="binary"),))], ids=lambda s: s.name
)
def test_the_loss_falls_and_samples_come_near_the_actions(kind: str, spec: ActionSpec) -> None:
    head = make(kind, spec, window=2).float().train()
    features = episodes(2, 2).float()
    actions = torch.rand(2, 2, CHUNK, len(spec), generator=torch.Generator().manual_seed(2)) * 1.6 - 0.8
    binary = torch.from_numpy(spec.binary)
    actions = torch.where(binary, (actions > 0).float(), actions)
    mask = torch.ones(2, 2, CHUNK, dtype=torch.bool)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(200):
        loss, _ = head.loss(features, actions, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    error = (head.eval().sample(features) - actions).abs()
    assert (error[..., binary] == 0).all()
    assert error[..., ~binary].sum() <= 0.15 * error[..., ~binary].numel()


@every_head
def test_what_the_mask_hides_has_no_influence_on_the_loss(kind: str) -> None:
    head = make(kind)
    features = episodes(2, WINDOW)
    actions = torch.full((2, WINDOW, CHUNK, len(ARM7)), 0.5, dtype=torch.float64)
    mask = torch.ones(2, WINDOW, CHUNK, dtype=torch.bool)
    mask[0, 3:], mask[1, :, 2:] = False, False
    losses = []
    for hidden in (0.0, 77.0, torch.nan, torch.inf):
        torch.manual_seed(3)
        losses.append(head.loss(features, torch.where(mask[..., None], actions, hidden), mask)[0].item())
    assert losses == [losses[0]] * 4
    nothing, parts = head.loss(features, actions, torch.zeros_like(mask))
    nothing.backward()
    assert nothing.item() == 0
    assert all(part.item() == 0 for part in parts.values())
    assert all(p.grad is None or (p.grad == 0).all() for p in head.parameters())


def test_outputs_are_in_the_order_of_the_spec_and_bounded_where_asked() -> None:
    trunk = ActionTrunk(4, [8], MIXED, chunk=2, bounded=True)
    for parameter in trunk.continuous.parameters():
        parameter.data.fill_(10.0)
    for parameter in trunk.binary.parameters():
        parameter.data.fill_(10.0)
    out = trunk(torch.ones(1, 4))[0, 0]
    assert out[1] == out[3] == 1.0
    assert out[0] > 100
    assert out[2] > 100
    linear = ActionTrunk(4, [8], NAV2, chunk=2, bounded=False)
    for parameter in linear.parameters():
        parameter.data.fill_(10.0)
    assert linear(torch.ones(1, 4)).min() > 100
