import copy

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from anyvla.actions import ARM7, NAV2, ActionDim, ActionSpec
from anyvla.config import parse_config
from anyvla.config.model import FCHeadConfig, FlowHeadConfig, GPTHeadConfig, LossConfig, LSTMHeadConfig
from anyvla.errors import ConfigError
from anyvla.models.heads.base import Head, HeadSizes
from anyvla.models.heads.make import HeadConfig, make_head
from anyvla.models.heads.trunk import ActionTrunk

WINDOW, CHUNK, QUERIES, WIDTH = 5, 3, 2, 8
MIXED = ActionSpec(
    "mixed", (ActionDim("grip", kind="binary"), ActionDim("x"), ActionDim("lamp", kind="binary"), ActionDim("y"))
)
HEADS = {
    "fc": FCHeadConfig(hidden=16, trunk=[16]),
    "lstm": LSTMHeadConfig(hidden=16, layers=2, trunk=[16]),
    "gpt": GPTHeadConfig(hidden=32, layers=2, attention_heads=4, trunk=[16]),
    "flow": FlowHeadConfig(hidden=32, layers=1, attention_heads=4, steps=10),
}
every_head = pytest.mark.parametrize("kind", HEADS)


def make(kind: str, spec: ActionSpec = ARM7, window: int = WINDOW) -> Head:
    torch.manual_seed(0)
    return make_head(HEADS[kind], HeadSizes(WIDTH, QUERIES, spec, window, CHUNK, True), LossConfig()).double().eval()


