import pytest
import torch

from anyvla.actions import ARM7, NAV2, ActionDim, ActionSpec
from anyvla.config import FCHeadConfig, LSTMHeadConfig
from anyvla.models.heads.base import HeadState
from anyvla.models.heads.fc import FCHead
from anyvla.models.heads.lstm import LSTMHead
from anyvla.models.heads.trunk import ActionTrunk


def _make(kind: str, queries: int = 2, window: int = 5):
    torch.manual_seed(0)
    if kind == "fc":
        return FCHead(FCHeadConfig(hidden=16, trunk=[16]), 8, queries, ARM7, window, 3, True).double().eval()
    return LSTMHead(LSTMHeadConfig(hidden=16, layers=2, trunk=[16]), 8, queries, ARM7, window, 3, True).double().eval()


def test_the_lstm_head_has_the_size_of_the_published_one() -> None:
    with torch.device("meta"):
        head = LSTMHead(LSTMHeadConfig(), 2048, 1, ARM7, 8, 10, True)
    assert sum(p.numel() for p in head.parameters()) == 41_210_950


@pytest.mark.parametrize("kind", ["fc", "lstm"])
def test_streaming_equals_windowed(kind: str) -> None:
    head = _make(kind)
    episode = torch.randn(3, 12, 2, 8).double()
    state = head.init_state(3, (2, 8), torch.device("cpu"))
    for t in range(12):
        streamed, state = head.step(episode[:, t], state)
        windowed = head(episode[:, max(0, t - 4) : t + 1])[:, -1]
        torch.testing.assert_close(streamed, windowed, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["fc", "lstm"])
def test_episodes_at_different_steps_share_a_batch(kind: str) -> None:
    head = _make(kind)
    episode = torch.randn(2, 9, 2, 8).double()
    alone, late = (head.init_state(1, (2, 8), torch.device("cpu")) for _ in range(2))
    for t in range(4):
        _, alone = head.step(episode[:1, t], alone)
    for t in range(4, 9):
        together = HeadState.cat([alone, late])
        out, together = head.step(torch.stack([episode[0, t], episode[1, t - 4]]), together)
        alone, late = together.split()
    torch.testing.assert_close(out[0], head(episode[:1, 4:9])[0, -1], atol=1e-6, rtol=0)
    torch.testing.assert_close(out[1], head(episode[1:, :5])[0, -1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["fc", "lstm"])
def test_a_step_does_not_see_the_future(kind: str) -> None:
    head = _make(kind)
    features = torch.randn(1, 5, 2, 8).double()
    changed = features.clone()
    changed[:, 3:] += 1
    torch.testing.assert_close(head(features)[:, :3], head(changed)[:, :3], atol=0, rtol=0)


def test_a_step_leaves_the_state_it_was_given_alone() -> None:
    head = _make("lstm")
    state = head.init_state(1, (2, 8), torch.device("cpu"))
    head.step(torch.randn(1, 2, 8).double(), state)
    assert state.count.tolist() == [0]
    assert (state.features == 0).all()


def test_outputs_are_in_the_order_of_the_spec_and_bounded_where_asked() -> None:
    spec = ActionSpec(
        "mixed", (ActionDim("grip", kind="binary"), ActionDim("x"), ActionDim("lamp", kind="binary"), ActionDim("y"))
    )
    trunk = ActionTrunk(4, [8], spec, chunk=2, bounded=True)
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
