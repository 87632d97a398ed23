from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from anyvla.actions import ARM7, NAV2
from anyvla.config import load_config
from anyvla.config.tree import EnsembleConfig, FirstActionConfig, PolicyConfig, RecedingHorizonConfig, SafetyConfig
from anyvla.errors import AnyVLAError, ConfigError, DataError
from anyvla.policies.execution import make_execution
from anyvla.policies.policy import Policy
from anyvla.policies.safety import SafetyFilter
from anyvla.training.loop import train


@pytest.fixture
def policy(make_episodes, tiny_overrides, tmp_path: Path) -> Policy:
    overrides = [
        *tiny_overrides,
        f"data.source.path={make_episodes(9, 9, 9)}",
        "training.steps=2",
        "policy.execution.type=first",
    ]
    return Policy.load(train(load_config("nav-tiny", overrides)))


def _images(seed: int) -> dict[str, np.ndarray]:
    return {"front": np.random.default_rng(seed).integers(0, 256, (36, 64, 3), dtype=np.uint8)}


def test_the_robot_gets_what_the_training_path_computes(policy: Policy) -> None:
    frames = [_images(t) for t in range(4)]
    policy.reset("Pass the box on the left.")
    actions = [policy.act(images) for images in frames]
    transforms = policy.transforms
    window = np.stack([transforms.images(images)["front"] for images in frames])
    batch = {"front": torch.from_numpy(window).permute(0, 3, 1, 2)[None]}
    with torch.inference_mode():
        actions_of_window = policy._model.predict(batch, [transforms.prompt("Pass the box on the left.")])
    expected = transforms.normalizer.denormalize(actions_of_window[0, :, 0].numpy())
    np.testing.assert_allclose(np.stack(actions), np.clip(expected, -1.15, 1.15), atol=1e-5)


def test_several_robots_in_one_batch_get_what_each_gets_alone(policy: Policy) -> None:
    instructions = ["Left.", "Pass the box on the right and stop at the ball."]
    alone = []
    for i, instruction in enumerate(instructions):
        policy.reset(instruction)
        alone.append([policy.act(_images(10 * i + t)) for t in range(6)])
    sessions = [policy.start(instruction) for instruction in instructions]
    policy.act_batch(sessions[:1], [_images(0)])  # the second robot starts a step later
    for t in range(1, 6):
        together = policy.act_batch(sessions, [_images(t), _images(10 + t - 1)])
        np.testing.assert_allclose(together[0], alone[0][t], atol=1e-5)
        np.testing.assert_allclose(together[1], alone[1][t - 1], atol=1e-5)


def test_reset_forgets(policy: Policy) -> None:
    policy.reset("Left.")
    first = policy.act(_images(0))
    policy.act(_images(1))
    policy.reset("Left.")
    np.testing.assert_array_equal(policy.act(_images(0)), first)


def test_the_spec_says_what_to_feed_it(policy: Policy) -> None:
    spec = policy.spec()
    assert spec.cameras == ("front",)
    assert spec.image_size == (32, 48)
    assert (spec.window, spec.chunk, spec.fps) == (4, 3, 2.5)
    assert [dim["name"] for dim in spec.to_dict()["action"]["dims"]] == ["linear_x", "linear_y"]


def test_wrong_use_is_answered_clearly(policy: Policy) -> None:
    with pytest.raises(AnyVLAError, match="reset"):
        policy.act(_images(0))
    policy.reset("Left.")
    with pytest.raises(DataError, match="lacks the camera 'front'"):
        policy.act({})


def test_a_stale_observation_stops_the_robot(policy: Policy) -> None:
    policy.reset("Left.")
    policy.act(_images(0))
    np.testing.assert_array_equal(policy.act(_images(1), observation_age=5.0), [0, 0])
    assert policy._session.last.stop == "stale_observation"


def test_weights_gone_bad_stop_the_robot(policy: Policy) -> None:
    for parameter in policy._model.head.parameters():
        parameter.data.fill_(float("nan"))
    policy.reset("Left.")
    np.testing.assert_array_equal(policy.act(_images(0)), [0, 0])
    assert policy._session.last.stop == "non_finite_action"