def episodes(batch: int, steps: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, steps, QUERIES, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters_of(head: Head) -> dict[str, torch.Tensor]:
    """Random values in every parameter, small biases and norms included."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3)
    return dict(head.named_parameters())


def mlp(p: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    """Linear layers p[name.0], p[name.2], ... with ReLU between."""
    layers = sorted(int(key.split(".")[-2]) for key in p if key.startswith(f"{name}.") and key.endswith("weight"))
    for i in layers:
        x = x @ p[f"{name}.{i}.weight"].T + p[f"{name}.{i}.bias"]
        x = x.clamp(min=0) if i != layers[-1] else x
    return x


def trunk(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """ARM7's: tanh of the continuous part, logits of the gripper; x (..., h) -> (..., L, 7)."""
    arm = mlp(p, "trunk.continuous", x).tanh().unflatten(-1, (CHUNK, 6))
    return torch.cat([arm, mlp(p, "trunk.binary", x)[..., None]], dim=-1)


@torch.no_grad()
def test_the_fc_head_is_the_published_formula() -> None:
    head = make("fc")
    p = parameters_of(head)
    features = episodes(2, WINDOW)
    torch.testing.assert_close(head(features), trunk(p, mlp(p, "mlp", features.flatten(2))), atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_lstm_head_is_the_published_formula() -> None:
    head = make("lstm")
    p = parameters_of(head)
    features = episodes(2, WINDOW)
    outputs = list(features.flatten(2).unbind(1))
    for layer in range(2):
        hidden = cell = torch.zeros(2, 16, dtype=torch.float64)
        for t, x in enumerate(outputs):
            gates = x @ p[f"rnn.weight_ih_l{layer}"].T + hidden @ p[f"rnn.weight_hh_l{layer}"].T
            gates = gates + p[f"rnn.bias_ih_l{layer}"] + p[f"rnn.bias_hh_l{layer}"]
            i, f, g, o = gates.chunk(4, dim=-1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            outputs[t] = hidden = o.sigmoid() * cell.tanh()
    torch.testing.assert_close(head(features), trunk(p, torch.stack(outputs, dim=1)), atol=1e-12, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("hidden", [32, WIDTH * QUERIES])
def test_the_gpt_head_is_gpt2(hidden: int) -> None:
    config = GPTHeadConfig(hidden=hidden, layers=2, attention_heads=4, trunk=[16])
    head = make_head(config, HeadSizes(WIDTH, QUERIES, ARM7, WINDOW, CHUNK, True), LossConfig()).double().eval()
    p = parameters_of(head)
    gpt2 = GPT2Model(GPT2Config(vocab_size=1, n_positions=WINDOW, n_embd=hidden, n_layer=2, n_head=4)).double().eval()
    gpt2.load_state_dict({"wte.weight": torch.zeros(1, hidden), **head.gpt.state_dict()}, strict=True)
    features = episodes(2, WINDOW)
    x = features.flatten(2)
    if hidden != WIDTH * QUERIES:  # else there is no projection in front
        x = x @ p["project.weight"].T + p["project.bias"]
    torch.testing.assert_close(head(features), trunk(p, gpt2(inputs_embeds=x)[0]), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("config", "size"), [(FCHeadConfig(), 6_577_222), (LSTMHeadConfig(), 41_210_950), (GPTHeadConfig(), 106_307_654)]
)
def test_heads_have_the_size_of_the_published_ones(config: HeadConfig, size: int) -> None:
    with torch.device("meta"):
        head = make_head(config, HeadSizes(2048, 1, ARM7, 8, 10, True), LossConfig())
    assert sum(p.numel() for p in head.parameters()) == size


def test_a_width_that_does_not_divide_into_heads_is_refused() -> None:
    for kind in ("gpt", "flow"):
        with pytest.raises(ConfigError, match="hidden 100 does not divide into attention_heads 8"):
            parse_config("{}", [f"model.head={{type: {kind}, hidden: 100}}"])


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
        held = [state.hidden.shape[1] if kind == "lstm" else len(state.features) for state in states]
        assert held == [min(t + 1, head.history)] * 3


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
    before = copy.deepcopy(vars(second))
    head.step(episodes(1, 1, seed=1)[:, 0], [second])
    assert all(value is None for value in vars(first).values())
    assert all(torch.equal(value, before[name]) for name, value in vars(second).items())


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
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(300):
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
    trunk = ActionTrunk(4, [8], HeadSizes(4, 1, MIXED, window=1, chunk=2, bounded=True))
    for parameter in trunk.continuous.parameters():
        parameter.data.fill_(10.0)
    for parameter in trunk.binary.parameters():
        parameter.data.fill_(10.0)
    out = trunk(torch.ones(1, 4))[0, 0]
    assert out[1] == out[3] == 1.0
    assert out[0] > 100
    assert out[2] > 100
    linear = ActionTrunk(4, [8], HeadSizes(4, 1, NAV2, window=1, chunk=2, bounded=False))
    for parameter in linear.parameters():
        parameter.data.fill_(10.0)
    assert linear(torch.ones(1, 4)).min() > 100


@torch.no_grad()
def test_flow_integrates_a_velocity_that_leads_straight_from_noise_to_actions() -> None:
    """With the velocity of a known target, (a - x) / (1 - tau), Euler's last step lands on it."""
    head = make("flow", NAV2)
    target = torch.rand(2, WINDOW, CHUNK, len(NAV2), dtype=torch.float64) - 0.5
    times = []

    def velocity(x: torch.Tensor, time: torch.Tensor, *_: object) -> torch.Tensor:
        times.append(time[0, 0].item())
        return (target - x) / (1 - time[..., None, None])

    head._velocity = velocity
    torch.testing.assert_close(head(episodes(2, WINDOW)), target, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.tensor(times), torch.arange(10) / 10)


def test_flow_is_trained_towards_actions_minus_noise() -> None:
    """A velocity of zero leaves the loss E|a - eps|^2 = |a|^2 + 1; binary dimensions count as -1 and +1."""
    head = make("flow", ARM7)
    torch.nn.init.zeros_(head.velocity_out[1].weight)
    torch.nn.init.zeros_(head.velocity_out[1].bias)
    actions = torch.full((40, WINDOW, CHUNK, 7), 0.5)
    actions[..., 6] = 0.0
    mask = torch.ones(actions.shape[:3], dtype=torch.bool)
    loss, parts = head.loss(episodes(40, WINDOW), actions, mask)
    assert loss.item() == pytest.approx((6 * 0.25 + 1) / 7 + 1, rel=0.02)
    assert parts == {"flow": loss}


@pytest.mark.parametrize(("times", "mean"), [("uniform", 0.5), ("beta", 0.4)])
def test_flow_trains_at_times_of_the_chosen_distribution(times: str, mean: float) -> None:
    config = FlowHeadConfig(hidden=8, layers=1, attention_heads=1, times=times)
    head = make_head(config, HeadSizes(WIDTH, QUERIES, NAV2, WINDOW, CHUNK, True), LossConfig())
    torch.manual_seed(0)
    drawn = head._draw_times(torch.Size([20_000]), torch.zeros(()))
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() <= 1
    assert drawn.mean().item() == pytest.approx(mean, abs=0.01)  # 0.999 (1 - 1.5 / 2.5) for Beta(1.5, 1)
    assert (drawn < 0.5).float().mean().item() == pytest.approx(0.5 if times == "uniform" else 0.646, abs=0.01)


@torch.no_grad()
def test_flow_gives_the_same_actions_for_the_same_features_and_other_ones_for_other_noise() -> None:
    head = make("flow", NAV2)
    features = episodes(3, WINDOW)
    out = head(features)
    torch.manual_seed(5)
    assert torch.equal(head(features), out)
    torch.testing.assert_close(head(features[1:2]), out[1:2], atol=1e-12, rtol=0)
    assert torch.equal(head(features, torch.zeros_like(out)), out)  # from the centre of the noise, which pulls nowhere
    assert not torch.allclose(head(features, torch.randn(out.shape, dtype=out.dtype)), out)
    far = torch.full_like(out, 50.0)
    assert head(features, far).abs().max() == 1
    head.bounded = False
    assert head(features, far).abs().max() > 1


def test_flow_shows_padded_actions_to_no_real_one() -> None:
    """The prediction at a real place is the same whatever stands at the padded places of the chunk."""
    head = make("flow", NAV2)
    features = episodes(1, WINDOW)
    memory, visible = head._memory(features), torch.ones(1, WINDOW, WINDOW, dtype=torch.bool).tril()
    x = torch.randn(1, WINDOW, CHUNK, len(NAV2), dtype=torch.float64)
    real = torch.rand(1, WINDOW, CHUNK) > 0.4
    assert real.any()
    assert not real.all()
    time = torch.rand(1, WINDOW, dtype=torch.float64)
    before = head._velocity(x, time, memory, visible, real)
    after = head._velocity(torch.where(real[..., None], x, 9.0), time, memory, visible, real)
    torch.testing.assert_close(before[real], after[real], atol=1e-12, rtol=0)
    seen = head._velocity(torch.where(real[..., None], x, 9.0), time, memory, visible)
    assert not torch.allclose(before[real], seen[real])


def test_flow_repeats_its_draws_from_the_seed() -> None:
    head = make("flow", NAV2)
    actions, mask = torch.zeros(2, WINDOW, CHUNK, 2), torch.ones(2, WINDOW, CHUNK, dtype=torch.bool)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(head.loss(episodes(2, WINDOW), actions, mask)[0].item())
    assert losses[0] == losses[1] != losses[2]