@pytest.mark.parametrize("execution", [RecedingHorizonConfig(steps=3), EnsembleConfig(decay=0.2)], ids=["receding", "ensemble"])
def test_execution_goes_over_the_chunks_that_the_model_predicts(policy: Policy, execution) -> None:
    policy.reset("Left.")
    chunks = []
    for t in range(5):
        policy.act(_images(t))
        chunks.append(policy._session.chunk)
    expected = make_execution(execution, NAV2)
    policy.config = policy.config.model_copy(update={"execution": execution})
    policy.reset("Left.")
    for t in range(5):
        np.testing.assert_allclose(policy.act(_images(t)), np.clip(expected.action(chunks[t]), -1.15, 1.15), atol=1e-5)


def test_every_safety_setting_acts(policy: Policy) -> None:
    def drive(execution, **safety) -> list[str | None]:
        config = PolicyConfig(execution=execution, safety=SafetyConfig(**safety))
        strict = Policy(policy._model, policy.transforms, config)
        strict.reset("Left.")
        causes = []
        for t in range(3):
            strict.act(_images(t), observation_age=0.3)
            causes.append(strict._session.last.stop)
        return causes

    receding = RecedingHorizonConfig(steps=3)
    assert drive(receding) == [None, None, None]
    assert drive(receding, max_observation_age=0.2) == ["stale_observation"] * 3
    # 0.4 s a step: the third action of a chunk was predicted 0.8 s before, from images that were 0.3 s old
    assert drive(receding, max_action_age=0.9) == [None, None, "stale_action"]
    with pytest.raises(ConfigError, match=r"executed 0\.8 s after it was predicted"):
        drive(receding, max_action_age=0.7)
    bound = SafetyFilter(policy.transforms.spec, 0.4, rate_limit=True)._largest_change
    for limit in (True, False):
        config = PolicyConfig(safety=SafetyConfig(rate_limit=limit))
        session = Policy(policy._model, policy.transforms, config).start("Left.")
        np.testing.assert_array_equal(session.safety._largest_change, bound if limit else [np.inf, np.inf])


class TestExecution:
    CHUNKS = [np.array([[10.0 * t + age, -t] for age in range(4)], dtype=np.float32) for t in range(6)]  # noqa: RUF012

    def _drive(self, config) -> list[float]:
        execution = make_execution(config, NAV2)
        return [float(execution.action(chunk)[0]) for chunk in self.CHUNKS]

    def test_first(self) -> None:
        assert self._drive(FirstActionConfig()) == [0, 10, 20, 30, 40, 50]

    def test_receding_horizon_executes_n_of_each_chunk(self) -> None:
        assert self._drive(RecedingHorizonConfig(steps=3)) == [0, 1, 2, 30, 31, 32]
        execution = make_execution(RecedingHorizonConfig(steps=2), NAV2)
        assert execution.needs_chunk()
        execution.action(self.CHUNKS[0])
        assert not execution.needs_chunk()
        execution.action(None)
        assert execution.needs_chunk()

    def test_ensemble_averages_all_predictions_for_the_moment(self) -> None:
        plain = self._drive(EnsembleConfig(decay=0.0))
        assert plain[0] == 0
        assert plain[1] == pytest.approx((10 + 1) / 2)
        assert plain[5] == pytest.approx((50 + 41 + 32 + 23) / 4)
        weights = np.exp(-0.5 * np.arange(4))
        assert self._drive(EnsembleConfig(decay=0.5))[5] == pytest.approx((weights @ [50, 41, 32, 23]) / weights.sum())

    def test_an_ensemble_decides_binary_dimensions(self) -> None:
        execution = make_execution(EnsembleConfig(decay=0.1), ARM7)
        grips = []
        for value in (1.0, 1.0, 0.0, 0.0):
            grips.append(float(execution.action(np.full((4, 7), value, np.float32))[-1]))
        assert grips[:2] == [1, 1]
        assert set(grips) == {0.0, 1.0}

    def test_ages_are_told(self) -> None:
        execution = make_execution(RecedingHorizonConfig(steps=3), NAV2)
        ages = []
        for chunk in self.CHUNKS:
            execution.action(chunk)
            ages.append(execution.age())
        assert ages == [0, 1, 2, 0, 1, 2]

    def test_in_the_policy_a_model_without_history_runs_only_when_a_chunk_is_due(self, policy: Policy, monkeypatch) -> None:
        calls = []
        original = policy._predict
        monkeypatch.setattr(policy, "_predict", lambda *arguments: (calls.append(1), original(*arguments)))
        policy.config = PolicyConfig(execution=RecedingHorizonConfig(steps=2))
        policy.reset("Left.")
        for t in range(4):
            policy.act(_images(t))
        assert len(calls) == 4  # the LSTM must see every frame
        monkeypatch.setattr(policy._model.head, "history", 1)
        policy.reset("Left.")
        for t in range(4):
            policy.act(_images(t))
        assert len(calls) == 6


class TestSafety:
    def test_what_is_within_limits_passes_unchanged(self) -> None:
        safe = SafetyFilter(NAV2, period=0.4).filter(np.array([0.5, -0.3], np.float32))
        np.testing.assert_allclose(safe.action, [0.5, -0.3], atol=1e-7)
        assert (safe.stop, safe.limited) == (None, ())

    def test_velocity_and_rate_limits_come_from_the_spec(self) -> None:
        guard = SafetyFilter(NAV2, period=0.2)  # 3 m/s^2 for 0.2 s: at most 0.6 m/s more
        safe = guard.filter(np.array([9.0, 0.1], np.float32))
        np.testing.assert_allclose(safe.action, [0.6, 0.1], atol=1e-6)
        assert safe.limited == ("linear_x",)
        np.testing.assert_allclose(guard.filter(np.array([9.0, 0.1])).action, [1.15, 0.1], atol=1e-6)
        free = SafetyFilter(NAV2, period=0.2, rate_limit=False)
        np.testing.assert_allclose(free.filter(np.array([9.0, 0.1])).action, [1.15, 0.1], atol=1e-6)

    @pytest.mark.parametrize(
        ("action", "ages", "cause"),
        [
            ([np.nan, 0.0], {}, "non_finite_action"),
            ([0.0, np.inf], {}, "non_finite_action"),
            ([0.1, 0.1], {"observation_age": 1.5}, "stale_observation"),
            ([0.1, 0.1], {"observation_age": np.nan}, "stale_observation"),
            ([0.1, 0.1], {"action_age": 1.5}, "stale_action"),
        ],
    )
    def test_every_doubt_is_a_stop(self, action, ages, cause) -> None:
        guard = SafetyFilter(NAV2, period=0.4)
        guard.filter(np.array([0.5, 0.5]))
        safe = guard.filter(np.array(action), **ages)
        assert safe.stop == cause
        np.testing.assert_array_equal(safe.action, [0, 0])
        assert guard.filter(np.array([0.1, 0.0])).stop is None

    def test_a_stopped_arm_keeps_its_gripper(self) -> None:
        guard = SafetyFilter(ARM7, period=0.1)
        guard.filter(np.array([0.1] * 6 + [1.0]))
        safe = guard.filter(np.full(7, np.nan))
        np.testing.assert_array_equal(safe.action, [0] * 6 + [1])


def test_chunks_are_what_act_chooses_from(policy: Policy) -> None:
    policy.reset("Left.")
    acted = []
    for t in range(4):
        policy.act(_images(t))
        acted.append(policy._session.chunk)
    with pytest.raises(AnyVLAError, match="before chunk"):
        Policy(policy.model, policy.transforms, policy.config).chunk(_images(0))
    policy.reset("Left.")
    for t in range(4):
        chunk = policy.chunk(_images(t))
        assert chunk.shape == (policy.spec().chunk, 2)
        np.testing.assert_array_equal(chunk, acted[t])  # the memory moves on by one step, as in act
    sessions = [policy.start("Left."), policy.start("Left.")]
    for t in range(4):
        for chunk in policy.chunk_batch(sessions, [_images(t)] * 2):
            np.testing.assert_allclose(chunk, acted[t], atol=1e-5)
